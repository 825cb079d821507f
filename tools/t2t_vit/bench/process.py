"""Processes to measure in: threads and settings that libraries read when they are imported, and memory of their own.

Imports neither paddle nor numpy: it is what a new process imports first.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from t2t_vit.cli import import_paddle
from t2t_vit.common.errors import UserError
from t2t_vit.common.runtime import keep_freed_memory
from t2t_vit.config import default_config, with_keys
from t2t_vit.data.workers import end_with_parent

_subject = None  # what a `Subject`'s process has built


def on_one_core(measure, *args):
    """The result of a function in a process of its own that has one core, and one thread in every library."""
    with _pool(_keep_to_one_core) as pool:
        return pool.submit(measure, *args).result()


def apart(function, *args, title, cfg, threads):
    """The result of a function in a process of its own, whose memory is free again; see `Subject`."""
    with _pool(_prepare, cfg, threads) as pool:
        return _result(pool, title, function, *args)


def _result(pool, title, function, *args):
    try:
        return pool.submit(function, *args).result()
    except BrokenProcessPool:
        raise UserError(
            f"the process for {title} ended; if the memory ran out, lower the batch or image size"
        ) from None


def _pool(initializer, *args):
    spawn = multiprocessing.get_context("spawn")  # libraries read how many threads to use when they are imported
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn, initializer=initializer, initargs=args)


def _keep_to_one_core():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _prepare(with_keys(default_config(), {"DEVICE": "cpu"}), 1)
    keep_freed_memory(256)  # as in a loader process; the baseline gains too


def _prepare(cfg, threads):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once; the command says so
    end_with_parent(signal.SIGKILL)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import_paddle(cfg.DEVICE)
    from t2t_vit.parallel import processes

    processes.setup(cfg)


class Subject:
    """Something built in a process of its own, whose methods are called there.

    Args:
        build: function or class at the top of a module.
        args: of `build`.
        title: what is measured, for its error messages.
        cfg: config, of its device and of what a CPU computes by.
        threads: of each library in that process.
    """

    def __init__(self, build, *args, title, cfg, threads):
        self.title = title
        self.pool = _pool(_prepare, cfg, threads)
        _result(self.pool, title, _build, build, args)

    def __call__(self, method, *args):
        """Result of a method of what was built."""
        return _result(self.pool, self.title, _call, method, args)

    def close(self):
        self.pool.shutdown()


def _build(build, args):
    global _subject
    _subject = build(*args)


def _call(method, args):
    return getattr(_subject, method)(*args)


@contextlib.contextmanager
def closing(subjects):
    """The {key: Subject} dict, which may grow; its processes end with the context."""
    try:
        yield subjects
    finally:
        for subject in subjects.values():
            subject.close()


class Memory:
    """Memory that this process takes from here on."""

    def __init__(self):
        self.before = _resident_mb()

    def peak_mb(self):
        """MB of the highest point so far above that of the start; on a GPU, of the GPU's memory."""
        from t2t_vit.training.meter import memory_mb

        return memory_mb() - self.before


def _resident_mb():
    import paddle

    from t2t_vit.training.meter import memory_mb

    statm = Path("/proc/self/statm")
    if paddle.get_device() != "cpu" or not statm.exists():
        return memory_mb()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
