"""Loader processes of paddle.io.DataLoader: how they start, and how they always end.

Does not import paddle, because processes without it use `end_with_parent`.
"""

import atexit
import contextlib
import ctypes
import glob
import multiprocessing
import os
import signal
import sys
import threading

from t2t_vit.common.runtime import keep_freed_memory

_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent dies


def start_worker(_worker_id):
    """The `worker_init_fn` of a DataLoader."""
    keep_freed_memory(256)  # 2 % faster
    # Ctrl-C, a hang-up and the SIGTERM of a job queue may reach every process. Only the training process reacts.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _end_worker)
    end_with_parent(signal.SIGUSR1)  # Paddle's loader processes outlive a killed parent


def end_with_parent(number):
    """Send this process a signal when its parent dies (Linux). The signal must end the process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        # If it died before. Its `is_alive` could still be true: a process that was forked later keeps its pipe open.
        if os.getppid() != multiprocessing.parent_process().pid:
            signal.raise_signal(number)


def _end_worker(*_):
    # Batches that were not fetched would stay in /dev/shm until the next boot.
    for segment in glob.glob(f"/dev/shm/paddle_{os.getpid()}_*"):
        with contextlib.suppress(OSError):
            os.unlink(segment)
    os._exit(0)


@atexit.register
def _end_workers():
    # This runs before multiprocessing sends a SIGTERM, which they ignore, and waits for their end.
    # Paddle's reading thread would report the end of a loader process as a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.excepthook = lambda _: None
    workers = multiprocessing.active_children()
    for worker in workers:
        # The process may have ended: multiprocessing misses that if a signal handler raised while it waited.
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGUSR1)
    for worker in workers:
        worker.join(5)
        worker.kill()
