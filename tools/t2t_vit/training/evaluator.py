"""Exact evaluation: counts are summed over all images and processes, then divided once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F
from yacs.config import CfgNode

from t2t_vit.common.logger import log, progress_bar
from t2t_vit.data.batch import Normalize
from t2t_vit.data.loader import EvalLoader
from t2t_vit.data.transforms import views_of
from t2t_vit.models import tf32
from t2t_vit.parallel.microbatch import inference
from t2t_vit.parallel.processes import sum_over_processes


@dataclass(frozen=True)
class Scores:
    """Mean loss, top-1 and top-5 accuracy (0 to 1) over `num_images`."""

    loss: float
    top1: float
    top5: float
    num_images: int

    def line(self) -> str:
        """Format the scores for printing."""
        return f"images: {self.num_images}, loss: {self.loss:.4f}, top-1: {self.top1:.4f}, top-5: {self.top5:.4f}"


def evaluate(
    model: Callable[[paddle.Tensor], paddle.Tensor],
    loader: EvalLoader,
    cfg: CfgNode,
    log_every: int | None = None,
    each_batch: Callable | None = None,
    only: np.ndarray | None = None,
) -> Scores:
    """Evaluate one model and return its `Scores`. See `evaluate_all`."""
    return evaluate_all({"": model}, loader, cfg, log_every, each_batch, only=only)[""]


@paddle.no_grad()
def evaluate_all(models, loader, cfg, log_every=None, each_batch=None, must_stop=None, only=None):
    """Evaluate several models on every image of `loader` exactly once. The images are read only once.

    With K < 5 classes, top-5 means top-K. With VAL.TTA, the logits of an image are the mean over its views.

    Args:
        models: {name: layer or function (B, C, H, W) -> (B, K)}; layers stay in their current mode.
        loader: an `EvalLoader`.
        cfg: config.
        log_every: log a line after this many batches; None: log nothing.
        each_batch: function called with logits (B, K), float32, and labels (B,) for each batch and model.
        must_stop: function called before each batch; if it returns True, the evaluation stops and returns None.
        only: ids of the classes that may be predicted, see `EvalLoader.only`; None: all. The logits of the others
            become -inf.

    Returns:
        {name: `Scores`}.
    """
    with contextlib.ExitStack() as stack:
        for layer in (model for model in models.values() if isinstance(model, paddle.nn.Layer)):
            stack.callback(layer.train if layer.training else layer.eval)
            layer.eval()
        stack.enter_context(tf32.FORBIDDEN)
        predictors = {name: inference(model, cfg) for name, model in models.items()}
        forward = _Forward(predictors, cfg, only)
        totals = _totals(forward, loader, log_every, each_batch, must_stop)
    return totals and {name: _scores(total) for name, total in totals.items()}


class _Forward:
    """Computes the logits of a batch by each of several models."""

    def __init__(self, predictors, cfg, only):
        self.predictors, self.normalize, self.hidden = predictors, Normalize(cfg), None
        if only is not None:
            hidden = np.full(cfg.MODEL.NUM_CLASSES, -np.inf, np.float32)
            hidden[only] = 0
            self.hidden = paddle.to_tensor(hidden)

    def __call__(self, images):
        """uint8 (B, S, S, C) or (B, V, S, S, C) -> {name: logits (B, K), float32}."""
        views, sums = views_of(images), {}
        for view in views:
            view = self.normalize(view)
            for name, predict in self.predictors.items():
                logits = predict(view).astype("float32")
                sums[name] = sums[name] + logits if name in sums else logits
        means = {name: total / len(views) for name, total in sums.items()}
        return means if self.hidden is None else {name: logits + self.hidden for name, logits in means.items()}


def _totals(forward, loader, log_every, each_batch, must_stop):
    """Return {name: sums over this process's images of loss, top-1 hits, top-5 hits, images}; None if stopped."""
    totals = {name: paddle.zeros([4], dtype="float64") for name in forward.predictors}
    read_time, start = 0.0, time.perf_counter()
    for step, (images, labels) in enumerate(progress_bar(loader, total=len(loader), desc="val"), start=1):
        if must_stop and must_stop():
            return None
        read_time += time.perf_counter() - start
        for name, logits in forward(images).items():
            totals[name] += _batch_totals(logits, labels)
            if each_batch:
                each_batch(logits, labels)
        if log_every and (step % log_every == 0 or step == len(loader)):
            for total in totals.values():
                _, top1, _, count = total.tolist()
                log.info("Step [%d/%d], acc: %.4f, read_time: %.4f", step, len(loader), top1 / count, read_time)
            read_time = 0.0
        start = time.perf_counter()
    return totals


def top_classes(logits: paddle.Tensor) -> paddle.Tensor:
    """Return the 5 classes with the largest logits: (B, K) -> (B, 5), or (B, K) if K < 5."""
    return paddle.topk(logits, k=min(5, logits.shape[1]), axis=-1)[1]


def _batch_totals(logits, labels):
    loss = F.cross_entropy(logits, labels, reduction="sum")
    correct = (top_classes(logits) == labels.unsqueeze(1)).astype("float64")  # (B, 5)
    count = paddle.full([], labels.shape[0], dtype="float64")
    return paddle.stack([loss.astype("float64"), correct[:, 0].sum(), correct.sum(), count])


def _scores(totals):
    loss, top1, top5, count = sum_over_processes(totals).tolist()
    return Scores(loss / count, top1 / count, top5 / count, int(count))
