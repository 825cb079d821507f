"""Tokens-to-Token ViT (Yuan et al., ICCV 2021, arXiv:2101.11986).

Parameter names are those of the official code (yitu-opensource/T2T-ViT, models/t2t_vit.py). Where that code departs
from the paper, this follows the code, because the published weights were trained with it.

Sizes: B images, Cin channels, H x W pixels, N tokens, C embedding width, E token width (64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.nn.initializer import Normal

from t2t_vit.models.dropout import Dropout
from t2t_vit.models.family import BlockPlace, Family, Stage, VisionTransformer, count_layers, through_blocks
from t2t_vit.models.layers import (
    Block,
    LayerNorm,
    Linear,
    as_tokens,
    check_images,
    frozen_parameter,
    init_from_fan_in,
)
from t2t_vit.models.position import is_sinusoid, resize_tokens, sinusoid_table, square_grid
from t2t_vit.models.recompute import recomputed
from t2t_vit.models.token_layers import TOKEN_LAYERS, TokenPerformer

# Width, depth and heads of the deep-narrow backbone: paper, table 1, and the official models/t2t_vit.py.
VARIANTS = {
    "t2t_vit_7": dict(embed_dim=256, depth=7, num_heads=4, mlp_ratio=2.0),
    "t2t_vit_10": dict(embed_dim=256, depth=10, num_heads=4, mlp_ratio=2.0),
    "t2t_vit_12": dict(embed_dim=256, depth=12, num_heads=4, mlp_ratio=2.0),
    "t2t_vit_14": dict(embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0),
    "t2t_vit_14_384": dict(embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0, image_size=384),
    "t2t_vit_14_resnext": dict(embed_dim=384, depth=14, num_heads=32, mlp_ratio=3.0),
    "t2t_vit_14_wide": dict(embed_dim=768, depth=4, num_heads=12, mlp_ratio=3.0),
    "t2t_vit_19": dict(embed_dim=448, depth=19, num_heads=7, mlp_ratio=3.0),
    "t2t_vit_24": dict(embed_dim=512, depth=24, num_heads=8, mlp_ratio=3.0),
    "t2t_vit_t_14": dict(embed_dim=384, depth=14, num_heads=6, mlp_ratio=3.0, tokens_type="transformer"),
    "t2t_vit_t_19": dict(embed_dim=448, depth=19, num_heads=7, mlp_ratio=3.0, tokens_type="transformer"),
    "t2t_vit_t_24": dict(embed_dim=512, depth=24, num_heads=8, mlp_ratio=3.0, tokens_type="transformer"),
}

# Kernel, stride and padding of each soft split.
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))

TOKENS_TYPES = (*TOKEN_LAYERS, "convolution")


def split_grids(image_size, splits):
    """(height, width) of the token grid after each soft split of an (H, W) image.

    Raises ValueError if the image is too small for a split.
    """
    grids, size = [], tuple(image_size)
    for kernel, stride, padding in splits:
        size = tuple((length + 2 * padding - kernel) // stride + 1 for length in size)
        if min(size) < 1:
            raise ValueError(
                f"an image of {image_size[0]}x{image_size[1]} pixels is too small for the soft splits {splits}"
            )
        grids.append(size)
    return grids


class T2TModule(nn.Layer):
    """Tokens-to-Token module (paper, section 3.1): soft splits with token layers between them.

    (B, Cin, H, W) -> (B, N, C), N = product of `self.grids[-1]`. With token type "convolution" (the paper's ablation)
    the soft splits are plain convolutions of the same geometry and there is no token layer.
    """

    recompute = False  # see recompute_activations

    def __init__(self, image_size, in_chans, embed_dim, tokens_type, token_dim, splits):
        super().__init__()
        if tokens_type not in TOKENS_TYPES:
            raise ValueError(f"unknown token type {tokens_type!r}: choose one of {', '.join(TOKENS_TYPES)}")
        self.splits = [tuple(split) for split in splits]
        self.grids = split_grids(image_size, self.splits)
        if tokens_type == "convolution":
            self._add_convolutions(in_chans, token_dim, embed_dim)
            return
        width = in_chans
        for i, (kernel, _, _) in enumerate(self.splits[:-1], start=1):
            self.add_sublayer(f"attention{i}", TOKEN_LAYERS[tokens_type](width * kernel**2, token_dim))
            width = token_dim
        self.project = Linear(width * self.splits[-1][0] ** 2, embed_dim)

    def _add_convolutions(self, in_chans, token_dim, embed_dim):
        widths = [in_chans] + [token_dim] * (len(self.splits) - 1)
        for i, (split, width) in enumerate(zip(self.splits[:-1], widths)):
            init_from_fan_in(self.add_sublayer(f"soft_split{i}", nn.Conv2D(width, token_dim, *split)))
        self.project = nn.Conv2D(widths[-1], embed_dim, *self.splits[-1])
        init_from_fan_in(self.project)

    @property
    def token_layers(self):
        """The token layers, or all convolutions if the token type is "convolution"."""
        splits = range(len(self.splits) - 1)
        if hasattr(self, "soft_split0"):
            return [*(getattr(self, f"soft_split{i}") for i in splits), self.project]
        return [getattr(self, f"attention{i + 1}") for i in splits]

    def stages(self):
        """List the `Stage`s of the module. The last one makes the patches of the backbone."""
        places = [(self.grids[i], self.splits[: i + 1]) for i in range(len(self.splits))]
        if hasattr(self, "soft_split0"):
            names = [f"convolution {i + 1}" for i in range(len(places))]
            of_layers = zip(self.token_layers, places, names)
            return [Stage(layer, *place, output_name=name) for layer, place, name in of_layers]
        kind = "performer" if isinstance(self.token_layers[0], TokenPerformer) else "transformer"
        layers = [
            Stage(layer, *place, f"soft split {i}", f"{kind} {i}")
            for i, (layer, place) in enumerate(zip(self.token_layers, places), start=1)
        ]
        return [*layers, Stage(self.project, *places[-1], f"soft split {len(places)}")]

    def forward(self, x):
        if not hasattr(self, "soft_split0"):
            return self._soft_split_tokens(x)
        for convolution in self.token_layers:
            x = convolution(x)  # (B, E or C, h, w)
        return as_tokens(x)  # (B, N, C)

    def _soft_split_tokens(self, x):
        # On a GPU, unfold and its gradient start one kernel per image (unfold_kernel_impl.h, 2.6.2 and 3.3.1).
        for layer, split, (height, width) in zip(self.token_layers, self.splits, self.grids):
            x = F.unfold(x, *split).transpose([0, 2, 1])  # (B, h*w, Cin*k*k)
            x = recomputed(layer, x) if self.recompute else layer(x)  # (B, h*w, E)
            x = x.transpose([0, 2, 1]).reshape([x.shape[0], x.shape[2], height, width])  # (B, E, h, w)
        x = F.unfold(x, *self.splits[-1]).transpose([0, 2, 1])  # (B, N, E*k*k)
        return self.project(x)  # (B, N, C)


class T2TViT(VisionTransformer):
    """T2T module, class token, fixed sinusoidal positions, deep-narrow ViT backbone, linear head.

    Args:
        image_size: pixels, one number or (height, width); any size that the soft splits can cover.
        in_chans: channels of the input.
        num_classes: width of the logits; 0 for a model that returns pooled features.
        embed_dim, depth, num_heads, mlp_ratio: the backbone.
        tokens_type: "performer", "transformer" or "convolution".
        token_dim: width inside the T2T module.
        splits: (kernel, stride, padding) of each soft split, two or more.
        qk_scale: scale of q.k in the backbone; None for head_dim ** -0.5.
        drop_rate, attn_drop_rate: dropout in the backbone and on its attention.
        drop_path_rate: stochastic depth, rising linearly from 0 in the first block to this in the last.

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
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        tokens_type: str = "performer",
        token_dim: int = 64,
        splits: Sequence[Sequence[int]] = SPLITS,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.in_chans = in_chans
        self.tokens_to_token = T2TModule(self.image_size, in_chans, embed_dim, tokens_type, token_dim, splits)
        num_tokens = math.prod(self.tokens_to_token.grids[-1])
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=Normal(std=0.02))
        self.pos_embed = frozen_parameter(self, sinusoid_table(num_tokens + 1, embed_dim))
        self.pos_drop = Dropout(drop_rate)
        drop_path_rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.LayerList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rate,
            )
            for rate in drop_path_rates
        )
        self.norm = LayerNorm(embed_dim, epsilon=1e-5)
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
        grid = self.tokens_to_token.grids[-1]
        return [BlockPlace(block, grid, self.tokens_to_token.splits) for block in self.blocks]

    def forward_tokens(self, x: paddle.Tensor, num_queries: int | None = None) -> paddle.Tensor:
        check_images(x, self.in_chans, self.image_size)
        x = self.tokens_to_token(x)  # (B, N, C)
        cls_token = self.cls_token.expand([x.shape[0], -1, -1])  # (B, 1, C)
        x = paddle.concat([cls_token, x], axis=1) + self.pos_embed  # (B, 1 + N, C)
        return through_blocks(self.blocks, self.pos_drop(x), num_queries, self.recompute)


