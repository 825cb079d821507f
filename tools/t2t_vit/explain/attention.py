"""Where a model looks: attention maps, rollout, and gradients of a class with respect to the attention.

The maps are recorded from the model's own forward pass.

Sizes: B images, h heads, T class tokens (2 for a distilled PiT, else 1), N tokens (class tokens first), K classes.
"""

from collections.abc import Sequence
from typing import Any

import paddle
import paddle.nn.functional as F

from t2t_vit.explain.overlay import Box
from t2t_vit.models.family import Stage, VisionTransformer
from t2t_vit.models.recording import frozen, inputs_of, not_fused, outputs_of


def token_box(model: VisionTransformer, block: int = -1) -> Box:
    """Return the `grid_box` of the patch tokens of a block (counted from 0)."""
    place = model.backbone()[block]
    return grid_box(place.windows, place.grid)


def grid_box(windows: Sequence[tuple[int, int, int]], grid: tuple[int, int]) -> Box:
    """Return the box of a token grid (rows, columns): (left, top, right, bottom) in pixels, possibly beyond the image.

    Each cell is centred on the receptive field of its token. `windows` lists (kernel, stride, padding) of every step
    from the pixels to the tokens.
    """
    centre, cell = 0.5, 1  # centre of the first token, distance to the next; in pixels
    for kernel, stride, padding in windows:
        centre += cell * ((kernel - 1) / 2 - padding)
        cell *= stride
    first = centre - cell / 2
    return first, first, first + grid[1] * cell, first + grid[0] * cell


def on_grid(rows: paddle.Tensor, model: VisionTransformer, block: int = -1) -> paddle.Tensor:
    """Drop the class tokens and put the patches of a block on their grid: (..., N) -> (..., H', W')."""
    grid = model.backbone()[block].grid
    return rows[..., model.num_class_tokens :].reshape([*rows.shape[:-1], *grid])


# --- Maps ---


def attention_maps(model: VisionTransformer, images: paddle.Tensor) -> list[paddle.Tensor]:
    """Return the attention of every block: (B, Cin, H, W) -> list of (B, h, N, N), whose rows sum to 1.

    Row i holds the attention weights of token i over all tokens. In a PiT, N and h differ between stages.
    """
    with paddle.no_grad():
        return trace(model, images)[1]


