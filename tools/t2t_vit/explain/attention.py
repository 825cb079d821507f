"""Where the attention of a model looks: its maps, rollout, and gradients of a class.

A model in eval mode is gone through step by step in Paddle's plain operations, as a forward pass keeps no attention and
leaves out what it does not need.

Sizes: B images, h heads, T class tokens (2 of a distilled PiT, else 1), N tokens (class tokens first), K classes.
"""

import paddle
import paddle.nn.functional as F

from t2t_vit.models.layers import check_images
from t2t_vit.models.t2t import T2TViT, TokenPerformer

FUSIONS = {"mean": paddle.mean, "max": paddle.max, "min": paddle.min}


def backbone(model):
    """List of (block, the pooling before it or None, (rows, columns) of its patches)."""
    if isinstance(model, T2TViT):
        return [(block, None, tuple(model.tokens_to_token.grids[-1])) for block in model.blocks]
    steps, grid = [], tuple(model.pos_embed.shape[2:])
    for stage, transformer in enumerate(model.transformers):
        grid = tuple((length + 1) // 2 for length in grid) if stage else grid
        pools = [model.pools[stage - 1] if stage else None] + [None] * len(transformer.blocks)
        steps += [(block, pool, grid) for block, pool in zip(transformer.blocks, pools)]
    return steps


def token_grid(model, block=-1):
    """(rows, columns) of the patches that a block, counted from 0, has as tokens."""
    return backbone(model)[block][2]


def token_box(model, block=-1):
    """(left, top, right, bottom) in pixels of the cells of a block's patches, each about the centre of what it sees.

    It may reach over the image's edge, or end before it.
    """
    if isinstance(model, T2TViT):
        return _box(model.tokens_to_token.splits, token_grid(model, block))
    steps, conv = backbone(model)[: block + 1 or None], model.patch_embed.conv
    windows = [(conv.weight.shape[-1], conv._stride[0], 0)]
    windows += [(3, 2, 1) for _, pool, _ in steps if pool is not None]
    return _box(windows, steps[-1][2])


def stage_box(model, stage):
    """`token_box` of the tokens of a layer of the T2T module, counted from 0."""
    module = model.tokens_to_token
    return _box(module.splits[: stage + 1], module.grids[stage])


def _box(windows, grid):
    """Box of tokens that windows (kernel, stride, padding) make one after the other."""
    centre, cell = 0.5, 1  # of the first token, in pixels; from one token to the next
    for kernel, stride, padding in windows:
        centre += cell * ((kernel - 1) / 2 - padding)
        cell *= stride
    first = centre - cell / 2
    return first, first, first + grid[1] * cell, first + grid[0] * cell


def on_grid(rows, model, block=-1):
    """Values of a block's tokens, (..., N), as those of its patches alone, (..., H', W')."""
    return rows[..., num_class_tokens(model) :].reshape([*rows.shape[:-1], *token_grid(model, block)])


def num_class_tokens(model):
    return model.cls_token.shape[1]


# --- Maps ---


def attention_maps(model, images):
    """Attention of each block of the backbone: (B, Cin, H, W) -> list of (B, h, N, N), whose rows sum to 1.

    N and h differ between the stages of a PiT. Row i is what token i takes from each token.
    """
    with paddle.no_grad():
        return trace(model, images)[1]


def trace(model, images):
    """(logits (B, K), attention (B, h, N, N) of each block, tokens (B, N, C) before the first and after each).

    Gradients reach back to the tokens that enter the first block.
    """
    check_images(images, model.in_chans, model.image_size)
    if model.training:
        raise ValueError("a model's attention is read in eval mode: call its eval() before")
    x = embedded(model, images)
    x.stop_gradient = False
    maps, tokens, grid_before = [], [x], None
    for block, pool, grid in backbone(model):
        if pool is not None:
            x = _pooled(pool, x, grid_before, num_class_tokens(model))
        x, attention = _run(block, x)
        maps.append(attention)
        tokens.append(x)
        grid_before = grid
    return _logits(model, x), maps, tokens


@paddle.no_grad()
def embedded(model, images):
    """Tokens (B, N, C) with their positions, as they enter the first block."""
    if isinstance(model, T2TViT):
        patches, positions = model.tokens_to_token(images), model.pos_embed  # (B, N - 1, C), (1, N, C)
    else:
        patches = (model.patch_embed(images) + model.pos_embed).flatten(2).transpose([0, 2, 1])  # (B, N - T, C)
        positions = 0.0
    class_tokens = model.cls_token.expand([images.shape[0], -1, -1])  # (B, T, C)
    return paddle.concat([class_tokens, patches], axis=1) + positions


def _run(block, x):
    """A `Block` of tokens (B, N, C): what it makes of them, and its attention (B, h, N, N)."""
    attn = block.attn
    qkv = attn.qkv(_normed(block.norm1, x)).reshape([x.shape[0], x.shape[1], 3, attn.num_heads, -1])
    q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)  # each (B, h, N, C/h)
    attention = F.softmax(paddle.matmul(q * attn.scale, k, transpose_y=True), axis=-1)
    x = x + attn.proj(paddle.matmul(attention, v).transpose([0, 2, 1, 3]).flatten(2))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(_normed(block.norm2, x)))), attention


