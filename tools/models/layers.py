"""Layers shared by the model families.

Parameter names and arithmetic of the block follow the official T2T-ViT code (yitu-opensource/T2T-ViT,
models/transformer_block.py), which are those of timm's, on which the official PiT stands.
Sizes: B images, N tokens, C channels, h heads.
"""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.nn.initializer import Assign, Constant, Normal, Uniform

# timm's trunc_normal_(std=.02) cuts at +-2, i.e. at 100 standard deviations: a plain normal.
LINEAR_STD = 0.02


def in_head(name):
    """Whether a parameter or layer, by its structured name, belongs to a classifier: as wide as there are classes."""
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
    """PyTorch's default initialisation of one layer, for `Layer.apply`, on which official code leans in places.

    Weights and biases of Linear and Conv2D are uniform within 1 / sqrt(fan in), LayerNorm is 1 and 0.
    """
    if isinstance(layer, nn.LayerNorm):
        init_linear_and_norm(layer)
    if isinstance(layer, (nn.Linear, nn.Conv2D)):
        # Linear (in, out), Conv2D (out, in / groups, kernel, kernel)
        fan_in = layer.weight.shape[0] if isinstance(layer, nn.Linear) else math.prod(layer.weight.shape[1:])
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                Uniform(-(fan_in**-0.5), fan_in**-0.5)(parameter)


def check_images(x, in_chans, image_size):
    """Raise ValueError unless `x` is (B, in_chans, H, W) with (H, W) = image_size."""
    if tuple(x.shape[1:]) != (in_chans, *image_size):
        raise ValueError(
            f"the model takes images of {in_chans} channels and {image_size[0]}x{image_size[1]} pixels but got "
            f"{' x '.join(map(str, x.shape[1:]))}; build it with another image_size or in_chans"
        )


def frozen_parameter(layer, value):
    """A parameter of `layer` that holds `value` and is never trained."""
    attr = paddle.ParamAttr(trainable=False)
    return layer.create_parameter(value.shape, attr=attr, default_initializer=Assign(value))


class DropPath(nn.Layer):
    """Stochastic depth (Huang et al., 2016): drops the residual branch of whole images, rescaling the kept ones."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = paddle.bernoulli(paddle.full([x.shape[0]] + [1] * (x.ndim - 1), keep, x.dtype))  # (B, 1, ..., 1)
        return x * (mask / keep)

    def extra_repr(self):
        return f"rate={self.rate}"


class Mlp(nn.Layer):
    """Linear, GELU, Linear: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim, hidden_dim, drop=0.0):
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"the MLP of width {dim} has a hidden width of {hidden_dim}: raise mlp_ratio")
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        x = self.drop(F.gelu(self.fc1(x)))  # (B, N, hidden_dim)
        return self.drop(self.fc2(x))  # (B, N, C)


class Attention(nn.Layer):
    """Multi-head self-attention: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim, num_heads, qkv_bias=False, qk_scale=None, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias_attr=None if qkv_bias else False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape([B, N, 3, self.num_heads, C // self.num_heads])  # (B, N, 3, h, C/h)
        q, k, v = qkv.transpose([2, 0, 3, 1, 4])  # each (B, h, N, C/h)
        attn = F.softmax(paddle.matmul(q * self.scale, k, transpose_y=True), axis=-1)  # (B, h, N, N)
        x = paddle.matmul(self.attn_drop(attn), v)  # (B, h, N, C/h)
        x = x.transpose([0, 2, 1, 3]).reshape([B, N, C])  # (B, N, C)
        return self.proj_drop(self.proj(x))


class Block(nn.Layer):
    """Pre-norm transformer block: (B, N, C) -> (B, N, C)."""

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
        self.norm1 = nn.LayerNorm(dim, epsilon=epsilon)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, epsilon=epsilon)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
