"""Runs inside a measuring process: builds a function that computes one batch, then times it round by round.

The function may have a dict `laps`, to which it adds the seconds of its parts.
"""

import os
import time
from pathlib import Path

import paddle

from t2t_vit.bench.rounds import PAUSE, Timed, finished
from t2t_vit.training.train_log import memory_mb

SIDE = 2048  # side of the square matrices whose product gives the matmul limit

_timed: Timed  # what this process times
_product: Timed  # the matrix product


def build(make, *args):
    """Build the function that this process times: `make(*args)`. The function must wait for its device.

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
    """Time one round. Returns {"seconds": per batch, seconds of each part, "gflops": speed of a large matrix product}.

    The product is in float32. A multiplication and its addition count as two operations.
    """
    laps = getattr(_timed.function, "laps", {})
    laps.clear()
    seconds = _timed.seconds()
    parts = {part: lap / _timed.calls for part, lap in laps.items()}
    time.sleep(PAUSE)
    return {"seconds": seconds, **parts, "gflops": 2 * SIDE**3 / _product.seconds() / 1e9}


def resident_mb():
    """Return the memory that this process uses now in MB; on a GPU, the peak so far."""
    statm = Path("/proc/self/statm")
    if paddle.get_device() != "cpu" or not statm.exists():
        return memory_mb()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
