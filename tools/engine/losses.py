"""Training losses."""

import paddle.nn.functional as F


class CrossEntropy:
    """Mean cross-entropy of (B, K) logits against targets.

    Targets (B, K) are distributions (mixup's, in which smoothing is already). Labels (B,) are smoothed by s: target
    1 - s + s/K, others s/K.
    """

    def __init__(self, smoothing):
        self.smoothing = smoothing

    def __call__(self, logits, targets):
        if targets.ndim == 2:
            return F.cross_entropy(logits, targets, soft_label=True)
        loss = F.cross_entropy(logits, targets)
        if not self.smoothing:
            return loss
        uniform = -F.log_softmax(logits, axis=-1).mean()
        return (1 - self.smoothing) * loss + self.smoothing * uniform
