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

from data.batch import Batch
from data.erasing import RandomErasing
from data.images import ImageError, load_image, open_picture
from data.seeding import ORDER, REPLACEMENT, TRANSFORM, generator
from data.transforms import EvalTransform, TrainTransform
from errors import UserError, one_line

_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent dies
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
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
        self.batches = _data_loader(EvalDataset(split, cfg), self.order, cfg, _collate_eval)

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        for images, labels, error in _read(self.batches):
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
        self.batches = _data_loader(TrainDataset(split, cfg), self.order, cfg, _collate_train)
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
            self._reading = _read(self.batches)
        self._next = None
        for _ in range(self.steps(start)):
            yield [self._batch(*fields) for fields in itertools.islice(self._reading, self.order.passes)]
        self._next = (epoch + 1, 0)

    def _batch(self, images, labels, boxes, sample, skipped, error):
        if error:
            raise UserError(error)
        boxes = np.frombuffer(boxes, np.int16).reshape(labels.shape[0], -1, 4)
        return Batch(images, labels, boxes, tuple(sample), tuple(filter(None, skipped.split("\n"))))


def _data_loader(dataset, order, cfg, collate):
    return paddle.io.DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=cfg.DATA.NUM_WORKERS,
        worker_init_fn=_start_worker,
    )


def _read(batches):
    """Yield from a DataLoader, the end of whose processes is a UserError."""
    try:
        iterator = iter(batches)
        _catch_signal_of_dead_processes()
        yield from iterator
    except SystemError as error:  # of Paddle's reading thread, which may notice it first
        raise _dead_process(error) from error


def _catch_signal_of_dead_processes():
    """Paddle's handler of SIGCHLD raises a SystemError wherever the main thread is; let it be a UserError."""
    paddle_handler = signal.getsignal(signal.SIGCHLD)
    if not callable(paddle_handler) or paddle_handler.__module__ == __name__:
        return

    def handler(*args):
        try:
            paddle_handler(*args)
        except SystemError as error:
            raise _dead_process(error) from error

    signal.signal(signal.SIGCHLD, handler)


def _dead_process(error):
    what = one_line(error).partition("(Fatal) ")[2].partition(" [Hint")[0].partition(" (at ")[0]
    return UserError(f"a data loader process ended ({what}); if the memory ran out, lower DATA.NUM_WORKERS")


def _collate_eval(samples):
    images, labels, errors = zip(*samples)
    return np.stack(images), np.array(labels, np.int64), next(filter(None, errors), "")


def _collate_train(samples):
    images, labels, boxes, places, skipped, errors = zip(*samples)
    return (
        np.stack(images),
        np.array(labels, np.int64),
        np.stack(boxes).tobytes(),  # no array, which would go to the device
        places[0],
        "\n".join(filter(None, skipped)),
        next(filter(None, errors), ""),
    )


def _start_worker(_worker_id):
    keep_freed_memory()
    # Ctrl-C, a hang-up and the SIGTERM of a job queue may reach every process; the training process alone decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _end_worker)
    if sys.platform == "linux":  # Paddle's loader processes outlive a killed parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
        if not multiprocessing.parent_process().is_alive():
            _end_worker()


def keep_freed_memory():
    """Let the allocator keep what images free: giving it back and asking again costs 2 % of the time (glibc)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


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
