"""Batches through paddle.io.DataLoader: every failure reaches the main thread, and shared memory is not overfilled."""

import errno
import functools
import logging
import os
import signal
import threading
import traceback
import weakref
from multiprocessing import connection

import numpy as np
import paddle

from t2t_vit.common import ranks
from t2t_vit.common.errors import UserError, one_line
from t2t_vit.data.workers import start_worker

_QUEUE_BYTES = 1 << 20  # most memory in /dev/shm for the semaphores of the loader processes' queues
_SHM_IS_FULL = "/dev/shm is full: in Docker, start the container with a larger --shm-size"

log = logging.getLogger("t2t")


def data_loader(dataset, order, collate, workers, use_shared_memory):
    """A paddle.io.DataLoader to be read with `read_all`.

    Args:
        dataset: dataset[sample] -> item.
        order: yields lists of samples.
        collate: list of items -> tuple of arrays, texts and numbers, at least one array.
        workers: number of loader processes.
        use_shared_memory: the result of `shared_memory_fits`.
    """
    return paddle.io.DataLoader(
        _Guarded(dataset),
        batch_sampler=_GuardedOrder(order),
        collate_fn=functools.partial(_guarded_collate, collate),
        num_workers=workers,
        worker_init_fn=start_worker,
        use_shared_memory=use_shared_memory,
    )


class _Failure:
    """Carries an exception to the main thread in place of an item, then of its batch.

    An exception that Paddle sees reaches the main thread without its message, or not at all: with num_workers 0 the
    reading thread ends and the main thread waits for ever (Paddle 2.6.2 and 3.3.1, dataloader_iter.py).
    """

    def __init__(self, error):
        self.is_expected = isinstance(error, (UserError, OSError, MemoryError))
        self.text, self.traceback = one_line(error), traceback.format_exc()
        if isinstance(error, MemoryError):
            self.text = "out of memory while reading images; lower DATA.NUM_WORKERS or the batch size"

    def throw(self):
        if self.is_expected:
            raise UserError(self.text)
        raise RuntimeError(self.text) from RuntimeError(self.traceback)


class _Guarded(paddle.io.Dataset):
    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, sample):
        if isinstance(sample, _Failure):
            return sample
        try:
            return self.dataset[sample]
        except Exception as error:  # noqa: BLE001
            return _Failure(error)


class _GuardedOrder(paddle.io.BatchSampler):
    def __init__(self, order):
        self.order = order

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        try:
            yield from self.order
        except Exception as error:  # noqa: BLE001
            yield [_Failure(error)]


def _guarded_collate(collate, samples):
    failure = next((sample for sample in samples if isinstance(sample, _Failure)), None)
    if not failure:
        try:
            return collate(samples)
        except Exception as error:  # noqa: BLE001
            failure = _Failure(error)
    return [np.zeros(1, np.int64), failure]  # Paddle needs an array


def read_all(batches):
    """Yield the batches of a `data_loader`. Raises UserError if an image cannot be read or a loader process ends."""
    try:
        iterator = iter(batches)
    except OSError as error:
        full = f"; {_SHM_IS_FULL}" if error.errno == errno.ENOSPC else ""
        raise UserError(f"the loader processes cannot start: {one_line(error)}{full}") from error
    workers = getattr(iterator, "_workers", [])
    if workers:
        # Paddle's handler would raise a SystemError at any place in the main thread.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stop = weakref.WeakMethod(iterator._exit_thread_unexpectedly)
        threading.Thread(target=_stop_if_one_dies, args=(workers, stop), daemon=True).start()
    try:
        for fields in iterator:
            if isinstance(fields[-1], _Failure):
                fields[-1].throw()
            yield fields
    except SystemError:  # from Paddle's queue, after `_stop_if_one_dies`
        _raise_for_dead_process(workers)
        raise


def _stop_if_one_dies(workers, stop):
    """Thread that stops the reading if a loader process fails.

    Paddle checks its processes too, but not while it waits for the rest of a batch that a process began to send.
    """
    running = {worker.sentinel: worker for worker in workers}
    while running:
        for sentinel in connection.wait(list(running)):
            worker = running.pop(sentinel)
            worker.join(30)
            if worker.exitcode != 0 and (stop_reading := stop()):
                stop_reading()


def _raise_for_dead_process(workers):
    for worker in workers:
        if worker.exitcode:
            killed = worker.exitcode < 0
            how = f"by {signal.Signals(-worker.exitcode).name}" if killed else f"with status {worker.exitcode}"
            advice = "if the memory ran out, lower DATA.NUM_WORKERS"
            if -worker.exitcode == signal.SIGBUS:
                advice = _SHM_IS_FULL
            raise UserError(f"a data loader process ended ({how}); {advice}")


# --- Shared memory ---


def shared_memory_fits(cfg, *batch_sizes):
    """Whether /dev/shm has room for the batches of these sizes that are read ahead on this machine; if not, warn.

    A loader process dies of a bus error if /dev/shm is full.
    """
    try:
        memory = os.statvfs("/dev/shm")
    except OSError:  # not Linux
        return True
    needed, free = _read_ahead(cfg, *batch_sizes), memory.f_bavail * memory.f_frsize
    if cfg.DATA.NUM_WORKERS == 0 or needed <= free:
        return True
    whole = _read_ahead(cfg, cfg.TRAIN.BATCH_SIZE, cfg.VAL.BATCH_SIZE)
    has, may_need = (-(-size >> 20) for size in (memory.f_blocks * memory.f_frsize, whole))
    _warn(
        f"warning: /dev/shm has {has} MB and the loader processes may need {may_need}: they send the images through "
        f"pipes, which is slower; in Docker, start the container with --shm-size {2 * whole // 10**9 + 1}g"
    )
    return False


def _read_ahead(cfg, *batch_sizes):
    """Bytes of all batches in shared memory on this machine: two per loader process, and those in use."""
    batches = 2 * cfg.DATA.NUM_WORKERS + cfg.TRAIN.ACCUM_STEPS + 1
    aug = cfg.AUG
    # Masks of boxes take a byte for each pixel.
    masks = aug.ERASE_COUNT * (aug.ERASE_PROB > 0) + (aug.CUTMIX > 0 or bool(aug.CUTMIX_MINMAX))
    image = cfg.DATA.IMAGE_SIZE**2 * (cfg.DATA.CHANNELS + masks)
    return ranks.local_size() * (_QUEUE_BYTES + batches * sum(size * image for size in batch_sizes))


@functools.cache
def _warn(line):
    log.warning("%s", line)  # once for the loaders of both splits
