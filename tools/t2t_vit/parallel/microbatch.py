"""Split a batch into parts that run on several CPU threads, each on one core.

Of Paddle's CPU kernels, only matrix products use several cores, and each kernel processes whole tensors. With a large
batch, cores are idle and tensors do not fit the cache. Training t2t_vit_7 with 16 images of 224 pixels on 2 cores
of a Xeon (Sapphire Rapids): 19.1 images/s in parts of 4, 15.3 as a whole. Small images are the opposite: a part is as
large as possible, because starting operations costs much of their time. CPU.MICRO_BATCH 0 turns this off.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import paddle
from paddle.base import core
from yacs.config import CfgNode

from t2t_vit.common.runtime import asked_threads
from t2t_vit.models.dropout import drawing_from

_PIXELS = 224 * 224  # CPU.MICRO_BATCH counts images of this size; parts of smaller images have more of them
_GROUPS = 4  # a training batch of small images has at least this many groups


def micro_batches(cfg: CfgNode, batch_size: int) -> MicroBatches | None:
    """Return `MicroBatches` for a config; None on a GPU, without CPU.MICRO_BATCH, or for a compiled model.

    A compiled model must not be called in two threads at once.
    """
    if not cfg.CPU.MICRO_BATCH or cfg.TRAIN.TO_STATIC or paddle.get_device() != "cpu":
        return None
    most = max(cfg.CPU.MICRO_BATCH, cfg.CPU.MICRO_BATCH * _PIXELS // cfg.DATA.IMAGE_SIZE**2)
    size = min(most, max(cfg.CPU.MICRO_BATCH, -(-batch_size // _GROUPS)))
    return MicroBatches(size, asked_threads() or 1, most // size)


def inference(model: Callable[[paddle.Tensor], paddle.Tensor], cfg: CfgNode) -> Callable:
    """Return a function: images (B, C, H, W) -> logits (B, K) of `model` in eval mode, without gradients.

    A `model` that is not a layer is called directly, because it manages its own threads.
    """
    parts = micro_batches(cfg, cfg.VAL.BATCH_SIZE) if isinstance(model, paddle.nn.Layer) else None

    @paddle.no_grad()
    def forward(images):
        return parts.forward(model, images) if parts else model(images)

    return forward


@functools.cache
def _pool(threads):
    """Return threads that never exit. If one exited while a loader process is forked, the lock of Paddle's memory
    statistics would stay locked in that process."""
    return ThreadPoolExecutor(threads)


class MicroBatches:
    """Runs parts of a batch on `threads` threads.

    A part is up to `most` groups of up to `size` images. The random numbers of a group depend on its position in the
    batch, not on the part or the thread. The number of threads therefore changes only the order in which gradients are
    added.
    """

    def __init__(self, size: int, threads: int, most: int = 1) -> None:
        self.size, self.threads, self.most = size, threads, most
        self.pool = _pool(threads)
        self.replicas = []

    def forward(self, model: Callable[[paddle.Tensor], paddle.Tensor], images: paddle.Tensor) -> paddle.Tensor:
        """Compute the logits (B, K) of images (B, C, H, W), without gradients."""
        size = min(self.size, -(-images.shape[0] // self.threads))

        @paddle.no_grad()
        def run(start):
            return model(images[start : start + size])

        return paddle.concat(self._run(run, range(0, images.shape[0], size)))

    def backward(
        self, model: paddle.nn.Layer, run: Callable, tensors: Sequence[paddle.Tensor | None], seed_key: Sequence[int]
    ) -> list[tuple]:
        """Add the gradients of a batch to those of `model`.

        Args:
            model: model whose replicas are passed to `run`.
            run: function (model, tensors of a part, fraction of the batch) -> tuple of tensors, which runs a backward
                pass. It is called in several threads at once.
            tensors: tensors of the batch with first axis B; None stays None.
            seed_key: integers that determine the random numbers, together with the position of a group.

        Returns:
            List of the results of `run`, one per part.
        """
        replicas = self._replicas(model)
        count = next(tensor for tensor in tensors if tensor is not None).shape[0]
        groups = range(-(-count // self.size))
        each = min(self.most, -(-len(groups) // self.threads))
        parts = [groups[first : first + each] for first in groups[::each]]

        def run_parts(thread):
            results = []
            for part in parts[thread :: self.threads]:
                start, end = part[0] * self.size, min((part[-1] + 1) * self.size, count)
                of_part = [None if tensor is None else tensor[start:end] for tensor in tensors]
                with drawing_from([[*seed_key, group] for group in part], self.size):
                    results.append(run(replicas[thread], of_part, (end - start) / count))
            return results

        by_thread = self._run(run_parts, range(min(self.threads, len(parts))))
        _add_gradients(model, replicas)
        return [by_thread[part % self.threads][part // self.threads] for part in range(len(parts))]

    def _run(self, function, items):
        """Return [function(item) for each item], computed in threads that share the cores."""
        cores = max(1, self.threads // len(items))

        def run(item):
            core.set_num_threads(cores)  # sets OpenMP's threads for this thread, MKL's for all
            return function(item)

        try:
            running = [self.pool.submit(run, item) for item in items]
            wait(running)  # wait for all, even if one fails
            return [each.result() for each in running]
        finally:
            core.set_num_threads(self.threads)

    def _replicas(self, model):
        """Return a replica per thread: weights, modes and frozen parameters of `model`, but its own gradients."""
        if not self.replicas:
            self.replicas = [copy.deepcopy(model) for _ in range(self.threads)]
        for replica in self.replicas:
            for copied, layer in zip(replica.sublayers(include_self=True), model.sublayers(include_self=True)):
                copied.training = layer.training
            for copied, parameter in zip(replica.parameters(), model.parameters()):
                copied.clear_gradient(False)  # left by a batch that failed
                parameter._share_buffer_to(copied)
                copied.stop_gradient = parameter.stop_gradient
        return self.replicas


@paddle.no_grad()
def _add_gradients(model, replicas):
    for parameter, *copies in zip(model.parameters(), *(replica.parameters() for replica in replicas)):
        gradients = [each.grad for each in (*copies, parameter) if each.grad is not None]
        if gradients:
            parameter.grad = sum(gradients[1:], gradients[0])
        for each in copies:
            each.clear_gradient(False)
