"""Measure speed: python tools/benchmark.py data [--config C] [--data-path DIR] [--images N] [--json FILE] [KEY VALUE].

`data` times the input pipeline of a config beside a plain one, Pillow with paddle.vision.transforms, by turns in the
same run: where a machine drifts or does other work too, only such ratios mean something.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import time
from pathlib import Path
from unittest import mock

from cli import common_parser, first_word, import_paddle, run

BATCHES_OF_A_WORKER = 4  # in a round of the loaders, whose processes deliver in bursts
PASSES = 4  # of the device's part in a round
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(args, cfg):
    from engine import parallel
    from engine.logger import setup_logging
    from errors import UserError
    from files import check_writable, write_text

    for name, value, least in (("images", args.count, 1), ("rounds", args.rounds, 1), ("workers", args.workers, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} is {value} but must be {least} or more")
    if args.json:
        check_writable(args.json)
    parallel.setup(cfg)
    setup_logging()
    report = BENCHMARKS[args.words](args, cfg)
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")


def benchmark_data(args, cfg):
    """Measure the input pipeline, print it part by part, and return all figures."""
    from config import with_classes
    from data.dataset import load_data
    from engine.logger import log

    classes, splits = load_data(cfg)
    cfg = with_classes(cfg, len(classes))
    pictures = choose_pictures(splits, args.count)
    read_all(pictures.paths)
    report = {}
    parts = (
        ("machine", machine_lines, describe_machine),
        ("pictures", picture_lines, lambda: describe_pictures(cfg, pictures, args.rounds)),
        ("core", core_lines, lambda: on_one_core(measure_core, cfg, pictures, args.rounds)),
        ("stages", stage_lines, lambda: on_one_core(measure_stages, cfg, pictures, args.rounds)),
        ("device", device_lines, lambda: measure_device(cfg, pictures, args.rounds)),
        ("loaders", loader_lines, lambda: measure_loaders(cfg, pictures, args.rounds, worker_count(args, cfg))),
    )
    for name, lines, measure in parts:
        report[name] = measure()
        for line in lines(report[name]):
            log.info(line)
    return report


def worker_count(args, cfg):
    """Loader processes: as the command line has them, else one per core, whatever the config has."""
    if args.workers is not None:
        return args.workers
    return cfg.DATA.NUM_WORKERS if "DATA.NUM_WORKERS" in args.opts[::2] else CORES


# --- Pictures ---


def choose_pictures(splits, count):
    """A `Split` of `count` images: evenly from all training images, with those of val and repeated if they are few."""
    import numpy as np

    train, val = splits["train"], splits["val"]
    if len(train) >= count:
        return picked(train, np.linspace(0, len(train), count, endpoint=False).astype(int))
    both = dataclasses.replace(
        train, paths=[*train.paths, *val.paths], labels=np.concatenate([train.labels, val.labels])
    )
    return repeated(both, count)


def picked(split, indices):
    """The images of a `Split` at some indices."""
    from data.index import Paths

    return dataclasses.replace(split, paths=Paths.of(split.paths[i] for i in indices), labels=split.labels[indices])


def repeated(split, count):
    """The images of a `Split` again and again, `count` in all."""
    import numpy as np

    return picked(split, np.arange(count) % len(split))


def read_all(paths):
    """Read the files, so that what is timed after it finds them in memory."""
    from data.images import ImageError
    from errors import one_line

    for path in dict.fromkeys(paths):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"image {one_line(error)}") from None


def describe_machine():
    def version(package):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)

    import paddle

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    packages = ("numpy", "pillow", "simplejpeg", "cykooz.resizer")
    versions = {"paddle": paddle.__version__, **{package: version(package) for package in packages}}
    return {"cpu": cpu, "cores": CORES, "device": paddle.get_device(), "versions": versions}


def describe_pictures(cfg, pictures, rounds):
    from data.images import load_image, reader_name
    from files import shown

    sizes = [load_image(path).size for path in dict.fromkeys(pictures.paths)]
    width, height = (int(statistics.median(lengths)) for lengths in zip(*sizes))
    return {
        "config": cfg.NAME,
        "source": str(shown(pictures.source)),
        "files": len(sizes),
        "images": len(pictures),
        "rounds": rounds,
        "median_width": width,
        "median_height": height,
        "image_size": cfg.DATA.IMAGE_SIZE,
        "reader": reader_name(cfg.DATA.READER),
    }


# --- One core ---


def on_one_core(measure, *args):
    """The result of a function in a process of its own that has one core, and one thread in every library."""
    spawn = multiprocessing.get_context("spawn")  # libraries read how many threads to use when they are imported
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn, initializer=keep_to_one_core) as pool:
        return pool.submit(measure, *args).result()


def keep_to_one_core():
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import_paddle("cpu")
    import paddle

    from allocator import keep_freed_memory

    paddle.set_device("cpu")
    keep_freed_memory(256)  # as in a loader process; the baseline gains too


def measure_core(cfg, pictures, rounds):
    """Images per second of CPU time, from which other work on the machine takes nothing: ours, baseline, ratio."""
    ours, baseline = our_tasks(cfg, pictures), baseline_tasks(cfg, pictures)
    functions = {(task, side): side_tasks[task] for task in ours for side, side_tasks in enumerate((ours, baseline))}
    started, used = time.perf_counter(), time.process_time()
    rates = rates_by_turns(functions, len(pictures), rounds)
    used = (time.process_time() - used) / (time.perf_counter() - started)
    report = {"core_share": used}
    for task in ours:
        a, b = (summary(rates[task, side]) for side in range(2))
        report[task] = {"ours": a, "baseline": b, "ratio": a["median"] / b["median"]}
    return report


def our_tasks(cfg, pictures):
    """{task: function of a sample (epoch, index, copy) that reads one image as training or evaluation does}."""
    from data.images import JpegPicture, open_picture, simplejpeg
    from data.loader import EvalDataset, TrainDataset
    from errors import UserError

    def decode(sample):
        picture = open_picture(pictures.paths[sample[1]], cfg.DATA.CHANNELS, cfg.DATA.READER)
        if isinstance(picture, JpegPicture):  # any other is decoded by now
            simplejpeg.decode_jpeg(picture.data, "RGB")

    def checked(fields):
        if fields[-1]:
            raise UserError(fields[-1])

    crop = TrainDataset(pictures, changed(cfg, "AUG.AUTO_AUGMENT", "", "AUG.COLOR_JITTER", 0.0, "AUG.ERASE_PROB", 0.0))
    full, evaluation = TrainDataset(pictures, cfg), EvalDataset(pictures, cfg)
    return {
        "decode": decode,
        "crop and flip": lambda sample: checked(crop[sample]),
        "full recipe": lambda sample: checked(full[sample]),
        "full, to pixels": lambda sample: checked(full[sample]),
        "evaluation": lambda sample: checked(evaluation[sample[1]]),
    }


def baseline_tasks(cfg, pictures):
    """The same tasks with Pillow and paddle.vision.transforms, up to the normalised tensor or to uint8 pixels."""
    import numpy as np
    from paddle.vision import transforms
    from PIL import Image

    from data.augment import build_augment

    def task(*steps):
        compose = transforms.Compose(steps)
        return lambda sample: compose(load(sample))

    def load(sample):
        with Image.open(pictures.paths[sample[1]]) as image:
            return image.convert("RGB" if cfg.DATA.CHANNELS == 3 else "L")

    aug, size, rng = cfg.AUG, cfg.DATA.IMAGE_SIZE, np.random.default_rng(cfg.SEED)
    resized = math.floor(size / cfg.VAL.CROP_PCT) if cfg.VAL.CROP_MODE == "center" else (size, size)
    crop = (transforms.RandomResizedCrop(size, aug.SCALE, aug.RATIO), transforms.RandomHorizontalFlip(aug.HFLIP))
    augment = [lambda image, step=step: step(image, rng) for step in build_augment(cfg)]
    to_tensor = (transforms.ToTensor(), transforms.Normalize(cfg.DATA.MEAN, cfg.DATA.STD))
    erase = transforms.RandomErasing(aug.ERASE_PROB, value="random" if aug.ERASE_MODE == "pixel" else 0)
    resize = (transforms.Resize(resized, cfg.VAL.INTERPOLATION), transforms.CenterCrop(size))
    return {
        "decode": load,
        "crop and flip": task(*crop, *to_tensor),
        "full recipe": task(*crop, *augment, *to_tensor, erase),
        "full, to pixels": task(*crop, *augment, np.asarray),
        "evaluation": task(*resize, *to_tensor),
    }


def changed(cfg, *pairs):
    """A copy of the config with other values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(pairs))
    cfg.freeze()
    return cfg


