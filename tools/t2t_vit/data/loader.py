"""Batches: which images, in which order, read by which process.

The order of an epoch depends only on SEED and the epoch. The augmentation of an image depends only on SEED, the epoch,
the image's index and the number of its copy. Both are the same for any number of loader processes (DATA.NUM_WORKERS)
and training processes. Mixing and the noise of erasing are drawn once for each batch of a training process.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, counted, one_line
from t2t_vit.data.balance import draw_images
from t2t_vit.data.batch import Batch, BatchDraws
from t2t_vit.data.crop_reader import open_picture
from t2t_vit.data.dataset import Split
from t2t_vit.data.erasing import RandomErasing
from t2t_vit.data.images import ImageError, load_image, reading
from t2t_vit.data.reading import data_loader, read_all, shared_memory_fits
from t2t_vit.data.seeding import ORDER, REPLACEMENT, TRANSFORM, generator
from t2t_vit.data.transforms import EvalTransform, TrainTransform

_REPLACEMENTS = 10  # stop after this many unreadable images in a row, even with DATA.ON_ERROR skip


class TrainDataset(paddle.io.Dataset):
    """Reads one image: sample (epoch, index, copy) -> (uint8 (S, S, channels), label, boxes, sample, skipped).

    `skipped` is "", or the reason why DATA.ON_ERROR skip has replaced the image.
    """

    def __init__(self, split: Split, cfg: CfgNode) -> None:
        super().__init__()
        self.split, self.seed = split, cfg.SEED
        self.reading = {"reader": cfg.DATA.READER, **reading(cfg)}
        self.tries = 1 + (_REPLACEMENTS if cfg.DATA.ON_ERROR == "skip" else 0)
        self.transform, self.erasing = TrainTransform(cfg), RandomErasing(cfg)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, sample: tuple[int, int, int]) -> tuple:
        skipped, attempt = "", 0
        while True:
            rng, index = self._draw(sample, attempt)
            try:
                picture = open_picture(self.split.paths[index], **self.reading)
                image = self.transform(picture, rng)
            except ImageError as error:
                attempt += 1
                if attempt == self.tries:
                    raise
                # Report only the first reason. An unreadable replacement is reported when its own turn comes.
                skipped = skipped or one_line(error)
                continue
            return image, self.split.labels[index], self.erasing.draw_boxes(rng), sample, skipped

    def _draw(self, sample, attempt):
        """Return (generator, index) of the sample's image, or of its replacement at a later attempt."""
        if attempt == 0:
            return generator(self.seed, TRANSFORM, sample), sample[1]
        rng = generator(self.seed, REPLACEMENT, (*sample, attempt))
        return rng, int(rng.integers(len(self.split)))


class EvalDataset(paddle.io.Dataset):
    """Reads one image: index -> (uint8 (S, S, channels), label). With VAL.TTA: (uint8 (V, S, S, channels), label)."""

    def __init__(self, split: Split, cfg: CfgNode) -> None:
        super().__init__()
        self.split, self.transform, self.reading = split, EvalTransform(cfg), reading(cfg)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = load_image(self.split.paths[index], **self.reading)
        return self.transform.views(image), self.split.labels[index]


class EvalOrder(paddle.io.BatchSampler):
    """Batches of indices for one process. All processes together see every image exactly once, without padding."""

    def __init__(self, num_images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.mine, self.batch_size = range(rank, num_images, world_size), batch_size

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.mine), self.batch_size):
            yield list(self.mine[start : start + self.batch_size])


class TrainOrder(paddle.io.BatchSampler):
    """Batches of samples (epoch, index, copy) for one process, from image `start` of `epoch` to the last epoch.

    The images of an epoch and their order are drawn by (seed, epoch): each image once, or as TRAIN.SAMPLER says. The
    incomplete last step is dropped. With AUG.REPEATS R, every drawn image is repeated R times in a row, and an epoch
    uses only the first 1/R of them (Hoffer et al. 2020; DeiT's RASampler). `copy` counts the repeats of an image, of
    all its draws.
    The images of a step are dealt out to the processes in turn, so that copies of an image go to different processes.
    """

    def __init__(self, labels, cfg, rank=0, world_size=1, epochs=1):
        self.labels, self.num_images, self.sampler = labels, len(labels), cfg.TRAIN.SAMPLER
        self.seed, self.batch_size = cfg.SEED, cfg.TRAIN.BATCH_SIZE
        self.rank, self.world_size, self.passes = rank, world_size, cfg.TRAIN.ACCUM_STEPS
        self.repeats, self.epochs = cfg.AUG.REPEATS, epochs
        self.images_per_step = self.batch_size * world_size * self.passes
        self.epoch = self.start = 0

    def steps(self, start=0):
        """Training steps that remain in an epoch after its first `start` images."""
        return (self.num_images - start) // self.images_per_step

    def __len__(self):
        return self.steps(self.start) * self.passes

    def __iter__(self):
        # All epochs form one stream, so that the loader processes read ahead during validation.
        for epoch in range(self.epoch, self.epochs):
            yield from self._epoch(epoch, self.start if epoch == self.epoch else 0)

    def _epoch(self, epoch, start):
        drawn, before = draw_images(self.labels, self.sampler, generator(self.seed, ORDER, (epoch,)))
        batches = self.steps(start) * self.passes
        places = np.arange(start, start + batches * self.batch_size * self.world_size)
        for mine in places.reshape(batches, self.batch_size, self.world_size)[:, :, self.rank]:
            draws, repeats = mine // self.repeats, mine % self.repeats
            copies = before[draws] * self.repeats + repeats
            yield [(epoch, index, copy) for index, copy in zip(drawn[draws].tolist(), copies.tolist())]


