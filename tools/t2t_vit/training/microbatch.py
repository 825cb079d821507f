"""A CPU's cores on parts of a batch: every thread takes a few images at a time through the model, on one core.

Of Paddle's CPU kernels only the matrix products use several cores, and each goes through all of its tensors once: a
whole batch leaves the cores idle and their caches cold. A step of t2t_vit_7 with 16 images of 224 pixels, on 2 cores of
a Xeon (Sapphire Rapids): 19.1 images/s in parts of 4, 15.3 as a whole. The key CPU.MICRO_BATCH 0 turns it off.
"""

import copy
import functools
from concurrent.futures import ThreadPoolExecutor, wait

import paddle
from paddle.base import core

from t2t_vit.common.runtime import asked_threads
from t2t_vit.models.dropout import drawing_from

PIXELS = 224 * 224  # of the images that CPU.MICRO_BATCH counts; of smaller ones a part has more
PARTS = 4  # that a training batch of small images is divided into all the same


def micro_batches(cfg, batch_size):
    """`MicroBatches` as the config has them, None where the device is no CPU, they are off, or the model is compiled.

    A compiled model may not be called in two threads at once.
    """
    if not cfg.CPU.MICRO_BATCH or cfg.TRAIN.TO_STATIC or paddle.get_device() != "cpu":
        return None
    fitting = cfg.CPU.MICRO_BATCH * PIXELS // cfg.DATA.IMAGE_SIZE**2
    return MicroBatches(max(cfg.CPU.MICRO_BATCH, min(fitting, -(-batch_size // PARTS))), asked_threads() or 1)


def inference(model, cfg):
    """A function that takes images (B, C, H, W) through `model` in eval mode, without gradient, to logits (B, K).

    `model` may also be an engine in a model's place, which sees to its threads itself.
    """
    parts = micro_batches(cfg, cfg.VAL.BATCH_SIZE) if isinstance(model, paddle.nn.Layer) else None

    @paddle.no_grad()
    def forward(images):
        return parts.forward(model, images) if parts else model(images)

    return forward


@functools.cache
def _pool(threads):
    """The process's threads, which never end: one that did while a loader process is forked would hold there for good
    the lock of Paddle's memory statistics."""
    return ThreadPoolExecutor(threads)


class MicroBatches:
    """Parts of up to `size` images on `threads` threads.

    What a part draws at random depends on its place in the batch, not on the thread, so that the number of threads
    changes nothing but the order in which gradients are added up.
    """

    def __init__(self, size, threads):
        self.size, self.threads = size, threads
        self.pool = _pool(threads)
        self.replicas = []

    def forward(self, model, images):
        """Logits (B, K) of images (B, C, H, W), without gradient."""
        size = min(self.size, -(-images.shape[0] // self.threads))

        @paddle.no_grad()
        def run(start):
            return model(images[start : start + size])

        starts = range(0, images.shape[0], size)
        return paddle.concat(self._run(run, starts))

    def backward(self, model, run, tensors, numbers):
        """Add the gradients of a batch to those of `model`.

        Args:
            model: whose replicas `run` uses.
            run: function (model, tensors of a part, its share of the batch) -> tuple of tensors, which makes a
                backward pass. Takes place in several threads at once.
            tensors: of the batch, first axis B; None stays None.
            numbers: integers that determine, with the place of a part, what the part draws.

        Returns:
            List of what `run` returned for each part.
        """
        replicas = self._replicas(model)
        count = next(tensor for tensor in tensors if tensor is not None).shape[0]
        starts = range(0, count, self.size)

        def run_parts(thread):
            results = {}
            for place in range(thread, len(starts), self.threads):
                start, end = starts[place], min(starts[place] + self.size, count)
                part = [None if tensor is None else tensor[start:end] for tensor in tensors]
                with drawing_from([*numbers, place]):
                    results[place] = run(replicas[thread], part, (end - start) / count)
            return results

        results = {}
        for part_results in self._run(run_parts, range(min(self.threads, len(starts)))):
            results.update(part_results)
        _add_gradients(model, replicas)
        return [results[place] for place in range(len(starts))]

    def _run(self, function, items):
        """[function(item) of each item], on threads whose operations have their share of the cores."""
        cores = max(1, self.threads // len(items))

        def on_its_cores(item):
            core.set_num_threads(cores)  # OpenMP's of this thread, MKL's of all
            return function(item)

        try:
            running = [self.pool.submit(on_its_cores, item) for item in items]
            wait(running)  # all of them, even if one fails
            return [each.result() for each in running]
        finally:
            core.set_num_threads(self.threads)

    def _replicas(self, model):
        """One per thread: the model's weights, modes and what it trains, gradients of their own."""
        if not self.replicas:
            self.replicas = [copy.deepcopy(model) for _ in range(self.threads)]
        for replica in self.replicas:
            for theirs, layer in zip(replica.sublayers(include_self=True), model.sublayers(include_self=True)):
                theirs.training = layer.training
            for theirs, parameter in zip(replica.parameters(), model.parameters()):
                theirs.clear_gradient(False)  # of a batch that was not finished
                parameter._share_buffer_to(theirs)
                theirs.stop_gradient = parameter.stop_gradient
        return self.replicas


@paddle.no_grad()
def _add_gradients(model, replicas):
    for parameter, *theirs in zip(model.parameters(), *(replica.parameters() for replica in replicas)):
        gradients = [other.grad for other in theirs if other.grad is not None]
        gradients += [parameter.grad] if parameter.grad is not None else []
        if gradients:
            parameter.grad = sum(gradients[1:], gradients[0])
        for other in theirs:
            other.clear_gradient(False)
