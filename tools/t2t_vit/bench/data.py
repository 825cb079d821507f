"""The input pipeline of a config, part by part."""

import dataclasses
import itertools
import statistics
import time

import numpy as np

from t2t_vit.bench.machine import CORES, describe_machine, machine_lines
from t2t_vit.bench.one_core import core_lines, measure_core, measure_stages, stage_lines
from t2t_vit.bench.pictures import choose_pictures, read_all, repeated
from t2t_vit.bench.process import on_one_core
from t2t_vit.bench.rounds import finished, spread, summary
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log
from t2t_vit.config import with_classes, with_keys
from t2t_vit.data.batch import BatchDraws, TrainInput, to_tensors
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image, reader_name
from t2t_vit.data.loader import EvalLoader, TrainLoader

PACKAGES = ("numpy", "pillow", "simplejpeg", "cykooz.resizer")  # whose versions matter
BATCHES_OF_A_WORKER = 4  # in a round of the loaders, whose processes deliver in bursts
PASSES = 4  # of the device's part in a round


def benchmark_data(args, cfg):
    """Measure the input pipeline, print it part by part, and return all figures."""
    classes, splits = load_data(cfg)
    cfg = with_classes(cfg, len(classes))
    pictures = choose_pictures(splits, args.images)
    read_all(pictures.paths)
    report = {}
    parts = (
        ("machine", machine_lines, lambda: describe_machine(PACKAGES)),
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


def describe_pictures(cfg, pictures, rounds):
    sizes = [load_image(path).size for path in dict.fromkeys(pictures.paths)]
    width, height = (int(statistics.median(lengths)) for lengths in zip(*sizes))
    return {
        "config": cfg.NAME,
        "source": str(display_path(pictures.source)),
        "files": len(sizes),
        "images": len(pictures),
        "rounds": rounds,
        "median_width": width,
        "median_height": height,
        "image_size": cfg.DATA.IMAGE_SIZE,
        "reader": reader_name(cfg.DATA.READER),
    }


# --- The device's part, and all together ---


def measure_device(cfg, pictures, rounds):
    """Milliseconds per batch of what is left to the device: normalise, erase, mix."""
    size = cfg.TRAIN.BATCH_SIZE
    alone = with_keys(cfg, {"DATA.NUM_WORKERS": 0, "TRAIN.ACCUM_STEPS": 1})
    batch = next(TrainLoader(repeated(pictures, size), alone).epoch_steps(0))[0]
    prepare, draw, milliseconds = TrainInput(cfg), BatchDraws(cfg), []
    boxes = np.stack([draw.erasing.draw_boxes(np.random.default_rng(place)) for place in range(size)])
    for number in range(rounds + 1):
        drawn = [to_tensors(draw(boxes, (0, number, step))) for step in range(PASSES)]
        start = time.perf_counter()
        for mixing, erasing in drawn:
            images, _ = prepare(dataclasses.replace(batch, mixing=mixing, erasing=erasing))
            finished(images)
        milliseconds.append(1000 * (time.perf_counter() - start) / PASSES)
    report = summary(milliseconds[1:])  # the first round loads kernels
    return {"batch_size": size, "milliseconds": report, "images_per_second": 1000 * size / report["median"]}


def measure_loaders(cfg, pictures, rounds, workers):
    """Images per second that reach the training process from all loader processes."""
    cfg = with_keys(cfg, {"DATA.NUM_WORKERS": workers, "TRAIN.ACCUM_STEPS": 1})
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


def picture_lines(pictures):
    yield (
        f"pictures: {pictures['images']} images from {pictures['files']} files of {pictures['source']}, median "
        f"{pictures['median_width']}x{pictures['median_height']} pixels, reader {pictures['reader']}"
    )
    yield (
        f"config: {pictures['config']} at {pictures['image_size']}x{pictures['image_size']} pixels; rounds: "
        f"{pictures['rounds']}, figures: median (lowest .. highest)"
    )


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
