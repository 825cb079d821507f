"""A model family: a model class, its variants, and how to recognise them in weights.

A family is one module of this package and one entry in `zoo.FAMILIES`. Training, inspection, counting and export use
only the interface of its model class, a `VisionTransformer`.

Sizes: B images, T class tokens, N patches, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, NamedTuple

import paddle
from paddle import nn

from t2t_vit.models.recording import all_tokens, outputs_of


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
    """Base class of the models: blocks over class tokens and patches.

    A subclass sets `image_size` (H, W), `in_chans`, `cls_token` (1, T, C), `pos_embed` and `head`, and defines
    `forward`, `forward_features`, `backbone`, and `stages` if layers precede its blocks.
    """

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

    def forward_intermediates(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """Return the tokens after each block, class tokens first: (B, Cin, H, W) -> list of (B, T + N, C)."""
        blocks = [place.block for place in self.backbone()]
        with all_tokens(blocks), outputs_of(blocks) as outputs:
            self(x)
        return outputs

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


def count_layers(shapes, prefix):
    """Count the layers whose tensors are named `prefix`0.*, `prefix`1.* and so on."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})
