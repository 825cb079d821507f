"""Fold a trained model: compute the same function with fewer operations, for export to inference engines.

- The scale and shift of a LayerNorm, and the scale of the queries, are merged into the adjacent linear maps.
- Biases that a softmax cancels are removed; biases that it passes on are moved. Two heads are merged into one.
- The last block computes only the class tokens.

Sizes: B images, N tokens, C width, h heads, T class tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn

from t2t_vit.models.family import VisionTransformer
from t2t_vit.models.layers import as_map, as_tokens, check_images
from t2t_vit.models.pit import PoolingTransformer
from t2t_vit.models.zoo import FAMILIES


@paddle.no_grad()
def fold(model):
    """Return a layer with the same output as `model` in eval mode, up to rounding: (B, Cin, H, W) -> (B, num_classes).

    Returns the model itself if its family has no function for this (`Family.fold`).
    """
    family = next(family for family in FAMILIES if isinstance(model, family.model))
    if not family.fold:
        return model
    module, _, name = family.fold.partition(":")
    layer = getattr(importlib.import_module(module), name)(model)
    layer.eval()
    return layer


def _filled(layer, weight, bias):
    layer.weight.set_value(weight)
    if bias is not None:
        layer.bias.set_value(bias)
    return layer


def folded_linear(weight, bias=None):
    return _filled(nn.Linear(*weight.shape, bias_attr=False if bias is None else None), weight, bias)


def folded_convolution(weight, bias, stride, padding):
    out, width, *kernel = weight.shape
    bias_attr = False if bias is None else None
    return _filled(nn.Conv2D(width, out, kernel, stride, padding, bias_attr=bias_attr), weight, bias)


def plain_norm(norm):
    """Return a LayerNorm like `norm`, but without scale and shift."""
    return nn.LayerNorm(norm.weight.shape[0], epsilon=norm._epsilon, weight_attr=False, bias_attr=False)


def include_norm(norm, weight, bias=None):
    """Merge the scale g and shift b of a norm into the linear map after it, (n g + b) W + c. Returns (weight, bias)."""
    shift = paddle.matmul(norm.bias.unsqueeze(0), weight)[0]
    return norm.weight.unsqueeze(1) * weight, shift if bias is None else shift + bias


class FoldedMlp(nn.Layer):
    """LayerNorm, Linear, GELU, Linear and the skip connection: (B, N, C) -> (B, N, C)."""

    def __init__(self, norm, fc1, fc2):
        super().__init__()
        self.norm = plain_norm(norm)
        self.fc1 = folded_linear(*include_norm(norm, fc1.weight, fc1.bias))
        self.fc2 = folded_linear(fc2.weight, fc2.bias)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class FoldedBlock(nn.Layer):
    """A transformer block: (B, N, C) -> (B, num_outputs, C), its first tokens, or all N.

    The bias of k cancels: softmax(q (k + b)^T) = softmax(q k^T). Every row of the attention sums to 1, so the bias of v
    reaches the projection unchanged and becomes part of its bias.
    """

    def __init__(self, block, num_outputs=None):
        super().__init__()
        self.num_heads, self.num_outputs = block.attn.num_heads, num_outputs
        self.norm = plain_norm(block.norm1)
        self._add_attention(block.norm1, block.attn)
        self._add_mlp(block)

    def _add_attention(self, norm, attn):
        weight, bias = include_norm(norm, attn.qkv.weight, attn.qkv.bias)
        self._add_linears(attn, weight.chunk(3, axis=1), bias.chunk(3), attn.proj.weight)

    def _add_linears(self, attn, weights, biases, proj_weight):
        """Add q, k, v and proj, from the weights and biases of q, k and v behind the norm."""
        self.q = folded_linear(weights[0] * attn.scale, biases[0] * attn.scale)
        self.k, self.v = folded_linear(weights[1]), folded_linear(weights[2])
        v_bias = paddle.matmul(biases[2].unsqueeze(0), proj_weight)[0]
        self.proj = folded_linear(proj_weight, attn.proj.bias + v_bias)

    def _add_mlp(self, block):
        self.mlp = FoldedMlp(block.norm2, block.mlp.fc1, block.mlp.fc2)

    def _qkv(self, queries, normed):
        return self.q(queries), self.k(normed), self.v(normed)

    def _heads(self, x, order):
        return x.reshape([-1, x.shape[1], self.num_heads, x.shape[2] // self.num_heads]).transpose(order)

    def _attend(self, queries, normed):
        """Attention and projection: (B, M, C), (B, N, C) -> (B, M, C)."""
        q, k, v = self._qkv(queries, normed)
        q = self._heads(q, [0, 2, 1, 3])  # (B, h, M, C/h)
        k = self._heads(k, [0, 2, 3, 1])  # (B, h, C/h, N)
        v = self._heads(v, [0, 2, 1, 3])  # (B, h, N, C/h)
        y = paddle.matmul(F.softmax(paddle.matmul(q, k), axis=-1), v)
        return self.proj(y.transpose([0, 2, 1, 3]).reshape([-1, *queries.shape[1:]]))

    def _updated(self, x):
        normed = queries = self.norm(x)
        if self.num_outputs:
            x, queries = x[:, : self.num_outputs], normed[:, : self.num_outputs]
        return self.mlp(x + self._attend(queries, normed))

    def forward(self, x):
        return self._updated(x)


class FoldedHeads(nn.Layer):
    """LayerNorm, then the mean of the T heads, one per class token: (B, T, C) -> (B, num_classes)."""

    def __init__(self, norm, heads):
        super().__init__()
        maps = [include_norm(norm, head.weight, head.bias) for head in heads]
        self.norm = plain_norm(norm)
        weight = paddle.concat([weight for weight, _ in maps], axis=0)  # (T*C, num_classes)
        self.head = folded_linear(weight / len(heads), sum(bias for _, bias in maps) / len(heads))

    def forward(self, x):
        return self.head(self.norm(x).reshape([-1, self.head.weight.shape[0]]))


class FoldedEmbedding(nn.Layer):
    """Makes the backbone's tokens by a convolution, adds positions, and puts the T class tokens first.

    (B, Cin, H, W) -> (B, T + N, C). `class_tokens`, (T, C), include their positions.
    """

    def __init__(self, weight, bias, stride, padding, positions, class_tokens):
        super().__init__()
        self.conv = folded_convolution(weight, None, stride, padding)
        self.register_buffer("positions", (positions + bias).unsqueeze(0))  # (1, N, C)
        self.register_buffer("class_tokens", class_tokens.unsqueeze(0))  # (1, T, C)

    def forward(self, x):
        x = as_tokens(self.conv(x)) + self.positions  # (B, N, C)
        return paddle.concat([self.class_tokens.expand([x.shape[0], -1, -1]), x], axis=1)


class FoldedPool(nn.Layer):
    """Pooling between two stages of a PiT: (B, T + h*w, C) -> (B, T + h/2*w/2, D)."""

    def __init__(self, pool, num_class_tokens, grid):
        super().__init__()
        self.pool, self.T, self.grid = pool, num_class_tokens, grid

    def forward(self, x):
        x, class_tokens = self.pool(as_map(x[:, self.T :], self.grid), x[:, : self.T])
        return paddle.concat([class_tokens, as_tokens(x)], axis=1)


class FoldedModel(nn.Layer):
    """A folded model: layers before the embedding, embedding, blocks, heads."""

    def __init__(
        self,
        model: VisionTransformer,
        stages: list[nn.Layer],
        grids: Sequence[tuple[int, int]],
        embedding: nn.Layer,
        blocks: list[nn.Layer],
    ) -> None:
        super().__init__()
        self.image_size, self.in_chans = model.image_size, model.in_chans
        self.stages, self.grids, self.embedding = nn.LayerList(stages), grids, embedding
        self.blocks, self.heads = nn.Sequential(*blocks), FoldedHeads(model.norm, model.heads)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        check_images(x, self.in_chans, self.image_size)
        for stage, grid in zip(self.stages, self.grids):
            x = stage(x)
            x = as_map(x, grid) if x.ndim == 3 else x  # (B, E, h, w), as a convolution's output already is
        return self.heads(self.blocks(self.embedding(x)))


def fold_pit(model: PoolingTransformer) -> FoldedModel:
    """Fold a `PoolingTransformer`. If it is distilled, the result is the mean of the two heads."""
    conv, T = model.patch_embed.conv, model.num_class_tokens
    positions = model.pos_embed[0].flatten(1).transpose([1, 0])  # (N, C)
    embedding = FoldedEmbedding(conv.weight, conv.bias, conv._stride, 0, positions, model.cls_token[0])
    places = model.backbone()
    layers, grid = [], places[0].grid
    for place in places:
        if place.pool is not None:
            layers.append(FoldedPool(place.pool, T, grid))
        layers.append(FoldedBlock(place.block, num_outputs=T if place is places[-1] else None))
        grid = place.grid
    return FoldedModel(model, [], [], embedding, layers)
