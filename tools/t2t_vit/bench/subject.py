"""What a process builds to be timed: a function of one batch, and the memory that it takes."""

import os
from pathlib import Path

import paddle

from t2t_vit.bench.rounds import Timed
from t2t_vit.training.train_log import memory_mb


class Subject:
    """A function of one batch.

    Args:
        function: without arguments; finished when it returns.
        before_mb: `resident_mb` before anything was built.
    """

    def __init__(self, function, before_mb):
        self.function, self.timed = function, Timed(function)
        self.peak_mb = memory_mb() - before_mb

    def round(self):
        """{"seconds": of a batch}"""
        return {"seconds": self.timed.seconds()}

    def memory(self):
        """Peak MB of the process, or of its GPU, minus the memory used before anything was built."""
        return self.peak_mb


def resident_mb():
    """MB that this process holds now; on a GPU, the peak of its memory so far."""
    statm = Path("/proc/self/statm")
    if paddle.get_device() != "cpu" or not statm.exists():
        return memory_mb()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
