"""One step of training, and all that it changes: model, moving average, optimizer, loss scale."""

import warnings
from dataclasses import dataclass

import numpy as np
import paddle

from t2t_vit.data.batch import TrainInput
from t2t_vit.models import tf32
from t2t_vit.models.recompute import recompute_activations
from t2t_vit.parallel import processes
from t2t_vit.training.ema import ModelEma
from t2t_vit.training.freeze import freeze, frozen_layers
from t2t_vit.training.losses import CrossEntropy, DistillationLoss, prediction
from t2t_vit.training.microbatch import micro_batches
from t2t_vit.training.optimizer import Optimizer
from t2t_vit.training.optimizer_state import load_optimizer_state, optimizer_state
from t2t_vit.training.precision import MixedPrecision
from t2t_vit.training.teacher import Teacher
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model
from t2t_vit.weights.load import load_pretrained


@dataclass(frozen=True)
class StepResult:
    """What one process saw in one step, as 0-D tensors on the device: reading them would wait for it."""

    loss: paddle.Tensor  # mean over this process's images
    correct: paddle.Tensor  # images of this process whose largest logit is their label's (if mixed: the larger share's)
    images: int  # of this process
    skipped: tuple  # why images of this process were replaced, one line each
    gradient_norm: paddle.Tensor  # of the averaged gradients, before clipping; the same in every process
    ok: paddle.Tensor  # False: something was not finite and the step was skipped; the same in every process


