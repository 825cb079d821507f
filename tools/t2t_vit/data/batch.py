"""Turn a batch of the loader into the model's input, on the model's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from yacs.config import CfgNode

from t2t_vit.data.erasing import RandomErasing
from t2t_vit.data.mixup import Mixup
from t2t_vit.data.seeding import MIX, NOISE, generator
from t2t_vit.data.transforms import normalized


@dataclass(frozen=True)
class Batch:
    """A training batch on the device, with all its random draws.

    The draws are copied to the GPU with the batch. A copy during the step would wait until the GPU is idle.
    """

    images: paddle.Tensor  # uint8 (B, S, S, channels)
    labels: paddle.Tensor  # int64 (B,)
    mixing: list | None  # see Mixup.plan; None if nothing is mixed
    erasing: list  # see RandomErasing.plan
    skipped: tuple  # why images were replaced, one line each


class BatchDraws:
    """Makes the random draws of a whole batch. They depend only on SEED and the first sample."""

    def __init__(self, cfg):
        self.seed, self.shape = cfg.SEED, (cfg.DATA.IMAGE_SIZE, cfg.DATA.IMAGE_SIZE, cfg.DATA.CHANNELS)  # H, W, C
        self.mixup, self.erasing = Mixup(cfg), RandomErasing(cfg)

    def __call__(self, boxes, sample):
        """Return (mixing, erasing) of a `Batch` as NumPy arrays, given the `boxes` of `RandomErasing.draw_boxes`."""
        mixing = None
        if self.mixup.is_on(sample[0]):
            mixing = self.mixup.plan(len(boxes), *self.shape[:2], generator(self.seed, MIX, sample))
        return mixing, self.erasing.plan(boxes, self.shape, generator(self.seed, NOISE, sample))


def to_tensors(tree: Any) -> Any:
    """Convert the NumPy arrays in nested lists to tensors, as the loader does."""
    if isinstance(tree, (list, tuple)):
        return [to_tensors(item) for item in tree]
    return paddle.to_tensor(tree) if isinstance(tree, np.ndarray) else tree


class Normalize:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W), (x / 255 - mean) / std."""

    def __init__(self, cfg: CfgNode) -> None:
        self.mean = paddle.to_tensor(cfg.DATA.MEAN, dtype="float32")
        self.std = paddle.to_tensor(cfg.DATA.STD, dtype="float32")

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        return channels_first(self.channels_last(images))

    def channels_last(self, images: paddle.Tensor) -> paddle.Tensor:
        """Normalise without moving the channels. Broadcasting over another axis is several times slower on a CPU."""
        return normalized(images, self.mean, self.std)


def channels_first(images):
    """(B, H, W, C) -> (B, C, H, W)."""
    return images.transpose([0, 3, 1, 2])


class TrainInput:
    """Normalises a `Batch`, mixes its images and erases boxes.

    With AUG.ERASE_MIXED True, boxes are erased after mixing, as in timm's prefetcher, which T2T-ViT was trained with.
    With False, they are erased before mixing, as in DeiT's data set, which PiT was trained with.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.normalize, self.erase, self.mixup = Normalize(cfg), RandomErasing(cfg), Mixup(cfg)
        self.erases_mixed = cfg.AUG.ERASE_MIXED

    def __call__(self, batch: Batch) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return (images float32 (B, C, H, W), targets). Targets are (B, K) if the batch is mixed, else labels (B,)."""
        images, targets = self.normalize.channels_last(batch.images), batch.labels
        if not self.erases_mixed:
            images = self.erase(images, batch.erasing)
        if batch.mixing:
            images, targets = self.mixup(images, targets, batch.mixing)
        if self.erases_mixed:
            images = self.erase(images, batch.erasing)
        return channels_first(images), targets
