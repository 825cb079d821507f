"""Fold a `T2TViT` (see fold.py): each soft split with its LayerNorm and linear map becomes convolutions.

Sizes: B images, N tokens, E token width, m random features.
"""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from t2t_vit.deploy.fold import (
    FoldedEmbedding,
    FoldedMlp,
    FoldedModel,
    folded_convolution,
    folded_linear,
    include_norm,
)
from t2t_vit.deploy.fold_blocks import folded_layers
from t2t_vit.models.layers import as_tokens
from t2t_vit.models.t2t import T2TViT
from t2t_vit.models.token_layers import TokenPerformer


def _split_kernels(weight, kernel):
    """Reshape a linear map (Cin*k*k, out) of soft-split tokens to convolution kernels (out, Cin, k, k)."""
    return weight.transpose([1, 0]).reshape([weight.shape[1], -1, kernel, kernel])


def _square(x):
    """Return x * x. Paddle Inference with oneDNN computes x.square() in place, even if x is still needed (3.3.1)."""
    return x * x


def _mean(x):
    """Mean over the channels, (B, C, h, w) -> (B, 1, h, w).

    Paddle Inference with oneDNN prints a line on stdout for every mean() that it loads (3.3.1).
    """
    return x.sum(axis=1, keepdim=True) * (1 / x.shape[1])


def _half_square_norm(x):
    return _square(x).sum(axis=-1, keepdim=True) * 0.5  # (B, N, E) -> (B, N, 1)


class NormedSplit(nn.Layer):
    """Soft split, LayerNorm and linear map: (B, Cin, H, W) -> (B, N, out), without the tokens (B, N, Cin*k*k).

    A token t with mean u and deviation s is normalised to n = (t - u) / s. n sums to 0, so the mean of each column of W
    can be subtracted. Then n W = t W / s, a convolution divided by s. If a window has one colour, s is almost 0, so t W
    must be exact. Therefore each pixel is split into the mean of its channels plus d, and the means of a window are
    taken relative to that of its middle pixel. s^2 = mean of d^2 in the window + variance of these differences.
    """

    def __init__(self, norm, linear, split, scale=None):
        super().__init__()
        kernel, stride, padding = split
        weight, bias = include_norm(norm, linear.weight, linear.bias)
        if scale is not None:
            weight, bias = weight * scale, bias * scale
        kernels = _split_kernels(weight - weight.mean(axis=0, keepdim=True), kernel)  # (out, Cin, k, k)
        self.split, self.epsilon = split, norm._epsilon
        self.colours = folded_convolution(kernels, None, stride, padding)
        differences = paddle.eye(kernel**2)
        differences[kernel**2 // 2] -= 1
        self.differences = folded_convolution(_split_kernels(differences, kernel), None, stride, padding)
        self.means = folded_convolution(kernels.sum(axis=1).flatten(1).unsqueeze([2, 3]), None, 1, 0)
        self.register_buffer("bias", bias)

    def forward(self, x):
        mean = _mean(x)  # (B, 1, H, W)
        colours = x - mean
        apart = self.differences(mean)  # (B, k*k, h, w)
        variance = _mean(_square(apart - _mean(apart)))  # (B, 1, h, w)
        spread = F.avg_pool2d(_mean(_square(colours)), *self.split, exclusive=False)
        y = self.colours(colours) + self.means(apart)  # (B, out, h, w)
        return as_tokens(y * paddle.rsqrt(variance + spread + self.epsilon)) + self.bias


class FoldedPerformer(nn.Layer):
    """A soft split and its `TokenPerformer`: (B, Cin, H, W) -> (B, N, E).

    Each exponential is computed once, relative to the largest, and serves both the numerator and D + eps.
    """

    def __init__(self, layer, split):
        super().__init__()
        self.kqv = NormedSplit(layer.norm1, layer.kqv, split)
        self.register_buffer("w", layer.w.clone())
        self.log_features, self.log_epsilon = math.log(layer.w.shape[0]), math.log(layer.EPSILON)
        self.proj = folded_linear(layer.proj.weight, layer.proj.bias)
        self.mlp = FoldedMlp(layer.norm2, layer.mlp[0], layer.mlp[2])

    def forward(self, x):
        k, q, v = self.kqv(x).split(3, axis=-1)  # each (B, N, E)
        log_k = paddle.matmul(self.w, k.transpose([0, 2, 1])) - _half_square_norm(k).transpose([0, 2, 1])  # (B, m, N)
        largest = log_k.max(axis=-1, keepdim=True)  # (B, m, 1)
        features = paddle.exp(log_k - largest)
        total = features.sum(axis=-1, keepdim=True)  # (B, m, 1)
        means = paddle.matmul(features, v) / total  # (B, m, E)
        log_total = (largest + paddle.log(total) - self.log_features).transpose([0, 2, 1])  # (B, 1, m)
        log_q = paddle.matmul(q, self.w, transpose_y=True) + log_total  # (B, N, m)
        log_epsilon = _half_square_norm(q) + self.log_epsilon  # (B, N, 1)
        largest = paddle.maximum(log_q.max(axis=-1, keepdim=True), log_epsilon)
        features = paddle.exp(log_q - largest)  # (B, N, m)
        total = features.sum(axis=-1, keepdim=True) + paddle.exp(log_epsilon - largest)  # (B, N, 1)
        return self.mlp(v + self.proj(paddle.matmul(features, means) / total))


class FoldedTokenTransformer(nn.Layer):
    """A soft split and its `TokenTransformer`: (B, Cin, H, W) -> (B, N, E)."""

    def __init__(self, layer, split):
        super().__init__()
        E = layer.attn.proj.weight.shape[0]
        scale = paddle.concat([paddle.full([E], layer.attn.scale), paddle.ones([2 * E])])
        self.qkv = NormedSplit(layer.norm1, layer.attn.qkv, split, scale)
        self.proj = folded_linear(layer.attn.proj.weight, layer.attn.proj.bias)
        self.mlp = FoldedMlp(layer.norm2, layer.mlp.fc1, layer.mlp.fc2)

    def forward(self, x):
        q, k, v = self.qkv(x).split(3, axis=-1)  # each (B, N, E)
        attn = F.softmax(paddle.matmul(q, k.transpose([0, 2, 1])), axis=-1)  # (B, N, N)
        return self.mlp(v + self.proj(paddle.matmul(attn, v)))


def fold_t2t(model: T2TViT) -> FoldedModel:
    """Fold a `T2TViT`."""
    module, positions = model.tokens_to_token, model.pos_embed[0]
    pairs = list(zip(module.token_layers, module.splits))[: len(module.splits) - 1]
    kernel, stride, padding = module.splits[-1]
    if module.is_convolutional:
        stages = [folded_convolution(conv.weight, conv.bias, *split[1:]) for conv, split in pairs]
        kernels = module.project.weight
    else:
        kind = FoldedPerformer if isinstance(module.token_layers[0], TokenPerformer) else FoldedTokenTransformer
        stages = [kind(layer, split) for layer, split in pairs]
        kernels = _split_kernels(module.project.weight, kernel)
    class_token = model.cls_token[0] + positions[:1]
    embedding = FoldedEmbedding(kernels, module.project.bias, stride, padding, positions[1:], class_token)
    layers = folded_layers(model.blocks, num_outputs=1)
    return FoldedModel(model, stages, module.grids, embedding, layers)
