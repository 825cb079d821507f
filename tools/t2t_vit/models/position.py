"""Position embeddings: compute the sinusoid table, and resize a table to another grid of tokens.

Sizes: N tokens, C channels, P positions before those of the grid (1 for a class token).
"""

import math

import paddle
import paddle.nn.functional as F


def sinusoid_table(length, dim):
    """Sinusoidal position table of the original transformer, (1, length, dim), float32."""
    position = paddle.arange(length, dtype="float64").unsqueeze(1)  # (length, 1)
    exponent = 2 * (paddle.arange(dim) // 2).astype("float64") / dim  # (dim,)
    angle = position / 10000.0**exponent  # (length, dim)
    even = (paddle.arange(dim) % 2 == 0).unsqueeze(0)  # (1, dim)
    return paddle.where(even, paddle.sin(angle), paddle.cos(angle)).astype("float32").unsqueeze(0)


def is_sinusoid(table):
    """True if a (1, length, dim) table equals `sinusoid_table` up to the precision of bfloat16."""
    return (table - sinusoid_table(*table.shape[1:])).abs().max().item() < 4e-3


def resize_map(table, grid):
    """Resize bicubically, without antialiasing: (1, C, h, w) -> (1, C, *grid). Does nothing if the grid is the same."""
    if tuple(table.shape[2:]) == tuple(grid):
        return table
    return F.interpolate(table, size=list(grid), mode="bicubic", align_corners=False)


def resize_tokens(table, old_grid, grid, prefix=1):
    """Resize a table except for its first `prefix` positions: (1, P + h*w, C) -> (1, P + N, C)."""
    first, tokens = table[:, :prefix], table[:, prefix:]  # (1, P, C), (1, h*w, C)
    as_map = tokens.transpose([0, 2, 1]).reshape([1, table.shape[2], *old_grid])  # (1, C, h, w)
    resized = resize_map(as_map, grid).flatten(2).transpose([0, 2, 1])  # (1, N, C)
    return paddle.concat([first, resized], axis=1)


def square_grid(count):
    """Return (side, side) of a square grid of `count` tokens.

    Raises ValueError if the count is not a square.
    """
    side = math.isqrt(count)
    if side < 1 or side * side != count:
        raise ValueError(f"the position embedding has {count} positions, which do not form a square grid")
    return side, side