def rates_by_turns(functions, count, rounds):
    """{name: calls per second of CPU time in each round} of functions of a sample, which take turns."""
    for function in functions.values():
        function((0, 0, 0))  # a first call loads what later ones find
    rates = {name: [] for name in functions}
    for epoch in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            for index in range(count):
                function((epoch, index, 0))
            rates[name].append(count / (time.process_time() - start))
    return rates


def summary(values):
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "rounds": values}


# --- Stages of the full recipe ---


class Stopwatch:
    """Seconds of CPU time of each stage of something that runs many times."""

    def __init__(self):
        self.seconds, self.last = {}, time.process_time()

    def lap(self, stage):
        """Count the time since the last lap for a stage; None: for none."""
        now = time.process_time()
        self.add(stage, now - self.last)
        self.last = time.process_time()

    def add(self, stage, seconds):
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def measure_stages(cfg, pictures, rounds):
    """Milliseconds per image and share of each stage of the full recipe."""
    from data.loader import TrainDataset, collate_train

    dataset, watch = TrainDataset(pictures, cfg), Stopwatch()
    with timed_decoding(watch):
        staged(dataset, (0, 0, 0), watch)
        watch.seconds.clear()
        for epoch in range(rounds):
            samples = [(epoch, index, 0) for index in range(len(pictures))]
            for start in range(0, len(samples), cfg.TRAIN.BATCH_SIZE):
                fields = [staged(dataset, sample, watch) for sample in samples[start : start + cfg.TRAIN.BATCH_SIZE]]
                watch.lap("between images")
                collate_train(fields)
                watch.lap("collate")
    seconds = watch.seconds
    del seconds["between images"]
    seconds["decode"] -= seconds["read file"]  # opening a picture has read the file once more
    whole, images = sum(seconds.values()), rounds * len(pictures)
    return {stage: {"milliseconds": 1000 * value / images, "share": value / whole} for stage, value in seconds.items()}


