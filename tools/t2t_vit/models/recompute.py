"""Activation checkpointing (Chen et al., 2016): saves memory at the cost of a second forward pass."""

import paddle
from paddle.distributed.fleet.utils import recompute

from t2t_vit.models.dropout import draw_state, is_drawing, set_draw_state


def recompute_activations(model: paddle.nn.Layer) -> None:
    """Make a model keep only the inputs of its blocks and token layers for the backward pass."""
    for layer in model.sublayers(include_self=True):
        if hasattr(layer, "recompute"):
            layer.recompute = True


def recomputed(layer, *inputs):
    """Call `layer(*inputs)`. The backward pass recomputes its activations with the same random numbers."""
    if not paddle.is_grad_enabled():
        return layer(*inputs)
    state = draw_state()

    def forward(*inputs):
        set_draw_state(state)
        return layer(*inputs)

    # In the form that is not re-entrant, Paddle 2.6.2 does not restore the random state of a CPU: `forward` does.
    if not is_drawing():
        return recompute(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
    # Threads need the re-entrant form, because the other one keeps its hooks in a global variable (2.6.2, 3.3.1). The
    # re-entrant form recomputes only if an input needs a gradient. Images do not, so a dummy input (`anchor`) does.
    # DataParallel does not support the re-entrant form.
    anchor = paddle.zeros([])
    anchor.stop_gradient = False
    return recompute(lambda _, *inputs: forward(*inputs), anchor, *inputs, preserve_rng_state=False)
