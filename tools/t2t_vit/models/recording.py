"""Record the inputs and outputs of layers during a forward pass, with hooks."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import paddle


@contextlib.contextmanager
def inputs_of(layers: Iterable[paddle.nn.Layer]) -> Iterator[list[paddle.Tensor]]:
    """Context manager that yields a list of the first input of each layer, in the order of the calls."""
    found = []
    with _hooked(layers, "register_forward_pre_hook", lambda layer, inputs: found.append(inputs[0])):
        yield found


@contextlib.contextmanager
def outputs_of(layers: Iterable[paddle.nn.Layer]) -> Iterator[list[paddle.Tensor]]:
    """Context manager that yields a list of the output of each layer, in the order of the calls."""
    found = []
    with _hooked(layers, "register_forward_post_hook", lambda layer, inputs, output: found.append(output)):
        yield found


@contextlib.contextmanager
def _hooked(layers, register, hook):
    handles = [getattr(layer, register)(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def not_fused(blocks: Sequence[paddle.nn.Layer]) -> Iterator[None]:
    """Context manager: the attention of blocks is not fused, so that its weights exist."""
    fused = [block.attn.fused for block in blocks]
    for block in blocks:
        block.attn.fused = False
    try:
        yield
    finally:
        for block, flag in zip(blocks, fused):
            block.attn.fused = flag


@contextlib.contextmanager
def frozen(model: paddle.nn.Layer) -> Iterator[None]:
    """Context manager: no parameter of a model gets a gradient."""
    trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    for parameter in trained:
        parameter.stop_gradient = True
    try:
        yield
    finally:
        for parameter in trained:
            parameter.stop_gradient = False
