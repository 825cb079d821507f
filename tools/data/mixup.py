"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): a batch with itself in reverse order, as timm/data/mixup.py.

`lam` is the share of an image's own pixels in its mix, and of its own label in its target.
"""

import numpy as np
import paddle
import paddle.nn.functional as F


class Mixup:
    """Mixes the images of a batch and their labels, of any number of classes."""

    def __init__(self, cfg):
        aug = cfg.AUG
        self.mixup, self.cutmix, self.minmax = aug.MIXUP, aug.CUTMIX, aug.CUTMIX_MINMAX
        self.probability, self.switch_probability = aug.MIX_PROB, aug.MIX_SWITCH_PROB
        self.mode, self.off_epoch = aug.MIX_MODE, aug.MIX_OFF_EPOCH
        self.num_classes, self.smoothing = cfg.MODEL.NUM_CLASSES, cfg.TRAIN.LABEL_SMOOTHING

    def is_on(self, epoch):
        """Whether images are mixed in this epoch (from 0)."""
        off = self.off_epoch and epoch >= self.off_epoch
        return bool(self.mixup or self.cutmix) and self.probability > 0 and not off

    @paddle.no_grad()
    def __call__(self, images, labels, rng):
        """Mix a batch.

        Args:
            images: float (B, H, W, C).
            labels: int64 (B,).
            rng: NumPy generator.

        Returns:
            (mixed images, targets (B, K)), whose rows sum to 1; label smoothing is in the targets.
        """
        batch, height, width, _ = images.shape
        lam, boxes = self.draw(batch, height, width, rng)
        images = mix_pixels(images, lam, boxes)
        smooth = F.one_hot(labels, self.num_classes) * (1 - self.smoothing) + self.smoothing / self.num_classes
        lam = paddle.to_tensor(lam.astype(np.float32)).unsqueeze(1)  # (B, 1)
        return images, smooth * lam + _reversed(smooth) * (1 - lam)

    def draw(self, batch, height, width, rng):
        """lam (B,) and cutmix boxes (B, 4): top, left, bottom, right; all 0 where a sample is not cut.

        One draw for the batch, for each pair (i, B - 1 - i) or for each sample, by AUG.MIX_MODE.
        """
        draws = {"batch": 1, "pair": (batch + 1) // 2, "elem": batch}[self.mode]
        mixes = rng.random(draws) < self.probability
        cuts = rng.random(draws) < (self.switch_probability if self.mixup and self.cutmix else float(not self.mixup))
        # CUTMIX_MINMAX draws the box's sides itself.
        lam_mixup, lam_cutmix = (rng.beta(alpha or 1.0, alpha or 1.0, draws) for alpha in (self.mixup, self.cutmix))
        lam = np.where(mixes, np.where(cuts, lam_cutmix, lam_mixup), 1.0)
        boxes = np.zeros((draws, 4), np.int64)
        for i in np.flatnonzero(mixes & cuts):
            top, left, bottom, right = boxes[i] = self._draw_box(lam[i], height, width, rng)
            lam[i] = 1 - (bottom - top) * (right - left) / (height * width)  # after clipping at the image's edge
        if self.mode == "pair":
            mirrored = slice(batch // 2 - 1, None, -1) if batch > 1 else slice(0)
            return np.concatenate([lam, lam[mirrored]]), np.concatenate([boxes, boxes[mirrored]])
        return np.broadcast_to(lam, batch), np.broadcast_to(boxes, (batch, 4))

    def _draw_box(self, lam, height, width, rng):
        if self.minmax:
            low, high = self.minmax
            h, w = (int(rng.integers(int(length * low), int(length * high) + 1)) for length in (height, width))
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return top, left, top + h, left + w
        h, w = (int(length * np.sqrt(1 - lam)) for length in (height, width))
        y, x = int(rng.integers(height)), int(rng.integers(width))
        top, left = max(y - h // 2, 0), max(x - w // 2, 0)
        return top, left, min(y + h // 2, height), min(x + w // 2, width)


def mix_pixels(images, lam, boxes):
    """Images (B, H, W, C) with their mixup shares `lam` (B,), or with `boxes` (B, 4) of the partner pasted in."""
    _, height, width, _ = images.shape
    partners = _reversed(images)
    if (lam == lam[0]).all() and (boxes == boxes[0]).all():
        lam, boxes = lam[:1], boxes[:1]  # broadcast
    is_cut = boxes[:, 2] > boxes[:, 0]
    share = np.where(is_cut, 1, lam).astype(np.float32)[:, None, None, None]
    if (share < 1).any():
        images = images * paddle.to_tensor(share) + partners * paddle.to_tensor(1 - share)
    if is_cut.any():
        outside = np.ones((len(boxes), height, width, 1), bool)
        for mask, (top, left, bottom, right) in zip(outside, boxes):
            mask[top:bottom, left:right] = False
        images = paddle.where(paddle.to_tensor(outside), images, partners)
    return images


def _reversed(tensor):
    # paddle.flip takes 27 ms for 16 images of 224x224 on CPU, this 0.7 ms.
    return paddle.gather(tensor, paddle.arange(tensor.shape[0] - 1, -1, -1))