class TrainStep:
    """The model of a config with its optimizer; a call makes one step.

    Nothing in a step reads from the device, except Paddle's own loss scaler in float16.
    """

    def __init__(self, cfg):
        train = cfg.TRAIN
        self.seed = cfg.SEED
        self.pos_resize = cfg.MODEL.POS_RESIZE
        self.tf32 = train.TF32
        self.model = build_model(cfg)  # float32: what is updated, validated and saved
        processes.same_everywhere(self.model)  # DataParallel broadcasts the live model only
        if train.RECOMPUTE:
            recompute_activations(self.model)
        freeze(self.model, train.FREEZE)
        self.precision = MixedPrecision(train)
        self.live_model = self.precision.live_model(self.model)
        self.parallel_model = processes.data_parallel(self.live_model)
        self.optimizer = Optimizer(self.model, train, self.live_model)
        self.ema = ModelEma(self.model, self.optimizer.weights, train.EMA_DECAY) if train.EMA_DECAY else None
        if train.TO_STATIC:
            warnings.filterwarnings("ignore", "Tensor do not have 'place' interface")  # Paddle's own use of it
            paddle.jit.to_static(self.live_model, full_graph=True)
        # Several processes have a core or few each, and average the gradients of whole batches.
        self.micro_batches = micro_batches(cfg, train.BATCH_SIZE) if processes.world_size() == 1 else None
        self.clip_norm = train.CLIP_NORM
        self.criterion = CrossEntropy(train.LABEL_SMOOTHING)
        self.teacher = Teacher(cfg) if cfg.DISTILL.TYPE else None
        self.distillation = DistillationLoss(self.criterion, cfg.DISTILL) if self.teacher else None
        self.train_input = TrainInput(cfg)

    def train(self):
        """Put the model in training mode, save what FREEZE leaves nothing to learn in: that computes as in evaluation.

        To be called after whatever changed the mode.
        """
        self.parallel_model.train()
        tf32.allow(self.tf32)
        for layer in frozen_layers(self.live_model):
            layer.eval()

    def __call__(self, batches, lr, epoch, step, lap=lambda part: None):
        """Step by the mean gradient of `batches`, a list of `Batch` that pass through the model one by one.

        `lap(part)` is called after the parts "input" and "forward and backward" (benchmark.py times them).
        `lr` is the head's learning rate; `epoch` tells the others' share of it.
        Dropout depends on the seed, the process, the epoch, the step and the place in the list alone.
        """
        losses, correct, skipped = [], [], []
        for place, batch in enumerate(batches):
            images, targets = self.train_input(batch)
            numbers = [self.seed, processes.rank(), epoch, step, place]
            _seed_dropout(numbers)
            lap("input")
            if place == len(batches) - 1:
                loss, logits = self._backward(images, targets, len(batches), numbers)
            else:
                with processes.local_gradients(self.parallel_model):
                    loss, logits = self._backward(images, targets, len(batches), numbers)
            lap("forward and backward")
            losses.append(loss)
            labels = targets if targets.ndim == 1 else targets.argmax(axis=-1)
            correct.append((logits.argmax(axis=-1) == labels).astype("float32").sum())
            skipped += batch.skipped
        norm, ok = self._step(lr, epoch)
        images = sum(batch.labels.shape[0] for batch in batches)
        return StepResult(paddle.stack(losses).mean(), paddle.stack(correct).sum(), images, tuple(skipped), norm, ok)

    def _backward(self, images, targets, passes, numbers):
        """Add the gradients of 1 / passes of the loss; (loss, logits)."""
        batch = images, targets, self._taught(images)
        if not self.micro_batches:
            return self._backward_part(self.parallel_model, batch, 1 / passes)

        def run(model, part, share):
            loss, logits = self._backward_part(model, part, share / passes)
            return loss * share, logits

        losses, logits = zip(*self.micro_batches.backward(self.live_model, run, batch, numbers))
        return sum(losses), paddle.concat(logits)

    def _taught(self, images):
        """The teacher's logits, None without one."""
        if not self.teacher:
            return None
        if self.micro_batches:
            return self.micro_batches.forward(self.teacher, images)
        with self.precision.autocast():
            return self.teacher(images)

    def _backward_part(self, model, part, share):
        images, targets, taught = part
        with self.precision.autocast():
            outputs = model(images)
        logits = prediction(outputs)
        loss = self.distillation(outputs, targets, taught) if self.teacher else self.criterion(logits, targets)
        # Times NaN where the loss is not finite: the average over the processes then tells all of them.
        finite = paddle.where(paddle.isfinite(loss), paddle.ones([]), paddle.full([], float("nan")))
        self.precision.scaler.scale(loss * finite * share).backward()
        return loss.detach(), logits.detach()

    @paddle.no_grad()
    def _step(self, lr, epoch):
        """Clip, update the weights and their average; (gradient norm, whether it was finite)."""
        scaler, optimizer = self.precision.scaler, self.optimizer
        gradient = optimizer.collect_gradients()
        scaler.unscale_(optimizer.inner)
        norm = gradient.square().sum().sqrt()
        ok = paddle.isfinite(norm)
        if self.clip_norm:
            gradient.multiply_((self.clip_norm / (norm + 1e-6)).clip(max=1.0))
        # A skipped step is one with gradients and a learning rate of zero, so that nobody waits to learn which it is.
        gradient.masked_fill_(~ok, 0.0)
        optimizer.set_learning_rate(lr, epoch, ok)
        scaler.step(optimizer.inner)
        scaler.update()
        optimizer.inner.clear_grad(set_to_zero=False)
        optimizer.refresh()
        if self.ema:
            self.ema.update(optimizer.weights.values, ok)
        return norm, ok

    def models(self):
        """{"raw": the trained model, "ema": its moving average, if there is one}, both in float32."""
        return {"raw": self.model, "ema": self.ema.model} if self.ema else {"raw": self.model}

    def weights(self, which):
        """State dict of one of `models`."""
        return self.models()[which].state_dict()

    def state(self):
        """All of it, in dicts of tensors and numbers."""
        return {
            "model": self.weights("raw"),
            "ema": self.weights("ema") if self.ema else {},
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.precision.scaler.state_dict(),
        }

    def load_state(self, state, path):
        """Undo `state`, whose tensors are arrays now, as `checkpoint.read` gave them from `path`."""
        checkpoint.load_state(self.model, state["model"], path)
        self.optimizer.take_weights()
        if self.ema:
            # A run that had none starts its average here.
            checkpoint.load_state(self.ema.model, state["ema"] or state["model"], path)
            self.ema.take_weights()
        load_optimizer_state(self.optimizer, state["optimizer"], path)
        if state["scaler"]:
            self.precision.scaler.load_state_dict(dict(state["scaler"]))

    def start_from(self, path, head="fit"):
        """Begin with the weights of a file; `head`: see `load_weights`."""
        load_pretrained(self.model, path, head, self.pos_resize)
        self.optimizer.take_weights()
        if self.ema:
            paddle.assign(self.optimizer.weights.values, self.ema.values)


def _seed_dropout(numbers):
    paddle.seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
