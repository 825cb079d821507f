"""The training loop."""

import math
import time

import numpy as np
import paddle

from t2t_vit.common.errors import UserError, counted
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log, progress_bar
from t2t_vit.data.loader import EvalLoader, TrainLoader
from t2t_vit.parallel import processes
from t2t_vit.runs.interruption import GO_ON, STOPS
from t2t_vit.training.epoch_sums import EpochSums
from t2t_vit.training.evaluator import evaluate_all
from t2t_vit.training.schedule import learning_rate, total_epochs
from t2t_vit.training.stop_rules import BadSteps, check_skipped
from t2t_vit.training.stopwatch import Stopwatch
from t2t_vit.training.train_log import TrainLog, epoch_rows
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import classes_beside, first_other_class, refuse_other_order


class Stopped(Exception):
    """Training was stopped by a signal or a time limit before its last epoch. Everything is saved."""


class Trainer:
    """Trains the model of a config, validates it after each epoch and saves it to `run`, a `RunFolder`.

    Nothing is written before `fit`. `splits` is {"train": Split, "val": Split}. `setting` comes from resume.py.
    """

    def __init__(self, cfg, classes, splits, run, interrupts, setting):
        self.cfg, self.classes, self.run, self.interrupts, self.setting = cfg, classes, run, interrupts, setting
        self.on_save = lambda: None  # called whenever `how_to_continue` has changed
        self.total_epochs = total_epochs(cfg.TRAIN)
        rank, world_size = processes.rank(), processes.world_size()
        self.train_loader = TrainLoader(splits["train"], cfg, rank, world_size, self.total_epochs)
        self.val_loader = EvalLoader(splits["val"], cfg, rank, world_size)
        paddle.seed(cfg.SEED)
        self.train_step = TrainStep(cfg, splits["train"].labels)
        if self.train_step.teacher and (other := first_other_class(classes, self.train_step.teacher.weights)):
            raise UserError(f"the teacher has other classes than the data: {other}")
        self.images_per_step = self.train_loader.order.images_per_step
        self.log = TrainLog(self.total_epochs, self.images_per_step)
        self.epoch = self.images = self.step = 0  # finished epochs; finished images and steps of the current epoch
        self.sums, self.stopwatch, self.bad_steps = EpochSums(), Stopwatch(), BadSteps(cfg.TRAIN.MAX_BAD_STEPS)
        self.best_top1, self.best_epoch, self.best_weights = -1.0, 0, ""
        self.scores = {}  # top-1 of the last validation, by the names of `TrainStep.models`
        self.validation_seconds = 0.0
        self.saved = None  # what latest.pdparams contains: "3 epochs and 5 steps"

    # --- Begin ---

    def start_from(self, path):
        """Start with the weights of a file, without the head if it has other classes.

        Raises UserError if the file has the same classes in another order.
        """
        if theirs := classes_beside(path):
            refuse_other_order(self.classes, theirs)
        self.train_step.start_from(path, "new" if first_other_class(self.classes, path) else "fit")
        log.info("weights from %s", display_path(path))

    def resume(self, path, state):
        """Continue from a state that `resume.find_state` found in `path`."""
        self.train_step.load_state(state, path)
        self.epoch, self.images = state["epoch"], state["images"]
        self.best_top1, self.best_epoch = state["best_top1"], state["best_epoch"]
        self.best_weights = state.get("best_weights", "")  # states of earlier versions lack it
        self.scores = {which: top1 for which, top1 in state["scores"].items() if which in self.train_step.models()}
        self.validation_seconds = state["validation_seconds"]
        meter = state["meter"]
        self.bad_steps.streak = paddle.to_tensor(state["streak"])
        self.bad_steps.longest = paddle.to_tensor(meter.get("worst_streak", state["streak"]))  # some states lack it
        if meter:
            self.step = meter["step"]
            self.sums.load_state(meter)
            self.stopwatch.load_state(meter)
        self.saved = self._position()
        best = f"best {self.best_top1:.4f} at epoch {self.best_epoch}"
        log.info("resumed %s: %s done, %s", display_path(path), self.saved, best)

    # --- Train ---

    def fit(self):
        """Train to the last epoch. Save after each epoch and when `interrupts` asks for it.

        Raises:
            Stopped: `interrupts` stopped the training, and the state is saved.
            UserError: an image is broken, or the loss stays non-finite.
            OSError: a file cannot be written.
        """
        if self.epoch >= self.total_epochs:
            log.info("all done: %s; --resume none starts a new run", counted(self.total_epochs, "epoch"))
        while self.epoch < self.total_epochs:
            lr = learning_rate(self.epoch, self.cfg.TRAIN)
            self._train_epoch(lr)
            self._end_epoch(lr, self._validate())
        best = f"best {self.cfg.DATA.NAME} val acc {self.best_top1:.4f} at epoch {self.best_epoch}"
        best += _ema_mark(self.best_weights)
        latest = ", ".join(f"{which} {top1:.4f}" for which, top1 in self.scores.items())
        log.info("latest: %s in %s", latest, display_path(self.run.latest))
        log.info(
            "done: %s",
            f"{best} in {display_path(self.run.best)}" if self.best_epoch else "no validation had a finite loss",
        )

    def _train_epoch(self, lr):
        """Train the rest of the current epoch."""
        steps = self.step + self.train_loader.steps(self.images)  # of the whole epoch
        self.train_step.train()
        self.interrupts.epoch_starts()
        self.stopwatch.restart()
        batches = self.train_loader.epoch_steps(self.epoch, self.images)
        bar = progress_bar(batches, total=steps, initial=self.step, desc=f"epoch {self.epoch + 1}", unit="step")
        for step_batches in bar:
            self.stopwatch.batch_read()
            result = self.train_step(step_batches, lr, self.epoch, self.step)
            self.images += self.images_per_step
            self.step += 1
            self.sums.add(result)
            self.bad_steps.add(result.ok)
            self.log.add_skipped(result.skipped)
            if self.step % self.cfg.TRAIN.LOG_EVERY == 0 or self.step == steps:
                self._log_line(lr, steps)
            self.stopwatch.step_done()
            self._save_or_stop(self.interrupts.after_step())

    def _log_line(self, lr, steps):
        """Log the steps since the last line, and apply the rules that stop a run. Waits for the device."""
        means = self.sums.lap()
        self.log.line(self.epoch, self.step, steps, lr, means, self.stopwatch.lap())
        self.log.check_reading(self.stopwatch.epoch, self.cfg.DATA.NUM_WORKERS)
        images = self.images + (steps - self.step) * self.images_per_step  # of the whole epoch
        check_skipped(self.sums.means().skipped_images, images, self.log)
        self.bad_steps.check(self.epoch + 1, self.step)

    def _validate(self):
        """Return {"raw": Scores, "ema": Scores}, or {} in an epoch without validation."""
        if (self.epoch + 1) % self.cfg.VAL.EVERY and self.epoch + 1 < self.total_epochs:
            return {}
        action = self.interrupts.before_validation(self.validation_seconds)
        several = processes.world_size() > 1
        # With several processes, validation cannot be interrupted, because all would have to agree. So save before it.
        self._save_or_stop(action, save=several)
        start = time.monotonic()
        must_stop = None if several else self.interrupts.must_stop
        models, loader = self.train_step.models(), self.val_loader
        scores = evaluate_all(models, loader, self.cfg, must_stop=must_stop, only=loader.only)
        if scores is None:
            self._save_or_stop(self.interrupts.before_validation(0.0))
        self.validation_seconds = time.monotonic() - start
        return scores

    def _end_epoch(self, lr, scores):
        """Log and save the epoch and its validation."""
        means = self.sums.means()
        self.log.epoch(self.epoch, self.images, means, self.stopwatch.epoch)
        metrics, times = epoch_rows(self.epoch, lr, self.images, means, self.stopwatch.epoch)
        for which, score in scores.items():
            prefix = "" if which == "raw" else f"{which}_"
            figures = {"loss": score.loss, "top1": score.top1, "top5": score.top5}
            metrics.update({f"val_{prefix}{name}": value for name, value in figures.items()})
            self.log.validation(self.epoch, "val" if which == "raw" else f"val_{which}", score)
            self.scores[which] = score.top1
            log.info("%s val acc is:%.4f%s", self.cfg.DATA.NAME, score.top1, _ema_mark(which))
        self.epoch, self.images, self.step = self.epoch + 1, 0, 0
        self.sums, self.stopwatch = EpochSums(), Stopwatch()
        if scores and self._keep_best(scores):
            metrics["best"] = self.best_weights
        if processes.is_main():
            # Write the row before the state: resuming drops an extra row but cannot restore a missing one.
            self.run.append_rows(metrics, times)
        self._save()

    def _keep_best(self, scores):
        """Save the best weights so far. Returns whether they are of this epoch."""
        which = self.cfg.VAL.BEST if self.cfg.VAL.BEST in scores else "raw"
        if self.cfg.VAL.BEST == "better":
            which = max(scores, key=lambda name: (math.isfinite(scores[name].loss), scores[name].top1, name == "ema"))
        if scores[which].top1 <= self.best_top1 or not math.isfinite(scores[which].loss):
            return False
        self.best_top1, self.best_epoch, self.best_weights = scores[which].top1, self.epoch, which
        if processes.is_main():
            checkpoint.save(self.run.best, self.train_step.weights(which))
            log.info("best so far, saved as %s%s", self.run.best.name, _ema_mark(which))
        return True

    # --- Save and stop ---

    def _save_or_stop(self, action, save=False):
        """Act on the decision of `interrupts`. If `save` is set, save in any case."""
        if save or action != GO_ON:
            self._save()
            self.stopwatch.restart()
        if action in STOPS:
            latest, position = display_path(self.run.latest), self._position()
            kept = f", saved in {latest}" if self.saved == position else f"; {latest} contains {self.saved}"
            raise Stopped(f"stopped by {self.interrupts.reason(action)} after {position}{kept}")

    def _save(self):
        """Save everything that the rest of the run needs, unless steps are failing. Call it in every process."""
        start = time.monotonic()
        failing = int(self.bad_steps.streak.item())
        if failing > 1:  # a single one is normal: the loss scale of float16 was too high
            log.warning("warning: not saved: the last %d steps were not finite", failing)
            self.interrupts.saved(0.0)
            return
        meter = {"step": self.step, "worst_streak": self.bad_steps.longest}
        meter = {**meter, **self.sums.state(), **self.stopwatch.state()} if self.step else {}
        if processes.is_main():
            self.log.scalars.flush()
            self.run.save_state(self._state(meter))
        self.saved = self._position()
        self.on_save()
        self.interrupts.saved(time.monotonic() - start)

    def _state(self, meter):
        """Return the state to save. `meter` contains the sums and times of an unfinished epoch."""
        state = {
            **self.train_step.state(),
            "epoch": self.epoch,
            "images": self.images,
            "meter": meter,
            "best_top1": self.best_top1,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "scores": self.scores,
            "streak": self.bad_steps.streak,
            "validation_seconds": self.validation_seconds,
            "sizes": self.run.sizes(),
            "setting": self.setting,
        }
        broken = [name for name, value in state["model"].items() if not np.isfinite(checkpoint.to_array(value)).all()]
        if broken:
            raise UserError(f"the weights are no longer finite ({broken[0]}); a lower TRAIN.BASE_LR may help")
        return state

    def _position(self):
        steps = f" and {counted(self.step, 'step')}" if self.step else ""
        return counted(self.epoch, "epoch") + steps

    def how_to_continue(self):
        """Describe what is saved if the run ends now, and how to continue."""
        if not self.saved:
            return "nothing has been saved yet"
        return f"{display_path(self.run.latest)} contains {self.saved}, --resume auto continues from there"


def _ema_mark(which: str) -> str:
    """What follows an accuracy in the log if it is of the moving average."""
    return " (EMA)" if which == "ema" else ""
