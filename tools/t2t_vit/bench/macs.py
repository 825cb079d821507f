"""Multiplications that a model stands for: every token of an image through every layer, as official tables count.

What a forward pass may leave out (tokens that nobody reads) or compute otherwise is counted as the architecture has it.
Elementwise work (norms, softmax, GELU, biases) is not counted.

Sizes: N tokens, C width, h heads, E token width and m random features of the T2T module.
"""

import math
from dataclasses import dataclass

from t2t_vit.models.zoo import model_family

ATTENTION = "attention"  # in names of the two products between the tokens of a backbone's block
TOKENS = "tokens_to_token."


@dataclass(frozen=True)
class Product:
    """`count` products of a (rows, inner) and an (inner, columns) matrix."""

    name: str
    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def macs(self):
        return self.count * self.rows * self.inner * self.columns

    @property
    def outputs(self):
        return self.count * self.rows * self.columns


def products(model, name):
    """Every matrix product of one image in a model, built under whatever name of `models.list_models()`.

    Layers are found by the names and shapes of their weights, token numbers by the model's grids; the weights' values
    are not read (`paddle.LazyGuard` will do).
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return list(_FAMILIES[model_family(name)](model, shapes))


def macs(products, attention=True):
    """MACs of the products, with or without those between the tokens of the backbone's blocks."""
    return sum(product.macs for product in products if attention or ATTENTION not in product.name.split())


def token_module(products):
    """The products of the T2T module alone; those of a PiT have none."""
    return [product for product in products if product.name.startswith(TOKENS)]


def _t2t(model, shapes):
    grids = [math.prod(grid) for grid in model.tokens_to_token.grids]
    for i, N in enumerate(grids[:-1]):
        yield from _layers(shapes, f"{TOKENS}soft_split{i}.", N)
        yield from _layers(shapes, f"{TOKENS}attention{i + 1}.", N)
        yield from _token_products(shapes, f"{TOKENS}attention{i + 1}.", N)
    yield from _layers(shapes, f"{TOKENS}project.", grids[-1])
    for i, block in enumerate(model.blocks):
        yield from _block(block, shapes, f"blocks.{i}.", 1 + grids[-1])
    yield from _layers(shapes, "head.", 1)


def _token_products(shapes, prefix, N):
    """Products between the tokens of a layer of the T2T module; a convolution has none."""
    if f"{prefix}w" in shapes:
        m, E = shapes[f"{prefix}w"]
        yield Product(f"{prefix}w of k and q", N, E, m, count=2)
        yield Product(f"{prefix}k v", m, N, E)
        yield Product(f"{prefix}q (k v)", N, m, E)
    elif f"{prefix}attn.qkv.weight" in shapes:
        E = shapes[f"{prefix}attn.qkv.weight"][1] // 3
        yield Product(f"{prefix}q k", N, E, N)
        yield Product(f"{prefix}(q k) v", N, N, E)


def _pit(model, shapes):
    T = model.cls_token.shape[1]
    grid = model.pos_embed.shape[2:]
    yield from _layers(shapes, "patch_embed.", math.prod(grid))
    for stage, transformer in enumerate(model.transformers):
        if stage:
            grid = [(length + 1) // 2 for length in grid]
            yield from _layers(shapes, f"pools.{stage - 1}.conv.", math.prod(grid))
            yield from _layers(shapes, f"pools.{stage - 1}.fc.", T)
        for i, block in enumerate(transformer.blocks):
            yield from _block(block, shapes, f"transformers.{stage}.blocks.{i}.", T + math.prod(grid))
    yield from _layers(shapes, "head.", 1)
    yield from _layers(shapes, "head_dist.", 1)


def _block(block, shapes, prefix, N):
    yield from _layers(shapes, prefix, N)
    C, h = shapes[f"{prefix}attn.qkv.weight"][0], block.attn.num_heads
    yield Product(f"{prefix}attn {ATTENTION} q k", N, C // h, N, count=h)
    yield Product(f"{prefix}attn {ATTENTION} (q k) v", N, N, C // h, count=h)


def _layers(shapes, prefix, positions):
    """Linear layers (in, out) and convolutions (out, in / groups, kernel, kernel) that run at so many positions."""
    for name, shape in shapes.items():
        if name.startswith(prefix) and name.endswith("weight") and len(shape) > 1:
            inner, columns = shape if len(shape) == 2 else (math.prod(shape[1:]), shape[0])
            yield Product(name, positions, inner, columns)


_FAMILIES = {"T2T": _t2t, "PIT": _pit}
