"""T2T-ViT and PiT in plain PyTorch, and their inference and training steps: what --baseline compares with.

The structure and the parameter names are those of the official code, so its weights load. Attention is PyTorch's
scaled_dot_product_attention and the update its fused AdamW, the fastest that it has on a CPU. Runs in a process without
Paddle, and imports nothing that imports it.

Sizes: B images, N tokens, C channels, h heads, E token width, m random features.
"""

import collections
import contextlib
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

from t2t_vit.bench.rounds import Timed
from t2t_vit.common.runtime import memory_mb

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride and padding of the soft splits

_timed: Timed  # what this process times


# --- Layers ---


class Attention(nn.Module):
    """Self-attention, (B, N, C) -> (B, N, C)."""

    def __init__(self, dim, heads, qkv_bias, scale, attn_drop, drop):
        super().__init__()
        self.heads, self.scale, self.attn_drop, self.drop = heads, scale, attn_drop, drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, h, N, C/h)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return F.dropout(self.proj(x.transpose(1, 2).reshape(B, N, C)), self.drop, self.training)


class Mlp(nn.Module):
    def __init__(self, dim, hidden, drop=0.0):
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(dim, hidden), nn.Linear(hidden, dim), drop

    def forward(self, x):
        x = F.dropout(F.gelu(self.fc1(x)), self.drop, self.training)
        return F.dropout(self.fc2(x), self.drop, self.training)


class Block(nn.Module):
    """Pre-norm transformer block, (B, N, C) -> (B, N, C)."""

    def __init__(self, dim, heads, mlp_ratio, drop_path, eps, qkv_bias, qk_scale, attn_drop, drop):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, heads, qkv_bias, qk_scale, attn_drop, drop)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.rate = drop_path

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def drop_path(self, x):
        if not (self.training and self.rate):
            return x
        return x * (torch.rand(len(x), 1, 1) >= self.rate) / (1 - self.rate)


class TokenPerformer(nn.Module):
    """Performer layer of the T2T module, (B, N, dim) -> (B, N, E)."""

    def __init__(self, dim, width, drop=0.1):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.kqv, self.proj, self.dp = nn.Linear(dim, 3 * width), nn.Linear(width, width), nn.Dropout(drop)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(drop))
        features = width // 2
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(features, width)) * features**0.5, requires_grad=False)

    def features(self, x):
        exponent = x @ self.w.T - x.square().sum(-1, keepdim=True) / 2  # (B, N, m)
        return exponent.exp() / math.sqrt(len(self.w))

    def forward(self, x):
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # each (B, N, E)
        k, q = self.features(k), self.features(q)  # (B, N, m)
        total = q @ k.sum(1).unsqueeze(2)  # (B, N, 1)
        y = v + self.dp(self.proj(q @ (k.transpose(1, 2) @ v) / (total + 1e-8)))
        return y + self.mlp(self.norm2(y))


class TokenAttention(nn.Module):
    """Attention with one head that narrows its tokens, (B, N, dim) -> (B, N, E)."""

    def __init__(self, dim, width):
        super().__init__()
        self.scale = dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, dim=-1))  # each (B, 1, N, E)
        return (v + self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale))).squeeze(1)


class TokenTransformer(nn.Module):
    """Transformer layer of the T2T module, (B, N, dim) -> (B, N, E)."""

    def __init__(self, dim, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.attn, self.mlp = TokenAttention(dim, width), Mlp(width, width)

    def forward(self, x):
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# --- Models ---


class T2TModule(nn.Module):
    """Soft splits with token layers between them, (B, Cin, H, W) -> (B, N, C)."""

    def __init__(self, image_size, in_chans, embed_dim, tokens_type, token_dim, splits):
        super().__init__()
        layer = {"performer": TokenPerformer, "transformer": TokenTransformer}[tokens_type]
        self.splits, self.grids, side, width = splits, [], image_size, in_chans
        for i, (kernel, stride, padding) in enumerate(splits, start=1):
            side = (side + 2 * padding - kernel) // stride + 1
            self.grids.append(side)
            if i < len(splits):
                self.add_module(f"attention{i}", layer(width * kernel**2, token_dim))
                width = token_dim
        self.project = nn.Linear(width * splits[-1][0] ** 2, embed_dim)

    def forward(self, x):
        for i, (split, side) in enumerate(zip(self.splits, self.grids), start=1):
            x = F.unfold(x, split[0], stride=split[1], padding=split[2]).transpose(1, 2)  # (B, N, Cin*k*k)
            if i < len(self.splits):
                x = getattr(self, f"attention{i}")(x).transpose(1, 2).unflatten(2, (side, side))  # (B, E, h, w)
        return self.project(x)


class T2T(nn.Module):
    """T2T-ViT with plain blocks."""

    def __init__(
        self, *, image_size, in_chans, num_classes, embed_dim, depth, num_heads, mlp_ratio, drop, attn_drop, drop_path,
        qk_scale, block="plain", tokens_type="performer", token_dim=64, splits=SPLITS,
    ):  # fmt: skip
        super().__init__()
        assert block == "plain"
        self.tokens_to_token = T2TModule(image_size, in_chans, embed_dim, tokens_type, token_dim, splits)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        tokens = self.tokens_to_token.grids[-1] ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, embed_dim), requires_grad=False)
        self.pos_drop = nn.Dropout(drop)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        options = (1e-5, False, qk_scale, attn_drop, drop)
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio, rate, *options) for rate in rates))
        self.norm, self.head = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes)

    def forward(self, x):
        x = self.tokens_to_token(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(self.pos_drop(x)))[:, 0])


