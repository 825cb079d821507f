"""A model family: a model class, its variants, and how to recognise them in weights.

A family is one module of this package and one entry in `zoo.FAMILIES`. Training, inspection, counting and export use
only the interface of its model class, a `VisionTransformer`.

Sizes: B images, T class tokens, N patches, C channels.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple

import paddle
from paddle import nn

from t2t_vit.models.layers import Linear, as_map, init_linear_and_norm
from t2t_vit.models.recompute import recomputed
from t2t_vit.models.recording import outputs_of


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: name of the family. The config section MODEL.<name>, if there is one, has its arguments.
        model: subclass of `VisionTransformer`. Its constructor takes image_size, in_chans, num_classes, drop_rate,
            attn_drop_rate, drop_path_rate, qk_scale, and the arguments of the variants.
        variants: {name: constructor arguments}.
        traits: function from the constructor arguments of a variant to a dict, its traits. Variants whose tensors have
            different shapes have different traits.
        read_shapes: function: {tensor name: shape} -> (traits, constructor arguments: "num_classes", "in_chans",
            "image_size", and those by which a model may differ from its variant and still be recognised). Raises
            KeyError, IndexError or ValueError if the tensors do not belong to this family.
        fold: "module:name" of the function that makes a trained model faster for export (see `deploy.fold`); "" if
            there is none.
    """

    name: str
    model: type
    variants: dict
    traits: Callable
    read_shapes: Callable
    fold: str = ""


class Stage(NamedTuple):
    """A layer between the pixels and the first block, whose output is on a grid.

    If the layer has attention, its method `attention_rows(x, queries)` returns the rows of the queries:
    (B, N, C), [Q positions] -> (B, Q, N).
    """

    layer: nn.Layer
    grid: tuple  # (rows, columns) of its output
    windows: list  # (kernel, stride, padding) of every step from the pixels to this grid
    input_name: str = ""  # caption of its input in `visualize.py features`; "" = not drawn
    output_name: str = ""  # caption of its output; "" = not drawn


class BlockPlace(NamedTuple):
    """A block of the backbone and the grid of its patches."""

    block: nn.Layer
    grid: tuple  # (rows, columns)
    windows: list  # (kernel, stride, padding) of every step from the pixels to this grid
    pool: nn.Layer | None = None  # pooling just before the block
    transition: nn.Layer | None = None  # layer just before the block that changes the width of each token


