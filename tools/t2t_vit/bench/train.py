"""Whole training steps, as training itself makes them, and their parts."""

import time

import paddle

from t2t_vit.bench.pictures import repeated
from t2t_vit.bench.process import Memory
from t2t_vit.bench.rounds import Stopwatch, Timed, finished, spread, table
from t2t_vit.bench.sweep import SETTINGS, limit_lines, measure_points, setting_cells
from t2t_vit.common.logger import log
from t2t_vit.config import with_keys
from t2t_vit.data.loader import TrainLoader
from t2t_vit.training.train_step import TrainStep

PARTS = ("input", "forward and backward", "update")
PASSES = 3  # of a training step in units of a forward pass: the gradients by inputs and by weights cost one each


class Training:
    """Steps of a config on one augmented batch, always the same, without a teacher."""

    def __init__(self, cfg, pictures):
        memory = Memory()
        cfg = with_keys(cfg, {"DATA.NUM_WORKERS": 0, "TRAIN.ACCUM_STEPS": 1, "DISTILL.TYPE": ""})
        self.batches = next(TrainLoader(repeated(pictures, cfg.TRAIN.BATCH_SIZE), cfg).epoch_steps(0))
        self.lr, self.number = cfg.TRAIN.WARMUP_LR, 0
        self.step = TrainStep(cfg)
        self.step.train()
        self.watch = Stopwatch(time.perf_counter)
        self._mark_parts()
        self.timed = Timed(self._make_step)
        self.peak_mb = memory.peak_mb()

    def _mark_parts(self):
        """Count the time up to the passes through the model as input, that after them as update."""
        passes = self.step._backward

        def marked(*args):
            self._lap("input")
            results = passes(*args)
            self._lap("forward and backward")
            return results

        self.step._backward = marked

    def _lap(self, part):
        if paddle.get_device() != "cpu":
            paddle.device.synchronize()
        self.watch.lap(part)

    def _make_step(self):
        self.number += 1
        self._lap("between steps")
        finished(self.step(self.batches, self.lr, epoch=0, step=self.number).gradient_norm)
        self._lap("update")

    def round(self):
        """Seconds of a step, and of each of its parts."""
        self.watch.seconds.clear()
        seconds = self.timed.seconds()
        return {"seconds": seconds, **{part: self.watch.seconds[part] / self.timed.calls for part in PARTS}}

    def memory(self):
        """Peak MB of the process above what it had before it built anything."""
        return self.peak_mb


def benchmark_train(args, cfgs):
    """Measure the training steps of configs at all settings of the command line, print and return the figures."""
    rows = measure_points(args, cfgs, PASSES, lambda cfg, pictures: [({}, Training, (cfg, pictures))])
    for line in ("", *limit_lines(rows), "", *table(HEADER, map(_cells, rows), args.markdown)):
        log.info(line)
    return {"train": rows}


HEADER = (*SETTINGS.values(), "images/s", "ms/step", *PARTS, "peak MB", "of limit")


def _cells(row):
    return [
        *setting_cells(row),
        spread(row["images_per_second"]),
        *(f"{ms:.0f}" for ms in (row["milliseconds"]["median"], *row["parts"].values())),
        f"{row['peak_mb']:.0f}",
        f"{row['share_of_limit']:.0%}",
    ]
