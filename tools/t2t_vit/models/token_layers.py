"""The token layers of the T2T module (Yuan et al., ICCV 2021, arXiv:2101.11986, section 3.1): performer or transformer.

Parameter names are those of the official code (yitu-opensource/T2T-ViT, models/token_performer.py,
token_transformer.py).

Sizes: B images, N tokens, E token width (64), m random features (32).
"""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.nn.initializer import Orthogonal

from t2t_vit.models import tf32
from t2t_vit.models.cpu_ops import add_to_each, attend, softmax_and_logsumexp, split
from t2t_vit.models.dropout import Dropout
from t2t_vit.models.layers import LayerNorm, Linear, Mlp


class TokenPerformer(nn.Layer):
    """One performer layer of the T2T module: (B, N, dim) -> (B, N, E), linear in N.

    Performer attention (Choromanski et al., 2021) with positive random features
    phi(x) = exp(w x - |x|^2 / 2) / sqrt(m) is, in the official token_performer.py,

        y_t = sum_n phi(q_t).phi(k_n) v_n / (D_t + eps),   D_t = sum_n phi(q_t).phi(k_n),   eps = 1e-8.

    In this form, phi overflows in float16, and y becomes 0 / 0 if phi underflows. Written with logarithms, y
    consists of two softmaxes: over the tokens for every feature, and over the features for every token. Then y is a
    convex combination of the v_n at any magnitude of q and k:

        y_t = sigmoid(log D_t - log eps) * sum_i softmax_i(log phi_i(q_t) + L_i) sum_n softmax_n(log phi_i(k_n)) v_n,
        L_i = logsumexp_n log phi_i(k_n),   log D_t = logsumexp_i(log phi_i(q_t) + L_i).

    Args:
        dim: width of the incoming tokens.
        token_dim: E, width of the outgoing tokens.
        kernel_ratio: m / E.
        drop: dropout after the projection and in the MLP; the official code has 0.1 always on in training.
    """

    EPSILON = 1e-8

    def __init__(self, dim: int, token_dim: int, kernel_ratio: float = 0.5, drop: float = 0.1) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, epsilon=1e-5)
        self.kqv = Linear(dim, 3 * token_dim)
        self.proj = Linear(token_dim, token_dim)
        self.dp = Dropout(drop)
        self.norm2 = LayerNorm(token_dim, epsilon=1e-5)
        self.mlp = nn.Sequential(Linear(token_dim, token_dim), nn.GELU(), Linear(token_dim, token_dim), Dropout(drop))
        num_features = int(token_dim * kernel_ratio)
        if num_features < 1:
            raise ValueError(f"the token width {token_dim} leaves no random features: it must be 2 or more")
        self.w = self.create_parameter(
            [num_features, token_dim],
            attr=paddle.ParamAttr(trainable=False),
            default_initializer=Orthogonal(gain=math.sqrt(num_features)),
        )

    def attend(self, k: paddle.Tensor, q: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
        """Compute performer attention in at least float32: three (B, N, E) -> (B, N, E) in the type of v."""
        # Without autocast: in float16, w.x would add an error of 0.2 to the exponent at |x| = 100.
        with paddle.amp.auto_cast(enable=False):
            over_features, over_tokens = self.factors(k, q)
            y = paddle.matmul(over_features, paddle.matmul(over_tokens, _at_least_float32(v)))
            return y.astype(v.dtype)

    def factors(self, k: paddle.Tensor, q: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return two factors (B, N, m) and (B, m, N). Their product is the attention, which `attend` never computes."""
        k, q, w = (_at_least_float32(t) for t in (k, q, self.w))
        log_k = _log_features(k, w).transpose([0, 2, 1])  # (B, m, N)
        over_tokens, log_sum = softmax_and_logsumexp(log_k)  # (B, m, N), (B, m, 1)
        log_q = add_to_each(_log_features(q, w), log_sum.transpose([0, 2, 1]))  # (B, N, m)
        over_features, log_total = softmax_and_logsumexp(log_q)  # (B, N, m), (B, N, 1)
        weight = F.sigmoid(log_total - math.log(w.shape[0] * self.EPSILON))  # D / (D + eps); D = e^total / m
        return over_features * weight, over_tokens

    def attention_rows(self, x: paddle.Tensor, queries: paddle.Tensor) -> paddle.Tensor:
        """Return the attention rows of Q tokens: (B, N, dim), [Q positions] -> (B, Q, N).

        Each row sums to D / (D + eps).
        """
        k, q, _ = split(self.kqv(self.norm1(x)), 3)  # each (B, N, E)
        over_features, over_tokens = self.factors(k, q)
        return paddle.matmul(over_features.index_select(queries, axis=1), over_tokens)

    def token_products(self, N: int) -> list[tuple[int, int, int, int]]:
        """List the matrix products with N tokens, w k and w q, k v, q (k v), as (count, rows, inner, columns)."""
        m, E = self.w.shape
        return [(2, N, E, m), (1, m, N, E), (1, N, m, E)]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        k, q, v = split(self.kqv(self.norm1(x)), 3)  # each (B, N, E)
        # The input is wider than E, so the skip connection starts from v (paper, section 3.1).
        x = v + self.dp(self.proj(self.attend(k, q, v)))
        return x + self.mlp(self.norm2(x))


def _at_least_float32(x):
    return x.astype("float32") if x.dtype in (paddle.float16, paddle.bfloat16) else x


def _log_features(x, w):
    """Return log phi(x) + log(m) / 2: (B, N, E), (m, E) -> (B, N, m)."""
    with tf32.FORBIDDEN:  # TF32 is as coarse as float16 (10 bits): see TokenPerformer.attend
        product = paddle.matmul(x, w, transpose_y=True)
    return product - 0.5 * x.square().sum(axis=-1, keepdim=True)


class TokenAttention(nn.Layer):
    """Single-head attention that narrows its tokens: (B, N, dim) -> (B, N, E)."""

    def __init__(self, dim, token_dim):
        super().__init__()
        # The official token_transformer.py scales by the input width (147, 576), not by token_dim as usual; kept.
        self.scale = dim**-0.5
        self.qkv = Linear(dim, 3 * token_dim, bias_attr=False)
        self.proj = Linear(token_dim, token_dim)

    def token_products(self, N):
        """List the matrix products between N tokens, q k and (q k) v, as (count, rows, inner, columns)."""
        E = self.proj.weight.shape[0]
        return [(1, N, E, N), (1, N, N, E)]

    def forward(self, x):
        q, k, v = split(self.qkv(x), 3)  # each (B, N, E)
        return v + self.proj(attend(q * self.scale, k, v))  # v is the skip connection


class TokenTransformer(nn.Layer):
    """One transformer layer of the T2T module: (B, N, dim) -> (B, N, E), quadratic in N."""

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, epsilon=1e-5)
        self.attn = TokenAttention(dim, token_dim)
        self.norm2 = LayerNorm(token_dim, epsilon=1e-5)
        self.mlp = Mlp(token_dim, token_dim)

    def attention_rows(self, x: paddle.Tensor, queries: paddle.Tensor) -> paddle.Tensor:
        """Return the attention rows of Q tokens: (B, N, dim), [Q positions] -> (B, Q, N)."""
        q, k, _ = split(self.attn.qkv(self.norm1(x)), 3)  # each (B, N, E)
        q = q.index_select(queries, axis=1) * self.attn.scale
        return F.softmax(paddle.matmul(q, k, transpose_y=True), axis=-1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.attn(self.norm1(x))  # (B, N, E)
        return x + self.mlp(self.norm2(x))


TOKEN_LAYERS = {"performer": TokenPerformer, "transformer": TokenTransformer}
