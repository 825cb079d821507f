"""Parameters, multiplications and activations of a model, counted without running it.

Counts every token in every layer, as the official tables do, even where the forward pass skips some.
Elementwise work (norms, softmax, GELU, biases) does not count.
"""

import math
from typing import NamedTuple

import paddle
from paddle import nn

from t2t_vit.models.layers import in_head
from t2t_vit.models.t2t_blocks import SqueezeExcite
from t2t_vit.weights.build import build_model

TOKEN_MODULE = "tokens_to_token."


class Product(NamedTuple):
    """`count` matrix products, each (rows, inner) x (inner, columns)."""

    name: str
    rows: int
    inner: int
    columns: int
    count: int = 1  # type: ignore[assignment]  # hides tuple.count
    is_attention: bool = False  # a product between tokens, in a block of the backbone


def count(cfg):
    """Count the parameters and operations of a config's model for one image.

    "weights_mb" is for float32. "gmacs_without" leaves out the products between tokens in the backbone. "tokens" are
    the tokens of the first layer. "activations" is the number of elements in the results of all matrix products.
    """
    with paddle.LazyGuard():  # shapes without values
        model = build_model(cfg)
    found, parameters = products(model), model.parameters()
    total = sum(parameter.size for parameter in parameters)
    return {
        "parameters": total,
        "trainable_parameters": sum(parameter.size for parameter in parameters if not parameter.stop_gradient),
        "weights_mb": 4 * total / 2**20,
        "gmacs": macs(found) / 1e9,
        "gmacs_without": macs(product for product in found if not product.is_attention) / 1e9,
        "token_module_gmacs": macs(product for product in found if product.name.startswith(TOKEN_MODULE)) / 1e9,
        "tokens": found[0].rows,
        "activations": sum(product.count * product.rows * product.columns for product in found),
    }


def macs(found):
    """Return the multiply-accumulate operations (MACs) of a list of `Product`s."""
    return sum(product.count * product.rows * product.inner * product.columns for product in found)


def products(model):
    """List every matrix product of the model for one image, in the order of the forward pass."""
    names = {id(layer): name for name, layer in model.named_sublayers()}
    return [
        product
        for part, positions, is_block in _parts(model)
        for product in _products(names[id(part)], part, positions, is_block)
    ]


def _parts(model):
    """Yield (layer, number of tokens that it processes, whether it is a block) in the order of the forward pass."""
    T = model.num_class_tokens
    for stage in model.stages():
        yield stage.layer, math.prod(stage.grid), False
    for place in model.backbone():
        N = math.prod(place.grid)
        if place.pool is not None:
            yield place.pool.conv, N, False
            yield place.pool.fc, T, False
        if place.transition is not None:
            yield place.transition, T + N, False
        yield place.block, T + N, True
    for name, layer in model.named_children():
        if in_head(name):
            yield layer, 1, False


def _products(name, layer, positions, in_block):
    """Yield the products of one layer and its sublayers, which process `positions` tokens."""
    if isinstance(layer, SqueezeExcite):
        positions = 1  # its linear layers process the mean of the tokens
    if isinstance(layer, nn.Linear):
        yield Product(f"{name}.weight", positions, *layer.weight.shape)  # (in, out)
    elif isinstance(layer, (nn.Conv1D, nn.Conv2D)):
        out, *window = layer.weight.shape  # (out, in / groups, kernel) or (out, in / groups, kernel, kernel)
        yield Product(f"{name}.weight", positions, math.prod(window), out)
    elif hasattr(layer, "token_products"):
        for count, rows, inner, columns in layer.token_products(positions):
            yield Product(f"{name} tokens", rows, inner, columns, count, in_block)
    for child, sublayer in layer.named_children():
        yield from _products(f"{name}.{child}", sublayer, positions, in_block)
