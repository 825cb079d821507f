"""A batch of the loader to the model's input, on the model's device."""

import math
from dataclasses import dataclass

import numpy as np
import paddle

from t2t_vit.data.erasing import RandomErasing
from t2t_vit.data.mixup import Mixup
from t2t_vit.data.seeding import MIX, NOISE, generator
from t2t_vit.data.transforms import normalized


@dataclass(frozen=True)
class Batch:
    """A training batch on the device, with all random draws for it.

    The draws come with the batch because a copy to a GPU within a step would wait until the GPU is idle.
    """

    images: paddle.Tensor  # uint8 (B, S, S, channels)
    labels: paddle.Tensor  # int64 (B,)
    mixing: list  # see Mixup.plan; None if nothing is mixed
    erasing: list  # see RandomErasing.plan
    skipped: tuple  # why images were replaced, one line each


class BatchDraws:
    """Random draws for a batch as a whole. They depend only on SEED and the first sample."""

    def __init__(self, cfg):
        self.seed, self.shape = cfg.SEED, (cfg.DATA.IMAGE_SIZE, cfg.DATA.IMAGE_SIZE, cfg.DATA.CHANNELS)  # H, W, C
        self.mixup, self.erasing = Mixup(cfg), RandomErasing(cfg)

    def __call__(self, boxes, sample):
        """(mixing, erasing) of a `Batch`, as NumPy arrays.

        Args:
            boxes: int16 (B, ERASE_COUNT, 4) array of `RandomErasing.draw_boxes`.
            sample: of the first image, see data/seeding.py.
        """
        mixing = None
        if self.mixup.is_on(sample[0]):
            mixing = self.mixup.plan(len(boxes), *self.shape[:2], generator(self.seed, MIX, sample))
        return mixing, self.erasing.plan(boxes, self.shape, generator(self.seed, NOISE, sample))


@dataclass(frozen=True)
class Place:
    """Position of an array within the flat array of its type; see `pack`."""

    kind: int
    start: int
    shape: tuple


_KINDS = (np.float32, np.int64, np.bool_)


def pack(tree):
    """Join the NumPy arrays in nested lists: (one flat array of each type, the lists with a `Place` for each array).

    Paddle's reader for GPUs wants the same number of tensors in each batch (buffered_reader.cc, 2.6.2 and 3.3.1).
    """
    parts, ends = [[np.zeros(1, kind)] for kind in _KINDS], [1] * len(_KINDS)

    def place(item):
        if isinstance(item, (list, tuple)):
            return [place(each) for each in item]
        if not isinstance(item, np.ndarray):
            return item
        kind = _KINDS.index(item.dtype)
        found = Place(kind, ends[kind], item.shape)
        parts[kind].append(item.reshape(-1))
        ends[kind] += item.size
        return found

    places = place(tree)
    return [np.concatenate(part) for part in parts], places


def unpack(tensors, places):
    """The inverse of `pack`, for tensors."""
    if isinstance(places, (list, tuple)):
        return [unpack(tensors, each) for each in places]
    if not isinstance(places, Place):
        return places
    end = places.start + math.prod(places.shape)
    return tensors[places.kind][places.start : end].reshape(places.shape)


def to_tensors(tree):
    """Nested lists with tensors in place of NumPy arrays, as the loader returns them."""
    arrays, places = pack(tree)
    return unpack([paddle.to_tensor(array) for array in arrays], places)


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
    """Normalises a `Batch`, mixes its images and erases boxes.

    AUG.ERASE_MIXED True erases after mixing, like timm's prefetcher, with which T2T-ViT was trained. False erases each
    image before it is mixed, like DeiT's data set, with which PiT was trained.
    """

    def __init__(self, cfg):
        self.normalize, self.erase, self.mixup = Normalize(cfg), RandomErasing(cfg), Mixup(cfg)
        self.erases_mixed = cfg.AUG.ERASE_MIXED

    def __call__(self, batch):
        """(float32 (B, C, H, W), targets): (B, K) if the batch is mixed, else labels (B,)."""
        images, targets = self.normalize.channels_last(batch.images), batch.labels
        if not self.erases_mixed:
            images = self.erase(images, batch.erasing)
        if batch.mixing:
            images, targets = self.mixup(images, targets, batch.mixing)
        if self.erases_mixed:
            images = self.erase(images, batch.erasing)
        return channels_first(images), targets
