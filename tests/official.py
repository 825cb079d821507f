"""Weights, images and reference values for comparison with the official PyTorch code; see golden/README.md."""

import copy
import json
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import paddle

from t2t_vit.models import layers
from t2t_vit.models.zoo import create_model

_GOLDEN = Path(__file__).parent / "golden"
FIGURES, ARRAYS = {}, {}
for _family in ("t2t", "t2t_extra", "pit"):
    FIGURES |= json.loads((_GOLDEN / f"{_family}_official.json").read_text())
    ARRAYS |= np.load(_GOLDEN / f"{_family}_official.npz")
TINY = dict(image_size=64, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2.0, num_classes=10, token_dim=16)


def linear_weights(model):
    """Names of the weights that Paddle stores transposed, [in, out]."""
    return {f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.Linear)}


def build(name):
    """A variant with values of `weight`. Its own, which take longer than a forward pass, are not drawn."""
    with mock.patch.multiple(layers, Normal=mock.DEFAULT, Uniform=mock.DEFAULT):
        return set_weights(create_model(name))


def set_weights(model, seed=0):
    """Set every parameter except T2T-ViT's sinusoid to the value of `weight` for its official name."""
    transposed = linear_weights(model)
    for name, parameter in model.named_parameters():
        if name != "pos_embed" or not parameter.stop_gradient:
            shape = parameter.shape[::-1] if name in transposed else parameter.shape
            value = weight(name, shape, seed)
            parameter.set_value((value.T if name in transposed else value).astype("float32"))
    model.eval()
    return model


def is_set(model, seed=0):
    """True if every tensor of `model` has its official value."""
    expected = set_weights(copy.deepcopy(model), seed).state_dict()
    return all(np.array_equal(value.numpy(), expected[name].numpy()) for name, value in model.state_dict().items())


def weight(name, shape, seed=0):
    """Pseudo-random value of a tensor, from its official name and its shape in PyTorch's layout."""
    value = np.random.default_rng(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape)
    last = name.split(".")[-1]
    if last == "w":
        return 0.7 * value
    if last == "weight" and len(shape) == 1:
        return 1 + 0.1 * value
    return (0.02 if last == "bias" or name in ("cls_token", "pos_embed") else 0.05) * value


def images(count, size, seed=0):
    """float32 (count, 3, size, size)."""
    return np.random.default_rng(1000 + seed).standard_normal((count, 3, size, size)).astype("float32")


def gradients(model, x, labels):
    """Loss, {name: gradient in PyTorch's layout} of the trained parameters, gradient of the input, and logits."""
    x = paddle.to_tensor(x, stop_gradient=False)
    logits = model(x)
    loss = paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(labels))
    loss.backward()
    transposed = linear_weights(model)
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.numpy().astype(np.float64)
            found[name] = gradient.T if name in transposed else gradient
    return loss.item(), found, x.grad.numpy().astype(np.float64), logits.numpy()
