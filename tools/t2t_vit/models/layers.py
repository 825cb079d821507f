"""Layers shared by the model families.

Parameter names and arithmetic of the block follow the official T2T-ViT code (yitu-opensource/T2T-ViT,
models/transformer_block.py). They are the same as in timm, which the official PiT uses.
Sizes: B images, N tokens, C channels, h heads.
"""

import math
from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.hapi import dynamic_flops
from paddle.nn.initializer import Assign, Constant, Normal, Uniform

from t2t_vit.models import cpu_ops
from t2t_vit.models.dropout import Dropout, DropPath

# timm's trunc_normal_(std=.02) truncates at +-2, which is 100 standard deviations. So this is a plain normal.
LINEAR_STD = 0.02


def in_head(name: str) -> bool:
    """Whether a parameter or layer with this structured name belongs to a classification head."""
    return name.split(".")[0] in ("head", "head_dist")


def init_linear_and_norm(layer):
    """Official initialisation of one layer, for `Layer.apply`: Linear N(0, 0.02) and zero bias, LayerNorm 1 and 0."""
    if isinstance(layer, nn.Linear):
        Normal(std=LINEAR_STD)(layer.weight)
    if isinstance(layer, nn.LayerNorm):
        Constant(1.0)(layer.weight)
    if isinstance(layer, (nn.Linear, nn.LayerNorm)) and layer.bias is not None:
        Constant(0.0)(layer.bias)


def init_from_fan_in(layer):
    """PyTorch's default initialisation of one layer, for `Layer.apply`. The official code relies on it in some places.

    Weights and biases of Linear, Conv1D and Conv2D are uniform in +-1 / sqrt(fan in). LayerNorm is 1 and 0.
    """
    if isinstance(layer, nn.LayerNorm):
        init_linear_and_norm(layer)
    if isinstance(layer, (nn.Linear, nn.Conv1D, nn.Conv2D)):
        # Linear (in, out), Conv1D (out, in / groups, kernel), Conv2D (out, in / groups, kernel, kernel)
        fan_in = layer.weight.shape[0] if isinstance(layer, nn.Linear) else math.prod(layer.weight.shape[1:])
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                Uniform(-(fan_in**-0.5), fan_in**-0.5)(parameter)


def as_tokens(x: paddle.Tensor) -> paddle.Tensor:
    """Convert a map (B, C, h, w) to tokens (B, h*w, C).

    Paddle Inference with oneDNN (3.3.1) fuses reshape, transpose and matrix product into one call, which misreads the
    blocked layout of a convolution's output. Therefore this uses flatten. Transpose and then reshape before a concat
    does not work either: the file cannot be opened.
    """
    return x.flatten(2).transpose([0, 2, 1])


def as_map(x: paddle.Tensor, grid: Sequence[int]) -> paddle.Tensor:
    """Convert tokens (B, h*w, C) to a map (B, C, h, w)."""
    return x.transpose([0, 2, 1]).reshape([-1, x.shape[2], *grid])


def check_images(x: paddle.Tensor, in_chans: int, image_size: Sequence[int]) -> None:
    """Raise ValueError unless `x` is (B, in_chans, H, W) with (H, W) = image_size."""
    if tuple(x.shape[1:]) != (in_chans, *image_size):
        raise ValueError(
            f"the model takes images of {in_chans} channels and {image_size[0]}x{image_size[1]} pixels but got "
            f"{' x '.join(map(str, x.shape[1:]))}; build it with another image_size or in_chans"
        )


def frozen_parameter(layer, value):
    """Create a parameter of `layer` with the given value that is never trained."""
    attr = paddle.ParamAttr(trainable=False)
    return layer.create_parameter(value.shape, attr=attr, default_initializer=Assign(value))


class Linear(nn.Linear):
    """nn.Linear with fast gradients on a CPU (cpu_ops.py)."""

    def forward(self, x):
        return cpu_ops.linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last axis, with fast gradients on a CPU (cpu_ops.py)."""

    def forward(self, x):
        if paddle.is_grad_enabled():
            if cpu_ops.uses_fast_form(x):
                return cpu_ops.layer_norm(x, self.weight, self.bias, self._epsilon)
            # Paddle's CPU kernel forgets to multiply x's gradient by the scale unless it also computes the scale's
            # gradient (2.6.2, 3.3.1). It does not compute that for a frozen scale, nor in paddle.grad with respect to x
            # only, which explanations call in eval mode.
            if self.weight.stop_gradient or (paddle.in_dynamic_mode() and not self.training):
                return F.layer_norm(x, self._normalized_shape, epsilon=self._epsilon) * self.weight + self.bias
        # In 2.6.2, to_static cannot convert super().forward(x).
        return F.layer_norm(x, self._normalized_shape, self.weight, self.bias, self._epsilon)


# paddle.flops looks for the exact class of a layer.
dynamic_flops.register_hooks[Linear] = dynamic_flops.count_linear


class Mlp(nn.Layer):
    """Linear, GELU, Linear: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim, hidden_dim, drop=0.0):
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"the MLP of width {dim} has a hidden width of {hidden_dim}: raise mlp_ratio")
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = Dropout(drop)

    def forward(self, x):
        x = self.drop(self.act(self.fc1(x)))  # (B, N, hidden_dim)
        return self.drop(self.fc2(x))  # (B, N, C)


