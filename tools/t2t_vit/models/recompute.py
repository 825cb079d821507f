"""Activation checkpointing (Chen et al., 2016): less memory for a second forward pass."""

import paddle
from paddle.distributed.fleet.utils import recompute

from t2t_vit.models.dropout import draw_state, is_drawing, set_draw_state


def recompute_activations(model):
    """Keep only the inputs of a model's blocks and token layers for the backward pass."""
    for layer in model.sublayers(include_self=True):
        if hasattr(layer, "recompute"):
            layer.recompute = True


def recomputed(layer, *inputs):
    """`layer(*inputs)`, whose activations are computed again in the backward pass, with the same random numbers."""
    if not paddle.is_grad_enabled():
        return layer(*inputs)
    state = draw_state()

    def forward(*inputs):
        set_draw_state(state)
        return layer(*inputs)

    # Paddle 2.6.2 does not restore a CPU's random state without re-entrance, so `forward` does.
    if not is_drawing():
        return recompute(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
    # That form keeps its hooks in a global variable, so threads need the re-entrant one (2.6.2, 3.3.1). That one
    # recomputes only if an input needs a gradient. Images do not, so a dummy input, the anchor, does. DataParallel does
    # not allow this form.
    anchor = paddle.zeros([])
    anchor.stop_gradient = False
    return recompute(lambda _, *inputs: forward(*inputs), anchor, *inputs, preserve_rng_state=False)
