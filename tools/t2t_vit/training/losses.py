"""Training losses.

In training, a model returns logits, or the tuple (class logits, distillation logits) if it is distilled.
"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F


def prediction(outputs):
    """Return the logits that determine the class, float32 (B, K). For two heads this is the mean, as in evaluation."""
    return (outputs[0] + outputs[1]).astype("float32") / 2 if isinstance(outputs, tuple) else outputs.astype("float32")


def _cross_entropy(logits, targets, **options):
    # Paddle's own mean waits for the device, because it looks for labels to ignore (2.6.2).
    return F.cross_entropy(logits, targets, reduction="none", **options).mean()


class CrossEntropy:
    """Mean cross-entropy of (B, K) logits against targets.

    Targets (B, K) are distributions, already smoothed by mixup. Labels (B,) are smoothed by s: 1 - s + s/K for the
    target class, s/K for the others.

    `weights` (K,) multiply the loss of an image by the weight of its class, also the part that smoothing gives to other
    classes. In a mixed image, each of the two labels has the weight of its class. The mean is over the images, not over
    the sum of their weights, so the mean of parts of a batch is that of the batch.
    """

    def __init__(self, smoothing: float, weights: np.ndarray | None = None) -> None:
        self.smoothing = smoothing
        self.weights = None if weights is None else paddle.to_tensor(weights, "float32")

    def __call__(self, logits, targets):
        if self.weights is not None:
            return self._weighted(logits, targets)
        if targets.ndim == 2:
            return _cross_entropy(logits, targets, soft_label=True)
        loss = _cross_entropy(logits, targets)
        if not self.smoothing:
            return loss
        uniform = -F.log_softmax(logits, axis=-1).mean()
        return (1 - self.smoothing) * loss + self.smoothing * uniform

    def _weighted(self, logits, targets):
        classes = logits.shape[-1]
        if targets.ndim == 1:
            labels = F.one_hot(targets, classes)
        else:
            labels = (targets - self.smoothing / classes) / (1 - self.smoothing)
        labels = labels * self.weights  # (B, K)
        smooth = (1 - self.smoothing) * labels + self.smoothing * labels.mean(axis=-1, keepdim=True)
        # Not cross_entropy, whose gradient is wrong unless the rows sum to 1.
        return -(smooth * F.log_softmax(logits, axis=-1)).sum(axis=-1).mean()


class DistillationLoss:
    """(1 - alpha) * cross-entropy against the targets + alpha * distance from the teacher.

    Touvron et al., 2021, equations 2 and 3, with the factors of DeiT's losses.py. The distance is

    - hard: the cross-entropy against the teacher's most likely class;
    - soft: T^2 / (B K) times the sum of KL(teacher || student) over the batch, both softened by the temperature T. As
      in DeiT, this is divided by K, so with many classes alpha must be large for the teacher to matter.

    In a model with two heads, the first learns from the targets and the second from the teacher. Class weights apply
    only to the targets; the distance from the teacher has none.
    """

    def __init__(self, criterion, distill):
        self.criterion, self.alpha, self.tau = criterion, distill.ALPHA, distill.TAU
        self.distance = {"hard": self._hard, "soft": self._soft}[distill.TYPE]

    def __call__(self, outputs, targets, teacher_logits):
        class_logits, distilled_logits = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        loss = self.criterion(class_logits.astype("float32"), targets)
        distance = self.distance(distilled_logits.astype("float32"), teacher_logits.astype("float32"))
        return (1 - self.alpha) * loss + self.alpha * distance

    def _hard(self, logits, teacher_logits):
        return _cross_entropy(logits, teacher_logits.argmax(axis=-1))

    def _soft(self, logits, teacher_logits):
        student = F.log_softmax(logits / self.tau, axis=-1)  # (B, K)
        teacher = F.log_softmax(teacher_logits / self.tau, axis=-1)
        # Written out: kl_div expects probabilities, and paddle 2.6 has no log_target.
        return (teacher.exp() * (teacher - student)).mean() * self.tau**2
