"""The batches that the server makes of the images of several requests."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from t2t_vit.serve.batcher import Batcher

LONG = 60  # seconds that no test waits


class Recorder:
    """A predictor whose logits are the images. Notes the sizes of its batches; waits until it is `free`."""

    def __init__(self, parallel=1):
        self.parallel, self.sizes, self.free = parallel, [], threading.Event()
        self.free.set()
        self.computing = threading.Semaphore(0)  # released once for each batch that starts

    def __call__(self, images):
        self.sizes.append(len(images))
        self.computing.release()
        assert self.free.wait(LONG)
        if images.min() < 0:
            raise RuntimeError("broken engine")
        return images


@pytest.fixture
def batcher():
    """A function that makes a `Batcher`."""
    made = []

    def make(predictor, size, wait):
        made.append(Batcher(predictor, size, wait))
        return made[-1]

    yield make
    for each in made:
        each.close()
        assert not any(thread.is_alive() for thread in each.threads)


def images(*numbers):
    return [np.full(2, number, np.float32) for number in numbers]


def submitted(batches, *numbers):
    return [batches.submit(image) for image in images(*numbers)]


def test_images_wait_for_others_but_not_long(batcher):
    predictor = Recorder()
    batches = batcher(predictor, 8, wait=0.3)
    futures = submitted(batches, 1, 2, 3)
    assert [future.result(LONG).tolist() for future in futures] == [[1, 1], [2, 2], [3, 3]]
    assert predictor.sizes == [3]


def test_a_full_batch_starts_at_once(batcher):
    predictor = Recorder()
    batches = batcher(predictor, 2, wait=LONG)
    start = time.monotonic()
    assert [future.result(LONG)[0] for future in submitted(batches, 1, 2, 3, 4)] == [1, 2, 3, 4]
    assert predictor.sizes == [2, 2] and time.monotonic() - start < LONG / 2


def test_what_comes_during_a_batch_is_the_next_one_without_waiting(batcher):
    predictor = Recorder()
    predictor.free.clear()
    batches = batcher(predictor, 8, wait=0.5)
    first = submitted(batches, 1)
    assert predictor.computing.acquire(timeout=LONG)  # after the wait
    later = submitted(batches, 2, 3, 4)
    time.sleep(0.6)  # longer than an image waits
    predictor.free.set()
    start = time.monotonic()
    assert [future.result(LONG)[0] for future in first + later] == [1, 2, 3, 4]
    assert predictor.sizes == [1, 3] and time.monotonic() - start < 0.4


def test_a_parallel_predictor_gets_several_batches(batcher):
    predictor = Recorder(parallel=2)
    predictor.free.clear()
    futures = submitted(batcher(predictor, 1, wait=0), 1, 2, 3)
    for _ in range(2):
        assert predictor.computing.acquire(timeout=LONG)
    assert not predictor.computing.acquire(timeout=0.1)  # no third one
    predictor.free.set()
    assert [future.result(LONG)[0] for future in futures] == [1, 2, 3]


def test_a_failure_reaches_its_requests_only(batcher):
    batches = batcher(Recorder(), 2, wait=LONG)
    bad, worse, *good = submitted(batches, 1, -1, 2, 3)
    for future in (bad, worse):
        with pytest.raises(RuntimeError, match="broken engine"):
            future.result(LONG)
    assert [future.result(LONG)[0] for future in good] == [2, 3]


def test_cancelled_images_are_not_computed(batcher):
    predictor = Recorder()
    predictor.free.clear()
    batches = batcher(predictor, 4, wait=0.01)
    submitted(batches, 1)
    assert predictor.computing.acquire(timeout=LONG)
    cancelled, kept = submitted(batches, 2, 3)
    assert cancelled.cancel()
    predictor.free.set()
    assert kept.result(LONG)[0] == 3 and predictor.sizes == [1, 1]
    with pytest.raises(CancelledError):
        cancelled.result(LONG)


def test_the_queue_is_limited(batcher):
    predictor = Recorder()
    predictor.free.clear()
    batches = batcher(predictor, 1, wait=0)
    with ThreadPoolExecutor(8) as readers:
        queued = list(readers.map(batches.submit, images(1)))
        assert predictor.computing.acquire(timeout=LONG)
        more = [readers.submit(batches.submit, image) for image in images(2, 3, 4, 5)]
        time.sleep(0.2)
        assert sum(each.done() for each in more) == 2  # twice the batch size
        predictor.free.set()
        queued += [each.result(LONG) for each in more]
    assert sorted(future.result(LONG)[0] for future in queued) == [1, 2, 3, 4, 5]


def test_closing_computes_what_waits():
    batches = Batcher(Recorder(parallel=3), 2, wait=0.05)
    futures = submitted(batches, 1, 2, 3, 4, 5)
    batches.close()
    assert [future.result(0)[0] for future in futures] == [1, 2, 3, 4, 5]
