"""Inference with Paddle and with the engines of exported files."""

import itertools
import tempfile

import numpy as np
import paddle

from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import finished
from t2t_vit.bench.subject import Subject, resident_mb
from t2t_vit.bench.sweep import measure, print_rows
from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.common.runtime import cores
from t2t_vit.data.batch import Normalize
from t2t_vit.data.loader import EvalDataset
from t2t_vit.deploy.engines import open_predictor
from t2t_vit.deploy.export import ENGINE_OF, NOT_OFFERED, check_offered, export_model
from t2t_vit.training.microbatch import inference
from t2t_vit.weights.build import build_model

EAGER = "paddle"  # the engine that needs no export
FORMATS = {engine: form for form, engine in ENGINE_OF.items()}
TITLES = ("model", "pixels", "batch", "threads", "engine", "precision", "images/s", "ms/batch", "peak MB", "of limit")


def eager(cfg, samples, token_module=False):
    """`Subject`: the model of a config with new weights, or its T2T module alone, in Paddle."""
    before = resident_mb()
    images = eval_images(cfg, samples)
    model = build_model(cfg)
    model.eval()
    run = inference(model.tokens_to_token if token_module else model, cfg)
    return Subject(lambda: finished(run(images)), before)


def exported(cfg, samples, engine, path):
    """`Subject`: an exported model in its engine."""
    images = eval_images(cfg, samples).numpy()
    before = resident_mb()
    predictor = open_predictor(engine, path, device=paddle.get_device() if engine == "inference" else "cpu")
    return Subject(lambda: predictor(images), before)


def eval_images(cfg, samples):
    """float32 (B, C, H, W): images under the evaluation transform."""
    dataset = EvalDataset(samples, cfg)
    return Normalize(cfg)(paddle.to_tensor(np.stack([dataset[index][0] for index in range(len(samples))])))


def export_all(cfg, pairs, folder):
    """Export a config's model with fresh weights for each (engine, precision) pair. Returns {pair: file}."""
    model = build_model(cfg)
    model.eval()
    paths = {}
    for engine, precision in pairs:
        place, size = tempfile.mkdtemp(dir=folder), cfg.TRAIN.BATCH_SIZE
        paths[engine, precision], _ = export_model(model, cfg, place, FORMATS[engine], precision, batch_size=size)
    return paths


def offered(engines, precisions):
    """((engine, precision) pairs that exist, names of those that do not). Raises UserError if none exists."""
    pairs, missing = [], []
    for engine, precision in itertools.product(engines, precisions):
        if engine == EAGER and precision != "fp32" or (FORMATS.get(engine), precision) in NOT_OFFERED:
            missing.append(f"{engine} {precision}")
        else:
            pairs.append((engine, precision))
            if engine != EAGER:
                check_offered(FORMATS[engine], precision)
    if not pairs:
        raise UserError(f"{', '.join(missing)} does not exist: choose other --engines or --precisions")
    return pairs, missing


def benchmark_infer(args, cfgs):
    """Measure the inference of configs at all settings of the command line, print and return the figures."""
    pairs, missing = offered(args.engines, args.precisions)
    with tempfile.TemporaryDirectory() as folder:

        def subjects_of(cfg):
            files = [pair for pair in pairs if pair[0] != EAGER]
            paths = {}
            if files:
                with Process("exporting", cfg, cores()) as process:
                    paths = process.run(export_all, cfg, files, folder)
            for pair in pairs:
                labels = dict(zip(("engine", "precision"), pair))
                yield (labels, exported, (pair[0], paths[pair])) if pair in paths else (labels, eager)

        rows = measure(args, cfgs, 1, lambda cfg: list(subjects_of(cfg)))
    print_rows(rows, TITLES, args.markdown)
    if missing:
        log.info("not offered: %s", ", ".join(missing))
    return {"infer": rows}
