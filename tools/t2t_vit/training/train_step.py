"""One training step: forward, backward, update."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from yacs.config import CfgNode

from t2t_vit.data.balance import class_weights
from t2t_vit.data.batch import Batch, TrainInput
from t2t_vit.models import tf32
from t2t_vit.models.recompute import recompute_activations
from t2t_vit.parallel import processes
from t2t_vit.parallel.microbatch import micro_batches
from t2t_vit.training.ema import ModelEma
from t2t_vit.training.losses import CrossEntropy, DistillationLoss, prediction
from t2t_vit.training.optimizer import Optimizer
from t2t_vit.training.parameters import freeze, frozen_layers
from t2t_vit.training.precision import MixedPrecision
from t2t_vit.training.teacher import Teacher
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model
from t2t_vit.weights.load import load_pretrained


@dataclass(frozen=True)
class StepResult:
    """Results of one step in one process. The tensors are 0-D and on the device; reading them waits for the device."""

    loss: paddle.Tensor  # mean over this process's images
    correct: paddle.Tensor  # correctly classified images; in mixed images the label with the larger weight counts
    images: int  # images of this process
    skipped: tuple  # why images were replaced, one line each
    gradient_norm: paddle.Tensor  # of the averaged gradients, before clipping; the same in every process
    ok: paddle.Tensor  # False: something was not finite, so the step was skipped; the same in every process


class TrainStep:
    """The model of a config with its optimizer and moving average. A call makes one training step.

    A step never waits for the device, except in Paddle's own loss scaler in float16.

    Args:
        cfg: config.
        labels: int (N,), of all training images; needed for TRAIN.CLASS_WEIGHTS.
    """

    def __init__(self, cfg: CfgNode, labels: np.ndarray | None = None) -> None:
        train = cfg.TRAIN
        self.cfg = cfg
        self.model = build_model(cfg)  # in float32; it is updated, validated and saved
        processes.same_everywhere(self.model)  # DataParallel broadcasts only the live model
        if train.RECOMPUTE:
            recompute_activations(self.model)
        freeze(self.model, train.FREEZE)
        self.precision = MixedPrecision(train)
        self.live_model = self.precision.live_model(self.model)  # computes the gradients; with O2 a 16-bit copy
        self.parallel_model = processes.data_parallel(self.live_model)
        self.optimizer = Optimizer(self.model, train, self.live_model)
        self.ema = ModelEma(self.model, self.optimizer.weights, train.EMA_DECAY) if train.EMA_DECAY else None
        if train.TO_STATIC:
            warnings.filterwarnings("ignore", "Tensor do not have 'place' interface")  # Paddle itself uses it
            paddle.jit.to_static(self.live_model, full_graph=True)
        # Not with several processes: each has few cores, and DataParallel averages the gradients of whole batches.
        self.micro_batches = micro_batches(cfg, train.BATCH_SIZE) if processes.world_size() == 1 else None
        rule = train.CLASS_WEIGHTS
        weights = class_weights(labels, cfg.MODEL.NUM_CLASSES, rule) if rule else None
        self.criterion = CrossEntropy(train.LABEL_SMOOTHING, weights)
        self.teacher = Teacher(cfg) if cfg.DISTILL.TYPE else None
        self.distillation = DistillationLoss(self.criterion, cfg.DISTILL) if self.teacher else None
        self.train_input = TrainInput(cfg)

    def train(self) -> None:
        """Switch to training mode, except fully frozen layers, which stay in eval mode."""
        self.parallel_model.train()
        tf32.allow(self.cfg.TRAIN.TF32)
        for layer in frozen_layers(self.live_model):
            layer.eval()

    def __call__(
        self, batches: Sequence[Batch], lr: float, epoch: int, step: int, lap: Callable[[str], None] = lambda part: None
    ) -> StepResult:
        """Make one step with the mean gradient of `batches` and return its `StepResult`.

        Dropout depends only on the seed, the process, the epoch, the step and the position in the list.

        Args:
            batches: list of `Batch`, which are passed through the model one after the other.
            lr: learning rate of the head.
            epoch: from 0. The learning rates of the other layers depend on it.
            step: from 0, within the epoch.
            lap: function called after each "input" and each "forward and backward", for benchmark.py.
        """
        losses, correct, passes = [], [], len(batches)
        for number, batch in enumerate(batches):
            images, targets = self.train_input(batch)  # (B, C, H, W); (B,) labels or (B, K) mixed
            lap("input")
            is_last = number == passes - 1  # DataParallel averages gradients only in the last backward pass
            with contextlib.nullcontext() if is_last else processes.local_gradients(self.parallel_model):
                seed_key = [self.cfg.SEED, processes.rank(), epoch, step, number]
                loss, logits = self._backward(images, targets, 1 / passes, seed_key)
            lap("forward and backward")
            labels = targets if targets.ndim == 1 else targets.argmax(axis=-1)
            losses.append(loss)
            correct.append((logits.argmax(axis=-1) == labels).astype("float32").sum())
        norm, ok = self._update(lr, epoch)
        images = sum(batch.labels.shape[0] for batch in batches)
        skipped = tuple(line for batch in batches for line in batch.skipped)
        return StepResult(paddle.stack(losses).mean(), paddle.stack(correct).sum(), images, skipped, norm, ok)

    def _backward(self, images, targets, weight, seed_key):
        """Add `weight` times the gradients of a batch. Returns (mean loss, logits (B, K))."""
        paddle.seed(int(np.random.SeedSequence(seed_key).generate_state(1)[0]))  # for dropout
        batch = images, targets, self._teacher_logits(images)
        if not self.micro_batches:
            return self._backward_part(self.parallel_model, batch, weight)

        def run(model, part, fraction):
            loss, logits = self._backward_part(model, part, fraction * weight)
            return loss * fraction, logits

        losses, logits = zip(*self.micro_batches.backward(self.live_model, run, batch, seed_key))
        return sum(losses), paddle.concat(logits)

    def _backward_part(self, model, part, weight):
        images, targets, teacher_logits = part
        with self.precision.autocast():
            outputs = model(images)
        logits = prediction(outputs)
        if self.distillation:
            loss = self.distillation(outputs, targets, teacher_logits)
        else:
            loss = self.criterion(logits, targets)
        # If the loss is not finite, make the gradients NaN. Averaging then spreads the NaN to all processes.
        finite = paddle.where(paddle.isfinite(loss), paddle.ones([]), paddle.full([], float("nan")))
        self.precision.scaler.scale(loss * finite * weight).backward()
        return loss.detach(), logits.detach()

    def _teacher_logits(self, images):
        if not self.teacher:
            return None
        if self.micro_batches:
            return self.micro_batches.forward(self.teacher, images)
        with self.precision.autocast():
            return self.teacher(images)

    def _update(self, lr, epoch):
        norm, ok = self.optimizer.step(lr, epoch, self.precision.scaler)
        if self.ema:
            self.ema.update(ok)
        return norm, ok

    # --- Weights and state ---

    def models(self) -> dict[str, paddle.nn.Layer]:
        """Return {"raw": trained model, "ema": moving average, if EMA_DECAY is set}, in float32."""
        return {"raw": self.model, "ema": self.ema.model} if self.ema else {"raw": self.model}

    def weights(self, which: str) -> dict[str, paddle.Tensor]:
        """Return the state dict of one of `models`."""
        return self.models()[which].state_dict()

    def state(self) -> dict[str, dict]:
        """Return everything that training changes, as dicts of tensors and numbers."""
        return {
            "model": self.weights("raw"),
            "ema": self.weights("ema") if self.ema else {},
            "optimizer": self.optimizer.state(),
            "scaler": self.precision.scaler.state_dict(),
        }

    def load_state(self, state: dict, path: Path) -> None:
        """Restore `state`, as returned by `checkpoint.read(path)` (NumPy arrays)."""
        checkpoint.load_state(self.model, state["model"], path)
        self.optimizer.take_weights()
        if self.ema:
            # If the state has no average, start one here.
            checkpoint.load_state(self.ema.model, state["ema"] or state["model"], path)
            self.ema.take_weights()
        self.optimizer.load_state(state["optimizer"], path)
        if state["scaler"]:
            self.precision.scaler.load_state_dict(dict(state["scaler"]))

    def start_from(self, path: Path, head: str = "fit") -> None:
        """Load weights from a file. For `head` see `load.load_weights`."""
        load_pretrained(self.model, path, head, self.cfg.MODEL.POS_RESIZE)
        self.optimizer.take_weights()
        if self.ema:
            paddle.assign(self.optimizer.weights.values, self.ema.values)
