"""Load any known weights file into a model, also one with other classes or another image size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log
from t2t_vit.models.layers import in_head
from t2t_vit.weights import checkpoint
from t2t_vit.weights.channels import fit_channels
from t2t_vit.weights.formats import in_paddle_layout, read_weights
from t2t_vit.weights.identify import described, has_heads_of, identify


def load_pretrained(model: paddle.nn.Layer, path: str | Path, head: str = "same", pos_resize: str = "bicubic") -> None:
    """Load the weights of a file into `model`; see `load_weights`."""
    load_weights(model, read_weights(path), head, pos_resize)


def load_weights(model, weights, head="same", pos_resize="bicubic"):
    """Load `weights` into `model` and log what was adapted. Colour and grey images: see channels.py.

    Args:
        model: a model of this repository, with fresh weights.
        weights: `formats.Weights`.
        head: if the number of classes differs, "same" raises an error and "fit" keeps the model's own head, also none
            (num_classes=0). "new" always keeps the model's own head.
        pos_resize: if the image size differs, "bicubic" resizes the position embedding. "sinusoid" recomputes it, if it
            is still a sinusoid.

    Raises:
        UserError: the file contains another model. The message names it if it is known.
    """
    try:
        checkpoint.load_state(model, _fit(model, weights, head, pos_resize), weights.path)
    except UserError as error:
        beside = weights.path.with_name("config.yaml")
        hint = f"; {display_path(beside)} describes its model" if beside.is_file() else ""
        raise UserError(f"{error}{hint}") from error


def count_classes(weights):
    """Return the number of classes of `formats.Weights`. Raises UserError if they have no head."""
    head = weights.shapes.get("head.bias", ())
    if len(head) != 1:
        raise UserError(f"{weights.path} has no head.bias, which shows the number of classes; set MODEL.NUM_CLASSES")
    return head[0]


def _fit(model, weights, head, pos_resize):
    """Adapt the weights to the model. Returns {name: array} for `checkpoint.load_state`."""
    tensors, extra, is_torch = in_paddle_layout(weights, model)
    if not checkpoint.is_own(weights.path):
        log.info("%s: %s, %s's layout", display_path(weights.path), weights.form, "PyTorch" if is_torch else "Paddle")
    if extra:
        log.info("%s: left out %s, which the models here do not have", display_path(weights.path), ", ".join(extra))
    own = model.state_dict()
    check_variant(model, weights)
    tensors = fit_channels(model, tensors, weights.path)
    if head != "same":
        tensors = _with_own_head(own, tensors, weights.path, always=head == "new")
    shapes = [tuple(side["pos_embed"].shape) for side in (tensors, own) if "pos_embed" in side]
    if len(set(shapes)) == 2:
        tensors = {**tensors, "pos_embed": _fit_pos_embed(model, tensors["pos_embed"], weights.path, pos_resize)}
    return tensors


def check_variant(model, weights):
    """Raise UserError if the file contains another variant than the model. The message names it."""
    fitting = identify(weights.shapes)
    theirs, mine = described(fitting), described(identify({name: t.shape for name, t in model.state_dict().items()}))
    if theirs and not set(theirs) & set(mine):
        mine = " or ".join(mine) or "the model that the section MODEL describes"
        raise UserError(
            f"{weights.path} contains weights of {' or '.join(theirs)}, not of {mine}: change the model "
            "(MODEL.NAME) or the file"
        )
    if weights.variant in fitting and not has_heads_of(weights.variant, model):
        raise UserError(
            f"{weights.path} is labelled {weights.variant}, but the model has a different number of heads: set "
            f"MODEL.NAME {weights.variant} (convert.py: --model), or give other weights"
        )


def _with_own_head(own, tensors, path, always):
    """Return `tensors` with the model's own head: if `always` is set, or if the numbers of classes differ."""
    kept = {name: value for name, value in tensors.items() if not in_head(name)}
    heads = {name: tensor for name, tensor in own.items() if in_head(name)}
    counts = {name: np.shape(value)[-1:] for name, value in tensors.items() if name not in kept}  # {name: (classes,)}
    if not always and counts == {name: tuple(tensor.shape[-1:]) for name, tensor in heads.items()}:
        return tensors  # if a width differs, load_state will report it
    before = counts.get("head.bias")
    there = "other classes" if always else f"{before[0] if before else 'no'} classes"
    if not heads:
        log.info("%s: loaded without the head (%s), which the model does not have", display_path(path), there)
        return kept
    loaded = f"{display_path(path)}: loaded without the head, which is newly initialised"
    log.info("%s: the file has %s, the model %d", loaded, there, heads["head.bias"].shape[0])
    return {**kept, **{name: checkpoint.to_array(tensor) for name, tensor in heads.items()}}


def _fit_pos_embed(model, table, path, pos_resize):
    expected = model.state_dict()["pos_embed"].shape
    channels = 1 if len(expected) == 4 else -1  # axis of the channels in (1, C, h, w) or (1, N, C)
    if table.ndim != len(expected) or table.shape[channels] != expected[channels]:
        return table  # belongs to another model; load_state will report it
    try:
        table = paddle.to_tensor(checkpoint.to_float32(table, "pos_embed", path))
        fitted, how = model.fit_pos_embed(table, recompute=pos_resize == "sinusoid")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    log.info("%s: position embedding %s", display_path(path), how)
    return fitted.numpy()