class EvalLoader:
    """Iterates over the batches of a split: uint8 (B, S, S, channels) and int64 (B,) tensors.

    With VAL.TTA, the images are (B, V, S, S, channels). `only` holds the ids of the classes that have images, int32
    (n,), with VAL.CLASSES_ONLY; else None.

    Raises:
        UserError: an image cannot be read. The message names it.
    """

    def __init__(self, split: Split, cfg: CfgNode, rank: int = 0, world_size: int = 1) -> None:
        self.num_images = len(split)
        self.only = np.unique(split.labels) if cfg.VAL.CLASSES_ONLY else None
        self.order = EvalOrder(len(split), cfg.VAL.BATCH_SIZE, rank, world_size)
        fits = shared_memory_fits(cfg)
        self.batches = data_loader(EvalDataset(split, cfg), self.order, collate_eval, cfg.DATA.NUM_WORKERS, fits)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        yield from read_all(self.batches)


class TrainLoader:
    """Training batches, epoch by epoch.

    Args:
        split: `Split` to train on.
        cfg: config.
        rank: rank of this process.
        world_size: number of processes.
        epochs: number of epochs of the run; nothing is read ahead after the last one.
    """

    def __init__(self, split: Split, cfg: CfgNode, rank: int = 0, world_size: int = 1, epochs: int = 1) -> None:
        self.num_images = len(split)
        self.order = TrainOrder(split.labels, cfg, rank, world_size, epochs)
        if self.order.steps() == 0:
            lower = "TRAIN.GLOBAL_BATCH" if cfg.TRAIN.GLOBAL_BATCH else "TRAIN.BATCH_SIZE or TRAIN.ACCUM_STEPS"
            raise UserError(
                f"{split.source} has {len(split)} images, fewer than one step of {self.order.images_per_step} on "
                f"{counted(world_size, 'process')}; lower {lower}"
            )
        fits = shared_memory_fits(cfg)
        self.batches = data_loader(TrainDataset(split, cfg), self.order, TrainCollate(cfg), cfg.DATA.NUM_WORKERS, fits)
        self._next: tuple[int, int] | None = None  # (epoch, start) of the next batch in `_reading`
        self._reading: Iterator = iter(())

    def steps(self, start: int = 0) -> int:
        """Training steps that remain in an epoch after its first `start` images."""
        return self.order.steps(start)

    def epoch_steps(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each training step of an epoch: a list of TRAIN.ACCUM_STEPS `Batch`es.

        The first `start` images of the epoch are skipped.

        Raises:
            UserError: an image cannot be read. The message names it.
        """
        if self._next != (epoch, start):
            self.order.epoch, self.order.start = epoch, start
            self._reading = read_all(self.batches)
        self._next = None
        for _ in range(self.steps(start)):
            yield [to_batch(*fields) for fields in itertools.islice(self._reading, self.order.passes)]
        self._next = (epoch + 1, 0)


def collate_eval(samples):
    """Collate items of `EvalDataset` to (images, labels)."""
    images, labels = zip(*samples)
    return np.stack(images), np.array(labels, np.int64)


class TrainCollate:
    """Collates items of `TrainDataset` to the fields for `to_batch`, as NumPy arrays instead of tensors."""

    def __init__(self, cfg: CfgNode) -> None:
        self.draw = BatchDraws(cfg)
        self.most_arrays = 3 + 3 * cfg.AUG.ERASE_COUNT  # in `Mixup.plan` and `RandomErasing.plan`

    def __call__(self, samples: Sequence[tuple]) -> tuple:
        images, labels, boxes, places, skipped = zip(*samples)
        mixing, erasing = self.draw(np.stack(boxes), places[0])
        arrays = sum(isinstance(item, np.ndarray) for item in itertools.chain(mixing or (), *erasing))
        # Paddle's reader for GPUs needs the same number of tensors in each batch (buffered_reader.cc, 2.6.2 and 3.3.1).
        padding = [np.zeros(1, bool)] * (self.most_arrays - arrays)
        return np.stack(images), np.array(labels, np.int64), mixing, erasing, padding, "\n".join(filter(None, skipped))


def to_batch(
    images: paddle.Tensor, labels: paddle.Tensor, mixing: list | None, erasing: list, _padding: list, skipped: str
) -> Batch:
    """Build a `Batch` from the fields that the loader returns."""
    return Batch(images, labels, mixing, erasing, tuple(filter(None, skipped.split("\n"))))
