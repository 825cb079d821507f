"""A batch of the loader to the model's input, on the model's device."""

from dataclasses import dataclass

import numpy as np
import paddle

from data.erasing import RandomErasing
from data.mixup import Mixup
from data.seeding import MIX, NOISE, generator
from data.transforms import normalized


@dataclass(frozen=True)
class Batch:
    """Training images as the loader processes give them."""

    images: paddle.Tensor  # uint8 (B, S, S, channels)
    labels: paddle.Tensor  # int64 (B,)
    boxes: np.ndarray  # int16 (B, ERASE_COUNT, 4), see RandomErasing.draw_boxes
    sample: tuple  # of the first image, from which all that concerns the batch as a whole is drawn
    skipped: tuple  # why images were replaced, one line each


class Normalize:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W), (x / 255 - mean) / std."""

    def __init__(self, cfg):
        self.mean = paddle.to_tensor(cfg.DATA.MEAN, dtype="float32")
        self.std = paddle.to_tensor(cfg.DATA.STD, dtype="float32")

    def __call__(self, images):
        return channels_first(self.channels_last(images))

    def channels_last(self, images):
        """The same without moving the channels: broadcasting over another axis is several times slower on CPU."""
        return normalized(images, self.mean, self.std)


def channels_first(images):
    """(B, H, W, C) -> (B, C, H, W)."""
    return images.transpose([0, 3, 1, 2])


class TrainInput:
    """Normalises a `Batch`, mixes images and erases boxes.

    timm's prefetcher, with which the official models were trained, erases in the mixed images.
    """

    def __init__(self, cfg):
        self.seed = cfg.SEED
        self.normalize, self.erase, self.mixup = Normalize(cfg), RandomErasing(cfg), Mixup(cfg)
        self.erases_mixed = cfg.AUG.ERASE_MIXED

    def __call__(self, batch):
        """(float32 (B, C, H, W), targets): (B, K) if images are mixed in this epoch, else labels (B,)."""
        images, targets = self.normalize.channels_last(batch.images), batch.labels
        if not self.erases_mixed:
            images = self._erase(images, batch)
        if self.mixup.is_on(batch.sample[0]):
            images, targets = self.mixup(images, targets, generator(self.seed, MIX, batch.sample))
        if self.erases_mixed:
            images = self._erase(images, batch)
        return channels_first(images), targets

    def _erase(self, images, batch):
        return self.erase(images, batch.boxes, generator(self.seed, NOISE, batch.sample))
