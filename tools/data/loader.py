"""Batches: which images, in which order, read by which process.

Order and augmentation of an image depend on SEED, the epoch and the image's index alone, so that the number of
workers or processes changes nothing.
"""

import atexit
import contextlib
import ctypes
import glob
import itertools
import multiprocessing
import os
import signal
import sys
import threading

import numpy as np
import paddle

from data.transforms import EvalTransform, ImageError, TrainTransform, load_image
from errors import UserError

_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent dies


class ImageDataset(paddle.io.Dataset):
    """Reads one image: item (epoch, index) -> (uint8 (S, S, channels), label, error).

    An unreadable image is returned as zeros with its error, because an exception in a loader process reaches the
    main process without its message (paddle 3.3.1).
    """

    def __init__(self, split, transform, cfg):
        super().__init__()
        self.split = split
        self.transform = transform
        self.channels = cfg.DATA.CHANNELS
        self.size = cfg.DATA.IMAGE_SIZE
        self.seed = cfg.SEED

    def __len__(self):
        return len(self.split)

    def __getitem__(self, item):
        epoch, index = item
        try:
            image = load_image(self.split.paths[index], self.channels)
        except ImageError as error:
            return np.zeros((self.size, self.size, self.channels), np.uint8), self.split.labels[index], str(error)
        rng = np.random.default_rng([self.seed, epoch, index])
        return self.transform(image, rng), self.split.labels[index], ""


class BatchOrder(paddle.io.BatchSampler):
    """Batches of (epoch, index) of one process.

    Training shuffles by (seed, epoch), leaves out the first `start` images of that order, drops the incomplete last
    step and cuts the images of each step into `passes` global batches, each of them into one slice per process.
    Validation goes through every image exactly once over all processes, without padding.
    """

    def __init__(self, num_images, batch_size, seed, rank=0, world_size=1, training=False, passes=1):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.training, self.passes = rank, world_size, training, passes
        self.images_per_step = batch_size * world_size * passes
        self.epoch = self.start = 0

    def __len__(self):
        if self.training:
            return (self.num_images - self.start) // self.images_per_step * self.passes
        mine = len(range(self.rank, self.num_images, self.world_size))
        return -(-mine // self.batch_size)

    def __iter__(self):
        if self.training:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_images)
            order = order[self.start :][: len(self) * self.batch_size * self.world_size]
            mine = order.reshape(len(self), self.world_size, self.batch_size)[:, self.rank].reshape(-1)
        else:
            mine = np.arange(self.rank, self.num_images, self.world_size)
        for start in range(0, len(mine), self.batch_size):
            yield [(self.epoch, int(index)) for index in mine[start : start + self.batch_size]]


class Loader:
    """Iterates over one epoch's batches: uint8 (B, S, S, channels) and int64 (B,) tensors.

    Raises:
        UserError: naming an image that cannot be read.
    """

    def __init__(self, split, cfg, training, rank=0, world_size=1):
        transform = TrainTransform(cfg) if training else EvalTransform(cfg)
        batch_size = cfg.TRAIN.BATCH_SIZE if training else cfg.VAL.BATCH_SIZE
        self.num_images = len(split)
        passes = cfg.TRAIN.ACCUM_STEPS if training else 1
        self.order = BatchOrder(len(split), batch_size, cfg.SEED, rank, world_size, training, passes)
        if training and len(self.order) == 0:
            raise UserError(
                f"{split.source} has {len(split)} images, fewer than one step of {self.order.images_per_step} on "
                f"{world_size} process(es); lower TRAIN.BATCH_SIZE or TRAIN.ACCUM_STEPS"
            )
        self.batches = paddle.io.DataLoader(
            ImageDataset(split, transform, cfg),
            batch_sampler=self.order,
            collate_fn=_collate,
            num_workers=cfg.DATA.NUM_WORKERS,
            persistent_workers=training and cfg.DATA.NUM_WORKERS > 0,
            worker_init_fn=_live_and_die_with_parent,
        )

    def __len__(self):
        return len(self.order)

    def steps(self, start=0):
        """Training steps of an epoch of which `start` images are done."""
        return (self.num_images - start) // self.order.images_per_step

    def epoch_steps(self, epoch, start):
        """Yield one list of batches per training step of the given epoch, of which `start` images are done."""
        self.order.start = start
        batches = self.epoch(epoch)
        for _ in range(self.steps(start)):
            yield list(itertools.islice(batches, self.order.passes))
        next(batches, None)  # lets the loader end the epoch

    def epoch(self, epoch):
        """Yield the batches of the given epoch."""
        self.order.epoch = epoch
        for images, labels, error in self.batches:
            if error:
                raise UserError(error)
            yield images, labels


def _collate(samples):
    images, labels, errors = zip(*samples)
    return np.stack(images), np.array(labels, np.int64), next(filter(None, errors), "")


def _live_and_die_with_parent(_worker_id):
    # Ctrl-C, a hang-up and the SIGTERM of a job queue may reach every process; the training process alone decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _end_worker)
    if sys.platform == "linux":  # Paddle's loader processes outlive a killed parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
        if not multiprocessing.parent_process().is_alive():
            _end_worker()


def _end_worker(*_):
    # Batches that nobody has fetched would stay in memory until the next boot.
    for segment in glob.glob(f"/dev/shm/paddle_{os.getpid()}_*"):
        with contextlib.suppress(OSError):
            os.unlink(segment)
    os._exit(0)


@atexit.register
def _end_workers():
    # Before multiprocessing ends them by a SIGTERM, which they ignore, and waits for it.
    # Paddle takes their end for a failure, which its reading thread would tell of.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.excepthook = lambda _: None
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGUSR1)
    for worker in workers:
        worker.join(5)
        worker.kill()


class Normalize:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W), (x / 255 - mean) / std, on the batch's device."""

    def __init__(self, cfg):
        self.mean = paddle.to_tensor(cfg.DATA.MEAN, dtype="float32")
        self.std = paddle.to_tensor(cfg.DATA.STD, dtype="float32")

    def __call__(self, images):
        # Channels last while broadcasting: over any other axis it is several times slower on CPU.
        images = (images.astype("float32") / 255.0 - self.mean) / self.std  # (B, H, W, C)
        return images.transpose([0, 3, 1, 2])  # (B, C, H, W)