def _normed(norm, x):
    """A LayerNorm; Paddle's own kernel for the CPU leaves its scale out of the gradient by x alone (2.6.2 to 3.3.1)."""
    return F.layer_norm(x, x.shape[-1:], epsilon=norm._epsilon) * norm.weight + norm.bias


def _pooled(pool, x, grid, num_tokens):
    """A `HeadPooling` of all tokens of a stage: (B, N, C) -> (B, fewer, D)."""
    patches = x[:, num_tokens:].transpose([0, 2, 1]).reshape([x.shape[0], x.shape[2], *grid])
    patches, class_tokens = pool(patches, x[:, :num_tokens])
    return paddle.concat([class_tokens, patches.flatten(2).transpose([0, 2, 1])], axis=1)


def _logits(model, x):
    tokens = _normed(model.norm, x[:, : num_class_tokens(model)])  # (B, T, C)
    logits = model.head(tokens[:, 0])
    return (logits + model.head_dist(tokens[:, 1])) / 2 if getattr(model, "distilled", False) else logits


# --- Through the blocks ---


def rollout(maps, model, heads="mean", token=0):
    """Attention rollout (Abnar and Zuidema, 2020): the share of each patch in a token after the last of the maps.

    Every block passes on A + I, with A the `heads` (mean, max or min) of its attention, the rows made to sum to 1, and
    every pooling of a PiT `pool_shares`, so that the result is on the finest grid.

    Args:
        maps: those of `attention_maps`, or of the first blocks.
        token: the place of the token: 0 the class token, 1 of a distilled PiT the distillation token.

    Returns:
        (B, H', W'), which with the shares of the class tokens sums to 1.
    """
    return _through_blocks([_with_skip(FUSIONS[heads](attention, axis=1)) for attention in maps], model, token)


def gradient_maps(model, images, class_ids=None, token=0):
    """Relevance of the patches to a class of each image: (B, Cin, H, W) -> (B, H', W'). See `relevance`.

    Args:
        class_ids: one for all images or one each; None for the predicted ones.
    """
    _, maps, gradients = attention_gradients(model, images, class_ids)
    return relevance(maps, gradients, model, token)


def relevance(maps, gradients, model, token=0):
    """Gradient-weighted attention (Chefer et al., 2021, arXiv:2103.15679, section 3.1): (B, H', W').

    Every block passes on I + the mean over heads of max(gradient * attention, 0); poolings as in `rollout`.
    """
    weighted = [F.relu(gradient * attention).mean(axis=1) for gradient, attention in zip(gradients, maps)]
    return _through_blocks([paddle.eye(each.shape[-1]) + each for each in weighted], model, token)


def attention_gradients(model, images, class_ids=None):
    """(logits (B, K), attention of each block, gradients of the class's logit by it: two lists of (B, h, N, N)).

    Raises ValueError for a class that there is not.
    """
    with paddle.enable_grad():
        logits, maps, _ = trace(model, images)
        count, num_classes = logits.shape
        if class_ids is None:
            class_ids = logits.argmax(axis=-1)
        chosen = class_ids if paddle.is_tensor(class_ids) else paddle.to_tensor(class_ids)
        chosen = chosen.astype("int64").reshape([-1]).expand([count])
        if int(chosen.min()) < 0 or int(chosen.max()) >= num_classes:
            raise ValueError(f"the classes are 0 to {num_classes - 1}, not {chosen.tolist()}")
        # Images do not meet: the gradient of the sum is that of each image's own logit.
        gradients = paddle.grad((logits * F.one_hot(chosen, num_classes)).sum(), maps)
    return logits.detach(), [attention.detach() for attention in maps], gradients


