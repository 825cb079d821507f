"""Start the loader processes of paddle.io.DataLoader, and make sure that they end.

Does not import paddle, because `end_with_parent` is also used in processes without it.
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
    # Ctrl-C, SIGHUP and the SIGTERM of a job queue may reach every process. Only the training process handles them.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _end_worker)
    end_with_parent(signal.SIGUSR1)  # otherwise Paddle's loader processes outlive a killed parent


def end_with_parent(number: int) -> None:
    """Send this process a signal when its parent dies (Linux). The signal must end the process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        # The parent may have died already. `is_alive` misses that if a process forked later keeps its pipe open.
        parent = multiprocessing.parent_process()
        if parent and os.getppid() != parent.pid:
            signal.raise_signal(number)


def _end_worker(*_):
    # Otherwise batches that were not fetched stay in /dev/shm until the next boot.
    for segment in glob.glob(f"/dev/shm/paddle_{os.getpid()}_*"):
        with contextlib.suppress(OSError):
            os.unlink(segment)
    os._exit(0)


@atexit.register
def _end_workers():
    # At exit, multiprocessing sends SIGTERM to the loader processes, which ignore it, and waits. This runs before.
    # Keep Paddle's handler and reading thread from reporting the end of a loader process as a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.excepthook = lambda _: None
    workers = multiprocessing.active_children()
    for worker in workers:
        # The process may already have ended: multiprocessing misses that if a signal handler interrupted its wait.
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGUSR1)  # type: ignore[arg-type]  # None only before the start
    for worker in workers:
        worker.join(5)
        worker.kill()
