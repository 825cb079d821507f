"""Batches: which images, in which order, read by which process.

Order and augmentation of an image depend on SEED, the epoch and the image's index alone, so that the number of
workers or processes changes nothing.
"""

import itertools

import numpy as np
import paddle

from data.batch import Batch, BatchDraws, pack, unpack
from data.erasing import RandomErasing
from data.images import ImageError, load_image, open_picture
from data.seeding import ORDER, REPLACEMENT, TRANSFORM, generator
from data.transforms import EvalTransform, TrainTransform
from data.workers import read_all, start_worker
from errors import UserError, one_line

_REPLACEMENTS = 10  # unreadable images one after the other, with DATA.ON_ERROR skip, that end the run


class TrainDataset(paddle.io.Dataset):
    """Reads one image: sample (epoch, index, copy) -> (uint8 (S, S, channels), label, boxes, sample, skipped, error).

    `skipped` says, a line each, which images DATA.ON_ERROR skip has replaced; `error` why there is no image. It is
    returned because an exception in a loader process reaches the main process without its message (paddle 3.3.1).
    """

    def __init__(self, split, cfg):
        super().__init__()
        self.split, self.seed, self.channels = split, cfg.SEED, cfg.DATA.CHANNELS
        self.reader, self.size = cfg.DATA.READER, cfg.DATA.IMAGE_SIZE
        self.tries = 1 + (_REPLACEMENTS if cfg.DATA.ON_ERROR == "skip" else 0)
        self.transform, self.erasing = TrainTransform(cfg), RandomErasing(cfg)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, sample):
        skipped = []
        for attempt in range(self.tries):
            rng, index = self._draw(sample, attempt)
            try:
                picture = open_picture(self.split.paths[index], self.channels, self.reader)
                image = self.transform(picture, rng)
            except ImageError as error:
                skipped.append(one_line(error))
                continue
            return image, self.split.labels[index], self.erasing.draw_boxes(rng), sample, "\n".join(skipped), ""
        image = np.zeros((self.size, self.size, self.channels), np.uint8)
        return image, 0, self.erasing.draw_boxes(rng), sample, "", skipped[-1]

    def _draw(self, sample, attempt):
        """Generator and index of the sample's image, or of the one that replaces it at a later attempt."""
        if attempt == 0:
            return generator(self.seed, TRANSFORM, sample), sample[1]
        rng = generator(self.seed, REPLACEMENT, (*sample, attempt))
        return rng, int(rng.integers(len(self.split)))


class EvalDataset(paddle.io.Dataset):
    """Reads one image: index -> (uint8 (S, S, channels), label, error)."""

    def __init__(self, split, cfg):
        super().__init__()
        self.split, self.channels, self.size = split, cfg.DATA.CHANNELS, cfg.DATA.IMAGE_SIZE
        self.transform = EvalTransform(cfg)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        try:
            image, error = self.transform(load_image(self.split.paths[index], self.channels)), ""
        except ImageError as failure:
            image, error = np.zeros((self.size, self.size, self.channels), np.uint8), str(failure)
        return image, self.split.labels[index], error


class EvalOrder(paddle.io.BatchSampler):
    """Batches of indices of one process: over all processes every image exactly once, without padding."""

    def __init__(self, num_images, batch_size, rank=0, world_size=1):
        self.mine, self.batch_size = range(rank, num_images, world_size), batch_size

    def __len__(self):
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.mine), self.batch_size):
            yield list(self.mine[start : start + self.batch_size])


