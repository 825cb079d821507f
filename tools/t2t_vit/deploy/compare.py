"""Compare an exported model with the original model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.deploy.engines import to_input

LARGEST_DIFFERENCE = 1e-4  # fp32: largest difference of a logit, divided by the largest logit
LEAST_AGREEMENT = {"fp32": 1.0, "bf16": 0.97, "int8": 0.95}  # fraction of the images with the same top class
_BATCH = 16  # images compared at a time


class Samples(NamedTuple):
    """Images to compare the models on and to calibrate on, both uint8 (N, H, W, channels)."""

    images: np.ndarray
    calibration: np.ndarray | None = None


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison over `count` images."""

    count: int
    difference: float  # largest difference of a logit, divided by the largest logit
    agreement: float  # fraction of the images with the same top class

    def __str__(self) -> str:
        return f"largest difference {self.difference:.1e} of the largest logit, top-1 agreement {self.agreement:.4f}"

    def check(self, precision: str) -> None:
        """Raise UserError if the difference is larger than `precision` can explain."""
        if precision == "fp32" and self.difference > LARGEST_DIFFERENCE:
            raise UserError(
                f"the exported model's logits differ by {self.difference:.1e} of the largest logit from the model's, "
                f"more than {LARGEST_DIFFERENCE:.0e}; nothing was written"
            )
        if self.agreement < LEAST_AGREEMENT[precision]:
            raise UserError(
                f"the exported model predicts the model's class for {self.agreement:.2%} of {self.count} images, but "
                f"{precision} requires {LEAST_AGREEMENT[precision]:.0%}; nothing was written"
            )


def compare(predictor, eager, pixels):
    """Compare a predictor with the predictor of the model, `eager`, on images uint8 (N, H, W, channels).

    Raises UserError if a logit is NaN or infinite.
    """
    pairs = []
    for start in range(0, len(pixels), _BATCH):
        images = to_input(pixels[start : start + _BATCH], predictor.metadata)
        pairs.append((predictor(images), eager(images)))
    logits, expected = (np.concatenate(side).astype(np.float64) for side in zip(*pairs))  # (N, K)
    if not (np.isfinite(logits).all() and np.isfinite(expected).all()):
        raise UserError("the model or its export gives logits that are not finite; nothing was written")
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    return Comparison(len(logits), difference, float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))))
