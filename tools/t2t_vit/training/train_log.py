"""Training logs: a summary at the start, a line every few steps, a line per epoch, and VisualDL curves."""

import datetime
import math
import platform
import time

import paddle

from t2t_vit.common.errors import counted
from t2t_vit.common.logger import log
from t2t_vit.common.runtime import cores, memory_mb
from t2t_vit.data.balance import balance_lines
from t2t_vit.parallel import processes
from t2t_vit.runs.visualdl import Scalars
from t2t_vit.training.parameters import parameter_groups

_SLOW_READING = 0.1  # fraction of the time
_JUDGED_SECONDS = 60.0  # judge only after this much of an epoch, when a cold start no longer matters
_PROGRESS_SECONDS = 60.0  # between two lines with the speed and the time left


def log_summary(trainer, notes=()):
    """Log versions, model, data, learning rates and `notes` of a `Trainer`. Warn if the moving average is too slow."""
    cfg, step, loader = trainer.cfg, trainer.train_step, trainer.train_loader
    log.info(
        "%s, %s: PaddlePaddle %s on %s, %s, %s, Python %s",
        cfg.NAME, datetime.datetime.now().isoformat(" ", "seconds"), paddle.__version__, paddle.device.get_device(),
        step.precision, counted(processes.world_size(), "process"), platform.python_version(),
    )  # fmt: skip
    total, groups = _parameters(step.model)
    log.info("model %s: %s", cfg.MODEL.NAME, total)
    log.info("weight decay: %s", groups)
    if step.teacher:
        log.info("%s", step.teacher.summary)
    log.info(
        "data %s: %s to train, %s to validate; %s per step, %s per epoch, %s",
        cfg.DATA.NAME, counted(loader.num_images, "image"), counted(trainer.val_loader.num_images, "image"),
        counted(loader.order.images_per_step, "image"), counted(loader.steps(), "step"),
        counted(trainer.total_epochs, "epoch"),
    )  # fmt: skip
    left_out = loader.num_images % loader.order.images_per_step
    if left_out > loader.num_images / 10:
        log.info("%s left out of each epoch, because they fill no step; others each time", counted(left_out, "image"))
    last = trainer.total_epochs - 1
    for note in (*balance_lines(cfg.TRAIN, loader.order.labels), *notes):
        log.info("%s", note)
    log.info("lr: %s", step.optimizer.rates.summary(sorted({0, min(cfg.TRAIN.WARMUP_EPOCHS, last), last})))
    if trainer.epoch == 0 and cfg.TRAIN.WARMUP_EPOCHS and cfg.TRAIN.WARMUP_LR < cfg.TRAIN.BASE_LR / 100:
        log.info("epoch 1 hardly changes the weights: TRAIN.WARMUP_LR is %g", cfg.TRAIN.WARMUP_LR)
    _warn_of_short_average(cfg, trainer.total_epochs * loader.steps())
    log.info("ready %.1f s after the start", time.monotonic() - trainer.interrupts.started)


def _parameters(model):
    """Count the parameters of a model: (all, by group), as text."""
    sizes = {name: math.prod(parameter.shape) for name, parameter in model.named_parameters()}
    counts = [
        f"{sum(sizes[name] for name in names):,} {group} in {counted(len(names), 'tensor')}"
        for group, names in parameter_groups(model).items()
    ]
    return counted(sum(sizes.values()), "parameter"), ", ".join(counts)


def _warn_of_short_average(cfg, steps):
    decay = cfg.TRAIN.EMA_DECAY
    # decay**steps: weight of the initial weights at the end
    if cfg.VAL.BEST == "ema" and decay and decay**steps > 0.05:
        log.warning(
            "warning: TRAIN.EMA_DECAY %g averages over about %.0f steps but the run has only %d: best.pdparams would "
            "still contain much of the initial weights; set TRAIN.EMA_DECAY %g or VAL.BEST better",
            decay, 1 / (1 - decay), steps, 1 - float(f"{min(4 / steps, 0.9):.1g}"),
        )  # fmt: skip


