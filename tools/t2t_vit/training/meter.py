"""What the training loop reports: sums of one epoch, kept on the device and read only where a line is logged."""

import datetime
import math
import resource
import sys
import time

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.common.runtime import cores
from t2t_vit.data.dataset import most_skipped
from t2t_vit.parallel import processes

# Sums of every process over its own images, then sums that the main process alone keeps, being the same in all.
_SUMS = ("loss", "correct", "images", "skipped_images", "steps", "bad_steps", "gradient_norm")
_OWN = 4
_SLOW_READING = 0.1  # of a step's time
_JUDGED_SECONDS = 10.0


class EpochMeter:
    """Loss, accuracy, skipped steps and times of one training epoch.

    Args:
        cfg: config.
        epoch: from 0.
        total_epochs: of the run.
        steps: of this epoch.
        lr: learning rate of this epoch.
        reports: `Reports` of the run.
        streak: bad steps in a row before this epoch, a 0-D tensor.
        images: of this epoch, over all processes.
    """

    def __init__(self, cfg, epoch, total_epochs, steps, lr, reports, streak, images):
        self.cfg, self.epoch, self.total_epochs, self.steps, self.lr = cfg, epoch, total_epochs, steps, lr
        self.images = images
        self.reports = reports
        self.step = 0
        self.sums = paddle.zeros([len(_SUMS)], dtype="float64")  # of this epoch, of this process
        self.logged = np.zeros(len(_SUMS))  # of all processes, up to the last line
        self.seconds = self.read_seconds = 0.0  # of earlier parts of this epoch, and of windows that are logged
        self.streak = streak
        self._own = paddle.to_tensor([1.0] * _OWN + [float(processes.is_main())] * (len(_SUMS) - _OWN))
        self._start_window()
        self.mark = time.perf_counter()

    def _start_window(self):
        self.worst_streak = self.streak
        self.window_steps, self.window_images, self.read_time, self.train_time = 0, 0, 0.0, 0.0

    def batch_read(self):
        """Note that a step's images are there."""
        now = time.perf_counter()
        self.read_time += now - self.mark
        self.mark = now

    def saved(self):
        """Leave out the time since the last step, in which a state was saved."""
        self.mark = time.perf_counter()

    @paddle.no_grad()
    def step_done(self, result):
        """Add a `StepResult`; logs a line every TRAIN.LOG_EVERY steps and after the last.

        Raises UserError after TRAIN.MAX_BAD_STEPS bad steps in a row.
        """
        images, one, zero = paddle.full([], float(result.images)), paddle.ones([]), paddle.zeros([])
        skipped = paddle.full([], float(len(result.skipped)))
        good = paddle.stack([result.loss * images, result.correct, images, skipped, one, zero, result.gradient_norm])
        bad = paddle.stack([zero, zero, zero, skipped, zero, one, zero])
        self.reports.add_skipped(result.skipped)
        self.sums += (self._own * paddle.where(result.ok, good, bad)).astype("float64")
        self.streak = paddle.where(result.ok, zero, self.streak + 1)
        self.worst_streak = paddle.maximum(self.worst_streak, self.streak)
        self.step += 1
        self.window_steps += 1
        self.window_images += result.images * processes.world_size()
        if self.step % self.cfg.TRAIN.LOG_EVERY == 0 or self.step == self.steps:
            self._log_line()
        now = time.perf_counter()
        self.train_time += now - self.mark
        self.mark = now

    def _log_line(self):
        # Waits for the device; all processes see the same sums, so that none stops alone.
        sums = np.array(processes.sum_over_processes(self.sums.clone()).tolist())
        means, self.logged = _means(sums - self.logged), sums
        streak = int(self.worst_streak.item())
        self.train_time += time.perf_counter() - self.mark
        self.mark = time.perf_counter()
        self.seconds += self.read_time + self.train_time
        self.read_seconds += self.read_time
        step_time = (self.read_time + self.train_time) / self.window_steps
        images_per_second = self.window_images / (self.read_time + self.train_time)
        steps_left = (self.total_epochs - self.epoch) * self.steps - self.step
        log.info(
            "Epoch [%d/%d], Step [%d/%d], Loss: %.4f, acc: %.4f, read_time: %.4f, train_time: %.4f, lr: %.6f, "
            "images/s: %.1f, ETA: %s%s",
            self.epoch + 1,
            self.total_epochs,
            self.step,
            self.steps,
            means["loss"],
            means["acc"],
            self.read_time / self.window_steps,
            self.train_time / self.window_steps,
            self.lr,
            images_per_second,
            datetime.timedelta(seconds=round(steps_left * step_time)),
            f", skipped steps: {means['skipped_steps']}" if means["skipped_steps"] else "",
        )
        self.reports.scalars.add(
            self.epoch * self.steps + self.step,
            {
                "train/loss": means["loss"],
                "train/acc": means["acc"],
                "train/lr": self.lr,
                "train/gradient_norm": means["grad_norm"],
                "time/images_per_second": images_per_second,
                "time/read_seconds": self.read_time / self.window_steps,
                "memory/mb": memory_mb(),
            },
        )
        self.reports.check_reading(self.read_time, self.read_time + self.train_time, self.cfg)
        self._start_window()
        self._check(streak)

    def _check(self, streak):
        skipped = _means(self.logged)["skipped_images"]
        if skipped > most_skipped(self.images):
            self.reports.gather_skipped()
            raise UserError(
                f"{skipped} images could not be read, more than {most_skipped(self.images)} of the {self.images} of an "
                "epoch (DATA.ON_ERROR skip); `python tools/check_data.py` lists them all"
            )
        if streak >= self.cfg.TRAIN.MAX_BAD_STEPS:
            raise UserError(
                f"the loss or its gradient was not finite in {streak} steps in a row (TRAIN.MAX_BAD_STEPS), up to "
                f"epoch {self.epoch + 1}, step {self.step}; a lower TRAIN.BASE_LR or TRAIN.CLIP_NORM 1.0 may help"
            )

    def rows(self):
        """Log the epoch's line; (row of metrics.jsonl, the same in every run, and row of times.jsonl)."""
        means = _means(self.logged)
        log.info(
            "Epoch [%d/%d], avg_Loss: %.4f, avg_acc: %.4f",
            self.epoch + 1,
            self.total_epochs,
            means["loss"],
            means["acc"],
        )
        if means["skipped_images"]:
            self.reports.gather_skipped()
            log.warning("warning: %d unreadable images were replaced in this epoch", means["skipped_images"])
        metrics = {
            "epoch": self.epoch + 1,
            "lr": self.lr,
            "train_loss": means["loss"],
            "train_acc": means["acc"],
            "grad_norm": means["grad_norm"],
            "skipped_steps": means["skipped_steps"],
            "skipped_images": means["skipped_images"],
        }
        times = {
            "epoch": self.epoch + 1,
            "images_per_second": round(self.images / max(self.seconds, 1e-9), 1),
            "seconds": round(self.seconds, 2),
            "read_seconds": round(self.read_seconds, 2),
            "memory_mb": round(memory_mb(), 1),
        }
        return metrics, times

    def state(self):
        """All that the rest of the epoch needs; to be called in every process."""
        return {
            "step": self.step,
            "logged": self.logged,
            "sums": processes.gather(self.sums),  # (world_size, len(_SUMS))
            "worst_streak": self.worst_streak,
            "window_steps": self.window_steps,
            "window_images": self.window_images,
            "read_time": self.read_time,
            "train_time": self.train_time,
            "seconds": self.seconds,
            "read_seconds": self.read_seconds,
        }

    def load_state(self, state):
        """Undo `state`, also for another number of processes than wrote it.

        Raises UserError for a state of a version that kept other sums.
        """
        sums = state["sums"]
        if sums.shape[1:] != (len(_SUMS),):
            raise UserError(
                "the state was saved within an epoch by another version of this code; --resume an older state that was "
                "saved after an epoch, or none"
            )
        if len(sums) == processes.world_size():
            own = sums[processes.rank()]
        else:
            own = sums.sum(0) if processes.is_main() else np.zeros_like(sums[0])
        self.sums = paddle.to_tensor(own)
        self.logged = state["logged"]
        self.worst_streak = paddle.to_tensor(state["worst_streak"])
        for key in ("step", "window_steps", "window_images", "read_time", "train_time", "seconds", "read_seconds"):
            setattr(self, key, state[key])


