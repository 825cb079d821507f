"""What image files are: size, mode, rotation, content. Several processes read each file completely, without Paddle."""

import hashlib
import itertools
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from PIL import ImageStat

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.data.images import ImageError, examine_image
from t2t_vit.data.workers import end_with_parent

_CHUNK = 64  # images that a reading process is given at a time
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}


class Look(NamedTuple):
    """What an image file is."""

    reason: str = ""  # why it cannot be read; the rest is then empty
    side: int = 0  # the shorter one, pixels
    mode: str = ""
    is_rotated: bool = False  # by EXIF
    is_dim: bool = False  # see ImageFacts
    grey: tuple = (0, 0.0, 0.0)  # 1 if it is grey, mean, mean square
    digest: int = 0  # 64-bit hash of the file


def look_at(paths, how, jobs):
    """Yield a `Look` for each path, in order. `how`: keyword arguments of `load_image`."""
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _start, (paths, how))
    try:
        # Ctrl-C during a fork could be lost. The reading processes inherit the blocked signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            chunks = pool.map(_look_at_chunk, range(0, len(paths), _CHUNK))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield from itertools.chain.from_iterable(chunks)
    except BrokenProcessPool:
        raise UserError(
            f"one of {jobs} reading processes was killed, perhaps because memory ran out; give fewer with --jobs N"
        ) from None
    except BaseException:  # Ctrl-C: do not wait for the images that are being read
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(paths, how):
    """Start of a reading process."""
    end_with_parent(signal.SIGKILL)
    _look_at_chunk.paths, _look_at_chunk.how = paths, how


def _look_at_chunk(start):
    paths, how = _look_at_chunk.paths, _look_at_chunk.how
    return [look(path, how) for path in paths[start : start + _CHUNK]]


def look(path, how):
    """`Look` of one file."""
    try:
        image, facts = examine_image(path, **how)  # as in evaluation
        with open(path, "rb") as file:
            digest = hashlib.blake2b(file.read(), digest_size=8).digest()
    except (ImageError, OSError) as error:
        return Look(one_line(error))
    grey = (0, 0.0, 0.0)
    if facts.mode in _GREY_MODES:
        statistics = ImageStat.Stat(image)
        mean = statistics.mean[0] / 255.0
        grey = 1, mean, statistics.var[0] / 255.0**2 + mean**2
    number = int.from_bytes(digest, "little")
    return Look("", min(image.size), facts.mode, facts.is_rotated, facts.is_dim, grey, number)
