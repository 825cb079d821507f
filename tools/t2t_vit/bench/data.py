"""The input pipeline of a config, part by part."""

import dataclasses
import itertools
import statistics
import time

import numpy as np

from t2t_vit.bench.one_core import core_lines, measure_core, measure_stages, stage_lines
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import finished, spread, summary
from t2t_vit.bench.samples import read_files, repeated
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log
from t2t_vit.common.runtime import cores
from t2t_vit.config import with_classes, with_keys
from t2t_vit.data.batch import BatchDraws, TrainInput, to_tensors
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image, reader_name
from t2t_vit.data.loader import EvalLoader, TrainLoader

BATCHES_OF_A_WORKER = 4  # batches per loader process in a round; several, because the processes deliver in bursts
PASSES = 4  # of the device's part in a round


def benchmark_data(args, cfg):
    """Measure the input pipeline, print it part by part, and return all figures."""
    classes, splits = load_data(cfg, ["train"])
    cfg, split = with_classes(cfg, len(classes)), repeated(splits["train"], args.images)
    read_files(split.paths)
    report = {"pictures": describe_pictures(cfg, split)}
    show(picture_lines(report["pictures"]))
    with Process("the input pipeline on one core", with_keys(cfg, {"DEVICE": "cpu"}), one_core=True) as process:
        report["core"] = process.run(measure_core, cfg, split, args.rounds)
        show(core_lines(report["core"]))
        report["stages"] = process.run(measure_stages, cfg, split, args.rounds)
        show(stage_lines(report["stages"]))
    report["device"] = measure_device(cfg, split, args.rounds)
    show(device_lines(report["device"]))
    report["loaders"] = measure_loaders(cfg, split, args.rounds, worker_count(args, cfg))
    show(loader_lines(report["loaders"]))
    return report


def show(lines):
    log.info("")
    for line in lines:
        log.info(line)


def worker_count(args, cfg):
    """Loader processes: those of the command line, else one per core, whatever the config says."""
    if args.workers is not None:
        return args.workers
    return cfg.DATA.NUM_WORKERS if "DATA.NUM_WORKERS" in args.opts[::2] else cores()


def describe_pictures(cfg, split):
    sizes = [load_image(path).size for path in dict.fromkeys(split.paths)]
    width, height = (int(statistics.median(lengths)) for lengths in zip(*sizes))
    return {
        "config": cfg.NAME,
        "image_size": cfg.DATA.IMAGE_SIZE,
        "source": str(display_path(split.source)),
        "files": len(sizes),
        "images": len(split),
        "median_width": width,
        "median_height": height,
        "reader": reader_name(cfg.DATA.READER),
    }


def measure_device(cfg, split, rounds):
    """Milliseconds per batch of what the device does: normalise, erase, mix."""
    size = cfg.TRAIN.BATCH_SIZE
    alone = with_keys(cfg, {"DATA.NUM_WORKERS": 0, "TRAIN.ACCUM_STEPS": 1})
    batch = next(TrainLoader(repeated(split, size), alone).epoch_steps(0))[0]
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


def measure_loaders(cfg, split, rounds, workers):
    """Images per second that reach the training process from all loader processes."""
    cfg = with_keys(cfg, {"DATA.NUM_WORKERS": workers, "TRAIN.ACCUM_STEPS": 1})
    per_round = BATCHES_OF_A_WORKER * max(1, workers)
    train = TrainLoader(repeated(split, per_round * cfg.TRAIN.BATCH_SIZE), cfg, epochs=rounds + 2)
    steps = itertools.chain.from_iterable(map(train.epoch_steps, range(rounds + 1)))
    evaluation = EvalLoader(repeated(split, (rounds + 2) * per_round * cfg.VAL.BATCH_SIZE), cfg)
    return {
        "workers": workers,
        "batch_size": {"train": cfg.TRAIN.BATCH_SIZE, "eval": cfg.VAL.BATCH_SIZE},
        "train": delivery((step[0].images for step in steps), per_round, rounds),
        "eval": delivery((images for images, _ in evaluation), per_round, rounds),
    }


def delivery(batches, per_round, rounds):
    """Images per second of an iterator of batches. It must have batches left after the last round."""
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        images = sum(batch.shape[0] for batch in itertools.islice(batches, per_round))
        rates.append(images / (time.perf_counter() - start))
    return summary(rates[1:])  # in the first round the processes start


def picture_lines(pictures):
    yield "pictures: {images} images from {files} files of {source}, median {median_width}x{median_height} pixels, \
reader {reader}".format(**pictures)
    yield "config: {config} at {image_size}x{image_size} pixels; figures: median (lowest .. highest)".format(**pictures)


def device_lines(device):
    yield (
        f"device's part (normalise, erase, mix): {spread(device['milliseconds'])} ms for a batch of "
        f"{device['batch_size']}, {device['images_per_second']:.1f} images/s"
    )


def loader_lines(loaders):
    yield f"{'images/s in all':<22}loader processes: {loaders['workers']}"
    for name, size in loaders["batch_size"].items():
        yield f"  {f'{name}, batches of {size}':<26}{spread(loaders[name])}"
