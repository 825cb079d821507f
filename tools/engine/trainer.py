"""The training loop."""

import datetime
import math
import platform
import time

import numpy as np
import paddle

from data.loader import Loader, Normalize
from engine import checkpoint, parallel
from engine.build import build_model
from engine.evaluator import evaluate
from engine.logger import log, progress_bar
from engine.losses import LabelSmoothingCrossEntropy
from engine.optimizer import build_optimizer, load_optimizer_state, optimizer_state, parameter_groups
from engine.scheduler import learning_rate, total_epochs
from errors import UserError
from files import shown


class Trainer:
    """Trains the model of a config and keeps its run folder.

    Args:
        cfg: frozen config.
        classes: `ClassList` of the data set.
        splits: {"train": Split, "val": Split}.
        run: `RunFolder` to write to.
    """

    def __init__(self, cfg, classes, splits, run):
        self.cfg, self.classes, self.run = cfg, classes, run
        rank, world_size = parallel.rank(), parallel.world_size()
        self.train_loader = Loader(splits["train"], cfg, True, rank, world_size)
        self.val_loader = Loader(splits["val"], cfg, False, rank, world_size)
        paddle.seed(cfg.SEED)
        self.model = build_model(cfg)
        self.parallel_model = parallel.data_parallel(self.model)
        self.optimizer = build_optimizer(self.model, cfg.TRAIN)
        self.criterion = LabelSmoothingCrossEntropy(cfg.TRAIN.LABEL_SMOOTHING)
        self.normalize = Normalize(cfg)
        self.total_epochs = total_epochs(cfg.TRAIN)
        self.epoch = 0  # epochs trained
        self.saved_epoch = 0  # epochs that latest.pdparams holds
        self.best_top1, self.best_epoch = -1.0, 0

    def start_from(self, path):
        """Begin with the weights of a file."""
        checkpoint.load_weights(self.model, path)
        log.info("weights from %s", shown(path))

    def resume(self, path):
        """Continue from the state of a latest.pdparams."""
        state = checkpoint.read(path)
        types = {"model": dict, "optimizer": dict, "epoch": int, "best_top1": float, "best_epoch": int}
        wrong = [key for key, kind in types.items() if not isinstance(state.get(key), kind)]
        if wrong:
            raise UserError(f"{path} holds no training state to resume (no {', '.join(wrong)}); give a latest.pdparams")
        checkpoint.load_state(self.model, state["model"], path)
        load_optimizer_state(self.optimizer, self.model, state["optimizer"], path)
        self.epoch = self.saved_epoch = state["epoch"]
        self.best_top1, self.best_epoch = state["best_top1"], state["best_epoch"]
        log.info(
            "resumed %s: %d epochs done, best %.4f at epoch %d",
            shown(path),
            self.epoch,
            self.best_top1,
            self.best_epoch,
        )

    def fit(self):
        """Train to the last epoch; validates and saves after each."""
        self._log_summary()
        while self.epoch < self.total_epochs:
            metrics = self._train_epoch()
            self.epoch += 1
            if self.epoch % self.cfg.VAL.EVERY == 0 or self.epoch == self.total_epochs:
                metrics |= self._validate()
            self._save(metrics)
        log.info(
            "done: best %s val acc %.4f at epoch %d in %s, latest state in %s",
            self.cfg.DATA.NAME,
            self.best_top1,
            self.best_epoch,
            shown(self.run.best),
            shown(self.run.latest),
        )

    def _train_epoch(self):
        lr = learning_rate(self.epoch, self.cfg.TRAIN)
        self.optimizer.set_lr(lr)
        # Dropout depends on the seed, the process and the epoch alone, so that a resumed run continues as it would.
        paddle.seed(int(np.random.SeedSequence([self.cfg.SEED, parallel.rank(), self.epoch]).generate_state(1)[0]))
        self.parallel_model.train()
        meter = _TrainMeter(self, lr)
        bar = progress_bar(
            self.train_loader.epoch(self.epoch), total=len(self.train_loader), desc=f"epoch {self.epoch + 1}"
        )
        for images, labels in bar:
            meter.batch_read()
            logits = self.parallel_model(self.normalize(images))
            loss = self.criterion(logits, labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.clear_grad()
            meter.step_done(loss, logits, labels)
        return meter.epoch_metrics()

    def _validate(self):
        scores = evaluate(self.model, self.val_loader, self.cfg)
        log.info("%s val acc is:%.4f", self.cfg.DATA.NAME, scores.top1)
        return {"val_loss": scores.loss, "val_top1": scores.top1, "val_top5": scores.top5}

    def _save(self, metrics):
        top1 = metrics.get("val_top1", -1.0)
        is_best = top1 > self.best_top1 and math.isfinite(metrics["val_loss"])
        if is_best:
            self.best_top1, self.best_epoch = top1, self.epoch
        if not parallel.is_main():
            return
        if not self.saved_epoch:
            self.run.begin(self.cfg, self.classes)
        if is_best:
            checkpoint.save(self.run.best, self.model.state_dict())
            log.info("avg_acc: %.4f model saved!", top1)
        # Before the state: a row too many is dropped at resume, a missing one would be missing for ever.
        self.run.append_metrics(metrics)
        checkpoint.save(
            self.run.latest,
            {
                "model": self.model.state_dict(),
                "optimizer": optimizer_state(self.optimizer, self.model),
                "epoch": self.epoch,
                "best_top1": self.best_top1,
                "best_epoch": self.best_epoch,
            },
        )
        self.saved_epoch = self.epoch

    def how_to_continue(self):
        """What is safe if the run ends now, in words."""
        if not self.saved_epoch:
            return "no epoch was saved yet"
        latest = shown(self.run.latest)
        return f"{latest} holds {self.saved_epoch} epochs, --resume auto continues after them"

    def _log_summary(self):
        cfg, train = self.cfg, self.cfg.TRAIN
        groups = parameter_groups(self.model)
        count = sum(math.prod(p.shape) for p in self.model.parameters())
        log.info(
            "%s, %s: PaddlePaddle %s on %s, %d process(es), Python %s",
            cfg.NAME,
            datetime.datetime.now().isoformat(" ", "seconds"),
            paddle.__version__,
            paddle.device.get_device(),
            parallel.world_size(),
            platform.python_version(),
        )
        log.info(
            "model %s: %d parameters; tensors: %d decayed, %d undecayed, %d frozen",
            cfg.MODEL.NAME,
            count,
            len(groups["decayed"]),
            len(groups["undecayed"]),
            len(groups["frozen"]),
        )
        log.info(
            "data %s: %d train, %d val images; global batch %d, %d steps per epoch, %d epochs",
            cfg.DATA.NAME,
            self.train_loader.num_images,
            self.val_loader.num_images,
            train.BATCH_SIZE * parallel.world_size(),
            len(self.train_loader),
            self.total_epochs,
        )
        epochs = sorted({0, min(train.WARMUP_EPOCHS, self.total_epochs - 1), self.total_epochs - 1})
        log.info("lr: %s", ", ".join(f"{learning_rate(e, train):.6g} in epoch {e + 1}" for e in epochs))


class _TrainMeter:
    """Sums loss, accuracy and times of one epoch, on the device; reads them only where a line is logged."""

    def __init__(self, trainer, lr):
        self.trainer, self.lr = trainer, lr
        self.log_every = trainer.cfg.TRAIN.LOG_EVERY
        self.steps = len(trainer.train_loader)
        self.batch_size = trainer.cfg.TRAIN.BATCH_SIZE
        self.global_batch = self.batch_size * parallel.world_size()
        self.step = 0
        self.epoch_totals = np.zeros(2)  # loss * images, correct images
        self._start_window()
        self.epoch_start = self.mark = time.perf_counter()

    def _start_window(self):
        self.totals = paddle.zeros([2], dtype="float32")  # loss * images, correct images since the last line
        self.window_steps, self.read_time, self.train_time = 0, 0.0, 0.0

    def batch_read(self):
        now = time.perf_counter()
        self.read_time += now - self.mark
        self.mark = now

    def step_done(self, loss, logits, labels):
        with paddle.no_grad():
            correct = (logits.argmax(axis=-1) == labels).astype("float32").sum()
            self.totals += paddle.stack([loss.astype("float32") * self.batch_size, correct])
        self.step += 1
        self.window_steps += 1
        if self.step % self.log_every == 0 or self.step == self.steps:
            self._log_line()
        now = time.perf_counter()
        self.train_time += now - self.mark
        self.mark = now

    def _log_line(self):
        # Waits for the device; all processes see the same loss, so that none stops alone.
        totals = np.array(parallel.sum_over_processes(self.totals).tolist())
        self.train_time += time.perf_counter() - self.mark
        self.mark = time.perf_counter()
        self.epoch_totals += totals
        loss, accuracy = totals / (self.window_steps * self.global_batch)
        trainer = self.trainer
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} in epoch {trainer.epoch + 1}, step {self.step}; a lower TRAIN.BASE_LR may help"
            )
        step_time = (self.read_time + self.train_time) / self.window_steps
        steps_left = (trainer.total_epochs - trainer.epoch) * self.steps - self.step
        log.info(
            "Epoch [%d/%d], Step [%d/%d], Loss: %.4f, acc: %.4f, read_time: %.4f, train_time: %.4f, lr: %.6f, "
            "images/s: %.1f, ETA: %s",
            trainer.epoch + 1,
            trainer.total_epochs,
            self.step,
            self.steps,
            loss,
            accuracy,
            self.read_time / self.window_steps,
            self.train_time / self.window_steps,
            self.lr,
            self.global_batch / step_time,
            datetime.timedelta(seconds=round(steps_left * step_time)),
        )
        self._start_window()

    def epoch_metrics(self):
        """Log the epoch's line and return its row of metrics.jsonl."""
        trainer = self.trainer
        images = self.steps * self.global_batch
        loss, accuracy = (float(total) / images for total in self.epoch_totals)
        seconds = time.perf_counter() - self.epoch_start
        log.info(
            "Epoch [%d/%d], avg_Loss: %.4f, avg_acc: %.4f", trainer.epoch + 1, trainer.total_epochs, loss, accuracy
        )
        return {
            "epoch": trainer.epoch + 1,
            "lr": self.lr,
            "train_loss": loss,
            "train_acc": accuracy,
            "images_per_second": round(images / seconds, 1),
            "seconds": round(seconds, 2),
        }
