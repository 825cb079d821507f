"""Inference in the engines that there are."""

import itertools
import tempfile

import numpy as np
import paddle

from t2t_vit.bench.machine import CORES
from t2t_vit.bench.process import Memory, apart
from t2t_vit.bench.rounds import Timed, finished, spread, table
from t2t_vit.bench.sweep import SETTINGS, limit_lines, measure_points, setting_cells
from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.data.batch import Normalize
from t2t_vit.data.loader import EvalDataset
from t2t_vit.deploy.engines import open_predictor
from t2t_vit.deploy.exporter import ENGINE_OF, NOT_OFFERED, check_offered, export_model
from t2t_vit.training.microbatch import inference
from t2t_vit.weights.build import build_model

PASSES = 1
EAGER = "paddle"  # the engine that needs no export
FORMATS = {engine: form for form, engine in ENGINE_OF.items()}
HEADER = (*SETTINGS.values(), "engine", "precision", "images/s", "ms/batch", "peak MB", "of limit")


class TimedBatch:
    """Something that is done to one batch, as a `Subject`'s process keeps it."""

    def __init__(self, function, memory):
        self.timed = Timed(function)
        self.peak_mb = memory.peak_mb()

    def round(self):
        """Seconds of the batch."""
        return {"seconds": self.timed.seconds()}

    def memory(self):
        """Peak MB of the process since `memory` began."""
        return self.peak_mb


def eager(cfg, pictures, token_module=False):
    """A config's model with fresh weights, or the T2T module of it alone, as Paddle runs it by itself."""
    memory = Memory()
    images = eval_images(cfg, pictures)
    model = build_model(cfg)
    model.eval()
    run = inference(model.tokens_to_token if token_module else model, cfg)
    return TimedBatch(lambda: finished(run(images)), memory)


def exported(cfg, pictures, engine, path):
    """An exported model in its engine."""
    images = eval_images(cfg, pictures).numpy()
    memory = Memory()
    predictor = open_predictor(engine, path, device=paddle.get_device() if engine == "inference" else "cpu")
    return TimedBatch(lambda: predictor(images), memory)


def eval_images(cfg, pictures):
    """float32 (B, C, H, W) tensor of some pictures under the evaluation transform."""
    dataset = EvalDataset(pictures, cfg)
    return Normalize(cfg)(paddle.to_tensor(np.stack([dataset[index][0] for index in range(len(pictures))])))


def export_all(cfg, pairs, folder):
    """Export a config's model, with fresh weights and for batches of its size, for (engine, precision) pairs.

    Returns:
        {pair: file}, each in a folder of its own below `folder`; none for the engine that needs no export.
    """
    model = build_model(cfg)
    model.eval()
    paths = {}
    for engine, precision in pairs:
        if engine != EAGER:
            own = tempfile.mkdtemp(dir=folder)
            size = cfg.TRAIN.BATCH_SIZE
            paths[engine, precision], _ = export_model(model, cfg, own, FORMATS[engine], precision, batch_size=size)
    return paths


def offered(engines, precisions):
    """(engine, precision) pairs that there are, and words on those that there are not; UserError if there is none."""
    pairs, missing = [], []
    for engine, precision in itertools.product(engines, precisions):
        if engine == EAGER and precision != "fp32" or (FORMATS.get(engine), precision) in NOT_OFFERED:
            missing.append(f"{engine} {precision}")
        else:
            pairs.append((engine, precision))
            if engine != EAGER:
                check_offered(FORMATS[engine], precision)
    if not pairs:
        raise UserError(f"there is no {', no '.join(missing)} to measure; choose other --engines or --precisions")
    return pairs, missing


def benchmark_infer(args, cfgs):
    """Measure the inference of configs at all settings of the command line, print and return the figures."""
    pairs, missing = offered(args.engines, args.precisions)
    with tempfile.TemporaryDirectory() as folder:

        def members(cfg, pictures):
            paths = {}
            if any(engine != EAGER for engine, _ in pairs):
                paths = apart(export_all, cfg, pairs, folder, title="exporting", cfg=cfg, threads=CORES)
            for pair in pairs:
                labels = dict(zip(("engine", "precision"), pair))
                if pair in paths:
                    yield labels, exported, (cfg, pictures, pair[0], paths[pair])
                else:
                    yield labels, eager, (cfg, pictures)

        rows = measure_points(args, cfgs, PASSES, members)
    for line in ("", *limit_lines(rows), "", *table(HEADER, map(_cells, rows), args.markdown)):
        log.info(line)
    if missing:
        log.info("not offered: %s", ", ".join(missing))
    return {"infer": rows}


def _cells(row):
    return [
        *setting_cells(row, extra=("engine", "precision")),
        spread(row["images_per_second"]),
        f"{row['milliseconds']['median']:.1f}",
        f"{row['peak_mb']:.0f}",
        f"{row['share_of_limit']:.0%}",
    ]
