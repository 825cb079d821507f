"""Activation checkpointing (Chen et al., 2016): less memory for a second forward pass."""

import paddle
from paddle.distributed.fleet.utils import recompute

from t2t_vit.models.dropout import draw_state, is_drawing, set_draw_state


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

    def forward(*inputs):
        set_draw_state(state)  # which nothing needs as it is afterwards: each pass through the model sets its own
        return layer(*inputs)

    # Paddle has two forms (2.6.2, 3.3.1). The one without re-entrance keeps its hooks in a global variable, so that a
    # second thread cannot use it. The other one runs a backward pass within the backward pass, in which DataParallel's
    # hooks meet a parameter twice and raise, and it computes again only if an input has a gradient, which images have
    # not. Paddle does not keep the state of a CPU's generator in the first form (2.6.2), so that is done here.
    if not is_drawing():
        return recompute(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
    anchor = paddle.zeros([])
    anchor.stop_gradient = False
    return recompute(lambda _, *inputs: forward(*inputs), anchor, *inputs, preserve_rng_state=False)