class TrainOrder(paddle.io.BatchSampler):
    """Batches of samples (epoch, index, copy) of one process, from `start` images into `epoch` to the end of `epochs`.

    Each epoch is shuffled by (seed, epoch), its incomplete last step dropped. With AUG.REPEATS R, every image comes R
    times and an epoch ends after the first 1/R of the images (Hoffer et al. 2020; DeiT's RASampler). A step's images
    are dealt to the processes in turn, so that the copies of an image go to different processes.
    """

    def __init__(self, num_images, cfg, rank=0, world_size=1, epochs=1):
        self.num_images, self.seed, self.batch_size = num_images, cfg.SEED, cfg.TRAIN.BATCH_SIZE
        self.rank, self.world_size, self.passes = rank, world_size, cfg.TRAIN.ACCUM_STEPS
        self.repeats, self.epochs = cfg.AUG.REPEATS, epochs
        self.images_per_step = self.batch_size * world_size * self.passes
        self.epoch = self.start = 0

    def steps(self, start=0):
        """Training steps of an epoch of which `start` images are done."""
        return (self.num_images - start) // self.images_per_step

    def __len__(self):
        return self.steps(self.start) * self.passes

    def __iter__(self):
        # On into the next epoch, so that the loader processes read ahead while the main process validates.
        for epoch in range(self.epoch, self.epochs):
            yield from self._epoch(epoch, self.start if epoch == self.epoch else 0)

    def _epoch(self, epoch, start):
        order = generator(self.seed, ORDER, (epoch,)).permutation(self.num_images)
        batches = self.steps(start) * self.passes
        places = np.arange(start, start + batches * self.batch_size * self.world_size)
        for mine in places.reshape(batches, self.batch_size, self.world_size)[:, :, self.rank]:
            yield [(epoch, int(order[place // self.repeats]), int(place % self.repeats)) for place in mine]


class EvalLoader:
    """Iterates over the batches of a split: uint8 (B, S, S, channels) and int64 (B,) tensors.

    Raises:
        UserError: naming an image that cannot be read.
    """

    def __init__(self, split, cfg, rank=0, world_size=1):
        self.num_images = len(split)
        self.order = EvalOrder(len(split), cfg.VAL.BATCH_SIZE, rank, world_size)
        self.batches = _data_loader(EvalDataset(split, cfg), self.order, cfg, collate_eval)

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        for images, labels, error in read_all(self.batches):
            if error:
                raise UserError(error)
            yield images, labels


class TrainLoader:
    """Training batches, epoch by epoch.

    Args:
        split: `Split` to train on.
        cfg: config.
        rank: of this process.
        world_size: number of processes.
        epochs: of the whole run, beyond which nothing is read ahead.
    """

    def __init__(self, split, cfg, rank=0, world_size=1, epochs=1):
        self.num_images = len(split)
        self.order = TrainOrder(len(split), cfg, rank, world_size, epochs)
        if self.order.steps() == 0:
            raise UserError(
                f"{split.source} has {len(split)} images, fewer than one step of {self.order.images_per_step} on "
                f"{world_size} process(es); lower TRAIN.BATCH_SIZE or TRAIN.ACCUM_STEPS"
            )
        self.batches = _data_loader(TrainDataset(split, cfg), self.order, cfg, TrainCollate(cfg))
        self._next = None  # (epoch, start) at which `_reading` stands
        self._reading = None

    def steps(self, start=0):
        """Training steps of an epoch of which `start` images are done."""
        return self.order.steps(start)

    def epoch_steps(self, epoch, start=0):
        """Yield one list of `Batch` per training step of the given epoch, of which `start` images are done.

        Raises:
            UserError: naming an image that cannot be read.
        """
        if self._next != (epoch, start):
            self.order.epoch, self.order.start = epoch, start
            self._reading = read_all(self.batches)
        self._next = None
        for _ in range(self.steps(start)):
            yield [to_batch(*fields) for fields in itertools.islice(self._reading, self.order.passes)]
        self._next = (epoch + 1, 0)


def _data_loader(dataset, order, cfg, collate):
    return paddle.io.DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=cfg.DATA.NUM_WORKERS,
        worker_init_fn=start_worker,
    )


def collate_eval(samples):
    """Items of `EvalDataset` -> (images, labels, first error)."""
    images, labels, errors = zip(*samples)
    return np.stack(images), np.array(labels, np.int64), next(filter(None, errors), "")


class TrainCollate:
    """Items of `TrainDataset` -> what `to_batch` makes a `Batch` of, with NumPy arrays in place of the tensors."""

    def __init__(self, cfg):
        self.draw = BatchDraws(cfg)

    def __call__(self, samples):
        images, labels, boxes, places, skipped, errors = zip(*samples)
        return (
            np.stack(images),
            np.array(labels, np.int64),
            *pack(self.draw(np.stack(boxes), places[0])),
            "\n".join(filter(None, skipped)),
            next(filter(None, errors), ""),
        )


def to_batch(images, labels, drawn, places, skipped, error):
    """`Batch` of what the loader gives; raises UserError if an image could not be read."""
    if error:
        raise UserError(error)
    return Batch(images, labels, *unpack(drawn, places), tuple(filter(None, skipped.split("\n"))))
