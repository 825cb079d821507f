"""Read batches with paddle.io.DataLoader, so that errors reach the main thread and shared memory does not overflow."""

import errno
import functools
import logging
import operator
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
from t2t_vit.data.transforms import num_views
from t2t_vit.data.workers import start_worker

_QUEUE_BYTES = 1 << 20  # upper bound for the semaphores of the loader processes' queues in /dev/shm
_SHM_IS_FULL = "/dev/shm is full: in Docker, start the container with a larger --shm-size"

log = logging.getLogger("t2t")


def data_loader(dataset, order, collate, workers, use_shared_memory):
    """Build a paddle.io.DataLoader. Read it with `read_all`.

    `order` yields lists of samples. `dataset[sample]` is an item. `collate` turns a list of items into a tuple of
    arrays, texts and numbers.
    """
    return paddle.io.DataLoader(
        _Batches(dataset, collate),
        batch_sampler=_BatchOrder(order),
        collate_fn=operator.itemgetter(0),
        num_workers=workers,
        worker_init_fn=start_worker,
        use_shared_memory=use_shared_memory,
    )


class _Failure:
    """Carries an exception to the main thread in place of a batch.

    If Paddle catches an exception, the main thread gets it without its message or not at all: with num_workers 0 the
    reading thread ends and the main thread waits forever (Paddle 2.6.2 and 3.3.1, dataloader_iter.py).
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


class _BatchOrder(paddle.io.BatchSampler):
    """Yields lists with one item: all samples of a batch. `_Batches` reads them at once."""

    def __init__(self, order):
        self.order = order

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        for samples in self.order:
            yield [samples]


class _Batches(paddle.io.Dataset):
    """Reads the samples of a batch and returns its fields. After an error, the last field is a `_Failure`."""

    def __init__(self, dataset, collate):
        super().__init__()
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, samples):
        try:
            return self.collate([self.dataset[sample] for sample in samples])
        except Exception as error:  # noqa: BLE001
            return [np.zeros(1, np.int64), _Failure(error)]  # Paddle needs an array


def read_all(batches):
    """Yield the batches of a `data_loader`. Raises UserError if an image cannot be read or a loader process ends."""
    try:
        iterator = iter(batches)
    except OSError as error:
        full = f"; {_SHM_IS_FULL}" if error.errno == errno.ENOSPC else ""
        raise UserError(f"the loader processes cannot start: {one_line(error)}{full}") from error
    workers = getattr(iterator, "_workers", [])
    if workers:
        # Otherwise Paddle's signal handler could raise a SystemError anywhere in the main thread.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stop = weakref.WeakMethod(iterator._exit_thread_unexpectedly)
        threading.Thread(target=_stop_if_one_dies, args=(workers, stop), daemon=True).start()
    try:
        for fields in iterator:
            if isinstance(fields[-1], _Failure):
                fields[-1].throw()
            yield fields
    except SystemError:  # Paddle's queue raises it after `_stop_if_one_dies` has stopped the reading
        _raise_for_dead_process(workers)
        raise


def _stop_if_one_dies(workers, stop):
    """Stop the reading if a loader process fails. Runs in a thread.

    Paddle checks its processes too, but not while it waits for the rest of a half-sent batch.
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
            advice = "if the machine ran out of memory, lower DATA.NUM_WORKERS"
            if -worker.exitcode == signal.SIGBUS:
                advice = _SHM_IS_FULL
            raise UserError(f"a data loader process ended ({how}); {advice}")


# --- Shared memory ---


def shared_memory_fits(cfg):
    """Check that /dev/shm has room for the batches that are read ahead on this machine. Warns if not.

    If /dev/shm is full, a loader process dies of a bus error.
    """
    try:
        memory = os.statvfs("/dev/shm")
    except OSError:  # not Linux
        return True
    needed = _read_ahead(cfg)
    if cfg.DATA.NUM_WORKERS == 0 or needed <= memory.f_bavail * memory.f_frsize:
        return True
    has, may_need = (-(-size >> 20) for size in (memory.f_blocks * memory.f_frsize, needed))
    _warn(
        f"warning: /dev/shm has {has} MB, but the loader processes may need {may_need}: images are sent through "
        f"pipes, which is slower; in Docker, start the container with --shm-size {2 * needed // 10**9 + 1}g"
    )
    return False


def _read_ahead(cfg):
    """Estimate the bytes of all batches of both splits in shared memory: two per loader process, and those in use."""
    batches = 2 * cfg.DATA.NUM_WORKERS + cfg.TRAIN.ACCUM_STEPS + 1
    aug = cfg.AUG
    # A mask takes one byte per pixel.
    masks = aug.ERASE_COUNT * (aug.ERASE_PROB > 0) + (aug.CUTMIX > 0 or bool(aug.CUTMIX_MINMAX))
    image = cfg.DATA.IMAGE_SIZE**2 * (cfg.DATA.CHANNELS + masks)
    images = batches * (cfg.TRAIN.BATCH_SIZE + cfg.VAL.BATCH_SIZE * num_views(cfg))
    return ranks.local_size() * (_QUEUE_BYTES + images * image)


@functools.cache
def _warn(line):
    log.warning("%s", line)  # cached: only one warning for both splits
