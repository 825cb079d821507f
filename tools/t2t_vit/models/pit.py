"""Pooling-based Vision Transformer (Heo et al., ICCV 2021, arXiv:2103.16302).

Parameter names, initialisation and arithmetic are those of the official code (naver-ai/pit, pit.py).

Sizes: B images, Cin channels, H x W pixels, h x w patches or tokens of the map, T class tokens (2 if distilled, else
1), C width of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.nn.initializer import Normal

from t2t_vit.models.dropout import Dropout
from t2t_vit.models.family import BlockPlace, Family, Stage, VisionTransformer, count_layers, through_blocks
from t2t_vit.models.layers import Block, LayerNorm, Linear, as_map, as_tokens, check_images, init_from_fan_in
from t2t_vit.models.position import resize_map

# Patches, and width per head, depth and heads of the three stages: paper, table 2, and the official pit.py.
_SIZES = {
    "pit_ti": dict(patch_size=16, stride=8, base_dims=(32, 32, 32), depth=(2, 6, 4), heads=(2, 4, 8)),
    "pit_xs": dict(patch_size=16, stride=8, base_dims=(48, 48, 48), depth=(2, 6, 4), heads=(2, 4, 8)),
    "pit_s": dict(patch_size=16, stride=8, base_dims=(48, 48, 48), depth=(2, 6, 4), heads=(3, 6, 12)),
    "pit_b": dict(patch_size=14, stride=7, base_dims=(64, 64, 64), depth=(3, 6, 4), heads=(4, 8, 16)),
}
VARIANTS = {
    **{name: {**size, "distilled": False} for name, size in _SIZES.items()},
    **{f"{name}_distilled": {**size, "distilled": True} for name, size in _SIZES.items()},
}

_EPSILON = 1e-6  # epsilon of every LayerNorm; T2T-ViT has 1e-5


class PatchEmbedding(nn.Layer):
    """Overlapping patches: (B, Cin, H, W) -> (B, C, h, w)."""

    def __init__(self, in_chans, dim, patch_size, stride):
        super().__init__()
        self.conv = nn.Conv2D(in_chans, dim, patch_size, stride)

    def forward(self, x):
        return self.conv(x)


class Transformer(nn.Layer):
    """The blocks of a stage: map (B, C, h, w) and class tokens (B, T, C) -> tokens (B, T + h*w, C), class tokens first.

    The last block may compute only the first M = num_queries tokens: (B, M, C).
    """

    recompute = False  # see recompute_activations

    def __init__(self, dim, num_heads, mlp_ratio, drop_path_rates, **options):
        super().__init__()
        self.blocks = nn.LayerList(
            Block(dim, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, epsilon=_EPSILON, **options)
            for rate in drop_path_rates
        )

    def forward(self, x, cls_tokens, num_queries=None):
        x = paddle.concat([cls_tokens, as_tokens(x)], axis=1)  # (B, T + h*w, C)
        return through_blocks(self.blocks, x, num_queries, self.recompute)


class HeadPooling(nn.Layer):
    """Halves the map (h and w are rounded up) and widens all tokens from C to D (paper, section 3.2).

    (B, C, h, w), (B, T, C) -> (B, D, h/2, w/2), (B, T, D): a depth-wise convolution pools the map, a linear layer
    widens the class tokens.
    """

    def __init__(self, dim, out_dim, stride=2):
        super().__init__()
        if out_dim % dim:
            raise ValueError(f"the width {dim} of a stage does not divide {out_dim}, the width of the next stage")
        self.conv = nn.Conv2D(dim, out_dim, stride + 1, stride, stride // 2, groups=dim)
        self.fc = Linear(dim, out_dim)

    def forward(self, x, cls_tokens):
        return self.conv(x), self.fc(cls_tokens)


class PoolingTransformer(VisionTransformer):
    """Patches with learned positions, three stages of blocks with pooling between them, linear head.

    If distilled, a second class token with its own head learns from a teacher (Touvron et al., 2021).

    Args:
        image_size: pixels, one number or (height, width), at least patch_size.
        in_chans: channels of the input.
        num_classes: width of the logits; 0 for a model that returns pooled features.
        patch_size, stride: of the patches, in pixels.
        base_dims, depth, heads: width per head, number of blocks and of heads, one number per stage.
        mlp_ratio: hidden width of the blocks' MLP / width.
        distilled: whether there is a distillation token.
        qk_scale: scale of q.k; None for head_dim ** -0.5.
        drop_rate, attn_drop_rate: dropout in the blocks and on their attention.
        drop_path_rate: stochastic depth of block i of n is drop_path_rate * i / n, as in the official code.

    Raises:
        ValueError: arguments do not fit together. The message names them.
    """

    init_layer = staticmethod(init_from_fan_in)

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int,
        stride: int,
        base_dims: Sequence[int],
        depth: Sequence[int],
        heads: Sequence[int],
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(base_dims) == len(depth) == len(heads) >= 1:
            raise ValueError(f"base_dims {base_dims}, depth {depth} and heads {heads} must have one number per stage")
        self.set_input(image_size, in_chans)
        self.distilled = distilled
        dims = [base_dim * num_heads for base_dim, num_heads in zip(base_dims, heads)]
        normal = Normal(std=0.02)
        self.pos_embed = self.create_parameter(
            [1, dims[0], *_patch_grid(self.image_size, patch_size, stride)], default_initializer=normal
        )
        self.patch_embed = PatchEmbedding(in_chans, dims[0], patch_size, stride)
        self.cls_token = self.create_parameter([1, 2 if distilled else 1, dims[0]], default_initializer=normal)
        self.pos_drop = Dropout(drop_rate)
        drop_path_rates = [drop_path_rate * i / sum(depth) for i in range(sum(depth))]
        first_blocks = [sum(depth[:stage]) for stage in range(len(depth) + 1)]  # per stage, and the end
        self.transformers = nn.LayerList(
            Transformer(
                dim, num_heads, mlp_ratio, drop_path_rates[first:end],
                qk_scale=qk_scale, drop=drop_rate, attn_drop=attn_drop_rate,
            )
            for dim, num_heads, first, end in zip(dims, heads, first_blocks, first_blocks[1:])
        )  # fmt: skip
        self.pools = nn.LayerList(HeadPooling(dim, next_dim) for dim, next_dim in zip(dims, dims[1:]))
        self.norm = LayerNorm(dims[-1], epsilon=_EPSILON)
        self.add_heads(num_classes)
        self.apply(self.init_layer)

    def fit_pos_embed(self, table: paddle.Tensor, recompute: bool = False) -> tuple[paddle.Tensor, str]:
        """Resize a position map (1, C, h, w) bicubically. Returns (map, description of what was done).

        The map is learned and cannot be recomputed, so `recompute` has no effect.
        """
        old_grid, grid = table.shape[2:], self.pos_embed.shape[2:]
        words = f"resized bicubically from {old_grid[0]}x{old_grid[1]} to {grid[0]}x{grid[1]}"
        return resize_map(table, grid), words

    def stages(self) -> list[Stage]:
        conv = self.patch_embed.conv
        return [Stage(conv, tuple(self.pos_embed.shape[2:]), [(conv.weight.shape[-1], conv._stride[0], 0)])]

    def backbone(self) -> list[BlockPlace]:
        _, grid, windows, *_ = self.stages()[0]
        places = []
        for i, transformer in enumerate(self.transformers):
            pool = self.pools[i - 1] if i else None
            if pool is not None:
                grid, windows = tuple((length + 1) // 2 for length in grid), [*windows, (3, 2, 1)]
            for j, block in enumerate(transformer.blocks):
                places.append(BlockPlace(block, grid, windows, None if j else pool))
        return places

    def forward_tokens(self, x: paddle.Tensor, num_queries: int | None = None) -> paddle.Tensor:
        check_images(x, self.in_chans, self.image_size)
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)  # (B, C, h, w)
        cls_tokens, T = self.cls_token.expand([x.shape[0], -1, -1]), self.num_class_tokens  # (B, T, C)
        for transformer, pool in zip(self.transformers, self.pools):
            grid = x.shape[2:]
            tokens = transformer(x, cls_tokens)  # (B, T + h*w, C)
            x, cls_tokens = pool(as_map(tokens[:, T:], grid), tokens[:, :T])
        return self.transformers[-1](x, cls_tokens, num_queries)


def _patch_grid(image_size, patch_size, stride):
    """Return the patch grid (rows, columns) of an (H, W) image."""
    if min(image_size) < patch_size:
        raise ValueError(f"an image of {image_size[0]}x{image_size[1]} pixels is smaller than a patch of {patch_size}")
    return [(length - patch_size) // stride + 1 for length in image_size]


def traits(variant):
    """Return the traits of a variant, given its constructor arguments. See `Family`."""
    return {
        "patch_size": variant["patch_size"],
        "widths": [base_dim * heads for base_dim, heads in zip(variant["base_dims"], variant["heads"])],
        "depth": list(variant["depth"]),
        "distilled": variant["distilled"],
    }


def read_shapes(shapes):
    """Read (traits, constructor arguments) from the shapes of tensors. See `Family`."""
    _, in_chans, patch_size, _ = shapes["patch_embed.conv.weight"]
    transformers = [f"transformers.{i}.blocks." for i in range(count_layers(shapes, "transformers."))]
    found = {
        "patch_size": patch_size,
        "widths": [shapes[f"{blocks}0.norm1.bias"][0] for blocks in transformers],
        "depth": [count_layers(shapes, blocks) for blocks in transformers],
        "distilled": shapes["cls_token"][1] == 2,
    }
    stride = patch_size // 2  # holds for all variants
    image_size = (shapes["pos_embed"][2] - 1) * stride + patch_size
    return found, {"num_classes": shapes["head.bias"][0], "in_chans": in_chans, "image_size": image_size}


FAMILY = Family("PIT", PoolingTransformer, VARIANTS, traits, read_shapes, fold="t2t_vit.deploy.fold:fold_pit")