def is_meter_state(state):
    """Whether `EpochMeter.load_state` can restore it; that checks the number of sums itself."""
    counts, seconds = ("step", "window_steps", "window_images"), ("read_time", "train_time", "seconds", "read_seconds")
    arrays = {"sums": 2, "logged": 1, "worst_streak": 0}
    return (
        all(type(state.get(key)) is int and state[key] >= 0 for key in counts)
        and all(type(state.get(key)) in (int, float) and 0 <= state[key] < math.inf for key in seconds)
        and all(isinstance(state.get(key), np.ndarray) and state[key].ndim == arrays[key] for key in arrays)
        and all(state[key].dtype.kind == "f" for key in arrays)
    )


def _means(values):
    sums = dict(zip(_SUMS, (float(value) for value in values)))
    images, steps = sums["images"] or math.nan, sums["steps"] or math.nan
    return {
        "loss": sums["loss"] / images,
        "acc": sums["correct"] / images,
        "grad_norm": sums["gradient_norm"] / steps,
        "skipped_steps": round(sums["bad_steps"]),
        "skipped_images": round(sums["skipped_images"]),
    }


class Reports:
    """What is told once in a run, whatever the epoch; and the `Scalars` to write to."""

    def __init__(self, scalars):
        self.scalars = scalars
        self._skipped = set()  # lines that the log has
        self._reading, self._has_warned = None, False  # seconds of reading, and in all, not judged yet

    def add_skipped(self, lines):
        """Log why images of this process were replaced, each once."""
        for line in lines:
            if line not in self._skipped:
                self._skipped.add(line)
                log.warning("warning: replaced: %s", line)

    def gather_skipped(self):
        """Log the lines of the other processes; to be called in all."""
        for lines in processes.gather_objects(sorted(self._skipped)):
            self.add_skipped(lines)

    def check_reading(self, read_seconds, seconds, cfg):
        """Warn once if reading took more than a tenth of the time of many steps; the first line is left out.

        Args:
            read_seconds: of the steps since the last line.
            seconds: of these steps in all.
            cfg: config.
        """
        if self._reading is None:  # the loader processes are starting
            self._reading = np.zeros(2)
            return
        self._reading += read_seconds, seconds
        if self._has_warned or self._reading[1] < _JUDGED_SECONDS:
            return
        share = self._reading[0] / self._reading[1]
        self._reading[:] = 0
        if share > _SLOW_READING:
            self._has_warned = True
            log.warning(
                "warning: %.0f %% of the time was spent waiting for images: raise DATA.NUM_WORKERS (%d; %d cores here "
                "for %d process(es)) or use a faster disk; `python tools/benchmark.py data` shows what is slow",
                100 * share,
                cfg.DATA.NUM_WORKERS,
                cores(),
                processes.world_size(),
            )


def memory_mb():
    """Largest memory that this process has held so far, in MB: of the GPU if it uses one, else of the process."""
    if paddle.device.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
