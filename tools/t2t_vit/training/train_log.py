"""What a training logs: one line every few steps, one per epoch, VisualDL curves, and some warnings once a run."""

import datetime
import resource
import sys

import numpy as np
import paddle

from t2t_vit.common.logger import log
from t2t_vit.common.runtime import cores
from t2t_vit.parallel import processes
from t2t_vit.runs.visualdl import Scalars

_SLOW_READING = 0.1  # of the time
_JUDGED_SECONDS = 10.0


class TrainLog:
    """Lines and curves of a run.

    Args:
        total_epochs: of the run.
        images_per_step: over all processes.
        num_workers: DATA.NUM_WORKERS.
    """

    def __init__(self, total_epochs, images_per_step, num_workers):
        self.total_epochs, self.images_per_step, self.num_workers = total_epochs, images_per_step, num_workers
        self.scalars = Scalars()
        self._skipped = set()  # warnings about unreadable images that were logged
        self._judged = None  # [seconds of reading, all seconds] since the last check; None before the first log line
        self._has_warned = False

    def line(self, epoch, step, steps, lr, means, lap):
        """Log the steps since the last line.

        Args:
            epoch: from 0.
            step: from 1.
            steps: of the epoch.
            lr: learning rate of the head.
            means: `Means` of these steps.
            lap: `Lap` of these steps.
        """
        images_per_second = lap.steps * self.images_per_step / lap.seconds
        steps_left = (self.total_epochs - epoch) * steps - step
        log.info(
            "Epoch [%d/%d], Step [%d/%d], Loss: %.4f, acc: %.4f, read_time: %.4f, train_time: %.4f, lr: %.6f, "
            "images/s: %.1f, ETA: %s%s",
            epoch + 1, self.total_epochs, step, steps, means.loss, means.acc,
            lap.read / lap.steps, lap.train / lap.steps, lr, images_per_second,
            datetime.timedelta(seconds=round(steps_left * lap.seconds / lap.steps)),
            f", skipped steps: {means.skipped_steps}" if means.skipped_steps else "",
        )  # fmt: skip
        curves = {
            "train/loss": means.loss,
            "train/acc": means.acc,
            "train/lr": lr,
            "train/gradient_norm": means.grad_norm,
            "time/images_per_second": images_per_second,
            "time/read_seconds": lap.read / lap.steps,
            "memory/mb": memory_mb(),
        }
        self.scalars.add(epoch * steps + step, curves)
        self.check_reading(lap)

    def epoch(self, epoch, means):
        """Log the line of a whole epoch (from 0), given its `Means`."""
        log.info("Epoch [%d/%d], avg_Loss: %.4f, avg_acc: %.4f", epoch + 1, self.total_epochs, means.loss, means.acc)
        if means.skipped_images:
            self.gather_skipped()
            log.warning("warning: %d unreadable images were replaced in this epoch", means.skipped_images)

    def add_skipped(self, reasons):
        """Log why images were replaced, each reason once in a run."""
        for reason in reasons:
            if reason not in self._skipped:
                self._skipped.add(reason)
                log.warning("warning: replaced: %s", reason)

    def gather_skipped(self):
        """Log the reasons of the other processes; call it in all."""
        for reasons in processes.gather_objects(sorted(self._skipped)):
            self.add_skipped(reasons)

    def check_reading(self, lap):
        """Warn once if more than a tenth of the time goes into reading. The first lap, a cold start, is ignored."""
        if self._judged is None:
            self._judged = np.zeros(2)
            return
        self._judged += lap.read, lap.seconds
        if self._has_warned or self._judged[1] < _JUDGED_SECONDS:
            return
        part = self._judged[0] / self._judged[1]
        self._judged[:] = 0
        if part > _SLOW_READING:
            self._has_warned = True
            log.warning(
                "warning: %.0f %% of the time was spent waiting for images: raise DATA.NUM_WORKERS (%d; %d cores here "
                "for %d process(es)) or use a faster disk; `python tools/benchmark.py data` shows what is slow",
                100 * part, self.num_workers, cores(), processes.world_size(),
            )  # fmt: skip


def epoch_rows(epoch, lr, images, means, stopwatch):
    """(row of metrics.jsonl, row of times.jsonl) of an epoch (from 0) of `images`; the first is equal in every run."""
    metrics = {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": means.loss,
        "train_acc": means.acc,
        "grad_norm": means.grad_norm,
        "skipped_steps": means.skipped_steps,
        "skipped_images": means.skipped_images,
    }
    times = {
        "epoch": epoch + 1,
        "images_per_second": round(images / max(stopwatch.epoch_seconds, 1e-9), 1),
        "seconds": round(stopwatch.epoch_seconds, 2),
        "read_seconds": round(stopwatch.epoch_read, 2),
        "memory_mb": round(memory_mb(), 1),
    }
    return metrics, times


def memory_mb():
    """Peak memory of this process in MB: of the GPU if it uses one, else main memory."""
    if paddle.device.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
