"""Weights for colour images in a model for grey ones, and the other way round.

Both models then give a grey picture the same answer, if its normalised values are the same in every channel: if
DATA.MEAN and DATA.STD are. With those of ImageNet, which differ by channel, they do not; flat regions differ most.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from paddle import nn

from t2t_vit.common.errors import counted
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log
from t2t_vit.models.family import VisionTransformer
from t2t_vit.models.token_layers import TokenPerformer, TokenTransformer
from t2t_vit.weights import checkpoint

# With a shift of up to 1,000, float32 answered within 2e-3 of the largest value of the layer, and 1e-6 of the logits.
_MAX_SHIFT = 1000


def fit_channels(model: nn.Layer, tensors: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Change the first layer in the `tensors` of a file from n channels to 1 or from 1 to n, as the model has them.

    The weights of a channel are summed, or repeated and divided by n. Tensors that fit the model are left as they are,
    and so are those that cannot be changed.
    """
    names, axis, fit = _first_layer(model)
    if not names or not set(names) <= set(tensors):
        return tensors
    width = model.state_dict()[names[0]].shape[axis]
    channels, rest = divmod(np.shape(tensors[names[0]])[axis] * model.in_chans, width)
    if rest or channels == model.in_chans or 1 not in (channels, model.in_chans):
        return tensors
    before = [checkpoint.to_float32(tensors[name], name, path).astype(np.float64) for name in names]
    after = fit(*before, channels=channels, wanted=model.in_chans)
    how = "summed" if model.in_chans == 1 else "spread"
    given = counted(channels, "channel")
    log.info("%s: first layer %s from %s to %d", display_path(path), how, given, model.in_chans)
    return {**tensors, **{name: value.astype(np.float32) for name, value in zip(names, after)}}


def _first_layer(model):
    """Return (names of the tensors that see single channels, axis of the channels in the first, their function)."""
    stages = model.stages() if isinstance(model, VisionTransformer) else []  # not a teacher of paddle.vision
    first = stages[0].layer if stages else None
    names = {id(layer): name for name, layer in model.named_sublayers()}
    if isinstance(first, (TokenPerformer, TokenTransformer)):
        performer = isinstance(first, TokenPerformer)
        linear = ("kqv.weight", "kqv.bias") if performer else ("attn.qkv.weight", "attn.proj.weight", "attn.proj.bias")
        fit = _fit_performer if performer else _fit_transformer
        return [f"{names[id(first)]}.{name}" for name in ("norm1.weight", "norm1.bias", *linear)], 0, fit
    layers = [first, *first.sublayers()] if first else []
    convolutions = [f"{names[id(layer)]}.weight" for layer in layers if isinstance(layer, nn.Conv2D)]
    return convolutions[:1], 1, _fit_convolution


def _fit_convolution(kernel, channels, wanted):
    """(out, n, k, k) -> (out, wanted, k, k)."""
    return [np.repeat(kernel, wanted, 1) / wanted if channels == 1 else kernel.sum(1, keepdims=True)]


# A token layer normalises the n * k * k values of a patch together. From n equal channels, each gets the values z that
# one channel would get. Then it computes sum_c W_c (scale_c z + shift_c): for one channel, total z + constant.


def _spread(scale, shift, weight, wanted):
    return [np.tile(scale, wanted), np.tile(shift, wanted), np.tile(weight, (wanted, 1)) / wanted]


def _total(scale, shift, weight, channels):
    """(n*k*k,), (n*k*k,), (n*k*k, C) -> (k*k, C), (C,)."""
    return (scale[:, None] * weight).reshape(channels, -1, weight.shape[1]).sum(0), shift @ weight


def _fit_performer(scale, shift, weight, bias, channels, wanted):
    if channels == 1:
        return [*_spread(scale, shift, weight, wanted), bias]
    total, constant = _total(scale, shift, weight, channels)
    return [np.ones(len(total)), np.zeros(len(total)), total, bias + constant]


def _fit_transformer(scale, shift, weight, proj, proj_bias, channels, wanted):
    """The same for q, k and v without a bias: the norm's new shift s and proj take the part of their constants.

    Softmax ignores the constant of k. That of q adds q.k_n = z_n . (K q), where K (k*k, E) makes k from z: so s has to
    satisfy K Q' s = K q. That of v goes through the attention, whose rows sum to 1, to v + proj(v). The layer also
    scales q by the root of 1 / (n*k*k).
    """
    weight = weight.copy()
    weight[:, : weight.shape[1] // 3] *= (wanted / channels) ** 0.5
    if channels == 1:
        return [*_spread(scale, shift, weight, wanted), proj, proj_bias]
    total, constant = _total(scale, shift, weight, channels)
    (to_q, to_k, to_v), (q, _, v) = np.split(total, 3, axis=1), np.split(constant, 3)
    shift = np.linalg.lstsq(to_k @ to_q.T, to_k @ q, rcond=1e-8)[0]
    if (largest := np.abs(shift).max()) > _MAX_SHIFT:
        log.warning("warning: the first layer may be imprecise: its LayerNorm gets shifts up to %.0f", largest)
    rest = v - shift @ to_v
    return [np.ones(len(total)), shift, total, proj, proj_bias + rest + rest @ proj]
