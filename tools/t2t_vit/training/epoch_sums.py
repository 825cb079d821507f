"""Sums over the steps of one epoch, kept on the device until a line is logged."""

import math
from dataclasses import dataclass

import numpy as np
import paddle

from t2t_vit.parallel import processes

# The first four differ between processes. The others are the same in all, so only the main process adds them up.
_SUMS = ("loss", "correct", "images", "skipped_images", "steps", "bad_steps", "gradient_norm")
_LOCAL = 4


@dataclass(frozen=True)
class Means:
    """Training metrics over all processes. A skipped step adds only to `skipped_steps`."""

    loss: float  # mean over the images
    acc: float  # 0 to 1
    grad_norm: float  # mean over the steps
    skipped_steps: int
    skipped_images: int


def _means(values):
    """Compute `Means` from the sums in the order of `_SUMS`."""
    sums = dict(zip(_SUMS, map(float, values)))
    images, steps = sums["images"] or math.nan, sums["steps"] or math.nan
    return Means(
        sums["loss"] / images,
        sums["correct"] / images,
        sums["gradient_norm"] / steps,
        round(sums["bad_steps"]),
        round(sums["skipped_images"]),
    )


class EpochSums:
    """Loss, accuracy, gradient norm and skipped steps of one epoch."""

    def __init__(self):
        self.own = paddle.zeros([len(_SUMS)], dtype="float64")  # sums of this process
        self.logged = np.zeros(len(_SUMS))  # sums over all processes, up to the last log line
        self.weights = paddle.to_tensor([1.0] * _LOCAL + [float(processes.is_main())] * (len(_SUMS) - _LOCAL))

    @paddle.no_grad()
    def add(self, result):
        """Add a `StepResult` without waiting for the device."""
        images, one, zero = paddle.full([], float(result.images)), paddle.ones([]), paddle.zeros([])
        skipped = paddle.full([], float(len(result.skipped)))
        good = paddle.stack([result.loss * images, result.correct, images, skipped, one, zero, result.gradient_norm])
        bad = paddle.stack([zero, zero, zero, skipped, zero, one, zero])
        self.own += (self.weights * paddle.where(result.ok, good, bad)).astype("float64")

    def lap(self):
        """Return `Means` since the last call, the same in all processes. Waits for the device."""
        sums = np.array(processes.sum_over_processes(self.own.clone()).tolist())
        means, self.logged = _means(sums - self.logged), sums
        return means

    def means(self):
        """Return `Means` of the epoch up to the last `lap`."""
        return _means(self.logged)

    def state(self):
        """Return the sums for a saved state. Call it in every process."""
        return {"logged": self.logged, "sums": processes.gather(self.own)}  # (len(_SUMS),), (processes, len(_SUMS))

    def load_state(self, state):
        """Restore `state`. If the number of processes has changed, the main one continues with the sums of all."""
        sums = state["sums"]
        own = sums[processes.rank()] if len(sums) == processes.world_size() else sums.sum(0) * processes.is_main()
        self.own, self.logged = paddle.to_tensor(own), state["logged"]
