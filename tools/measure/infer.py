"""Inference in the engines that there are."""

import itertools
import tempfile

import numpy as np
import paddle

from data.batch import Normalize
from data.loader import EvalDataset
from engine.build import build_model
from engine.export import ENGINE_OF, NOT_OFFERED, check_offered, export_model
from engine.logger import log
from engine.predictors import open_predictor
from errors import UserError
from measure.machine import CORES
from measure.process import Memory, apart
from measure.rounds import Timed, finished, spread, table
from measure.sweep import SETTINGS, limit_lines, measure_points, setting_cells

PASSES = 1
EAGER = "paddle"  # the engine that needs no export
FORMATS = {engine: form for form, engine in ENGINE_OF.items()}
HEADER = (*SETTINGS.values(), "engine", "precision", "images/s", "ms/batch", "peak MB", "of limit")


class Eager:
    """A config's model with fresh weights, or the T2T module of it alone, on one batch, as Paddle runs it by itself."""

    def __init__(self, cfg, pictures, token_module=False):
        memory = Memory()
        images = eval_images(cfg, pictures)
        model = build_model(cfg)
        model.eval()
        layer = model.tokens_to_token if token_module else model
        with paddle.no_grad():
            self.timed = Timed(lambda: finished(layer(images)))
        self.peak_mb = memory.peak_mb()

    @paddle.no_grad()
    def round(self):
        """Seconds of a batch."""
        return {"seconds": self.timed.seconds()}

    def memory(self):
        """Peak MB of the process above what it had before it built anything."""
        return self.peak_mb


class Exported:
    """An exported model in its engine, on one batch."""

    def __init__(self, cfg, pictures, engine, path):
        images = eval_images(cfg, pictures).numpy()
        memory = Memory()
        predictor = open_predictor(engine, path, device=cfg.DEVICE or "cpu")
        self.timed = Timed(lambda: predictor(images))
        self.peak_mb = memory.peak_mb()

    def round(self):
        """Seconds of a batch."""
        return {"seconds": self.timed.seconds()}

    def memory(self):
        """Peak MB of the process above what it had before it opened the model."""
        return self.peak_mb


def eval_images(cfg, pictures):
    """float32 (B, C, H, W) tensor of some pictures under the evaluation transform."""
    dataset = EvalDataset(pictures, cfg)
    return Normalize(cfg)(paddle.to_tensor(np.stack([dataset[index][0] for index in range(len(pictures))])))


def export_fresh(cfg, folder, engine, precision):
    """Export a config's model with fresh weights, for batches of its size; the path of the file."""
    model = build_model(cfg)
    model.eval()
    return export_model(model, cfg, folder, FORMATS[engine], precision, batch_size=cfg.TRAIN.BATCH_SIZE)[0]


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
            for engine, precision in pairs:
                labels = {"engine": engine, "precision": precision}
                if engine == EAGER:
                    yield labels, Eager, (cfg, pictures)
                else:
                    own = tempfile.mkdtemp(dir=folder)
                    path = apart(export_fresh, cfg, own, engine, precision, device="cpu", threads=CORES)
                    yield labels, Exported, (cfg, pictures, engine, path)

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
