"""Operations that avoid Paddle's slow CPU kernels. Results are the same up to rounding.

Paddle's CPU gradients of biases, scales and LayerNorm are slow reductions on one core. Here they are matrix products.
Milliseconds on one core of an AMD EPYC with AVX-512 (PaddlePaddle 3.3.1), Paddle's form and the one here:

    gradient of a bias, for 12544 tokens of width 64          0.9    0.1
    gradients of a LayerNorm, for 12544 tokens of width 64    9.6    4.5
    softmax and logsumexp of 4 x 32 x 3136                    6.3    3.2
    attention of 3136 tokens of width 64, no gradients        160    144

These forms are used on a CPU in eager mode, in float32 and float64. GPUs, compiled graphs and 16-bit types always use
Paddle's own kernels. `enable(False)` (config key CPU.FAST_OPS) uses Paddle's own kernels everywhere.
"""

import paddle
import paddle.nn.functional as F
from paddle import _legacy_C_ops
from paddle.autograd import PyLayer
from paddle.base import core, framework

_MAX_SHIFT = 16  # see _LayerNorm
_LOGITS = 2**20  # number of attention weights computed at a time: 4 MB, which fits the cache

# A flag, because checking the device of a tensor breaks paddle.jit.to_static without full_graph (3.3.1).
_enabled = not paddle.is_compiled_with_cuda()


def enable(flag: bool) -> None:
    """Use the fast forms of this module (True) or Paddle's own kernels (False)."""
    global _enabled
    _enabled = flag


def uses_fast_form(x):
    """Whether the functions of this module use their fast form for a tensor."""
    return (
        _enabled
        and paddle.in_dynamic_mode()
        and x.dtype in (paddle.float32, paddle.float64)
        and framework._dygraph_tracer()._amp_level == core.AmpLevel.O0
    )


