"""Blocks that bring designs of CNNs to T2T-ViT (Yuan et al., ICCV 2021, section 3.2): T2T-ViT-SE, -Ghost and -Dense.

Parameter names, initialisation and arithmetic are those of the official code (yitu-opensource/T2T-ViT,
models/t2t_vit_se.py, t2t_vit_ghost.py, t2t_vit_dense.py).

Sizes: B images, N tokens, M = num_queries or N, C channels, h heads, G growth rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.hapi import dynamic_flops

from t2t_vit.models.cpu_ops import scale_channels
from t2t_vit.models.dropout import Dropout
from t2t_vit.models.layers import Attention, Block, Linear, init_from_fan_in

# --- SE ---


class SqueezeExcite(nn.Layer):
    """Squeeze-and-excitation (Hu et al., 2018): (B, N, C) -> (B, N, C).

    It scales each channel by a number in 0 to 1, which two linear layers compute from the mean of all tokens.
    """

    REDUCTION = 16  # C / width between the two layers

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < self.REDUCTION:
            raise ValueError(f"squeeze-and-excitation needs a width of {self.REDUCTION} or more, not {dim}")
        width = dim // self.REDUCTION
        first, second = Linear(dim, width, bias_attr=False), Linear(width, dim, bias_attr=False)
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return scale_channels(x, self.fc(x.mean(axis=1)).unsqueeze(1))


class SqueezeExciteAttention(Attention):
    """Self-attention whose output goes through squeeze-and-excitation: (B, N, C) -> (B, M, C)."""

    def __init__(self, dim: int, *sizes: Any) -> None:
        super().__init__(dim, *sizes)
        self.se_layer = SqueezeExcite(dim)

    def forward(self, x: paddle.Tensor, num_queries: int | None = None) -> paddle.Tensor:
        x = self._attend(*self._qkv(x)).flatten(2)  # (B, N, C), because the mean is that of all tokens
        return self.proj_drop(self.se_layer(self.proj(x)))[:, :num_queries]


class SqueezeExciteBlock(Block):
    attention_type = SqueezeExciteAttention


# --- Ghost ---


class DepthwiseProduct(nn.Conv1D):
    """Depth-wise convolution of kernel 1 over tokens, without bias: (B, N, C) -> (B, N, C).

    Thus it multiplies each channel by one weight.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 1, groups=dim, bias_attr=False)
        init_from_fan_in(self)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return scale_channels(x, self.weight.reshape([1, 1, -1]))


def _count_products(layer, _, y):
    layer.total_ops += y.size


# paddle.flops looks for the exact class of a layer.
dynamic_flops.register_hooks[DepthwiseProduct] = _count_products


class GhostAttention(Attention):
    """Self-attention with half of q, k and v from linear layers, the other half depth-wise products of the first."""

    def _add_qkv(self, dim, bias_attr):
        if dim % 2:
            raise ValueError(f"the width {dim} of ghost attention is odd: it has two halves")
        for name in "qkv":
            self.add_sublayer(name, Linear(dim, dim // 2, bias_attr=bias_attr))
        for name in "qkv":
            self.add_sublayer(f"cheap_operation_{name}", DepthwiseProduct(dim // 2))

    def _qkv(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)  # each (B, N, C/2)
        pairs = (q, self.cheap_operation_q(q)), (k, self.cheap_operation_k(k)), (v, self.cheap_operation_v(v))
        shape = [*x.shape[:2], self.num_heads, -1]
        return [paddle.concat(pair, axis=2).reshape(shape).transpose([0, 2, 1, 3]) for pair in pairs]


class GhostMlp(nn.Layer):
    """MLP with a third of its hidden channels from a linear layer, the others depth-wise products of these: width C."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        if hidden_dim != 3 * dim:
            raise ValueError(f"the ghost MLP of width {dim} has a hidden width of {hidden_dim}: mlp_ratio must be 3")
        self.fc1 = Linear(dim, dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = Dropout(drop)
        self.cheap_operation2 = DepthwiseProduct(dim)
        self.cheap_operation3 = DepthwiseProduct(dim)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.act(self.fc1(x))  # (B, N, C)
        parts = [x, self.act(self.cheap_operation2(x)), self.act(self.cheap_operation3(x))]
        return self.drop(self.fc2(self.drop(paddle.concat(parts, axis=2))))


class GhostBlock(Block):
    attention_type, mlp_type = GhostAttention, GhostMlp


# --- Dense ---


class DenseBlock(Block):
    """Densely connected block: (B, N, C) -> (B, M, C + G). It appends G new channels to its input."""

    def __init__(self, dim: int, *sizes: Any, growth_rate: int, **options: Any) -> None:
        super().__init__(dim, *sizes, **options)
        self.dense_linear = Linear(dim, growth_rate)

    def forward(self, x: paddle.Tensor, num_queries: int | None = None) -> paddle.Tensor:
        new = self.dense_linear(self._updated(x, num_queries))  # (B, M, G)
        return paddle.concat([x[:, : new.shape[1]], new], axis=2)


class Transition(nn.Layer):
    """Halves the width of the tokens between two stages of dense blocks: (B, N, C) -> (B, N, C/2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = Linear(dim, dim // 2)
        self.act = nn.GELU()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.act(self.linear(x))


def _dense_backbone(dim, stages, drop_path_rate, growth_rate, **options):
    layers = []
    for stage, depth in enumerate(stages):
        if stage:
            layers.append(Transition(dim))
            dim //= 2
        # The official code has rates for 12 blocks and uses number i of them in the whole of stage i; kept.
        drop_path = drop_path_rate * min(stage, 11) / 11
        for _ in range(depth):
            layers.append(DenseBlock(dim, growth_rate=growth_rate, drop_path=drop_path, **options))
            dim += growth_rate
    return layers, dim


BLOCKS = {"plain": Block, "se": SqueezeExciteBlock, "ghost": GhostBlock, "dense": DenseBlock}


def build_backbone(
    block: str, dim: int, depth: int, stages: Sequence[int], growth_rate: int, drop_path_rate: float, **options: Any
) -> tuple[list[nn.Layer], int]:
    """Build the layers of a backbone. Returns (layers, width of their output).

    Args:
        block: key of BLOCKS.
        dim: width of the input.
        depth: number of blocks; 0 if they are dense.
        stages, growth_rate: dense blocks per stage and channels that each appends; empty and 0 for other blocks.
        drop_path_rate: stochastic depth of the last block. It rises linearly from 0; in steps, if they are dense.
        options: arguments of every block.

    Raises:
        ValueError: the block is unknown, or arguments do not fit it.
    """
    if block not in BLOCKS:
        raise ValueError(f"unknown block {block!r}: choose one of {', '.join(BLOCKS)}")
    is_dense = block == "dense"
    if isinstance(stages, int):
        raise ValueError(f"stages is {stages}: give a list, the number of dense blocks in each stage")
    if (bool(depth), bool(stages), bool(growth_rate)) != (not is_dense, is_dense, is_dense):
        raise ValueError(
            f"block {block} does not fit depth {depth}, stages {list(stages)} and growth_rate {growth_rate}: dense "
            "blocks need stages and growth_rate, all others depth; what they do not need must be 0 or []"
        )
    if min(depth, growth_rate) < 0 or min(stages, default=1) < 1:
        raise ValueError(
            f"depth {depth} and growth_rate {growth_rate} must not be negative, "
            f"and of stages {list(stages)} each must be 1 or more"
        )
    if is_dense:
        return _dense_backbone(dim, stages, drop_path_rate, growth_rate, **options)
    rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
    return [BLOCKS[block](dim, drop_path=rate, **options) for rate in rates], dim
