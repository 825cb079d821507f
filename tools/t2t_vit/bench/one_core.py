"""The input pipeline on one core: ours compared with a plain one of Pillow and paddle.vision.transforms."""

import itertools
import math
import time

import numpy as np
from paddle.vision import transforms

from t2t_vit.bench.rounds import interleave, spread, summary
from t2t_vit.common.runtime import keep_freed_memory
from t2t_vit.config import with_keys
from t2t_vit.data.augment import build_augment
from t2t_vit.data.images import open_image
from t2t_vit.data.loader import EvalDataset, TrainDataset


def measure_core(cfg, split, rounds):
    """Return {task: {"ours", "baseline": images per second, "ratio"}}, by CPU time, which excludes other programs."""
    keep_freed_memory(256)  # as in a loader process
    ours, baseline, report = our_tasks(cfg, split), baseline_tasks(cfg, split), {}
    for task in ours:
        functions = {"ours": timed(ours[task], len(split)), "baseline": timed(baseline[task], len(split))}
        rates = interleave(functions, rounds, pause=0)
        report[task] = {side: summary(values) for side, values in rates.items()}
        report[task]["ratio"] = report[task]["ours"]["median"] / report[task]["baseline"]["median"]
    return report


def timed(function, count):
    """Return a function that reads `count` images of the next epoch with `function` and returns images per second."""
    function((0, 0, 0))  # loads libraries
    epochs = itertools.count()

    def run():
        epoch, start = next(epochs), time.process_time()
        for index in range(count):
            function((epoch, index, 0))
        return count / (time.process_time() - start)

    return run


def our_tasks(cfg, split):
    """Return {task: function that reads a sample (epoch, index, copy)}, as in training or evaluation."""
    plain = with_keys(cfg, {"AUG.AUTO_AUGMENT": "", "AUG.COLOR_JITTER": 0.0, "AUG.ERASE_PROB": 0.0})
    crop, full, evaluation = TrainDataset(split, plain), TrainDataset(split, cfg), EvalDataset(split, cfg)
    return {
        "crop and flip": crop.__getitem__,
        "full recipe": full.__getitem__,
        "full, to pixels": full.__getitem__,
        "evaluation": lambda sample: evaluation[sample[1]],
    }


def baseline_tasks(cfg, split):
    """Return the same tasks with Pillow and paddle.vision.transforms, giving normalised tensors or uint8 pixels."""

    def task(*steps):
        compose = transforms.Compose(steps)

        def read(sample):
            with open_image(split.paths[sample[1]]) as image:
                return compose(image.convert("RGB" if cfg.DATA.CHANNELS == 3 else "L"))

        return read

    aug, size, rng = cfg.AUG, cfg.DATA.IMAGE_SIZE, np.random.default_rng(cfg.SEED)
    resized = math.floor(size / cfg.VAL.CROP_PCT) if cfg.VAL.CROP_MODE == "center" else (size, size)
    crop = (transforms.RandomResizedCrop(size, aug.SCALE, aug.RATIO), transforms.RandomHorizontalFlip(aug.HFLIP))
    augment = [lambda image, step=step: step(image, rng) for step in build_augment(cfg)]
    to_tensor = (transforms.ToTensor(), transforms.Normalize(cfg.DATA.MEAN, cfg.DATA.STD))
    erase = transforms.RandomErasing(aug.ERASE_PROB, value="random" if aug.ERASE_MODE == "pixel" else 0)
    resize = (transforms.Resize(resized, cfg.VAL.INTERPOLATION), transforms.CenterCrop(size))
    return {
        "crop and flip": task(*crop, *to_tensor),
        "full recipe": task(*crop, *augment, *to_tensor, erase),
        "full, to pixels": task(*crop, *augment, np.asarray),
        "evaluation": task(*resize, *to_tensor),
    }


def core_lines(core):
    yield f"{'images/s on one core':<22}{'ours':<30}{'Pillow + paddle.vision':<30}ratio"
    for task, row in core.items():
        yield f"  {task:<20}{spread(row['ours']):<30}{spread(row['baseline']):<30}{row['ratio']:.2f}"
    yield "  By CPU time. Ours gives uint8, which the device normalises; the baseline normalises, except 'to pixels'."
