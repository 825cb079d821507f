"""The input pipeline on one core: ours beside a plain one of Pillow and paddle.vision.transforms, and its stages."""

import itertools
import math
import time

import numpy as np
from paddle.vision import transforms

from t2t_vit.bench.rounds import Laps, interleave, spread, summary
from t2t_vit.config import with_keys
from t2t_vit.data.augment import build_augment
from t2t_vit.data.images import JpegPicture, open_image, open_picture, reading, simplejpeg
from t2t_vit.data.loader import EvalDataset, TrainCollate, TrainDataset
from t2t_vit.data.seeding import TRANSFORM, generator


def measure_core(cfg, split, rounds):
    """{task: {"ours", "baseline": images per second of CPU time, "ratio"}}; CPU time excludes other programs."""
    ours, baseline = our_tasks(cfg, split), baseline_tasks(cfg, split)
    functions = {
        (task, side): timed(tasks[task], len(split)) for task in ours for side, tasks in enumerate((ours, baseline))
    }
    rates = interleave(functions, rounds, pause=0)
    report = {}
    for task in ours:
        a, b = (summary(rates[task, side]) for side in range(2))
        report[task] = {"ours": a, "baseline": b, "ratio": a["median"] / b["median"]}
    return report


def timed(function, count):
    """A function that reads `count` images of the next epoch with `function`, and returns images per second."""
    function((0, 0, 0))  # loads libraries
    epochs = itertools.count()

    def run():
        epoch, start = next(epochs), time.process_time()
        for index in range(count):
            function((epoch, index, 0))
        return count / (time.process_time() - start)

    return run


def our_tasks(cfg, split):
    """{task: function of a sample (epoch, index, copy)}; each reads one image as training or evaluation does."""

    def decode(sample):
        picture = open_picture(split.paths[sample[1]], reader=cfg.DATA.READER, **reading(cfg))
        if isinstance(picture, JpegPicture):  # others are decoded already
            simplejpeg.decode_jpeg(picture.data, "RGB")

    plain = with_keys(cfg, {"AUG.AUTO_AUGMENT": "", "AUG.COLOR_JITTER": 0.0, "AUG.ERASE_PROB": 0.0})
    crop, full, evaluation = TrainDataset(split, plain), TrainDataset(split, cfg), EvalDataset(split, cfg)
    return {
        "decode": decode,
        "crop and flip": crop.__getitem__,
        "full recipe": full.__getitem__,
        "full, to pixels": full.__getitem__,
        "evaluation": lambda sample: evaluation[sample[1]],
    }


def baseline_tasks(cfg, split):
    """The same tasks with Pillow and paddle.vision.transforms, up to the normalised tensor or to uint8 pixels."""

    def load(sample):
        with open_image(split.paths[sample[1]]) as image:
            return image.convert("RGB" if cfg.DATA.CHANNELS == 3 else "L")

    def task(*steps):
        compose = transforms.Compose(steps)
        return lambda sample: compose(load(sample))

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


def measure_stages(cfg, split, rounds):
    """{stage of the full recipe: {"milliseconds": of CPU time per image, "share"}}"""
    dataset, collate, laps = TrainDataset(split, cfg), TrainCollate(cfg), Laps(time.process_time)
    for epoch in range(rounds):
        fields = [staged(dataset, (epoch, index, 0), laps) for index in range(len(split))]
        laps()
        for start in range(0, len(fields), cfg.TRAIN.BATCH_SIZE):
            collate(fields[start : start + cfg.TRAIN.BATCH_SIZE])
        laps("collate")
    whole, images = sum(laps.seconds.values()), rounds * len(split)
    return {
        stage: {"milliseconds": 1000 * seconds / images, "share": seconds / whole}
        for stage, seconds in laps.seconds.items()
    }


def staged(dataset, sample, laps):
    """`dataset[sample]`, with a lap after each stage."""
    index = sample[1]
    laps()
    x = open_picture(dataset.split.paths[index], **dataset.reading)
    laps("open")
    rng = generator(dataset.seed, TRANSFORM, sample)
    for stage, step in dataset.transform.steps:
        x = step(x, rng)
        laps(stage)
    boxes = dataset.erasing.draw_boxes(rng)
    laps("draw boxes")
    return x, dataset.split.labels[index], boxes, sample, ""


def core_lines(core):
    yield f"{'images/s on one core':<22}{'ours':<30}{'Pillow + paddle.vision':<30}ratio"
    for task, row in core.items():
        yield f"  {task:<20}{spread(row['ours']):<30}{spread(row['baseline']):<30}{row['ratio']:.2f}"
    yield "  By CPU time. Ours are uint8, the device normalises them; the baseline's are normalised except 'to pixels'."


def stage_lines(stages):
    yield f"{'full recipe, one core':<22}{'ms/image':<12}share"
    for stage, row in stages.items():
        yield f"  {stage:<20}{row['milliseconds']:<12.3f}{row['share']:.1%}"
    yield "  A JPEG file is decoded as it is cropped (reader turbo), any other when it is opened."
