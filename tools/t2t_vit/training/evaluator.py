"""Exact evaluation: counts are summed over all images and processes and divided once."""

import time
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F

from t2t_vit.common.logger import log, progress_bar
from t2t_vit.data.batch import Normalize
from t2t_vit.models import tf32
from t2t_vit.parallel.processes import sum_over_processes
from t2t_vit.training.microbatch import inference


@dataclass(frozen=True)
class Scores:
    """Mean loss and shares of images (0 to 1) over `num_images`."""

    loss: float
    top1: float
    top5: float
    num_images: int

    def line(self):
        """What is printed of them."""
        return f"images: {self.num_images}, loss: {self.loss:.4f}, top-1: {self.top1:.4f}, top-5: {self.top5:.4f}"


class PredictorModel:
    """A `predictors.Predictor` in the place of a model: tensors in and out."""

    training = False

    def __init__(self, predictor):
        self.predictor = predictor

    def eval(self):
        """Nothing else is possible."""

    def __call__(self, images):
        return paddle.to_tensor(self.predictor(images.numpy()))


@paddle.no_grad()
def evaluate(model, loader, cfg, log_every=None, must_stop=None, each_batch=None):
    """Evaluate `model` on every image of `loader` exactly once; top-5 means top-K where there are K < 5 classes.

    Args:
        model: (B, C, H, W) -> (B, K); left in the mode that it had.
        loader: a `data.loader.EvalLoader`.
        cfg: config.
        log_every: batches between two printed lines; None for none.
        must_stop: asked before each batch; if it says True, the result is None.
        each_batch: called with the logits (B, K), float32, and labels (B,) of each batch.
    """
    was_training = model.training
    model.eval()
    try:
        with tf32.FORBIDDEN:
            totals = _totals(inference(model, cfg), loader, Normalize(cfg), log_every, must_stop, each_batch)
    finally:
        if was_training:
            model.train()
    if totals is None:
        return None
    loss, top1, top5, count = sum_over_processes(totals).tolist()
    return Scores(loss / count, top1 / count, top5 / count, int(count))


def _totals(predict, loader, normalize, log_every, must_stop, each_batch):
    """Sums over this process's images: loss, correct at 1, correct at 5, images; None if it must stop."""
    totals = paddle.zeros([4], dtype="float64")
    read_time, start = 0.0, time.perf_counter()
    for step, (images, labels) in enumerate(progress_bar(loader, total=len(loader), desc="val"), start=1):
        if must_stop and must_stop():
            return None
        read_time += time.perf_counter() - start
        logits = predict(normalize(images)).astype("float32")
        totals += _batch_totals(logits, labels)
        if each_batch:
            each_batch(logits, labels)
        if log_every and (step % log_every == 0 or step == len(loader)):
            _, top1, _, count = totals.tolist()
            log.info("Step [%d/%d], acc: %.4f, read_time: %.4f", step, len(loader), top1 / count, read_time)
            read_time = 0.0
        start = time.perf_counter()
    return totals


def likeliest(logits):
    """The 5 likeliest classes (B, 5) of logits (B, K), of K < 5 classes all."""
    return paddle.topk(logits, k=min(5, logits.shape[1]), axis=-1)[1]


def _batch_totals(logits, labels):
    loss = F.cross_entropy(logits, labels, reduction="sum")
    correct = (likeliest(logits) == labels.unsqueeze(1)).astype("float64")  # (B, 5)
    count = paddle.full([], labels.shape[0], dtype="float64")
    return paddle.stack([loss.astype("float64"), correct[:, 0].sum(), correct.sum(), count])
