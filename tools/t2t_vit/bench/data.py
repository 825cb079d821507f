"""The input pipeline of a config, part by part."""

import time

from t2t_vit.bench.one_core import core_lines, measure_core
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import finished, spread, summary
from t2t_vit.bench.samples import repeated
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log
from t2t_vit.common.runtime import cores
from t2t_vit.config import with_classes, with_keys
from t2t_vit.data.batch import TrainInput
from t2t_vit.data.crop_reader import reader_name
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image
from t2t_vit.data.loader import TrainLoader

BATCHES_OF_A_WORKER = 4  # batches per loader process in a round; several, because the processes deliver in bursts


def benchmark_data(args, cfgs, report):
    """Measure the input pipeline of a config, and print the speed of each part."""
    (cfg,) = cfgs
    classes, splits = load_data(cfg, ["train"])
    cfg, split = with_classes(cfg, len(classes)), repeated(splits["train"], args.images)
    paths, size = set(split.paths), cfg.DATA.IMAGE_SIZE
    for path in paths:
        load_image(path)  # fails early on an unreadable file, and puts the files into the page cache
    log.info("")
    log.info("pictures: %d images from %d files of %s", len(split), len(paths), display_path(split.source))
    log.info("config: %s at %dx%d pixels, reader %s", cfg.NAME, size, size, reader_name(cfg.DATA.READER))
    log.info("figures: median (lowest .. highest)")
    with Process("the input pipeline on one core", with_keys(cfg, {"DEVICE": "cpu"})) as process:
        found = report.content["core"] = process.run(measure_core, cfg, split, args.rounds)
    log.info("")
    for line in core_lines(found):
        log.info(line)
    found = report.content["device"] = measure_device(cfg, split, args.rounds)
    log.info("")
    log.info("on the device (normalise, erase, mix): %s images/s", spread(found))
    workers = cfg.DATA.NUM_WORKERS if "DATA.NUM_WORKERS" in args.opts[::2] else cores()
    found = report.content["loaders"] = measure_loaders(cfg, split, args.rounds, workers)
    log.info("all loader processes (%d): %s images/s", workers, spread(found))
    log.info("Both in batches of %d.", cfg.TRAIN.BATCH_SIZE)


def measure_device(cfg, split, rounds):
    """Measure how many images per second the device normalises, erases and mixes."""
    size = cfg.TRAIN.BATCH_SIZE
    alone = with_keys(cfg, {"DATA.NUM_WORKERS": 0, "TRAIN.ACCUM_STEPS": 1})
    prepare, rates = TrainInput(cfg), []
    for (batch,) in TrainLoader(repeated(split, (rounds + 1) * size), alone).epoch_steps(0):
        start = time.perf_counter()
        finished(prepare(batch)[0])
        rates.append(size / (time.perf_counter() - start))
    return summary(rates[1:])  # the first batch loads kernels


def measure_loaders(cfg, split, rounds, workers):
    """Measure how many images per second all loader processes deliver to the training process."""
    cfg = with_keys(cfg, {"DATA.NUM_WORKERS": workers, "TRAIN.ACCUM_STEPS": 1})
    count = BATCHES_OF_A_WORKER * max(1, workers) * cfg.TRAIN.BATCH_SIZE
    # One epoch more than is timed, so that the last round also reads ahead like the others.
    loader, rates = TrainLoader(repeated(split, count), cfg, epochs=rounds + 2), []
    for epoch in range(rounds + 1):
        start = time.perf_counter()
        for _ in loader.epoch_steps(epoch):
            pass
        rates.append(count / (time.perf_counter() - start))
    return summary(rates[1:])  # the first round includes the start of the processes