def traits(variant):
    """Return the traits of a variant, given its constructor arguments. See `Family`."""
    return {key: variant.get(key, "performer") for key in ("embed_dim", "depth", "mlp_ratio", "tokens_type")}


def read_shapes(shapes):
    """Read (traits, constructor arguments) from shapes, for models with the variants' splits. See `Family`."""
    embed_dim = shapes["cls_token"][2]
    if "tokens_to_token.soft_split0.weight" in shapes:
        tokens_type, in_chans = "convolution", shapes["tokens_to_token.soft_split0.weight"][1]
    else:
        tokens_type = "performer" if "tokens_to_token.attention1.w" in shapes else "transformer"
        width = shapes["tokens_to_token.attention1.norm1.weight"][0]
        in_chans, rest = divmod(width, SPLITS[0][0] ** 2)
        if rest:
            raise ValueError(f"an input width of {width} does not fit the soft splits of the variants")
    found = {
        "embed_dim": embed_dim,
        "depth": count_layers(shapes, "blocks."),
        "mlp_ratio": shapes["blocks.0.mlp.fc1.bias"][0] / embed_dim,
        "tokens_type": tokens_type,
    }
    side = math.isqrt(shapes["pos_embed"][1] - 1)
    image_size = side * math.prod(stride for _, stride, _ in SPLITS)
    return found, {"num_classes": shapes["head.bias"][0], "in_chans": in_chans, "image_size": image_size}


FAMILY = Family("T2T", T2TViT, VARIANTS, traits, read_shapes, fold="t2t_vit.deploy.fold_t2t:fold_t2t")
