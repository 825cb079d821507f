"""Inference with Paddle and with the engines of exported files."""

import itertools
import tempfile

import numpy as np
import paddle

from t2t_vit.bench.baseline import Baseline
from t2t_vit.bench.rounds import finished
from t2t_vit.bench.sweep import Subject, measure, print_rows
from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.config import with_keys
from t2t_vit.data.batch import Normalize
from t2t_vit.data.loader import EvalDataset
from t2t_vit.deploy.engines import open_predictor
from t2t_vit.deploy.export import ENGINE_OF, NOT_OFFERED, check_offered, export_model
from t2t_vit.parallel.microbatch import inference
from t2t_vit.weights.build import build_model

EAGER = "paddle"  # the engine that needs no export
FORMATS = {engine: form for form, engine in ENGINE_OF.items()}
TITLES = ("model", "pixels", "batch", "threads", "engine", "precision", "images/s", "ms/batch", "ms for 1", "peak MB",
          "of limit", "of PyTorch")  # fmt: skip


def eager(cfg, samples, token_module=False):
    """Return a function that runs a config's model with fresh weights, or only its T2T module, in Paddle."""
    images = eval_images(cfg, samples)
    model = build_model(cfg)
    model.eval()
    run = inference(model.tokens_to_token if token_module else model, cfg)
    return lambda: finished(run(images))


def exported(cfg, samples, engine, path):
    """Return a function that runs an exported model in its engine."""
    images = eval_images(cfg, samples).numpy()
    predictor = open_predictor(engine, path, device=paddle.get_device() if engine == "inference" else "cpu")
    return lambda: predictor(images)


def eval_images(cfg, samples):
    """Return images after the evaluation transform, float32 (B, C, H, W)."""
    dataset = EvalDataset(samples, with_keys(cfg, {"VAL.TTA": ""}))
    return Normalize(cfg)(paddle.to_tensor(np.stack([dataset[index][0] for index in range(len(samples))])))


def offered(engines, precisions):
    """Return (supported (engine, precision) pairs, names of the others). Raises UserError if none is supported."""
    pairs, missing = [], []
    for engine, precision in itertools.product(engines, precisions):
        if engine == EAGER and precision != "fp32" or (FORMATS.get(engine), precision) in NOT_OFFERED:
            missing.append(f"{engine} {precision}")
            continue
        if engine != EAGER:
            check_offered(FORMATS[engine], precision)
        pairs.append((engine, precision))
    if not pairs:
        raise UserError(f"{', '.join(missing)} is not supported: choose other --engines or --precisions")
    return pairs, missing


def subjects_of(cfg, samples, pairs, folder):
    """Return the `Subject`s of (engine, precision) pairs. Exports the model with fresh weights to a folder."""
    model = build_model(cfg)
    model.eval()
    subjects = []
    for engine, precision in pairs:
        words: tuple = (eager, cfg, samples)
        if engine != EAGER:
            place, size = tempfile.mkdtemp(dir=folder), cfg.TRAIN.BATCH_SIZE
            path, _ = export_model(model, cfg, place, FORMATS[engine], precision, batch_size=size)
            words = (exported, cfg, samples, engine, path)
        subjects.append(Subject({"engine": engine, "precision": precision}, words))
    return subjects


def benchmark_infer(args, cfgs, report):
    """Measure the inference of configs at all settings of the command line, and print the figures."""
    pairs, missing = offered(args.engines, args.precisions)
    baseline = Baseline(args.baseline, is_training=False)

    def both(cfg, samples, folder):
        return [*subjects_of(cfg, samples, pairs, folder), *baseline.subjects(cfg)]

    print_rows(_with_latency(measure(report, "infer", args, cfgs, 1, both)), TITLES, args.markdown)
    if missing:
        log.info("not supported: %s", ", ".join(missing))


def _with_latency(rows):
    """Return the rows of larger batches with the milliseconds of one image, if both were measured; else `rows`."""

    def place(row):
        return tuple(row[key] for key in ("model", "image_size", "threads", "engine", "precision"))

    alone = {place(row): row["milliseconds"]["median"] for row in rows if row["batch_size"] == 1}
    larger = [row for row in rows if row["batch_size"] > 1] if alone else []
    return [{**row, "milliseconds_of_one": alone[place(row)]} for row in larger] or rows
