"""Training losses."""

import paddle.nn.functional as F


class LabelSmoothingCrossEntropy:
    """Mean cross-entropy of (B, K) logits against labels (B,), with smoothing s: target 1 - s + s/K, others s/K."""

    def __init__(self, smoothing):
        self.smoothing = smoothing

    def __call__(self, logits, labels):
        loss = F.cross_entropy(logits, labels)
        if not self.smoothing:
            return loss
        uniform = -F.log_softmax(logits, axis=-1).mean()
        return (1 - self.smoothing) * loss + self.smoothing * uniform
