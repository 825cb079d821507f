"""What image files are: readable, of which size and mode; read whole, in several processes, without paddle."""

import collections
import concurrent.futures
import contextlib
import ctypes
import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from PIL import Image, ImageStat

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.data.images import ImageError, is_dim, load_image, open_image, orientation

_CHUNK = 64  # images that a reading process is given at a time
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}


def scan(paths, how, jobs):
    """Yield (path, what `look` returns for it) in order; only a few chunks are on their way at a time."""
    chunks = (paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK))
    fork = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(jobs, fork, _start_reading, (os.getpid(),))
    try:
        with _interrupts_wait():
            first = [pool.submit(look, chunk, how) for chunk in itertools.islice(chunks, 2 * jobs)]
        waiting = collections.deque(first)
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(look, chunk, how) for chunk in itertools.islice(chunks, 1))
    except BrokenProcessPool:
        raise UserError(
            f"one of {jobs} reading processes was killed, perhaps for want of memory; give fewer with --jobs N"
        ) from None
    except BaseException:  # Ctrl-C, or the end of who takes the results: not to wait for what is being read
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_wait():
    """Keep Ctrl-C until the end: during a fork, Python may lose it, or a process of the pool."""
    came = []
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


def _start_reading(parent):
    """Start of a reading process; `parent` is the main one's number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one tells of it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with the main process, however that ends
        if os.getppid() != parent:  # it has ended before that
            os._exit(1)
    warnings.simplefilter("ignore")  # Pillow's remarks on large pictures
    logging.disable()  # the report counts what reading an image may warn of


class Look(NamedTuple):
    """What an image file is."""

    reason: str = ""  # why it cannot be read; then the rest is empty
    side: int = 0  # the shorter one, pixels
    mode: str = ""
    misnamed: str = ""  # "PNG called .jpg"
    is_rotated: bool = False  # by EXIF
    is_dim: bool = False  # see images.is_dim
    grey: tuple = (0, 0.0, 0.0)  # whether it is grey, mean, mean square
    digest: int = 0  # of the content of the file


def look(paths, how):
    """[(path, Look), ...]"""
    looks = []
    for path in paths:
        try:
            pixels = load_image(path, **how)  # as in evaluation, and in training where its quicker reader gives up
            with open_image(path) as image:
                mode, kind, is_rotated = image.mode, image.format, orientation(image) in range(2, 9)
                dim = bool(is_dim(image, how["grey_bits"]))
            digest = _digest(path)
        except (ImageError, OSError) as error:
            looks.append((path, Look(one_line(error))))
            continue
        ending = os.path.splitext(path)[1].lower()
        called = Image.registered_extensions().get(ending, kind)
        misnamed = called != kind and (called, kind) != ("JPEG", "MPO")  # MPO: a JPEG file with a second picture
        grey = (0, 0.0, 0.0)
        if mode in _GREY_MODES:
            statistics = ImageStat.Stat(pixels)
            mean = statistics.mean[0] / 255.0
            grey = 1, mean, statistics.var[0] / 255.0**2 + mean**2
        misnamed = f"{kind} called {ending}" if misnamed else ""
        looks.append((path, Look("", min(pixels.size), mode, misnamed, is_rotated, dim, grey, digest)))
    return looks


def _digest(path):
    """64-bit hash of a file's content."""
    hasher = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            hasher.update(block)
    return int.from_bytes(hasher.digest(), "little")
