"""Whole training steps and their parts."""

import time

import paddle

from t2t_vit.bench.rounds import Laps, finished
from t2t_vit.bench.samples import repeated
from t2t_vit.bench.subject import Subject, resident_mb
from t2t_vit.bench.sweep import measure, print_rows
from t2t_vit.config import with_keys
from t2t_vit.data.loader import TrainLoader
from t2t_vit.training.train_step import TrainStep

PARTS = ("input", "forward and backward", "update")
PASSES = 3  # forward passes that a step costs: the gradients of inputs and of weights cost one each
TITLES = ("model", "pixels", "batch", "threads", "images/s", "ms/step", *PARTS, "peak MB", "of limit")


class TrainingSubject(Subject):
    """Training steps of a config on one augmented batch, always the same, without a teacher."""

    def __init__(self, cfg, samples):
        before = resident_mb()
        cfg = with_keys(cfg, {"DATA.NUM_WORKERS": 0, "TRAIN.ACCUM_STEPS": 1, "DISTILL.TYPE": ""})
        self.batches = next(TrainLoader(repeated(samples, cfg.TRAIN.BATCH_SIZE), cfg).epoch_steps(0))
        self.lr, self.number = cfg.TRAIN.WARMUP_LR, 0
        self.step = TrainStep(cfg)
        self.step.train()
        self.laps = Laps(_synchronized_clock)
        super().__init__(self.make_step, before)

    def make_step(self):
        self.number += 1
        self.laps()
        result = self.step(self.batches, self.lr, epoch=0, step=self.number, lap=self.laps)
        finished(result.gradient_norm)
        self.laps("update")

    def round(self):
        """{"seconds": of a step, and of each of `PARTS`}"""
        self.laps.seconds.clear()
        seconds = super().round()
        return {**seconds, **{part: self.laps.seconds[part] / self.timed.calls for part in PARTS}}


def _synchronized_clock():
    if paddle.get_device() != "cpu":
        paddle.device.synchronize()
    return time.perf_counter()


def benchmark_train(args, cfgs):
    """Measure the training steps of configs at all settings of the command line, print and return the figures."""
    rows = measure(args, cfgs, PASSES, lambda cfg: [({}, TrainingSubject)])
    print_rows(rows, TITLES, args.markdown)
    return {"train": rows}
