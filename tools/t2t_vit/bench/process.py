"""Processes to measure in: each has its own memory, threads and settings.

Imports neither Paddle nor NumPy, which read the number of threads when they are imported.
"""

import concurrent.futures
import multiprocessing
import os
import signal
from concurrent.futures.process import BrokenProcessPool

from t2t_vit.common.errors import UserError
from t2t_vit.common.runtime import import_paddle
from t2t_vit.data.workers import end_with_parent


class Process:
    """A new process that runs functions. Used as a context, it ends with it.

    Args:
        title: what it measures, for error messages.
        cfg: config; its device and the operations of a CPU are set up.
        threads: of each library.
    """

    def __init__(self, title, cfg, threads=1):
        self.title = title
        self.pool = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(cfg, threads)
        )

    def run(self, function, *args):
        """The result of a function of a module, called in the process. Raises UserError if the process ends."""
        try:
            return self.pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process for {self.title} ended; if the memory ran out, lower the batch or image size"
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()


def _prepare(cfg, threads):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once; the command reports it
    end_with_parent(signal.SIGKILL)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import_paddle(cfg.DEVICE)
    from t2t_vit.parallel import processes  # imports Paddle

    processes.setup(cfg)