class Attention(nn.Layer):
    """Multi-head self-attention: (B, N, C) -> (B, M, C), for the first M = num_queries tokens or for all."""

    fused = False  # see fuse_attention

    def __init__(self, dim, num_heads, qkv_bias=False, qk_scale=None, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"the width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self._add_qkv(dim, None if qkv_bias else False)
        self.attn_drop = Dropout(attn_drop)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)

    def _add_qkv(self, dim, bias_attr):
        self.qkv = Linear(dim, dim * 3, bias_attr=bias_attr)

    def _qkv(self, x):
        """Queries, keys and values of the heads: (B, N, C) -> three (B, h, N, C/h)."""
        return self.qkv(x).reshape([*x.shape[:2], 3, self.num_heads, -1]).transpose([2, 0, 3, 1, 4]).unbind(0)

    def token_products(self, N):
        """List the matrix products between N tokens, q k and (q k) v, as (count, rows, inner, columns)."""
        h, width = self.num_heads, self.proj.weight.shape[0] // self.num_heads
        return [(h, N, width, N), (h, N, N, width)]

    def forward(self, x, num_queries=None):
        q, k, v = self._qkv(x)  # each (B, h, N, C/h)
        x = self._attend(q[:, :, :num_queries], k, v).flatten(2)  # (B, M, C)
        return self.proj_drop(self.proj(x))

    def _attend(self, q, k, v):
        """(B, h, M, C/h) and twice (B, h, N, C/h) -> (B, M, h, C/h)."""
        if self.fused and fits_flash_attention(q):
            q, k, v = (tensor.transpose([0, 2, 1, 3]) for tensor in (q, k, v))
            # Paddle itself multiplies q k by (C/h) ** -0.5.
            return F.scaled_dot_product_attention(q * (self.scale * q.shape[-1] ** 0.5), k, v)
        attn = F.softmax(paddle.matmul(q * self.scale, k, transpose_y=True), axis=-1)  # (B, h, M, N)
        return paddle.matmul(self.attn_drop(attn), v).transpose([0, 2, 1, 3])


def fits_flash_attention(q):
    """Whether FlashAttention supports heads of width C/h: 16-bit type, Ampere or newer GPU, head width up to 256.

    These are the conditions of 3.3.1 (nn/functional/sdpa.py, can_use_flash_attention). 2.6.2 does not check the GPU
    (nn/functional/flash_attention.py, _select_sdp) and fails.
    """
    if q.dtype not in (paddle.float16, paddle.bfloat16) or q.shape[-1] % 8 or q.shape[-1] > 256:
        return False
    return paddle.get_device().startswith("gpu") and paddle.device.cuda.get_device_capability() >= (8, 0)


def fuse_attention(model: nn.Layer) -> None:
    """Let the blocks of a model use Paddle's FlashAttention where it is supported. It ignores attn_drop."""
    for layer in model.sublayers():
        if isinstance(layer, Attention):
            layer.fused = True


class Block(nn.Layer):
    """Pre-norm transformer block: (B, N, C) -> (B, M, C), the first M = num_queries tokens or all N."""

    attention_type, mlp_type = Attention, Mlp

    def __init__(
        self,
        dim,
        num_heads,
        mlp_ratio,
        qkv_bias=False,
        qk_scale=None,
        drop=0.0,
        attn_drop=0.0,
        drop_path=0.0,
        epsilon=1e-5,
    ):
        super().__init__()
        self.norm1 = LayerNorm(dim, epsilon=epsilon)
        self.attn = self.attention_type(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, epsilon=epsilon)
        self.mlp = self.mlp_type(dim, int(dim * mlp_ratio), drop)

    def forward(self, x, num_queries=None):
        return self._updated(x, num_queries)

    def _updated(self, x, num_queries):  # for subclasses: in 2.6.2, to_static cannot convert super().forward(x)
        x = x[:, :num_queries] + self.drop_path(self.attn(self.norm1(x), num_queries))
        return x + self.drop_path(self.mlp(self.norm2(x)))
