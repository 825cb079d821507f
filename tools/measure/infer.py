"""Inference in the engines that there are."""

import numpy as np
import paddle

from data.batch import Normalize
from data.loader import EvalDataset
from engine.build import build_model
from engine.logger import log
from measure.process import Memory
from measure.rounds import Timed, finished, spread, table
from measure.sweep import SETTINGS, limit_lines, measure_points, setting_cells

PASSES = 1
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


def eval_images(cfg, pictures):
    """float32 (B, C, H, W) tensor of some pictures under the evaluation transform."""
    dataset = EvalDataset(pictures, cfg)
    return Normalize(cfg)(paddle.to_tensor(np.stack([dataset[index][0] for index in range(len(pictures))])))


def benchmark_infer(args, cfgs):
    """Measure the inference of configs at all settings of the command line, print and return the figures."""
    labels = {"engine": "paddle", "precision": "fp32"}
    rows = measure_points(args, cfgs, PASSES, lambda cfg, pictures: [(labels, Eager, (cfg, pictures))])
    for line in ("", *limit_lines(rows), "", *table(HEADER, map(_cells, rows), args.markdown)):
        log.info(line)
    return {"infer": rows}


def _cells(row):
    return [
        *setting_cells(row, extra=("engine", "precision")),
        spread(row["images_per_second"]),
        f"{row['milliseconds']['median']:.1f}",
        f"{row['peak_mb']:.0f}",
        f"{row['share_of_limit']:.0%}",
    ]