def staged(dataset, sample, watch):
    """What `dataset[sample]` returns, with a lap of the stopwatch after each stage."""
    from data.images import open_picture, to_array, to_image
    from data.seeding import TRANSFORM, generator
    from data.transforms import mirrored

    transform, index = dataset.transform, sample[1]
    watch.lap("between images")
    Path(dataset.split.paths[index]).read_bytes()
    watch.lap("read file")
    picture = open_picture(dataset.split.paths[index], dataset.channels, dataset.reader)
    watch.lap("decode")
    rng = generator(dataset.seed, TRANSFORM, sample)
    pixels = transform.crop(picture, rng)
    watch.lap("crop and resize")  # and decode, which `timed_decoding` moves to its own stage
    if rng.random() < transform.hflip:
        pixels = mirrored(pixels)
    watch.lap("flip")
    if transform.augment:
        image = to_image(pixels)
        for augment in transform.augment:
            image = augment(image, rng)
        pixels = to_array(image)
    watch.lap("augment")
    boxes = dataset.erasing.draw_boxes(rng)
    watch.lap("draw")
    return pixels, dataset.split.labels[index], boxes, sample, "", ""


def timed_decoding(watch):
    """While it lasts, the decoding within `JpegPicture.crop` counts as a stage of its own."""
    from data.images import simplejpeg

    if not simplejpeg:
        return contextlib.nullcontext()
    decode_jpeg = simplejpeg.decode_jpeg

    def timed(*args, **options):
        start = time.process_time()
        try:
            return decode_jpeg(*args, **options)
        finally:
            seconds = time.process_time() - start
            watch.add("decode", seconds)
            watch.add("crop and resize", -seconds)

    return mock.patch.object(simplejpeg, "decode_jpeg", timed)


# --- The device's part, and all together ---


def measure_device(cfg, pictures, rounds):
    """Milliseconds per batch of what is left to the device: normalise, erase, mix."""
    from data.batch import TrainInput
    from data.loader import TrainLoader

    size = cfg.TRAIN.BATCH_SIZE
    alone = changed(cfg, "DATA.NUM_WORKERS", 0, "TRAIN.ACCUM_STEPS", 1)
    batch = next(TrainLoader(repeated(pictures, size), alone).epoch_steps(0))[0]
    prepare, milliseconds = TrainInput(cfg), []
    for number in range(rounds + 1):
        start = time.perf_counter()
        for step in range(PASSES):
            images, _ = prepare(dataclasses.replace(batch, sample=(0, number, step)))
            images[0, 0, 0, 0].item()  # waits for a device that works on its own
        milliseconds.append(1000 * (time.perf_counter() - start) / PASSES)
    report = summary(milliseconds[1:])  # the first round loads kernels
    return {"batch_size": size, "milliseconds": report, "images_per_second": 1000 * size / report["median"]}


