"""Activation checkpointing (Chen et al., 2016): less memory for a second forward pass."""

import paddle
from paddle.distributed.fleet.utils import recompute

from models.dropout import draw_state, set_draw_state


def recompute_activations(model):
    """Let a model's forward pass keep the inputs of its blocks, and of the layers of a T2T module, and nothing else."""
    for layer in model.sublayers(include_self=True):
        if hasattr(layer, "recompute"):
            layer.recompute = True


def recomputed(layer, *inputs):
    """`layer(*inputs)`, of which only the inputs are kept until the gradient needs the rest, computed anew.

    Exact: what is drawn at random is drawn again.
    """
    if not paddle.is_grad_enabled():
        return layer(*inputs)
    state = draw_state()

    def forward(_anchor, *inputs):
        if state is not None:
            set_draw_state(state)
        return layer(*inputs)

    # Paddle computes again only if an input has a gradient, which images have not. Its form without re-entrance, which
    # does not ask for one, keeps its hooks in a global variable, so that a second thread cannot use it (3.3.1).
    anchor = paddle.zeros([])
    anchor.stop_gradient = False
    return recompute(forward, anchor, *inputs, preserve_rng_state=state is None)
