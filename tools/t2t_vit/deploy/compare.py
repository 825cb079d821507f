"""An exported model against the model it was made from."""

from dataclasses import dataclass

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.deploy.engines import to_input

LARGEST_DIFFERENCE = 1e-4  # fp32: of any logit, divided by the largest logit
LEAST_AGREEMENT = {"fp32": 1.0, "bf16": 0.97, "int8": 0.95}  # fraction of the images with the same top class
_BATCH = 16  # images compared at a time


@dataclass(frozen=True)
class Samples:
    """Images to compare and calibrate on: uint8 (N, H, W, channels); labels int (N,) or None."""

    images: np.ndarray
    labels: np.ndarray = None
    calibration: np.ndarray = None


@dataclass(frozen=True)
class Comparison:
    """Results over `count` images; fractions from 0 to 1."""

    count: int
    difference: float  # largest difference of a logit, divided by the largest logit
    agreement: float  # images with the same top class
    accuracy: float  # top-1 of the exported model; None without labels
    eager_accuracy: float  # of the model

    def __str__(self):
        text = f"largest difference {self.difference:.1e} of the largest logit, top-1 agreement {self.agreement:.4f}"
        if self.accuracy is not None:
            text += f", acc: {self.accuracy:.4f}, acc of the model itself: {self.eager_accuracy:.4f}"
        return text

    def check(self, precision):
        """Raise UserError if the difference is larger than `precision` explains."""
        if not np.isfinite(self.difference):
            raise UserError("the exported model gives logits that are not finite; nothing was written")
        if precision == "fp32" and self.difference > LARGEST_DIFFERENCE:
            raise UserError(
                f"the exported model's logits differ by {self.difference:.1e} of the largest logit from the model's, "
                f"more than {LARGEST_DIFFERENCE:.0e}; nothing was written"
            )
        if self.agreement < LEAST_AGREEMENT[precision]:
            raise UserError(
                f"the exported model gives the model's class for {self.agreement:.2%} of {self.count} images, but "
                f"{precision} needs {LEAST_AGREEMENT[precision]:.0%}; nothing was written"
            )


def compare(predictor, eager, samples):
    """`Comparison` of a predictor with that of the model, `eager`, over the images of `samples`."""
    pairs = []
    for start in range(0, len(samples.images), _BATCH):
        images = to_input(samples.images[start : start + _BATCH], predictor.metadata)
        pairs.append((predictor(images), eager(images)))
    logits, expected = (np.concatenate(side).astype(np.float64) for side in zip(*pairs))  # (N, K)
    classes, expected_classes = logits.argmax(axis=1), expected.argmax(axis=1)
    accuracies = [None, None]
    if samples.labels is not None:
        accuracies = [float(np.mean(found == samples.labels)) for found in (classes, expected_classes)]
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    return Comparison(len(logits), difference, float(np.mean(classes == expected_classes)), *accuracies)
