"""Counts of an evaluation by class and by confidence, and the figures that follow from them.

The memory does not depend on the number of images: a matrix of K x K counts, 8 MB for 1,000 classes, and a histogram.
"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F

from t2t_vit.parallel.processes import sum_over_processes
from t2t_vit.training.evaluator import top_classes

BINS = 15  # of the confidence, as in Guo et al. (2017), "On Calibration of Modern Neural Networks"


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the images of each true class (row) by predicted class (column): (N,), (N,) -> int64 (K, K)."""
    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def confused_pairs(matrix: np.ndarray) -> list[tuple[int, int, int, float]]:
    """List (true class, predicted class, images, fraction of the true class), the most frequent confusion first."""
    wrong = matrix - np.diag(matrix.diagonal())
    true, other = wrong.nonzero()
    counts, sizes = wrong[true, other], matrix.sum(axis=1)
    order = np.argsort(-counts, kind="stable")
    return [(int(true[i]), int(other[i]), int(counts[i]), float(counts[i] / sizes[true[i]])) for i in order]


def class_figures(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of each class of a confusion matrix: {name: (K,)}; 0 instead of 0 / 0."""
    hits, support, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    precision, recall = (hits / np.maximum(number, 1) for number in (predicted, support))
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


class ClassCounts:
    """Counts what an evaluation of K classes answers. `add` is the `each_batch` of `evaluate`."""

    def __init__(self, num_classes: int) -> None:
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.bins = np.zeros((3, BINS))  # images, sum of their confidence, hits

    def add(self, logits: paddle.Tensor, labels: paddle.Tensor) -> None:
        """Count a batch: logits (B, K), labels (B,)."""
        predicted, true = top_classes(logits)[:, 0].numpy(), labels.numpy()
        confidence = F.softmax(logits).max(axis=1).numpy().astype(np.float64)
        np.add.at(self.matrix, (true, predicted), 1)
        places = np.ceil(np.nan_to_num(confidence) * BINS).astype(int).clip(1, BINS) - 1  # (low, high]
        for row, weights in zip(self.bins, (None, confidence, predicted == true)):
            row += np.bincount(places, weights, minlength=BINS)

    def collect(self) -> None:
        """Add the counts of all processes. Each process must call it once, after its last batch."""
        self.matrix = sum_over_processes(paddle.to_tensor(self.matrix)).numpy()
        self.bins = sum_over_processes(paddle.to_tensor(self.bins)).numpy()

    def calibration_error(self) -> float:
        """The expected calibration error (ECE): the mean of |accuracy - confidence| of the bins, weighted by images."""
        images, confidence, hits = self.bins
        return float(np.abs(hits - confidence).sum() / images.sum())
