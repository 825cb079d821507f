"""Tokens-to-Token ViT (Yuan et al., ICCV 2021, arXiv:2101.11986).

Parameter names are those of the official code (yitu-opensource/T2T-ViT, models/t2t_vit.py). Where that code departs
from the paper, this follows the code, because the published weights were trained with it.

Sizes: B images, Cin channels, H x W pixels, N tokens, C embedding width, E token width (64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.nn.initializer import Normal

from t2t_vit.models.dropout import Dropout
from t2t_vit.models.family import BlockPlace, Family, Stage, VisionTransformer, count_layers, through_blocks
from t2t_vit.models.layers import LayerNorm, check_images, frozen_parameter
from t2t_vit.models.position import is_sinusoid, resize_tokens, sinusoid_table, square_grid
from t2t_vit.models.soft_splits import SPLITS, T2TModule
from t2t_vit.models.t2t_blocks import Transition, build_backbone

# Width, depth and heads of the deep-narrow backbone: paper, table 1, and the official models/t2t_vit.py.
VARIANTS = {
    "t2t_vit_7": dict(embed_dim=256, depth=7, num_heads=4, mlp_ratio=2.0),
    "t2t_vit_10": dict(embed_dim=256, depth=10, num_heads=4, mlp_ratio=2.0),
    "t2t_vit_12": dict(embed_dim=256, depth=12, num_heads=4, mlp_ratio=2.0),
    "t2t_vit_14": dict(embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0),
    "t2t_vit_14_384": dict(embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0, image_size=384),
    "t2t_vit_14_se": dict(embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0, block="se"),
    "t2t_vit_14_resnext": dict(embed_dim=384, depth=14, num_heads=32, mlp_ratio=3.0),
    "t2t_vit_14_wide": dict(embed_dim=768, depth=4, num_heads=12, mlp_ratio=3.0),
    "t2t_vit_16_ghost": dict(embed_dim=384, depth=16, num_heads=6, mlp_ratio=3.0, block="ghost"),
    "t2t_vit_19": dict(embed_dim=448, depth=19, num_heads=7, mlp_ratio=3.0),
    "t2t_vit_24": dict(embed_dim=512, depth=24, num_heads=8, mlp_ratio=3.0),
    "t2t_vit_dense": dict(
        embed_dim=128, stages=(3, 6, 6, 4), growth_rate=64, num_heads=8, mlp_ratio=2.0, block="dense"
    ),
    "t2t_vit_t_14": dict(embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0, tokens_type="transformer"),
    "t2t_vit_t_19": dict(embed_dim=448, depth=19, num_heads=7, mlp_ratio=3.0, tokens_type="transformer"),
    "t2t_vit_t_24": dict(embed_dim=512, depth=24, num_heads=8, mlp_ratio=3.0, tokens_type="transformer"),
}


class T2TViT(VisionTransformer):
    """T2T module, class token, fixed sinusoidal positions, deep-narrow ViT backbone, linear head.

    Args:
        image_size: pixels, one number or (height, width); any size that the soft splits can cover.
        in_chans: channels of the input.
        num_classes: width of the logits; 0 for a model that returns pooled features.
        embed_dim, depth, num_heads, mlp_ratio: the backbone.
        block: kind of its blocks: "plain", "se", "ghost" or "dense" (models/t2t_blocks.py).
        stages, growth_rate: of dense blocks, instead of depth: blocks per stage, and channels that each block appends.
        tokens_type: "performer", "transformer", "convolution" or "patch" (`T2TModule`).
        token_dim: width inside the T2T module.
        splits: (kernel, stride, padding) of each soft split: two or more, or one for "patch".
        qk_scale: scale of q.k in the backbone; None for head_dim ** -0.5.
        drop_rate, attn_drop_rate: dropout in the backbone and on its attention.
        drop_path_rate: stochastic depth, rising linearly from 0 in the first block to this in the last. For dense
            blocks it is drop_path_rate * i / 11 in stage i, as in the official code.

    Raises:
        ValueError: arguments do not fit together. The message names them.
    """

    recompute = False  # see recompute_activations

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int,
        depth: int = 0,
        num_heads: int,
        mlp_ratio: float,
        block: str = "plain",
        stages: Sequence[int] = (),
        growth_rate: int = 0,
        tokens_type: str = "performer",
        token_dim: int = 64,
        splits: Sequence[Sequence[int]] = SPLITS,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.set_input(image_size, in_chans)
        self.tokens_to_token = T2TModule(self.image_size, in_chans, embed_dim, tokens_type, token_dim, splits)
        num_tokens = math.prod(self.tokens_to_token.grids[-1])
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=Normal(std=0.02))
        self.pos_embed = frozen_parameter(self, sinusoid_table(num_tokens + 1, embed_dim))
        self.pos_drop = Dropout(drop_rate)
        options = dict(num_heads=num_heads, mlp_ratio=mlp_ratio, qk_scale=qk_scale, drop=drop_rate,
                       attn_drop=attn_drop_rate)  # fmt: skip
        blocks, width = build_backbone(block, embed_dim, depth, stages, growth_rate, drop_path_rate, **options)
        self.blocks = nn.LayerList(blocks)
        self.norm = LayerNorm(width, epsilon=1e-5)
        self.add_heads(num_classes)
        self.apply(self.init_layer)

    def fit_pos_embed(self, table: paddle.Tensor, recompute: bool = False) -> tuple[paddle.Tensor, str]:
        """Resize a position embedding (1, 1+M, C) of another image size for this model: (1, 1+N, C).

        The position of the class token is kept and the grid is resized, as intended by resize_pos_embed in the official
        utils.py. With `recompute`, a sinusoid table is computed for the new length instead.

        Returns:
            The table, and a description of what was done.

        Raises:
            ValueError: the M positions do not form a square grid.
        """
        grid = self.tokens_to_token.grids[-1]
        old_grid = square_grid(table.shape[1] - 1)
        sizes = f"{old_grid[0]}x{old_grid[1]} to {grid[0]}x{grid[1]}"
        if recompute and is_sinusoid(table):
            return sinusoid_table(1 + math.prod(grid), table.shape[2]), f"sinusoid recomputed, from {sizes}"
        return resize_tokens(table, old_grid, grid), f"resized bicubically from {sizes}"

    def stages(self) -> list[Stage]:
        return self.tokens_to_token.stages()

    def backbone(self) -> list[BlockPlace]:
        grid, windows = self.tokens_to_token.grids[-1], self.tokens_to_token.splits
        places, transition = [], None
        for layer in self.blocks:
            if isinstance(layer, Transition):
                transition = layer
            else:
                places.append(BlockPlace(layer, grid, windows, transition=transition))
                transition = None
        return places

    def forward_tokens(self, x: paddle.Tensor, num_queries: int | None = None) -> paddle.Tensor:
        check_images(x, self.in_chans, self.image_size)
        x = self.tokens_to_token(x)  # (B, N, C)
        cls_token = self.cls_token.expand([x.shape[0], -1, -1])  # (B, 1, C)
        x = paddle.concat([cls_token, x], axis=1) + self.pos_embed  # (B, 1 + N, C)
        return through_blocks(self.blocks, self.pos_drop(x), num_queries, self.recompute)


def traits(variant):
    """Return the traits of a variant, given its constructor arguments. See `Family`."""
    defaults = {"depth": 0, "block": "plain", "stages": (), "growth_rate": 0, "tokens_type": "performer"}
    found = {**defaults, **variant, "stages": tuple(variant.get("stages", ()))}
    return {key: found[key] for key in ("embed_dim", "mlp_ratio", *defaults)}


def read_shapes(shapes):
    """Read (traits, constructor arguments) from shapes, for models with the variants' splits. See `Family`."""
    embed_dim = shapes["cls_token"][2]
    stride = math.prod(stride for _, stride, _ in SPLITS)
    tokens_type, in_chans = _read_soft_splits(shapes, stride)
    side = math.isqrt(shapes["pos_embed"][1] - 1)
    arguments = {"num_classes": shapes["head.bias"][0], "in_chans": in_chans, "image_size": side * stride}
    if tokens_type in ("convolution", "patch"):  # no variant is built so, but each can be
        arguments["tokens_type"] = tokens_type
    found = {
        "embed_dim": embed_dim,
        "mlp_ratio": math.prod(shapes["blocks.0.mlp.fc2.weight"]) / embed_dim**2,
        "tokens_type": tokens_type,
        **_read_blocks(shapes, count_layers(shapes, "blocks.")),
    }
    return traits(found), arguments