def trace(model: VisionTransformer, images: paddle.Tensor) -> tuple[paddle.Tensor, list, list]:
    """Run a model and record its attention and tokens.

    Gradients reach back to the tokens that enter the first block.

    Returns:
        logits (B, K), list of the attention of each block (B, h, N, N), list of the tokens (B, N, C) before the first
        block and after each.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("attention is recorded in eval mode: call model.eval() first")
    blocks = [place.block for place in model.backbone()]
    entering = []

    def start_gradients(_, inputs):
        tokens = inputs[0].detach()
        tokens.stop_gradient = False
        entering.append(tokens)
        return (tokens, *inputs[1:])

    handle = blocks[0].register_forward_pre_hook(start_gradients)
    try:
        with not_fused(blocks), outputs_of(blocks) as tokens, outputs_of([b.attn.attn_drop for b in blocks]) as maps:
            logits = model.forward_head(model.forward_features(images))
    finally:
        handle.remove()
    return logits, maps, entering + tokens


# --- Through the blocks ---


def rollout(maps: list, model: VisionTransformer, token: int = 0) -> paddle.Tensor:
    """Attention rollout (Abnar and Zuidema, 2020): the weight of each input patch in a token after the last block.

    It multiplies (A + I) / 2 of every block, where A is the mean attention of the heads, and the `pool_weights` of
    every pooling of a PiT. The result is on the grid of the first block.

    Args:
        maps: result of `attention_maps`, or its first entries.
        token: index of the token: 0 for the class token, 1 for the distillation token.

    Returns:
        (B, H', W'), which sums to 1 together with the weights of the class tokens.
    """
    halves = [(attention.mean(axis=1) + paddle.eye(attention.shape[-1])) / 2 for attention in maps]
    return _through_blocks(halves, model, token)


def gradient_maps(
    model: VisionTransformer, images: paddle.Tensor, class_ids: Any = None, token: int = 0
) -> paddle.Tensor:
    """Return the relevance of each patch to a class: (B, Cin, H, W) -> (B, H', W'). See `relevance`.

    Args:
        class_ids: one id for all images, or one per image; None for the predicted classes.
    """
    _, maps, gradients = attention_gradients(model, images, class_ids)
    return relevance(maps, gradients, model, token)


def relevance(maps: list, gradients: list, model: VisionTransformer, token: int = 0) -> paddle.Tensor:
    """Gradient-weighted attention (Chefer et al., 2021, arXiv:2103.15679, section 3.1): (B, H', W').

    It multiplies I + the mean over heads of max(gradient * attention, 0) of every block. Poolings are as in `rollout`.
    """
    weighted = [F.relu(gradient * attention).mean(axis=1) for gradient, attention in zip(gradients, maps)]
    return _through_blocks([each + paddle.eye(each.shape[-1]) for each in weighted], model, token)


@paddle.enable_grad()
def attention_gradients(
    model: VisionTransformer, images: paddle.Tensor, class_ids: Any = None
) -> tuple[paddle.Tensor, list, list]:
    """Return logits (B, K), the attention of each block, and the gradients of the class logit: lists of (B, h, N, N).

    Raises:
        ValueError: a class id is out of range.
    """
    # If parameters need gradients too, paddle.grad fails or is wrong for some layers (2.6.2 to 3.3.1).
    with frozen(model):
        logits, maps, _ = trace(model, images)
    count, num_classes = logits.shape
    if class_ids is None:
        class_ids = logits.argmax(axis=-1)
    class_ids = class_ids if paddle.is_tensor(class_ids) else paddle.to_tensor(class_ids)
    class_ids = class_ids.astype("int64").reshape([-1]).expand([count])
    if int(class_ids.min()) < 0 or int(class_ids.max()) >= num_classes:
        raise ValueError(f"the classes are 0 to {num_classes - 1}, not {class_ids.tolist()}")
    # The logits of an image depend only on that image, so the gradient of the sum contains that of each image's logit.
    gradients = paddle.grad((logits * F.one_hot(class_ids, num_classes)).sum(), maps)
    return logits.detach(), [attention.detach() for attention in maps], gradients


def _through_blocks(transfers, model, token):
    """Multiply the matrices of all blocks, (B, N, N), and the `pool_weights` between them.

    Returns row `token` of the product, on the grid of the first block: (B, H', W')."""
    backbone, row = model.backbone(), transfers[-1][:, token : token + 1]  # (B, 1, N)
    for i in reversed(range(len(transfers) - 1)):
        pool = backbone[i + 1].pool
        if pool is not None:
            row = paddle.matmul(row, pool_weights(pool, backbone[i].grid, model.num_class_tokens))
        row = paddle.matmul(row, transfers[i])
    return on_grid(row[:, 0], model, block=0)


@paddle.no_grad()
def pool_weights(pool, grid, num_tokens):
    """Return the weights of a `HeadPooling`, (T + M, T + N): output tokens x input tokens. Rows sum to 1.

    Class tokens map to themselves. The weight of a patch in a pooled patch is proportional to the mean magnitude of the
    kernel over the channels. Every second row and column lies in two windows, the others in one. Therefore the weights
    of each patch are first divided by their sum; otherwise the overlap would show as a lattice in the result.
    """
    kernel = pool.conv.weight.abs().mean(axis=0, keepdim=True)  # (1, 1, k, k)
    count = grid[0] * grid[1]
    patches = paddle.eye(count).reshape([count, 1, *grid])
    weights = F.conv2d(patches, kernel, stride=pool.conv._stride, padding=pool.conv._padding).flatten(1)  # (N, M)
    sums = weights.sum(axis=1, keepdim=True)
    weights = paddle.where(sums > 0, weights / sums, paddle.zeros_like(weights))  # 0 outside all windows
    weights = paddle.concat([paddle.zeros([num_tokens, weights.shape[1]]), weights]).t()  # (M, T + N)
    class_tokens = paddle.eye(num_tokens, num_tokens + count)
    return paddle.concat([class_tokens, weights / weights.sum(axis=-1, keepdim=True)])


# --- Before the blocks ---


def attending_stages(model: VisionTransformer) -> list[Stage]:
    """List the `Stage`s before the blocks that have attention, which are the token layers of a T2T module."""
    return [stage for stage in model.stages() if hasattr(stage.layer, "attention_rows")]


@paddle.no_grad()
def token_maps(
    model: VisionTransformer, images: paddle.Tensor, stage: int, queries: Sequence[int]
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Attention of chosen tokens in one of `attending_stages`: (B, Cin, H, W) -> logits (B, K), maps (B, Q, h, w).

    Args:
        stage: index of the stage, from 0.
        queries: Q positions, row * w + column on the grid of the stage.
    """
    layer, grid, *_ = attending_stages(model)[stage]
    with inputs_of([layer]) as inputs:
        logits = model(images)
    rows = layer.attention_rows(inputs[0], paddle.to_tensor(queries, dtype="int64"))
    return logits, rows.reshape([*rows.shape[:2], *grid])