class TrainLog:
    """Logs lines and curves of a run of `total_epochs`, with `images_per_step` over all processes."""

    def __init__(self, total_epochs, images_per_step):
        self.total_epochs, self.images_per_step = total_epochs, images_per_step
        self.scalars = Scalars()
        self._skipped = set()  # warnings about unreadable images that were already logged
        self._is_slow = False  # whether the warning about slow reading was already logged
        self._progress_logged = -math.inf

    def line(self, epoch, step, steps, lr, means, lap):
        """Log the `Means` and `Lap` since the last line. `epoch` counts from 0, `step` from 1; an epoch has `steps`."""
        images_per_second = lap.steps * self.images_per_step / lap.seconds
        steps_left = (self.total_epochs - epoch) * steps - step
        log.info(
            "Epoch [%d/%d], Step [%d/%d], Loss: %.4f, acc: %.4f, read_time: %.4f, train_time: %.4f, lr: %.6f%s",
            epoch + 1, self.total_epochs, step, steps, means.loss, means.acc, lap.read / lap.steps,
            lap.train / lap.steps, lr, f", skipped steps: {means.skipped_steps}" if means.skipped_steps else "",
        )  # fmt: skip
        if time.monotonic() - self._progress_logged >= _PROGRESS_SECONDS:
            self._progress_logged = time.monotonic()
            log.info("%s", self._progress(images_per_second, steps_left * self.images_per_step))
        curves = {
            "accuracy/train": means.acc,
            "loss/train": means.loss,
            "step/learning_rate": lr,
            "step/gradient_norm": means.grad_norm,
            "system/images_per_second": images_per_second,
            "system/read_seconds": lap.read / lap.steps,
            "system/memory_mb": peak_mb(),
        }
        self.scalars.add(epoch * steps + step, curves)

    def _progress(self, images_per_second, images_left):
        """The time of day, the speed and the time left at this speed, without validations."""
        left = datetime.timedelta(seconds=round(images_left / images_per_second))
        return f"{time.strftime('%H:%M:%S')}, images/s: {images_per_second:.1f}, ETA: {left}"

    def epoch(self, epoch, images, means, lap):
        """Log the `Means` and the `Lap` of a whole epoch (from 0) of `images`."""
        progress = self._progress(images / max(lap.seconds, 1e-9), (self.total_epochs - epoch - 1) * images)
        position = f"Epoch [{epoch + 1}/{self.total_epochs}]"
        log.info("%s, avg_Loss: %.4f, avg_acc: %.4f, %s", position, means.loss, means.acc, progress)
        if means.skipped_images:
            self.gather_skipped()
            log.warning("warning: %s replaced in this epoch", counted(means.skipped_images, "unreadable image"))

    def validation(self, epoch, name, scores):
        """Add the curves of a validation after an epoch (from 0): "val", or "val_ema" of averaged weights."""
        curves = {"accuracy": scores.top1, "accuracy_top5": scores.top5, "loss": scores.loss}
        self.scalars.add(epoch + 1, {f"{group}/{name}": value for group, value in curves.items()})

    def add_skipped(self, reasons):
        """Log why images were replaced, each reason once in a run."""
        for reason in reasons:
            if reason not in self._skipped:
                self._skipped.add(reason)
                log.warning("warning: replaced: %s", reason)

    def gather_skipped(self):
        """Log the reasons from the other processes. Call it in all processes."""
        for reasons in processes.gather_objects(sorted(self._skipped)):
            self.add_skipped(reasons)

    def check_reading(self, lap, num_workers):
        """Warn once per run if an epoch spends much of its time waiting for images. `lap` is its `Lap` so far."""
        if self._is_slow or lap.seconds < _JUDGED_SECONDS or lap.read < _SLOW_READING * lap.seconds:
            return
        self._is_slow = True
        log.warning(
            "warning: %.0f%% of the time was spent waiting for images: raise DATA.NUM_WORKERS (%d; %s here "
            "for %s) or use a faster disk; `python tools/benchmark.py data` shows what is slow",
            100 * lap.read / lap.seconds, num_workers, counted(cores(), "core"),
            counted(processes.world_size(), "process"),
        )  # fmt: skip


def epoch_rows(epoch, lr, images, means, lap):
    """Return the rows of an epoch (from 0) for metrics.jsonl and times.jsonl. A repeated run has the same first row."""
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
        "images_per_second": round(images / max(lap.seconds, 1e-9), 1),
        "seconds": round(lap.seconds, 2),
        "read_seconds": round(lap.read, 2),
        "memory_mb": round(peak_mb(), 1),
    }
    return metrics, times


def peak_mb() -> float:
    """Return the peak memory of this process in MB: GPU memory if it uses a GPU, else main memory."""
    if paddle.device.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    return memory_mb()[1]
