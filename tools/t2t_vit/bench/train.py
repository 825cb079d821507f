"""Whole training steps and their parts."""

import collections
import time

import paddle

from t2t_vit.bench.baseline import Baseline
from t2t_vit.bench.rounds import finished
from t2t_vit.bench.samples import repeated
from t2t_vit.bench.sweep import Subject, measure, print_rows
from t2t_vit.config import with_keys
from t2t_vit.data.loader import TrainLoader
from t2t_vit.training.train_step import TrainStep

PARTS = ("input", "forward and backward", "update")
PASSES = 3  # cost of a step in forward passes: the gradients of inputs and of weights cost one each
TITLES = ("model", "pixels", "batch", "threads", "engine", "precision", "images/s", "ms/step", *PARTS, "peak MB",
          "of limit", "of PyTorch")  # fmt: skip


class TrainingSteps:
    """Runs training steps of a config, always on the same augmented batch and without a teacher.

    `laps` holds the seconds of each of `PARTS`.
    """

    def __init__(self, cfg, samples):
        cfg = with_keys(cfg, {"DATA.NUM_WORKERS": 0, "TRAIN.ACCUM_STEPS": 1, "DISTILL.TYPE": ""})
        self.batches = next(TrainLoader(repeated(samples, cfg.TRAIN.BATCH_SIZE), cfg).epoch_steps(0))
        self.lr, self.number, self.laps = cfg.TRAIN.WARMUP_LR, 0, collections.Counter()
        self.step = TrainStep(cfg, samples.labels)
        self.step.train()

    def __call__(self):
        self.number += 1
        self.last = _synchronized_clock()
        result = self.step(self.batches, self.lr, epoch=0, step=self.number, lap=self._lap)
        finished(result.gradient_norm)
        self._lap("update")

    def _lap(self, part):
        """Add the time since the last lap to a part of the step."""
        now = _synchronized_clock()
        self.laps[part] += now - self.last
        self.last = now


def _synchronized_clock():
    if paddle.get_device() != "cpu":
        paddle.device.synchronize()
    return time.perf_counter()


def benchmark_train(args, cfgs, report):
    """Measure the training steps of configs at all settings of the command line, and print the figures."""
    baseline = Baseline(args.baseline, is_training=True)

    def both(cfg, samples, _):
        labels = {"engine": "paddle", "precision": "fp32"} if args.baseline else {}
        return [Subject(labels, (TrainingSteps, cfg, samples)), *baseline.subjects(cfg)]

    print_rows(measure(report, "train", args, cfgs, PASSES, both), TITLES, args.markdown)
