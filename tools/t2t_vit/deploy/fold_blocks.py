"""Fold the blocks of T2T-ViT-SE, -Ghost and -Dense (see fold.py).

Sizes: B images, N tokens, M = num_outputs or N, C width, G growth rate.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

from t2t_vit.deploy.fold import FoldedBlock, FoldedMlp, folded_linear, include_norm
from t2t_vit.models.t2t_blocks import DenseBlock, GhostBlock, SqueezeExciteBlock, Transition


class FoldedSqueezeExciteBlock(FoldedBlock):
    """A `SqueezeExciteBlock`: (B, N, C) -> (B, M, C). Its attention is computed for all tokens, whose mean it needs."""

    def __init__(self, block, num_outputs=None):
        super().__init__(block, num_outputs)
        first, _, second, _ = block.attn.se_layer.fc
        self.squeeze, self.excite = folded_linear(first.weight), folded_linear(second.weight)

    def _updated(self, x):
        normed = self.norm(x)
        y = self._attend(normed, normed)  # (B, N, C)
        mean = y.sum(axis=1, keepdim=True) * (1 / y.shape[1])  # see _mean of fold_t2t.py
        scale = F.sigmoid(self.excite(F.relu(self.squeeze(mean))))  # (B, 1, C)
        if self.num_outputs:
            x, y = x[:, : self.num_outputs], y[:, : self.num_outputs]
        return self.mlp(x + y * scale)


class FoldedGhostMlp(FoldedMlp):
    """The `GhostMlp` of a block, with norm and skip connection: (B, M, C) -> (B, M, C)."""

    def __init__(self, block):
        super().__init__(block.norm2, block.mlp.fc1, block.mlp.fc2)
        for number in (2, 3):
            self.register_buffer(f"ghost{number}", getattr(block.mlp, f"cheap_operation{number}").weight.flatten())

    def forward(self, x):
        y = F.gelu(self.fc1(self.norm(x)))  # (B, M, C)
        return x + self.fc2(paddle.concat([y, F.gelu(y * self.ghost2), F.gelu(y * self.ghost3)], axis=-1))


class FoldedGhostBlock(FoldedBlock):
    """A `GhostBlock`: (B, N, C) -> (B, M, C).

    With products a, b, c, the second halves are a q, b k and c v. They are multiplied channel by channel, so the second
    half of q gets a b, and that of the projection's rows gets c.
    """

    def _add_attention(self, norm, attn):
        pairs = [include_norm(norm, layer.weight, layer.bias) for layer in (attn.q, attn.k, attn.v)]
        a, b, c = (
            layer.weight.flatten() for layer in (attn.cheap_operation_q, attn.cheap_operation_k, attn.cheap_operation_v)
        )
        biases = [bias for _, bias in pairs]
        biases[2] = paddle.concat([biases[2], biases[2]])
        rows = paddle.concat([paddle.ones_like(c), c]).unsqueeze(1)  # (C, 1)
        self._add_linears(attn, [weight for weight, _ in pairs], biases, rows * attn.proj.weight)
        self.register_buffer("ghost", a * b)

    def _add_mlp(self, block):
        self.mlp = FoldedGhostMlp(block)

    def _qkv(self, queries, normed):
        q, k, v = self.q(queries), self.k(normed), self.v(normed)  # each (B, M or N, C/2)
        return [paddle.concat(pair, axis=-1) for pair in ((q, q * self.ghost), (k, k), (v, v))]


class FoldedDenseMlp(FoldedMlp):
    """MLP, skip connection and `dense_linear` of a `DenseBlock`, the new channels: (B, M, C) -> (B, M, G).

    The product of `fc2` and `dense_linear` is one linear map: (x + h W + b) D + d = x D + h (W D) + (b D + d).
    """

    def __init__(self, block):
        super().__init__(block.norm2, block.mlp.fc1, block.mlp.fc2)
        fc2, dense = block.mlp.fc2, block.dense_linear
        self.fc2 = folded_linear(paddle.matmul(fc2.weight, dense.weight))
        bias = paddle.matmul(fc2.bias.unsqueeze(0), dense.weight)[0] + dense.bias
        self.dense = folded_linear(dense.weight, bias)

    def forward(self, x):
        return self.dense(x) + self.fc2(F.gelu(self.fc1(self.norm(x))))


class FoldedDenseBlock(FoldedBlock):
    """A `DenseBlock`: (B, N, C) -> (B, M, C + G)."""

    def _add_mlp(self, block):
        self.mlp = FoldedDenseMlp(block)

    def forward(self, x):
        new = self._updated(x)  # (B, M, G)
        return paddle.concat([x[:, : self.num_outputs] if self.num_outputs else x, new], axis=-1)


class FoldedTransition(nn.Layer):
    """A `Transition`: (B, N, C) -> (B, N, C/2)."""

    def __init__(self, layer):
        super().__init__()
        self.linear = folded_linear(layer.linear.weight, layer.linear.bias)

    def forward(self, x):
        return F.gelu(self.linear(x))


_FOLDED = {SqueezeExciteBlock: FoldedSqueezeExciteBlock, GhostBlock: FoldedGhostBlock, DenseBlock: FoldedDenseBlock}


def folded_layers(layers, num_outputs):
    """Fold the layers of a T2T-ViT's backbone. The last block returns only its first `num_outputs` tokens."""
    folded = []
    for i, layer in enumerate(layers, start=1):
        if isinstance(layer, Transition):
            folded.append(FoldedTransition(layer))
        else:
            kind = _FOLDED.get(type(layer), FoldedBlock)
            folded.append(kind(layer, num_outputs if i == len(layers) else None))
    return folded