def measure_loaders(cfg, pictures, rounds, workers):
    """Images per second that reach the training process from all loader processes."""
    from data.loader import EvalLoader, TrainLoader

    cfg = changed(cfg, "DATA.NUM_WORKERS", workers, "TRAIN.ACCUM_STEPS", 1)
    per_round = BATCHES_OF_A_WORKER * max(1, workers)
    train = TrainLoader(repeated(pictures, per_round * cfg.TRAIN.BATCH_SIZE), cfg, epochs=rounds + 2)
    steps = itertools.chain.from_iterable(map(train.epoch_steps, range(rounds + 1)))
    report = {"workers": workers, "train": delivery((step[0].images for step in steps), per_round, rounds)}
    evaluation = EvalLoader(repeated(pictures, (rounds + 2) * per_round * cfg.VAL.BATCH_SIZE), cfg)
    report["eval"] = delivery((images for images, _ in evaluation), per_round, rounds)
    sizes = {"train": cfg.TRAIN.BATCH_SIZE, "eval": cfg.VAL.BATCH_SIZE}
    return {**report, "batch_size": sizes, "images_per_round": {key: per_round * size for key, size in sizes.items()}}


def delivery(batches, per_round, rounds):
    """Images per second of an iterator of batches that goes on after the last round, so that all rounds are alike."""
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        images = sum(batch.shape[0] for batch in itertools.islice(batches, per_round))
        rates.append(images / (time.perf_counter() - start))
    return summary(rates[1:])  # the first round waits for the processes to start


# --- What is told ---


def machine_lines(machine):
    versions = (f"{package} {version or 'not installed'}" for package, version in machine["versions"].items())
    yield f"machine: {machine['cpu']}, {machine['cores']} cores, device {machine['device']}"
    yield f"versions: {', '.join(versions)}"


def picture_lines(pictures):
    yield (
        f"pictures: {pictures['images']} images from {pictures['files']} files of {pictures['source']}, median "
        f"{pictures['median_width']}x{pictures['median_height']} pixels, reader {pictures['reader']}"
    )
    yield (
        f"config: {pictures['config']} at {pictures['image_size']}x{pictures['image_size']} pixels; rounds: "
        f"{pictures['rounds']}, figures: median (lowest .. highest)"
    )


def core_lines(core):
    yield ""
    yield f"{'images/s on one core':<22}{'ours':<30}{'Pillow + paddle.vision':<30}ratio"
    for task, row in core.items():
        if task != "core_share":
            yield f"  {task:<20}{spread(row['ours']):<30}{spread(row['baseline']):<30}{row['ratio']:.2f}"
    yield "  Ours are uint8, the rest is the device's part below; the baseline's are normalised, except 'to pixels'."
    yield f"  By CPU time; the measuring process had {core['core_share']:.0%} of its core."


def spread(figures):
    return f"{figures['median']:.1f} ({figures['lowest']:.1f} .. {figures['highest']:.1f})"


def stage_lines(stages):
    yield ""
    yield f"{'full recipe, one core':<22}{'ms/image':<12}share"
    for stage, row in stages.items():
        yield f"  {stage:<20}{row['milliseconds']:<12.3f}{row['share']:.1%}"


def device_lines(device):
    yield ""
    yield (
        f"device's part (normalise, erase, mix): {spread(device['milliseconds'])} ms for a batch of "
        f"{device['batch_size']}, {device['images_per_second']:.1f} images/s"
    )


def loader_lines(loaders):
    yield ""
    yield f"{'images/s in all':<22}loader processes: {loaders['workers']}"
    for name in ("train", "eval"):
        title = f"{name}, batches of {loaders['batch_size'][name]}"
        yield f"  {title:<26}{spread(loaders[name])}"


# --- Command ---

BENCHMARKS = {"data": benchmark_data}


def parser():
    parser = common_parser("Measure speed. data: the input pipeline.", batch_size_key="TRAIN.BATCH_SIZE")
    parser.usage = f"benchmark.py {{{','.join(BENCHMARKS)}}} [options] [KEY VALUE ...]"
    parser.add_argument(
        "--images", dest="count", type=int, default=256, metavar="N", help="images in a round; default 256"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="timed rounds; default 5")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="loader processes; default DATA.NUM_WORKERS if given, else one per core",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON, complete or not at all")
    return parser


if __name__ == "__main__":
    run(main, parser(), split_words=first_word("benchmark", BENCHMARKS))
