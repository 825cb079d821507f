"""Separate processes for measurements, each with its own memory, threads and settings.

This module imports neither Paddle nor NumPy, because both read the number of threads when they are imported.
"""

import concurrent.futures
import importlib
import multiprocessing
import os
import signal
from concurrent.futures.process import BrokenProcessPool

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.runtime import import_paddle
from t2t_vit.data.workers import end_with_parent


class Process:
    """A new process that runs functions. As a context manager, it ends the process on exit.

    Args:
        title: what the process measures, for error messages.
        cfg: config, which sets the device and the CPU operations; None for a process without Paddle.
        threads: number of threads for each library.
    """

    def __init__(self, title, cfg, threads=1):
        self.title = title
        self.pool = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(cfg, threads)
        )

    def run(self, function, *args):
        """Call a function in the process and return its result. Raises UserError if the process dies.

        `function` is a function of a module, or "module:function", which only the process then imports.
        """
        try:
            return self.pool.submit(_call, function, *args).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process for {self.title} ended; if the machine ran out of memory, lower the batch or image size"
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()


def _call(function, *args):
    if isinstance(function, str):
        module, name = function.split(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, OSError) as error:  # PyTorch without a library that it needs
            raise UserError(f"{module} cannot be imported: {one_line(error)}") from error
    return function(*args)


def _prepare(cfg, threads):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process at once; the parent reports it
    end_with_parent(signal.SIGKILL)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if cfg is None:
        return
    import_paddle(cfg.DEVICE)
    from t2t_vit.parallel import processes  # imports Paddle

    processes.setup(cfg)