def linear(x, weight, bias=None):
    """x @ weight + bias: (..., in), (in, out), (out) -> (..., out)."""
    if bias is None or not uses_fast_form(x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if paddle.is_grad_enabled() else _addmm(x, weight, bias)


def layer_norm(x, weight, bias, epsilon):
    """LayerNorm over the last axis, with gradients: (..., C), (C), (C) -> (..., C). Needs `uses_fast_form(x)`."""
    return _LayerNorm.apply(x, weight, bias, epsilon)


def softmax_and_logsumexp(x):
    """Return softmax and logsumexp over the last axis: (..., n) -> (..., n), (..., 1)."""
    if not uses_fast_form(x):
        return F.softmax(x, axis=-1), paddle.logsumexp(x, axis=-1, keepdim=True)
    return _SoftmaxAndLogsumexp.apply(x)


def split(x, parts):
    """Split the channels of tokens into `parts` of equal width: (B, N, C) -> tuple of (B, N, C / parts)."""
    if not uses_fast_form(x):
        return x.split(parts, axis=-1)
    return x.reshape([*x.shape[:2], parts, -1]).transpose([2, 0, 1, 3]).unbind(0)  # Paddle copies token by token


def attend(q, k, v):
    """softmax(q k^T) v: (B, M, E), (B, N, E), (B, N, E) -> (B, M, E)."""
    in_parts = uses_fast_form(q) and not paddle.is_grad_enabled()  # not in a static graph: sizes may be unknown there
    rows = max(1, _LOGITS // (k.shape[0] * k.shape[1])) if in_parts else None
    if rows is None or rows >= q.shape[1]:
        return paddle.matmul(F.softmax(paddle.matmul(q, k, transpose_y=True), axis=-1), v)
    parts = (q[:, start : start + rows] for start in range(0, q.shape[1], rows))
    return paddle.concat([attend(part, k, v) for part in parts], axis=1)


def add_to_each(x, row):
    """Add one row to all tokens of an image: (B, N, C), (B, 1, C) -> (B, N, C)."""
    if not uses_fast_form(x):
        return x + row
    return x + paddle.matmul(paddle.ones([x.shape[0], x.shape[1], 1], x.dtype), row)


def scale_channels(x, scale):
    """Multiply the channels of all tokens of an image: (B, N, C), (B, 1, C) or (1, 1, C) -> (B, N, C)."""
    if uses_fast_form(x):
        return _Scale.apply(x, scale)
    # Under AMP O1, a float32 parameter would make the product float32.
    return x * (scale if scale.dtype == x.dtype else scale.astype(x.dtype))


def _addmm(x, weight, bias):
    """`linear`, without a separate pass over the output to add the bias."""
    return paddle.addmm(bias, x.reshape([-1, x.shape[-1]]), weight).reshape([*x.shape[:-1], -1])


def _column_sums(rows):
    """Sum over the tokens by a matrix product: (tokens, C) -> (C)."""
    return paddle.matmul(paddle.ones([1, rows.shape[0]], rows.dtype), rows).reshape([-1])


class _Linear(PyLayer):
    """x @ W + b. Its gradients are computed by three matrix products."""

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
        return dx, dw, None if bias_frozen else _column_sums(rows)


class _Scale(PyLayer):
    """x * scale. The gradient of the scale is computed by a matrix product."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        ctx.frozen = x.stop_gradient, scale.stop_gradient
        return x * scale

    @staticmethod
    def backward(ctx, dy):
        x, scale = ctx.saved_tensor()
        x_frozen, scale_frozen = ctx.frozen
        dscale = None
        if not scale_frozen:
            dscale = paddle.matmul(paddle.ones([x.shape[0], 1, x.shape[1]], x.dtype), dy * x)  # (B, 1, C)
            dscale = dscale if scale.shape == dscale.shape else dscale.sum(axis=0, keepdim=True)
        return None if x_frozen else dy * scale, dscale


class _LayerNorm(PyLayer):
    """LayerNorm: z = y * scale + shift, with y = (x - mean) / deviation.

    The gradient needs y. The next linear layer keeps z anyway, so y is recomputed as (z - shift) / scale without extra
    memory. If a scale is too small compared to its shift, y itself is kept. In both cases, y * factor + offset is kept.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        # Unlike F.layer_norm, this returns the variance too.
        attributes = ("epsilon", epsilon, "begin_norm_axis", x.ndim - 1)
        z, _, variance = _legacy_C_ops.layer_norm(x, weight, bias, *attributes)
        kept, factor, offset = z, weight, bias
        if (bias.abs() >= _MAX_SHIFT * weight.abs()).any():
            kept = _legacy_C_ops.layer_norm(x, None, None, *attributes)[0]
            factor, offset = paddle.ones_like(weight), paddle.zeros_like(bias)
        ctx.save_for_backward(kept.detach(), factor, offset, weight, (variance + epsilon).rsqrt())
        ctx.frozen = x.stop_gradient, weight.stop_gradient, bias.stop_gradient
        return z

    @staticmethod
    def backward(ctx, dz):
        kept, factor, offset, weight, inverse = ctx.saved_tensor()
        x_frozen, weight_frozen, bias_frozen = ctx.frozen
        shape, C = dz.shape, dz.shape[-1]
        dz, kept = dz.reshape([-1, C]), kept.reshape([-1, C])  # (tokens, C)
        product = dz * kept
        dbias = _column_sums(dz)
        dweight = None if weight_frozen else (_column_sums(product) - offset * dbias) / factor
        dx = None
        if not x_frozen:
            # dx = (g - mean(g) - y * mean(g * y)) / deviation, with g = dz * scale. Paddle's broadcasting is slow, so
            # row and column factors are applied as matrices of rank 1.
            ratio = (weight / factor / C).unsqueeze(1)  # (C, 1)
            inverse = inverse.reshape([-1, 1])  # (tokens, 1)
            mean_g = paddle.matmul(dz, weight.unsqueeze(1) / C)
            mean_gy = paddle.matmul(product, ratio) - paddle.matmul(dz, ratio * offset.unsqueeze(1))
            along_y, back = mean_gy * inverse, (1 / factor).unsqueeze(0)  # (tokens, 1), (1, C)
            dx = paddle.matmul(inverse, weight.unsqueeze(0)).multiply_(dz)
            dx.subtract_(paddle.matmul(along_y, back).multiply_(kept))
            columns = paddle.concat([along_y, mean_g * inverse], axis=1)  # (tokens, 2)
            rows = paddle.concat([offset.unsqueeze(0) * back, -paddle.ones_like(back)])  # (2, C)
            dx = dx.add_(paddle.matmul(columns, rows)).reshape(shape)
        return dx, dweight, None if bias_frozen else dbias


class _SoftmaxAndLogsumexp(PyLayer):
    """Computes both from the same exponentials, with one gradient for both."""

    @staticmethod
    def forward(ctx, x):
        largest = x.max(axis=-1, keepdim=True)
        exponentials = (x - largest).exp_()
        total = exponentials.sum(axis=-1, keepdim=True)
        y = exponentials.divide_(total)
        ctx.save_for_backward(y.detach())
        return y, total.log() + largest

    @staticmethod
    def backward(ctx, dy, dlog):
        (y,) = ctx.saved_tensor()
        return (dy - ((dy * y).sum(axis=-1, keepdim=True) - dlog)).multiply_(y)
