"""Operations in the form that suits the device: Paddle's own, or one that spares a CPU its slow kernels.

Both are the same functions to float32 rounding. On a CPU in eager mode Paddle 3.3.1 spends 40 % of a training step of
t2t_vit_7 on the gradients of biases and LayerNorm, which are slow reductions on one core. Milliseconds on one core of a
Xeon (Sapphire Rapids), for 12544 tokens of width 64, Paddle's form and the one here:

    gradient of a linear layer with bias             6.0    1.8
    gradient of that and of a LayerNorm before it   13.9    4.6
    softmax and logsumexp of 4 x 32 x 3136           6.8    1.5

and on both cores, without gradients, the attention of one image of 3136 tokens of width 64   46.8   29.0

`enable(False)` (the config key CPU.FAST_OPS) leaves Paddle's own, which a GPU and a compiled graph always take.
"""

import paddle
import paddle.nn.functional as F
from paddle import _legacy_C_ops
from paddle.autograd import PyLayer

_LOGITS = 2**20  # of attention at a time: 4 MB, which stay in the cache

_enabled = not paddle.is_compiled_with_cuda()


def enable(flag):
    """Take the forms for a CPU (True) or Paddle's own."""
    global _enabled
    _enabled = flag


def _for_cpu():
    return _enabled and paddle.in_dynamic_mode()


def linear(x, weight, bias=None):
    """x @ weight + bias: (..., in), (in, out), (out) -> (..., out)."""
    if bias is None or not _for_cpu():
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if paddle.is_grad_enabled() else _addmm(x, weight, bias)


def normed_linear(x, norm, weight, bias=None):
    """A LayerNorm `norm` and a linear layer after it: (..., in), (in, out), (out) -> (..., out)."""
    if not (_for_cpu() and norm.training):
        return linear(norm(x), weight, bias)
    # (n * scale + shift) @ W + b = n @ (scale * W) + (shift @ W + b): scale and shift meet the matrix, not the tokens.
    folded_bias = norm.bias @ weight if bias is None else norm.bias @ weight + bias
    scaled = norm.weight.unsqueeze(1) * weight
    return linear(_Normalize.apply(x, norm._epsilon), scaled, folded_bias)


def softmax_and_logsumexp(x):
    """Both over the last axis, in float32 or more: (..., n) -> (..., n), (..., 1)."""
    if not _for_cpu():
        return F.softmax(x, axis=-1), paddle.logsumexp(x, axis=-1, keepdim=True)
    return _SoftmaxAndLogsumexp.apply(x)


def attend(q, k, v):
    """softmax(q k^T) v: (B, M, E), (B, N, E), (B, N, E) -> (B, M, E)."""
    rows = max(1, _LOGITS // (k.shape[0] * k.shape[1]))
    if not _for_cpu() or paddle.is_grad_enabled() or rows >= q.shape[1]:
        return paddle.matmul(F.softmax(paddle.matmul(q, k, transpose_y=True), axis=-1), v)
    parts = (q[:, start : start + rows] for start in range(0, q.shape[1], rows))
    return paddle.concat([attend(part, k, v) for part in parts], axis=1)


def add_to_each(x, row):
    """x + row, one row for all tokens of an image: (B, N, C), (B, 1, C) -> (B, N, C)."""
    if not _for_cpu():
        return x + row
    return x + paddle.matmul(paddle.ones([x.shape[0], x.shape[1], 1], x.dtype), row)


def _addmm(x, weight, bias):
    """`linear` without a pass of its own for the bias."""
    return paddle.addmm(bias, x.reshape([-1, x.shape[-1]]), weight).reshape([*x.shape[:-1], -1])


class _Linear(PyLayer):
    """x @ W + b, whose gradients are three matrix products."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.frozen = x.stop_gradient, weight.stop_gradient, bias.stop_gradient
        return _addmm(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        rows = dy.reshape([-1, dy.shape[-1]])  # (tokens, out)
        x_frozen, weight_frozen, bias_frozen = ctx.frozen
        dx = None if x_frozen else paddle.matmul(dy, weight, transpose_y=True)
        dw = None if weight_frozen else paddle.matmul(x.reshape([-1, x.shape[-1]]), rows, transpose_x=True)
        db = None if bias_frozen else paddle.matmul(paddle.ones([1, rows.shape[0]], rows.dtype), rows).reshape([-1])
        return dx, dw, db


class _SoftmaxAndLogsumexp(PyLayer):
    """Both from one exponential, and one gradient for both."""

    @staticmethod
    def forward(ctx, x):
        largest = x.max(axis=-1, keepdim=True)
        exponentials = (x - largest).exp_()
        total = exponentials.sum(axis=-1, keepdim=True)
        y = exponentials.divide_(total)
        ctx.save_for_backward(y)
        return y, total.log() + largest

    @staticmethod
    def backward(ctx, dy, dlog):
        (y,) = ctx.saved_tensor()
        return (dy - ((dy * y).sum(axis=-1, keepdim=True) - dlog)).multiply_(y)


class _Normalize(PyLayer):
    """LayerNorm without scale and shift; its gradient's means over the width are matrix products."""

    @staticmethod
    def forward(ctx, x, epsilon):
        # F.layer_norm keeps the variance, which the gradient needs, to itself.
        y, _, variance = _legacy_C_ops.layer_norm(x, None, None, "epsilon", epsilon, "begin_norm_axis", x.ndim - 1)
        scale = (variance + epsilon).rsqrt().reshape([*x.shape[:-1], 1])
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, scale = ctx.saved_tensor()
        dx = dy - _mean(dy)
        return dx.subtract_(y * _mean(dy * y)).multiply_(scale)


def _mean(x):
    """(..., n) -> (..., 1)."""
    width = x.shape[-1]
    return paddle.matmul(x, paddle.full([width, 1], 1 / width, x.dtype))
