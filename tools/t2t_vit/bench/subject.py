"""What a measuring process does: build a function of one batch, then time it round by round.

A function may have a dict `laps`, to which it adds the seconds of its parts.
"""

import os
import time
from pathlib import Path

import paddle

from t2t_vit.bench.rounds import PAUSE, Timed, finished
from t2t_vit.training.train_log import memory_mb

SIDE = 2048  # of the square matrices whose product is the limit

_timed = _product = None  # of this process


def build(make, *args):
    """Build the function that this process times, `make(*args)`. Its work is finished when it returns.

    Returns the peak MB of the process, or of its GPU, minus the memory used before.
    """
    global _timed, _product
    before = resident_mb()
    _timed = Timed(make(*args))
    peak_mb = memory_mb() - before
    matrix = paddle.rand([SIDE, SIDE])
    _product = Timed(lambda: finished(paddle.matmul(matrix, matrix)))
    return peak_mb


def time_round():
    """{"seconds": of a batch, and of each part of it; "gflops": the speed of a product of large float32 matrices}.

    A multiplication and its addition are two operations.
    """
    laps = getattr(_timed.function, "laps", {})
    laps.clear()
    seconds = _timed.seconds()
    parts = {part: lap / _timed.calls for part, lap in laps.items()}
    time.sleep(PAUSE)
    return {"seconds": seconds, **parts, "gflops": 2 * SIDE**3 / _product.seconds() / 1e9}


def resident_mb():
    """MB that this process holds now; on a GPU, the peak of its memory so far."""
    statm = Path("/proc/self/statm")
    if paddle.get_device() != "cpu" or not statm.exists():
        return memory_mb()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
