"""The input pipeline on one core: ours beside a plain one, Pillow with paddle.vision.transforms; and its stages."""

import contextlib
import math
import time
from pathlib import Path
from unittest import mock

import numpy as np
from paddle.vision import transforms

from t2t_vit.bench.rounds import Stopwatch, spread, summary
from t2t_vit.config import with_keys
from t2t_vit.data.augment import build_augment
from t2t_vit.data.images import JpegPicture, open_image, open_picture, reading, simplejpeg, to_array, to_image
from t2t_vit.data.loader import EvalDataset, TrainCollate, TrainDataset
from t2t_vit.data.seeding import TRANSFORM, generator
from t2t_vit.data.transforms import mirrored


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

    def decode(sample):
        picture = open_picture(pictures.paths[sample[1]], reader=cfg.DATA.READER, **reading(cfg))
        if isinstance(picture, JpegPicture):  # any other is decoded by now
            simplejpeg.decode_jpeg(picture.data, "RGB")

    crop = TrainDataset(
        pictures, with_keys(cfg, {"AUG.AUTO_AUGMENT": "", "AUG.COLOR_JITTER": 0.0, "AUG.ERASE_PROB": 0.0})
    )
    full, evaluation = TrainDataset(pictures, cfg), EvalDataset(pictures, cfg)
    return {
        "decode": decode,
        "crop and flip": lambda sample: crop[sample],
        "full recipe": lambda sample: full[sample],
        "full, to pixels": lambda sample: full[sample],
        "evaluation": lambda sample: evaluation[sample[1]],
    }


def baseline_tasks(cfg, pictures):
    """The same tasks with Pillow and paddle.vision.transforms, up to the normalised tensor or to uint8 pixels."""

    def task(*steps):
        compose = transforms.Compose(steps)
        return lambda sample: compose(load(sample))

    def load(sample):
        with open_image(pictures.paths[sample[1]]) as image:
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


# --- Stages of the full recipe ---


def measure_stages(cfg, pictures, rounds):
    """Milliseconds per image and share of each stage of the full recipe."""
    dataset, collate, watch = TrainDataset(pictures, cfg), TrainCollate(cfg), Stopwatch()
    with timed_decoding(watch):
        staged(dataset, (0, 0, 0), watch)
        watch.seconds.clear()
        for epoch in range(rounds):
            samples = [(epoch, index, 0) for index in range(len(pictures))]
            for start in range(0, len(samples), cfg.TRAIN.BATCH_SIZE):
                fields = [staged(dataset, sample, watch) for sample in samples[start : start + cfg.TRAIN.BATCH_SIZE]]
                watch.lap("between images")
                collate(fields)
                watch.lap("collate")
    seconds = watch.seconds
    del seconds["between images"]
    seconds["decode"] -= seconds["read file"]  # opening a picture has read the file once more
    whole, images = sum(seconds.values()), rounds * len(pictures)
    return {stage: {"milliseconds": 1000 * value / images, "share": value / whole} for stage, value in seconds.items()}


def staged(dataset, sample, watch):
    """What `dataset[sample]` returns, with a lap of the stopwatch after each stage."""
    transform, index = dataset.transform, sample[1]
    watch.lap("between images")
    Path(dataset.split.paths[index]).read_bytes()
    watch.lap("read file")
    picture = open_picture(dataset.split.paths[index], **dataset.reading)
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
    return pixels, dataset.split.labels[index], boxes, sample, ""


def timed_decoding(watch):
    """While it lasts, the decoding within `JpegPicture.crop` counts as a stage of its own."""
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


# --- What is told ---


def core_lines(core):
    yield ""
    yield f"{'images/s on one core':<22}{'ours':<30}{'Pillow + paddle.vision':<30}ratio"
    for task, row in core.items():
        if task != "core_share":
            yield f"  {task:<20}{spread(row['ours']):<30}{spread(row['baseline']):<30}{row['ratio']:.2f}"
    yield "  Ours are uint8, the rest is the device's part below; the baseline's are normalised, except 'to pixels'."
    yield f"  By CPU time; the measuring process had {core['core_share']:.0%} of its core."


def stage_lines(stages):
    yield ""
    yield f"{'full recipe, one core':<22}{'ms/image':<12}share"
    for stage, row in stages.items():
        yield f"  {stage:<20}{row['milliseconds']:<12.3f}{row['share']:.1%}"
