"""The same function as a trained model, in fewer operations: what is exported to the inference engines.

Constants are folded: LayerNorm's affine and the query's scale into the matrices beside them, biases that a softmax
cancels or passes on, two heads into one. A soft split, its LayerNorm and its linear map are a convolution. The last
block computes the class tokens alone, the only ones that are read.

Sizes as in the models: B images, N tokens, C width, h heads, T class tokens, E token width, m random features.
"""

import importlib
import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from t2t_vit.models.layers import check_images
from t2t_vit.models.t2t import TokenPerformer
from t2t_vit.models.zoo import FAMILIES


@paddle.no_grad()
def fold(model):
    """A layer that computes what `model` does in eval mode, to rounding: (B, Cin, H, W) -> (B, num_classes).

    The family names the function that makes it; without one, the layer is the model itself.
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


def _linear(weight, bias=None):
    return _filled(nn.Linear(*weight.shape, bias_attr=None if bias is not None else False), weight, bias)


def _convolution(weight, bias, stride, padding):
    out, width, *kernel = weight.shape
    bias_attr = None if bias is not None else False
    return _filled(nn.Conv2D(width, out, kernel, stride, padding, bias_attr=bias_attr), weight, bias)


def _tokens(x):
    """A map (B, C, h, w) as tokens (B, h*w, C).

    Flattened, not reshaped, for oneDNN in Paddle Inference (3.3.1): it fuses reshape, transpose and matrix product into
    one call, which misreads the blocked layout that a convolution leaves. The other order, a transpose and a reshape
    before a concat, fails when the file is opened.
    """
    return x.flatten(2).transpose([0, 2, 1])


def _map(x, grid):
    """Tokens (B, h*w, C) as a map (B, C, h, w)."""
    return x.transpose([0, 2, 1]).reshape([-1, x.shape[2], *grid])


def _split_kernels(weight, kernel):
    """Kernels (out, Cin, k, k) of a linear map (Cin*k*k, out) of the tokens of a soft split."""
    return weight.transpose([1, 0]).reshape([weight.shape[1], -1, kernel, kernel])


def _square(x):
    """x * x. With oneDNN, Paddle Inference writes x.square() over x, even where x is read again (3.3.1)."""
    return x * x


def _mean(x):
    """Mean over the channels, (B, C, h, w) -> (B, 1, h, w).

    With oneDNN, Paddle Inference prints a line on stdout for every mean() that it loads (3.3.1).
    """
    return x.sum(axis=1, keepdim=True) * (1 / x.shape[1])


def _half_square_norm(x):
    return _square(x).sum(axis=-1, keepdim=True) * 0.5  # (B, N, E) -> (B, N, 1)


def _plain(norm):
    """A LayerNorm without the affine of `norm`."""
    return nn.LayerNorm(norm.weight.shape[0], epsilon=norm._epsilon, weight_attr=False, bias_attr=False)


def _fold(norm, weight, bias=None):
    """Weight and bias of a linear map that take the affine of the LayerNorm before it: (n g + b) W + c."""
    shift = paddle.matmul(norm.bias.unsqueeze(0), weight)[0]
    return norm.weight.unsqueeze(1) * weight, shift if bias is None else shift + bias


class LeanMlp(nn.Layer):
    """LayerNorm, Linear, GELU, Linear and the skip connection: (B, N, C) -> (B, N, C)."""

    def __init__(self, norm, fc1, fc2):
        super().__init__()
        self.norm = _plain(norm)
        self.fc1 = _linear(*_fold(norm, fc1.weight, fc1.bias))
        self.fc2 = _linear(fc2.weight, fc2.bias)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class LeanBlock(nn.Layer):
    """A transformer block: (B, N, C) -> (B, N, C), or -> (B, num_outputs, C), its first tokens alone.

    softmax(q (k + b)^T) = softmax(q k^T): the bias of k is left out. As every row of the attention sums to 1, that of
    v reaches the projection as it is, and is part of its bias.
    """

    def __init__(self, block, num_outputs=None):
        super().__init__()
        attn, dim = block.attn, block.attn.proj.weight.shape[0]
        self.num_heads, self.num_outputs = attn.num_heads, num_outputs
        weight, bias = _fold(block.norm1, attn.qkv.weight, attn.qkv.bias)
        self.norm = _plain(block.norm1)
        self.q = _linear(weight[:, :dim] * attn.scale, bias[:dim] * attn.scale)
        self.k = _linear(weight[:, dim : 2 * dim])
        self.v = _linear(weight[:, 2 * dim :])
        passed_on = paddle.matmul(bias[2 * dim :].unsqueeze(0), attn.proj.weight)[0]
        self.proj = _linear(attn.proj.weight, attn.proj.bias + passed_on)
        self.mlp = LeanMlp(block.norm2, block.mlp.fc1, block.mlp.fc2)

    def _heads(self, x, order):
        return x.reshape([-1, x.shape[1], self.num_heads, x.shape[2] // self.num_heads]).transpose(order)

    def forward(self, x):
        normed = queries = self.norm(x)
        if self.num_outputs:
            x, queries = x[:, : self.num_outputs], normed[:, : self.num_outputs]
        q = self._heads(self.q(queries), [0, 2, 1, 3])  # (B, h, num_outputs or N, C/h)
        k = self._heads(self.k(normed), [0, 2, 3, 1])  # (B, h, C/h, N)
        v = self._heads(self.v(normed), [0, 2, 1, 3])  # (B, h, N, C/h)
        y = paddle.matmul(F.softmax(paddle.matmul(q, k), axis=-1), v)
        return self.mlp(x + self.proj(y.transpose([0, 2, 1, 3]).reshape([-1, *x.shape[1:]])))


class LeanHeads(nn.Layer):
    """LayerNorm and the mean of the heads of T class tokens: (B, T, C) -> (B, num_classes)."""

    def __init__(self, norm, heads):
        super().__init__()
        folded = [_fold(norm, head.weight, head.bias) for head in heads]
        self.norm = _plain(norm)
        weight = paddle.concat([weight for weight, _ in folded], axis=0)  # (T*C, num_classes)
        self.head = _linear(weight / len(heads), sum(bias for _, bias in folded) / len(heads))

    def forward(self, x):
        return self.head(self.norm(x).reshape([-1, self.head.weight.shape[0]]))


class LeanEmbedding(nn.Layer):
    """The convolution that makes the backbone's tokens, with their positions, and T class tokens before them.

    (B, Cin, H, W) -> (B, T + N, C). `first`, (T, C), is what the class tokens start from.
    """

    def __init__(self, weight, bias, stride, padding, positions, first):
        super().__init__()
        self.conv = _convolution(weight, None, stride, padding)
        self.register_buffer("positions", (positions + bias).unsqueeze(0))  # (1, N, C)
        self.register_buffer("first", first.unsqueeze(0))  # (1, T, C)

    def forward(self, x):
        x = _tokens(self.conv(x)) + self.positions  # (B, N, C)
        return paddle.concat([self.first.expand([x.shape[0], -1, -1]), x], axis=1)


class NormedSplit(nn.Layer):
    """Soft split, LayerNorm and linear map: (B, Cin, H, W) -> (B, N, out), without the (B, N, Cin*k*k) between them.

    With a token t, its mean and deviation s, n = (t - mean) / s. As n sums to 0, W may lose the mean of each of its
    columns, and then n W = t W / s: a convolution, divided. In a window of one colour s is as good as 0, so the
    convolution must be too: x = mean of the pixel's channels + d, and the means of a window are told by their
    differences from its middle one. s^2 = mean of d^2 in the window + variance of the differences.
    """

    def __init__(self, norm, linear, split, scale=None):
        super().__init__()
        kernel, stride, padding = split
        weight, bias = _fold(norm, linear.weight, linear.bias)
        if scale is not None:
            weight, bias = weight * scale, bias * scale
        kernels = _split_kernels(weight - weight.mean(axis=0, keepdim=True), kernel)  # (out, Cin, k, k)
        self.split, self.epsilon = split, norm._epsilon
        self.colours = _convolution(kernels, None, stride, padding)
        differences = paddle.eye(kernel**2)
        differences[kernel**2 // 2] -= 1
        self.differences = _convolution(_split_kernels(differences, kernel), None, stride, padding)
        self.means = _convolution(kernels.sum(axis=1).flatten(1).unsqueeze([2, 3]), None, 1, 0)
        self.register_buffer("bias", bias)

    def forward(self, x):
        mean = _mean(x)  # (B, 1, H, W)
        colours = x - mean
        apart = self.differences(mean)  # (B, k*k, h, w)
        variance = _mean(_square(apart - _mean(apart)))  # (B, 1, h, w)
        spread = F.avg_pool2d(_mean(_square(colours)), *self.split, exclusive=False)
        y = self.colours(colours) + self.means(apart)  # (B, out, h, w)
        return _tokens(y * paddle.rsqrt(variance + spread + self.epsilon)) + self.bias


class LeanPerformer(nn.Layer):
    """A soft split and its `TokenPerformer`: (B, Cin, H, W) -> (B, N, E).

    The exponentials are taken once, relative to the largest: of them are the numerators and D + eps made, 1 or more.
    """

    def __init__(self, layer, split):
        super().__init__()
        self.kqv = NormedSplit(layer.norm1, layer.kqv, split)
        self.register_buffer("w", layer.w.clone())
        self.log_features, self.log_epsilon = math.log(layer.w.shape[0]), math.log(layer.EPSILON)
        self.proj = _linear(layer.proj.weight, layer.proj.bias)
        self.mlp = LeanMlp(layer.norm2, layer.mlp[0], layer.mlp[2])

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


class LeanTokenTransformer(nn.Layer):
    """A soft split and its `TokenTransformer`: (B, Cin, H, W) -> (B, N, E)."""

    def __init__(self, layer, split):
        super().__init__()
        width = layer.attn.proj.weight.shape[0]
        scale = paddle.concat([paddle.full([width], layer.attn.scale), paddle.ones([2 * width])])
        self.qkv = NormedSplit(layer.norm1, layer.attn.qkv, split, scale)
        self.proj = _linear(layer.attn.proj.weight, layer.attn.proj.bias)
        self.mlp = LeanMlp(layer.norm2, layer.mlp.fc1, layer.mlp.fc2)

    def forward(self, x):
        q, k, v = self.qkv(x).split(3, axis=-1)  # each (B, N, E)
        attn = F.softmax(paddle.matmul(q, k.transpose([0, 2, 1])), axis=-1)  # (B, N, N)
        return self.mlp(v + self.proj(paddle.matmul(attn, v)))


class LeanT2TViT(nn.Layer):
    """A `T2TViT`."""

    def __init__(self, model):
        super().__init__()
        self.image_size, self.in_chans = model.image_size, model.in_chans
        module, positions = model.tokens_to_token, model.pos_embed[0]
        self.grids = module.grids
        if isinstance(module.project, nn.Conv2D):
            pairs = zip(module.stages[:-1], module.splits)
            self.stages = nn.LayerList(_convolution(conv.weight, conv.bias, *split[1:]) for conv, split in pairs)
            kernels = module.project.weight
        else:
            stage = LeanPerformer if isinstance(module.stages[0], TokenPerformer) else LeanTokenTransformer
            self.stages = nn.LayerList(stage(layer, split) for layer, split in zip(module.stages, module.splits))
            kernels = _split_kernels(module.project.weight, module.splits[-1][0])
        first = model.cls_token[0] + positions[:1]
        self.embedding = LeanEmbedding(kernels, module.project.bias, *module.splits[-1][1:], positions[1:], first)
        self.blocks = nn.Sequential(*map(LeanBlock, model.blocks[:-1]), LeanBlock(model.blocks[-1], num_outputs=1))
        self.heads = LeanHeads(model.norm, [model.head])

    def forward(self, x):
        check_images(x, self.in_chans, self.image_size)
        for stage, grid in zip(self.stages, self.grids):
            x = stage(x)
            x = _map(x, grid) if x.ndim == 3 else x  # (B, E, h, w), as the map of a convolution is
        return self.heads(self.blocks(self.embedding(x)))


class LeanPool(nn.Layer):
    """Between two stages of a PiT: (B, T + h*w, C) -> (B, T + h/2*w/2, D)."""

    def __init__(self, pool, num_tokens, grid):
        super().__init__()
        self.pool, self.num_tokens, self.grid = pool, num_tokens, grid

    def forward(self, x):
        tokens, x = x[:, : self.num_tokens], x[:, self.num_tokens :]
        x, tokens = self.pool(_map(x, self.grid), tokens)
        return paddle.concat([tokens, _tokens(x)], axis=1)


class LeanPiT(nn.Layer):
    """A `PoolingTransformer`; distilled, it gives the mean of its heads."""

    def __init__(self, model):
        super().__init__()
        self.image_size, self.in_chans = model.image_size, model.in_chans
        conv, num_tokens = model.patch_embed.conv, model.cls_token.shape[1]
        positions = model.pos_embed[0].flatten(1).transpose([1, 0])  # (N, C)
        self.embedding = LeanEmbedding(conv.weight, conv.bias, conv._stride, 0, positions, model.cls_token[0])
        grid, layers = model.pos_embed.shape[2:], []
        for stage, transformer in enumerate(model.transformers):
            if stage:
                layers.append(LeanPool(model.pools[stage - 1], num_tokens, grid))
                grid = [(length + 1) // 2 for length in grid]
            layers += map(LeanBlock, transformer.blocks)
        layers[-1] = LeanBlock(model.transformers[-1].blocks[-1], num_outputs=num_tokens)
        self.blocks = nn.Sequential(*layers)
        self.heads = LeanHeads(model.norm, [model.head, model.head_dist] if model.distilled else [model.head])

    def forward(self, x):
        check_images(x, self.in_chans, self.image_size)
        return self.heads(self.blocks(self.embedding(x)))
