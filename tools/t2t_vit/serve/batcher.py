"""Gathers the images of all requests into batches, because engines compute several images faster than one by one."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from concurrent.futures import Future

import numpy as np

from t2t_vit.deploy.engines import Predictor


class Batcher:
    """Computes logits for images that come one by one.

    A batch starts as soon as it is full, or when its first image has waited for `wait` seconds. Images that come while
    the predictor computes are the next batch. A predictor that allows parallel calls gets several batches at a time.

    Args:
        predictor: `Predictor`.
        size: most images in a batch.
        wait: seconds.
    """

    def __init__(self, predictor: Predictor, size: int, wait: float) -> None:
        self.predictor, self.size, self.wait = predictor, size, wait
        self.waiting: queue.Queue = queue.Queue(2 * size * predictor.parallel)  # limits the memory
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(predictor.parallel)]
        for thread in self.threads:
            thread.start()

    def submit(self, image: np.ndarray) -> Future[np.ndarray]:
        """Queue an image (C, H, W), normalised. The result is its logits (K,). Blocks while the queue is full."""
        future: Future[np.ndarray] = Future()
        self.waiting.put((time.monotonic(), image, future))
        return future

    def close(self) -> None:
        """Compute the images that wait, then end the threads."""
        self.waiting.put(None)
        for thread in self.threads:
            thread.join()

    def _work(self):
        while batch := self._next_batch():
            # An image is dropped if its request was cancelled.
            if batch := [pair for pair in batch if pair[1].set_running_or_notify_cancel()]:
                self._compute(*zip(*batch))

    def _next_batch(self):
        """Return [(image, future), ...]; [] after `close`."""
        batch, end = [], 0.0
        with contextlib.suppress(queue.Empty):
            while len(batch) < self.size:
                item = self.waiting.get(timeout=max(0, end - time.monotonic()) if batch else None)
                if item is None:
                    self.waiting.put(None)  # for this thread's next call, and for the other threads
                    break
                came, *pair = item
                end = end or came + self.wait
                batch.append(pair)
        return batch

    def _compute(self, images, futures):
        try:
            logits = self.predictor(np.stack(images))
        except Exception as error:  # engines raise any kind; the requests report it, and the thread goes on
            for future in futures:
                future.set_exception(error)
        else:
            for future, row in zip(futures, logits):
                future.set_result(row)