def _read_soft_splits(shapes, stride):
    """Return (tokens_type, in_chans)."""
    if "tokens_to_token.soft_split0.weight" in shapes:
        return "convolution", shapes["tokens_to_token.soft_split0.weight"][1]
    if len(shapes["tokens_to_token.project.weight"]) == 4:
        _, in_chans, kernel, _ = shapes["tokens_to_token.project.weight"]
        if kernel != stride:
            raise ValueError(f"patches of {kernel} pixels do not fit the soft splits of the variants")
        return "patch", in_chans
    width = shapes["tokens_to_token.attention1.norm1.weight"][0]
    in_chans, rest = divmod(width, SPLITS[0][0] ** 2)
    if rest:
        raise ValueError(f"an input width of {width} does not fit the soft splits of the variants")
    return "performer" if "tokens_to_token.attention1.w" in shapes else "transformer", in_chans


def _read_blocks(shapes, count):
    """Return the traits of `count` layers of the backbone."""
    if "blocks.0.dense_linear.bias" in shapes:
        transitions = [i for i in range(count) if f"blocks.{i}.linear.bias" in shapes]
        stages = [end - start - 1 for start, end in zip([-1, *transitions], [*transitions, count])]
        return {"block": "dense", "stages": stages, "growth_rate": shapes["blocks.0.dense_linear.bias"][0]}
    kinds = {"blocks.0.attn.se_layer.fc.0.weight": "se", "blocks.0.attn.q.weight": "ghost"}
    return {"depth": count, "block": next((kind for name, kind in kinds.items() if name in shapes), "plain")}


FAMILY = Family("T2T", T2TViT, VARIANTS, traits, read_shapes, fold="t2t_vit.deploy.fold_t2t:fold_t2t")
