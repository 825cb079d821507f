"""Even out classes of different sizes, in the loss (TRAIN.CLASS_WEIGHTS) or in the images of an epoch (TRAIN.SAMPLER).

An image's weight is proportional to 1 / n, where n is the number of training images of its class, or to 1 / sqrt(n).
The mean weight of the training images is 1, so that the loss and the learning rate keep their scale. It multiplies the
loss of the image, or it is the expected number of times that an epoch draws the image.
"""

from __future__ import annotations

import numpy as np
from yacs.config import CfgNode

_POWERS = {"auto": 1.0, "balanced": 1.0, "sqrt": 0.5}


def class_weights(labels: np.ndarray, num_classes: int, rule: str) -> np.ndarray:
    """Compute the weight of an image of each class: float64 (K,), 0 for a class without images.

    Args:
        labels: int (N,), of the training images.
        num_classes: K.
        rule: auto or balanced (1 / n, as compute_class_weight of scikit-learn), or sqrt.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.where(counts > 0, np.maximum(counts, 1) ** -_POWERS[rule], 0)
    return weights * len(labels) / (weights @ counts)


def draw_images(labels: np.ndarray, rule: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the N images of an epoch in random order: (indices (N,), how often each was drawn before (N,)).

    Without a `rule`, each image is drawn once. With one, an image of weight w is drawn w times, rounded up or down at
    random. Each class of k images in total gets w k draws, likewise (systematic sampling over the images, sorted by
    class).
    """
    number = len(labels)
    if not rule:
        return rng.permutation(number), np.zeros(number, int)
    by_class = np.lexsort((rng.random(number), labels))  # in random order within a class
    weights = class_weights(labels, 0, rule)[labels[by_class]]
    ends = np.minimum(np.floor(np.cumsum(weights) + rng.random()), number)
    ends[-1] = number  # the sum of the weights, whatever the rounding
    counts = np.diff(ends, prepend=0).astype(int)
    before = np.arange(number) - (np.cumsum(counts) - counts).repeat(counts)
    order = rng.permutation(number)
    return by_class.repeat(counts)[order], before[order]


def balance_lines(train: CfgNode, labels: np.ndarray) -> list[str]:
    """Describe for the log what evens out the classes. `train` is the TRAIN section of a config."""
    rules = [
        ("CLASS_WEIGHTS", train.CLASS_WEIGHTS, "an image's loss counts"),
        ("SAMPLER", train.SAMPLER, "an epoch draws an image"),
    ]
    lines = []
    for key, rule, what in rules:
        if rule:
            weights = class_weights(labels, 0, rule)[labels]
            span = f"{weights.min():.3g} times (largest class) to {weights.max():.3g} times (smallest)"
            lines.append(f"TRAIN.{key} {rule}: {what} {span}")
    return lines