class VisionTransformer(nn.Layer):
    """Base class of the models: blocks over class tokens and patches, a norm, and a linear head per class token.

    A subclass sets `image_size` (H, W) and `in_chans` with `set_input`, `cls_token` (1, T, C), `pos_embed`, `norm` and,
    with `add_heads`, its heads. It defines `forward_tokens`, `backbone`, and `stages` if layers precede its blocks.
    """

    distilled = False  # whether there is a distillation token with its own head, `head_dist`
    init_layer = staticmethod(init_linear_and_norm)  # initialises one layer

    def forward_tokens(self, x: paddle.Tensor, num_queries: int | None = None) -> paddle.Tensor:
        """Return the tokens after the last block, not normalised: (B, Cin, H, W) -> (B, M, C), class tokens first.

        The last block may compute only the first M = num_queries tokens; None for all T + N.
        """
        raise NotImplementedError

    def backbone(self) -> list[BlockPlace]:
        """Return a list of `BlockPlace`, from the first block to the last."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """Return a list of `Stage`, in the order of the forward pass."""
        return []

    def fit_pos_embed(self, table: paddle.Tensor, recompute: bool = False) -> tuple[paddle.Tensor, str]:  # noqa: ARG002
        """Resize a position embedding of another image size for this model. Returns (embedding, description).

        Raises ValueError if it cannot be resized.
        """
        raise ValueError(f"the position embedding of a {type(self).__name__} cannot be resized")

    @property
    def num_class_tokens(self) -> int:
        """T: 2 with a distillation token, else 1."""
        return self.cls_token.shape[1]

    @property
    def num_features(self) -> int:
        """C: width of the tokens after the last block."""
        return self.norm.weight.shape[0]

    @property
    def heads(self) -> list[nn.Layer]:
        """The head of each class token; identities if num_classes is 0."""
        return [self.head, self.head_dist] if self.distilled else [self.head]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor | tuple[paddle.Tensor, paddle.Tensor]:
        """Return the logits (see `forward_head`): (B, Cin, H, W) -> (B, num_classes)."""
        # The heads need only the class tokens of the last block.
        return self.forward_head(self.norm(self.forward_tokens(x, num_queries=self.num_class_tokens)))

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """Return all tokens, normalised: (B, Cin, H, W) -> (B, T + N, C), class tokens first.

        Training uses only the class tokens of the last block, in all families.
        """
        return self.norm(self.forward_tokens(x))

    def forward_head(
        self, tokens: paddle.Tensor, pre_logits: bool = False
    ) -> paddle.Tensor | tuple[paddle.Tensor, paddle.Tensor]:
        """Return the logits of normalised tokens: (B, T + N, C) -> (B, num_classes). Only the class tokens are used.

        A distilled model returns (class, distillation) logits in training and their mean in evaluation. With
        `pre_logits`, or if num_classes is 0, returns the pooled features (B, C): the class token, or the mean of both.
        """
        if pre_logits or not self.num_classes:
            return (tokens[:, 0] + tokens[:, 1]) / 2 if self.distilled else tokens[:, 0]
        logits = self.head(tokens[:, 0])
        if not self.distilled:
            return logits
        distilled_logits = self.head_dist(tokens[:, 1])
        return (logits, distilled_logits) if self.training else (logits + distilled_logits) / 2

    def forward_intermediates(
        self, x: paddle.Tensor, indices: int | Sequence[int] | None = None
    ) -> list[paddle.Tensor]:
        """Return the patch tokens after blocks, on their grids: (B, Cin, H, W) -> list of (B, C, h, w), not normalised.

        In a PiT, C, h and w differ between stages.

        Args:
            indices: numbers of the blocks, from 0, negative from the end; an int n for the last n blocks; None for all.
                The maps are in the order of the blocks.

        Raises:
            ValueError: there is no such block.
        """
        places = self._chosen_places(indices)
        with outputs_of([place.block for place in places]) as outputs:
            self.forward_tokens(x)
        return [as_map(x[:, self.num_class_tokens :], place.grid) for x, place in zip(outputs, places)]

    @paddle.jit.not_to_static  # in 2.6.2, to_static cannot build a NamedTuple
    def _chosen_places(self, indices):
        backbone = self.backbone()
        return [backbone[index] for index in _block_indices(indices, len(backbone))]

    def set_input(self, image_size: int | Sequence[int], in_chans: int) -> None:
        """Set `image_size` and `in_chans`. Raises ValueError if there is no channel."""
        if in_chans < 1:
            raise ValueError(f"in_chans is {in_chans} but must be 1 or more")
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.in_chans = in_chans

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the heads by new ones. With 0 the model returns pooled features (see `forward_head`).

        Raises ValueError if num_classes is below 0.
        """
        self.add_heads(num_classes)
        for head in self.heads:
            self.init_layer(head)
            head.to(dtype=self.cls_token.dtype)
            head.training = self.training

    def add_heads(self, num_classes: int) -> None:
        """Add heads with Paddle's initialisation. The constructor of a subclass calls this after it has set `norm`."""
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes} but must be 0 or more")
        self.num_classes = num_classes
        for name in ("head", "head_dist") if self.distilled else ("head",):
            setattr(self, name, Linear(self.num_features, num_classes) if num_classes else nn.Identity())

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that have no weight decay, besides biases and 1-D parameters."""
        return {"cls_token", "pos_embed"}

    def layer_index(self, name: str) -> int:
        """Return the depth of a parameter: 0 before the first block, 1 to n in the blocks, n + 1 after the last.

        A pooling layer or a transition has the depth of the block after it.
        """
        backbone = self.backbone()
        depths = {id(stage.layer): 0 for stage in self.stages()}
        for depth, place in enumerate(backbone, start=1):
            depths |= {id(layer): depth for layer in (place.block, place.pool, place.transition)}
        for prefix, layer in self.named_sublayers():
            if id(layer) in depths and name.startswith(f"{prefix}."):
                return depths[id(layer)]
        return 0 if name in ("cls_token", "pos_embed") else len(backbone) + 1


def through_blocks(
    blocks: Sequence[nn.Layer], x: paddle.Tensor, num_queries: int | None = None, recompute: bool = False
) -> paddle.Tensor:
    """Run blocks: (B, T + N, C) -> (B, M, C). The last block computes only the first M = num_queries tokens, or all.

    With `recompute`, the backward pass recomputes the blocks, but not a last one that computes fewer tokens: the
    backward pass of the model starts there.
    """
    for block in blocks[:-1] if num_queries else blocks:
        x = recomputed(block, x) if recompute else block(x)
    return blocks[-1](x, num_queries=num_queries) if num_queries else x


def _block_indices(indices, count):
    """Return the sorted indices of blocks that timm's `indices` chooses: None, a number of last blocks, or a list."""
    if isinstance(indices, bool):
        raise ValueError(f"indices is {indices}: give the numbers of blocks, or how many of the last")
    with contextlib.suppress(TypeError):  # a list
        indices = operator.index(indices)
    if isinstance(indices, int) and not 1 <= indices <= count:
        raise ValueError(f"the model has {count} blocks, so the last {indices} cannot be chosen")
    chosen = range(count)[-indices:] if isinstance(indices, int) else range(count) if indices is None else indices
    if wrong := [index for index in chosen if not -count <= index < count]:
        raise ValueError(f"the model has blocks 0 to {count - 1} (or -{count} to -1), not {wrong[0]}")
    return sorted({index % count for index in chosen})


def count_layers(shapes, prefix):
    """Count the layers whose tensors are named `prefix`0.*, `prefix`1.* and so on."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})
