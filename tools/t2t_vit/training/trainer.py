"""The training loop."""

import datetime
import math
import platform
import time

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log, progress_bar
from t2t_vit.data.loader import EvalLoader, TrainLoader
from t2t_vit.parallel import processes
from t2t_vit.runs.interruption import GO_ON, STOPS
from t2t_vit.runs.visualdl import Scalars
from t2t_vit.training.evaluator import evaluate
from t2t_vit.training.meter import EpochMeter, Reports
from t2t_vit.training.optimizer import parameter_groups
from t2t_vit.training.schedule import learning_rate, total_epochs
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import classes_beside, first_other_class, refuse_other_order


class Stopped(Exception):
    """Training ended before its last epoch, by a signal or a time limit, with all of it saved."""


class Trainer:
    """Trains the model of a config and keeps its run folder.

    Args:
        cfg: frozen config.
        classes: `ClassList` of the data set.
        splits: {"train": Split, "val": Split}.
        run: `RunFolder` to write to.
        watch: `InterruptHandler` that says when to save and to stop.
        setting: `resume.setting` of this run.
    """

    def __init__(self, cfg, classes, splits, run, watch, setting):
        self.cfg, self.classes, self.run, self.watch, self.setting = cfg, classes, run, watch, setting
        rank, world_size = processes.rank(), processes.world_size()
        self.total_epochs = total_epochs(cfg.TRAIN)
        self.train_loader = TrainLoader(splits["train"], cfg, rank, world_size, self.total_epochs)
        self.val_loader = EvalLoader(splits["val"], cfg, rank, world_size)
        paddle.seed(cfg.SEED)
        self.train_step = TrainStep(cfg)
        if self.train_step.teacher and (other := first_other_class(classes, self.train_step.teacher.weights)):
            raise UserError(f"the teacher knows other classes than the data: {other}")
        self.scalars = Scalars(active=processes.is_main())
        self.reports = Reports(self.scalars)
        self.epoch = self.images = 0  # epochs done; images of the next one that are done
        self.meter = None  # EpochMeter of an epoch that has begun
        self.begun = False  # whether the run folder is this run's
        self.saved = None  # "3 epochs and 5 steps" that latest.pdparams holds
        self.tell_saved = lambda: None  # called when that has changed
        self.best_top1, self.best_epoch = -1.0, 0
        self.scores = {}  # top-1 of the last validation, by models()
        self.validation_seconds = 0.0
        self.streak = paddle.zeros([])  # steps in a row that were not finite

    # --- Begin ---

    def start_from(self, path):
        """Begin with the weights of a file, without the head if it is for other classes.

        Raises UserError if it is for the same classes in another order.
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
        self.scores = {which: top1 for which, top1 in state["scores"].items() if which in self.train_step.models()}
        self.streak, self.validation_seconds = paddle.to_tensor(state["streak"]), state["validation_seconds"]
        if state["meter"]:
            self.meter = self._new_meter(state["meter"]["step"])
            self.meter.load_state(state["meter"])
        self.begun, self.saved = True, self._position()
        best = f"best {self.best_top1:.4f} at epoch {self.best_epoch}"
        log.info("resumed %s: %s done, %s", display_path(path), self.saved, best)

    def _new_meter(self, steps_done=0):
        steps = self.train_loader.steps(self.images)
        images = self.images + steps * self.train_loader.order.images_per_step
        lr = learning_rate(self.epoch, self.cfg.TRAIN)
        return EpochMeter(
            self.cfg, self.epoch, self.total_epochs, steps_done + steps, lr, self.reports, self.streak, images
        )

    # --- Train ---

    def fit(self):
        """Train to the last epoch; saves after each, and where the watch says so.

        Raises:
            Stopped: the watch ended the training, and its state is saved.
            UserError: a broken image, or a loss that stays non-finite.
            OSError: a file cannot be written.
        """
        self._log_summary()
        if self.epoch >= self.total_epochs:
            log.info("all %d epochs are done; --resume none trains anew", self.total_epochs)
        while self.epoch < self.total_epochs:
            self._train_epoch()
            scores = self._validate()
            self._end_epoch(scores)
        best = f"best {self.cfg.DATA.NAME} val acc {self.best_top1:.4f} at epoch {self.best_epoch}"
        log.info(
            "done: %s; latest %s in %s",
            f"{best} in {display_path(self.run.best)}" if self.best_epoch else "no validation had a finite loss",
            ", ".join(f"{which} {top1:.4f}" for which, top1 in self.scores.items()),
            display_path(self.run.latest),
        )

    def _train_epoch(self):
        self.meter = self.meter or self._new_meter()
        self.train_step.train()
        self.watch.epoch_starts()
        batches = self.train_loader.epoch_steps(self.epoch, self.images)
        bar = progress_bar(
            batches, total=self.meter.steps, initial=self.meter.step, desc=f"epoch {self.epoch + 1}", unit="step"
        )
        for step_batches in bar:
            self.meter.batch_read()
            result = self.train_step(step_batches, self.meter.lr, self.epoch, self.meter.step)
            self.images += self.train_loader.order.images_per_step
            self.meter.step_done(result)
            self.streak = self.meter.streak
            action = self.watch.after_step()
            if action != GO_ON:
                self._save()
                self.meter.saved()
            if action in STOPS:
                self._stop(action)

    def _validate(self):
        """{"raw": Scores, "ema": Scores}; {} in an epoch without validation."""
        if (self.epoch + 1) % self.cfg.VAL.EVERY and self.epoch + 1 < self.total_epochs:
            return {}
        action = self.watch.before_validation(self.validation_seconds)
        stop = action in STOPS
        if stop or processes.world_size() > 1:  # a validation of several processes cannot be cut short
            self._save()
        if stop:
            self._stop(action)
        start, scores = time.monotonic(), {}
        # Several processes would have to agree on it in the middle; they finish the validation.
        must_stop = self.watch.must_stop if processes.world_size() == 1 else None
        for which, model in self.train_step.models().items():
            scores[which] = evaluate(model, self.val_loader, self.cfg, must_stop=must_stop)
            if scores[which] is None:
                self._save()
                self._stop(self.watch.before_validation(0.0))
        self.validation_seconds = time.monotonic() - start
        return scores

    # --- Save and stop ---

    def _end_epoch(self, scores):
        metrics, times = self.meter.rows()
        for which, score in scores.items():
            name = "val_" if which == "raw" else f"val_{which}_"
            metrics |= {f"{name}loss": score.loss, f"{name}top1": score.top1, f"{name}top5": score.top5}
            self.scores[which] = score.top1
            log.info("%s val acc is:%.4f%s", self.cfg.DATA.NAME, score.top1, "" if which == "raw" else " (EMA)")
        self.scalars.add(self.epoch + 1, {key.replace("_", "/", 1): metrics[key] for key in metrics if "val_" in key})
        self.epoch, self.images, self.meter = self.epoch + 1, 0, None
        if scores:
            self._keep_best(scores)
        if processes.is_main():
            self._begin_folder()
            # Before the state: a row too many is dropped at resume, a missing one would be missing for ever.
            self.run.append_rows(metrics, times)
        self._save()

    def _keep_best(self, scores):
        which = self.cfg.VAL.BEST if self.cfg.VAL.BEST in scores else "raw"
        if scores[which].top1 <= self.best_top1 or not math.isfinite(scores[which].loss):
            return
        self.best_top1, self.best_epoch = scores[which].top1, self.epoch
        if processes.is_main():
            self._begin_folder()
            checkpoint.save(self.run.best, self.train_step.weights(which))
            log.info("avg_acc: %.4f model saved!", self.best_top1)

    def _begin_folder(self):
        if not self.begun:
            self.run.begin(self.cfg, self.classes)
            self.scalars.open(self.run.scalars)
            self.begun = True

    def _save(self):
        """Write all that the rest of the run needs; to be called in every process.

        Not while steps fail: the last state stays what it is.
        """
        start = time.monotonic()
        meter = self.meter.state() if self.meter else {}
        failing = int(self.streak.item())
        if failing > 1:  # one alone happens when the loss scale of float16 was too high
            log.warning("warning: not saved: the last %d steps were not finite", failing)
            self.watch.saved(0.0)
            return
        if processes.is_main():
            self._begin_folder()
            self.scalars.flush()
            self.run.save_state(self._state(meter))
        self.saved = self._position()
        self.tell_saved()
        self.watch.saved(time.monotonic() - start)

    def _state(self, meter):
        state = {
            **self.train_step.state(),
            "epoch": self.epoch,
            "images": self.images,
            "meter": meter,
            "best_top1": self.best_top1,
            "best_epoch": self.best_epoch,
            "scores": self.scores,
            "streak": self.streak,
            "validation_seconds": self.validation_seconds,
            "sizes": self.run.sizes(),
            "setting": self.setting,
        }
        broken = [name for name, value in state["model"].items() if not np.isfinite(checkpoint.to_array(value)).all()]
        if broken:
            raise UserError(f"weights are not finite any more ({broken[0]}); a lower TRAIN.BASE_LR may help")
        return state

    def _position(self):
        within = f" and {self.meter.step} steps" if self.meter else ""
        return f"{self.epoch} epochs{within}"

    def _stop(self, action):
        latest, position = display_path(self.run.latest), self._position()
        kept = f", saved in {latest}" if self.saved == position else f"; {latest} holds {self.saved}"
        raise Stopped(f"stopped by {self.watch.reason(action)} after {position}{kept}")

    def how_to_continue(self):
        """What is safe if the run ends now, in words."""
        if not self.saved:
            return "nothing was saved yet"
        return f"{display_path(self.run.latest)} holds {self.saved}, --resume auto continues after them"

    # --- Summary ---

    def _log_summary(self):
        cfg, train = self.cfg, self.cfg.TRAIN
        log.info(
            "%s, %s: PaddlePaddle %s on %s, %s, %d process(es), Python %s",
            cfg.NAME,
            datetime.datetime.now().isoformat(" ", "seconds"),
            paddle.__version__,
            paddle.device.get_device(),
            self.train_step.precision,
            processes.world_size(),
            platform.python_version(),
        )
        model = self.train_step.model
        named, groups = dict(model.named_parameters()), parameter_groups(model)
        counts = [
            f"{sum(math.prod(named[name].shape) for name in names)} {group} in {len(names)} tensors"
            for group, names in groups.items()
        ]
        total = sum(math.prod(parameter.shape) for parameter in named.values())
        log.info("model %s: %d parameters: %s", cfg.MODEL.NAME, total, ", ".join(counts))
        if self.train_step.teacher:
            log.info("%s", self.train_step.teacher.summary)
        log.info(
            "data %s: %d train, %d val images; global batch %d, %d steps per epoch, %d epochs",
            cfg.DATA.NAME,
            self.train_loader.num_images,
            self.val_loader.num_images,
            self.train_loader.order.images_per_step,
            self.train_loader.steps(),
            self.total_epochs,
        )
        epochs = sorted({0, min(train.WARMUP_EPOCHS, self.total_epochs - 1), self.total_epochs - 1})
        log.info("lr: %s", self.train_step.optimizer.rates.summary(epochs))
        self._warn_of_short_average()
        slow = [key for key in ("BACKBONE_LR", "FREEZE", "LAYER_DECAY") if train[key] not in (0.0, [], 1.0)]
        if slow and not cfg.MODEL.PRETRAINED and not self.saved:
            log.warning(
                "warning: TRAIN.%s is for fine-tuning, but the weights are random: give some with --pretrained FILE",
                slow[0],
            )
        log.info("ready %.1f s after the start", time.monotonic() - self.watch.started)

    def _warn_of_short_average(self):
        steps, decay = self.total_epochs * self.train_loader.steps(), self.cfg.TRAIN.EMA_DECAY
        if self.cfg.VAL.BEST == "ema" and decay and decay**steps > 0.05:  # the initial weights' share in the end
            log.warning(
                "warning: TRAIN.EMA_DECAY %g averages over about %.0f steps and the run has %d: best.pdparams would "
                "hold much of the initial weights; set TRAIN.EMA_DECAY %g or VAL.BEST raw",
                decay,
                1 / (1 - decay),
                steps,
                1 - float(f"{min(4 / steps, 0.9):.1g}"),
            )
