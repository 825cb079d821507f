"""Multiplications that a model stands for: every token of an image through every layer, as official tables count.

What a forward pass may leave out (tokens that nobody reads) or compute otherwise is counted as the architecture has it.
Elementwise work (norms, softmax, GELU, biases) is not counted.

Sizes: N tokens, C width, h heads, E token width and m random features of the T2T module.
"""

import math
from dataclasses import dataclass

from paddle import nn

from t2t_vit.models.layers import in_head

TOKEN_MODULE = "tokens_to_token."


@dataclass(frozen=True)
class Product:
    """`count` products of a (rows, inner) and an (inner, columns) matrix."""

    name: str
    rows: int
    inner: int
    columns: int
    count: int = 1
    is_attention: bool = False  # between the tokens of a block of the backbone

    @property
    def macs(self):
        return self.count * self.rows * self.inner * self.columns

    @property
    def outputs(self):
        return self.count * self.rows * self.columns


def products(model):
    """Every matrix product that the architecture does for one image, in the order of the forward pass.

    The weights' values are not read (`paddle.LazyGuard` will do).
    """
    names = {id(layer): name for name, layer in model.named_sublayers()}
    return [
        product
        for part, positions, is_block in _parts(model)
        for name, layer in part.named_sublayers(prefix=names[id(part)], include_self=True)
        for product in _layer_products(name, layer, positions, is_block)
    ]


def macs(products, attention=True):
    """MACs of the products, with or without those between the tokens of the backbone's blocks."""
    return sum(product.macs for product in products if attention or not product.is_attention)


def token_module(products):
    """The products of the T2T module alone; a PiT has none."""
    return [product for product in products if product.name.startswith(TOKEN_MODULE)]


def _parts(model):
    """(layer, positions at which it runs, whether it is a block) in the order of the forward pass."""
    T = model.cls_token.shape[1]
    for stage in model.stages():
        yield stage.layer, math.prod(stage.grid), False
    for place in model.backbone():
        N = math.prod(place.grid)
        if place.pool is not None:
            yield place.pool.conv, N, False
            yield place.pool.fc, T, False
        yield place.block, T + N, True
    for name, layer in model.named_children():
        if in_head(name):
            yield layer, 1, False


def _layer_products(name, layer, positions, in_block):
    """The products of one layer without those of its sublayers."""
    if isinstance(layer, nn.Linear):
        yield Product(f"{name}.weight", positions, *layer.weight.shape)  # (in, out)
    elif isinstance(layer, nn.Conv2D):
        out, *window = layer.weight.shape  # (out, in / groups, kernel, kernel)
        yield Product(f"{name}.weight", positions, math.prod(window), out)
    elif hasattr(layer, "token_products"):
        for count, rows, inner, columns in layer.token_products(positions):
            yield Product(f"{name} tokens", rows, inner, columns, count, in_block)
