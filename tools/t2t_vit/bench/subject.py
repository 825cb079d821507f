"""Runs inside a measuring process: builds a function that computes one batch, then times it round by round."""

import time

import paddle

from t2t_vit.bench.rounds import PAUSE, Timed, finished
from t2t_vit.common.runtime import memory_mb
from t2t_vit.training.train_log import peak_mb

SIDE = 2048  # side of the square matrices whose product gives the matmul limit

_timed: Timed  # what this process times
_product: Timed  # the matrix product


def build(make, *args):
    """Build the function that this process times: `make(*args)`.

    Returns the peak MB of the process, or of its GPU, minus the memory used before.
    """
    global _timed, _product
    before = memory_mb()[0] if paddle.get_device() == "cpu" else peak_mb()
    _timed = Timed(make(*args))
    used = peak_mb() - before
    matrix = paddle.rand([SIDE, SIDE])
    _product = Timed(lambda: finished(paddle.matmul(matrix, matrix)))
    return used


def time_round():
    """Time one round. Returns {"seconds": per batch, seconds of each part, "gflops": speed of a large matrix product}.

    The product is in float32. A multiplication and its addition count as two operations.
    """
    figures = _timed.round()
    time.sleep(PAUSE)
    return {**figures, "gflops": 2 * SIDE**3 / _product.seconds() / 1e9}