def _with_skip(attention):
    """(A + I), its rows made to sum to 1."""
    mixed = attention + paddle.eye(attention.shape[-1])
    return mixed / mixed.sum(axis=-1, keepdim=True)


def _through_blocks(transfers, model, token):
    """Row `token` of the product of what the first blocks, (B, N, N) each, and the poolings between them pass on.

    Returns it over the patches of the first block: (B, H', W').
    """
    steps = backbone(model)[: len(transfers)]
    row = paddle.eye(transfers[-1].shape[-1])[token].expand([transfers[-1].shape[0], 1, -1])  # (B, 1, N)
    for place in reversed(range(len(steps))):
        row = paddle.matmul(row, transfers[place])
        pool = steps[place][1]
        if pool is not None:
            row = paddle.matmul(row, pool_shares(pool, steps[place - 1][2], num_class_tokens(model)))
    return on_grid(row[:, 0], model, block=0)


@paddle.no_grad()
def pool_shares(pool, grid, num_tokens):
    """The share of each token before a `HeadPooling` in each after it, rows summing to 1: (T + M, T + N).

    Class tokens stay themselves. A pooled patch takes those of its window in proportion to the mean magnitude of the
    kernel over the channels. As every second row and column lies in two windows and the others in one, each patch's
    shares are divided by their sum first: otherwise the overlap would draw a lattice over all that passes through.
    """
    kernel = pool.conv.weight.abs().mean(axis=0, keepdim=True)  # (1, 1, k, k)
    count = grid[0] * grid[1]
    patches = paddle.eye(count).reshape([count, 1, *grid])
    shares = F.conv2d(patches, kernel, stride=pool.conv._stride, padding=pool.conv._padding).flatten(1)  # (N, M)
    sums, after = shares.sum(axis=1, keepdim=True), shares.shape[1]
    shares = paddle.where(sums > 0, shares / sums, paddle.zeros_like(shares))  # 0: a patch that no window takes
    shares = paddle.concat([paddle.zeros([num_tokens, after]), shares]).transpose([1, 0])  # (M, T + N)
    class_tokens = paddle.eye(num_tokens, num_tokens + count)
    return paddle.concat([class_tokens, shares / shares.sum(axis=-1, keepdim=True)])


# --- The T2T module ---


def attending_stages(module):
    """How many layers with attention a T2T module has: 0 with the token type convolution."""
    return len(module.stages) if hasattr(module, "attention1") else 0


def soft_splits(module, images):
    """Yield the tokens (B, h*w, Cin*k*k) of each soft split of a T2T module with token layers."""
    x = images
    for layer, split, grid in zip(module.stages, module.splits, module.grids):
        tokens = F.unfold(x, *split).transpose([0, 2, 1])
        yield tokens
        tokens = layer(tokens)  # (B, h*w, E)
        x = tokens.transpose([0, 2, 1]).reshape([x.shape[0], tokens.shape[2], *grid])
    yield F.unfold(x, *module.splits[-1]).transpose([0, 2, 1])


@paddle.no_grad()
def token_maps(model, images, stage, queries):
    """What chosen tokens of the T2T module take from all of a layer: (B, Cin, H, W) -> (B, Q, h, w).

    The performer's attention is the product of its two factors, of which only these Q rows are computed; they sum to
    D / (D + eps), 1 but for the performer's eps, the token transformer's to 1.

    Args:
        stage: the layer, from 0, one of `attending_stages(model.tokens_to_token)`.
        queries: places of Q tokens, row * w + column on the grid `model.tokens_to_token.grids[stage]`.
    """
    check_images(images, model.in_chans, model.image_size)
    module = model.tokens_to_token
    tokens = next(tokens for place, tokens in enumerate(soft_splits(module, images)) if place == stage)
    layer, queries = module.stages[stage], paddle.to_tensor(queries, dtype="int64")
    if isinstance(layer, TokenPerformer):
        k, q, _ = layer.kqv(layer.norm1(tokens)).split(3, axis=-1)  # each (B, N, E)
        over_features, over_tokens = layer.factors(k, q)
        rows = paddle.matmul(over_features.index_select(queries, axis=1), over_tokens)
    else:
        q, k, _ = layer.attn.qkv(layer.norm1(tokens)).split(3, axis=-1)
        q = q.index_select(queries, axis=1) * layer.attn.scale
        rows = F.softmax(paddle.matmul(q, k, transpose_y=True), axis=-1)
    return rows.reshape([*rows.shape[:2], *module.grids[stage]])