class PIT(nn.Module):
    """PiT; the logits of a distilled one are the mean of both heads."""

    def __init__(
        self, *, image_size, in_chans, num_classes, patch_size, stride, base_dims, depth, heads, distilled, drop,
        attn_drop, drop_path, qk_scale, mlp_ratio=4.0,
    ):  # fmt: skip
        super().__init__()
        dims = [base * count for base, count in zip(base_dims, heads)]
        side = (image_size - patch_size) // stride + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, dims[0], side, side))
        self.patch_embed = nn.ModuleDict({"conv": nn.Conv2d(in_chans, dims[0], patch_size, stride)})
        self.cls_token = nn.Parameter(torch.zeros(1, 2 if distilled else 1, dims[0]))
        self.pos_drop = nn.Dropout(drop)
        rates = iter([drop_path * i / sum(depth) for i in range(sum(depth))])
        options = (1e-6, True, qk_scale, attn_drop, drop)
        self.transformers = nn.ModuleList(
            nn.ModuleDict(
                {"blocks": nn.Sequential(*(Block(dim, h, mlp_ratio, next(rates), *options) for _ in range(count)))}
            )
            for dim, h, count in zip(dims, heads, depth)
        )
        self.pools = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv2d(dim, wider, 3, 2, 1, groups=dim), "fc": nn.Linear(dim, wider)})
            for dim, wider in zip(dims, dims[1:])
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], 1e-6), nn.Linear(dims[-1], num_classes)
        self.head_dist = nn.Linear(dims[-1], num_classes) if distilled else None

    def forward(self, x):
        x = self.pos_drop(self.patch_embed["conv"](x) + self.pos_embed)  # (B, C, h, w)
        first = self.cls_token.expand(len(x), -1, -1)  # class tokens
        for i, transformer in enumerate(self.transformers):
            grid, T = x.shape[2:], first.shape[1]
            tokens = transformer["blocks"](torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1))  # (B, T + h*w, C)
            first = tokens[:, :T]
            if i < len(self.pools):
                x = self.pools[i]["conv"](tokens[:, T:].transpose(1, 2).unflatten(2, grid))
                first = self.pools[i]["fc"](first)
        first = self.norm(first)
        logits = self.head(first[:, 0])
        return (logits + self.head_dist(first[:, 1])) / 2 if self.head_dist else logits


MODELS = {"T2T": T2T, "PIT": PIT}


# --- What is timed ---


class Steps:
    """Training steps on one batch: forward pass, cross-entropy with soft labels, gradients, AdamW."""

    def __init__(self, model, images, autocast):
        self.model, self.images, self.autocast = model.train(), images, autocast
        self.targets = torch.rand(len(images), model.head.out_features).softmax(dim=1)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self.laps = collections.defaultdict(float)

    def __call__(self):
        start = time.perf_counter()
        with self.autocast():
            logits = self.model(self.images)
        F.cross_entropy(logits.float(), self.targets).backward()
        middle = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.laps["forward and backward"] += middle - start
        self.laps["update"] += time.perf_counter() - middle


def build(family, arguments, batch_size, is_training, precision):
    """Build what this process times. Returns the peak MB of the process, minus the memory used before."""
    global _timed
    before, _ = memory_mb()
    model = MODELS[family](**arguments)
    images = torch.randn(batch_size, arguments["in_chans"], arguments["image_size"], arguments["image_size"])
    is_low = precision == "bf16"
    autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if is_low else contextlib.nullcontext
    _timed = Timed(Steps(model, images, autocast) if is_training else _inference(model.eval(), images, autocast))
    return memory_mb()[1] - before


def time_round():
    """Time one round. Returns {"seconds": per batch, and those of the parts of a step}."""
    return _timed.round()


def _inference(model, images, autocast):
    def run():
        with torch.inference_mode(), autocast():
            model(images)

    return run
