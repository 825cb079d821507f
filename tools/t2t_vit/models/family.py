"""What a model family consists of: a model class, its variants, and how to recognise them.

A family is one module of this room and one entry in `zoo.FAMILIES`. Training, inspection, counting and export get
everything else from the model class, a `VisionTransformer`.

Sizes: B images, T class tokens, N patches, C channels.
"""

from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

from paddle import nn

from t2t_vit.models.recording import all_tokens, outputs_of


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: of the family; its arguments are the config section MODEL.<name>, if there is one.
        model: subclass of `VisionTransformer`. Its constructor takes image_size, in_chans, num_classes, drop_rate,
            attn_drop_rate, drop_path_rate, qk_scale, and the arguments of the variants.
        variants: {name: constructor arguments}.
        traits: a variant's arguments -> what distinguishes it from the others in the shapes of its tensors.
        read_shapes: {tensor name: shape} -> (the same traits, {"num_classes", "in_chans", "image_size"}). Raises
            KeyError, IndexError or ValueError if the tensors are not of this family.
        fold: "module:name" of the function that makes a trained model cheaper for export (see `deploy.fold`); "" to
            export the model itself.
    """

    name: str
    model: type
    variants: dict
    traits: Callable
    read_shapes: Callable
    fold: str = ""


class Stage(NamedTuple):
    """A layer between the pixels and the first block, whose output is on a grid.

    With `attention_rows(x, queries)` it has attention: (B, N, C), [Q places] -> the queries' rows (B, Q, N).
    """

    layer: nn.Layer
    grid: tuple  # (rows, columns) of its output
    windows: list  # (kernel, stride, padding) of every step from the pixels to this grid
    input_name: str = ""  # name of its input in pictures, "" to draw none
    output_name: str = ""  # name of its output in pictures, "" to draw none


class BlockPlace(NamedTuple):
    """A block of the backbone and the grid of its patches."""

    block: nn.Layer
    grid: tuple  # (rows, columns)
    windows: list  # (kernel, stride, padding) of every step from the pixels to this grid
    pool: Optional[nn.Layer] = None  # pooling just before the block


class VisionTransformer(nn.Layer):
    """Base of the model classes: blocks over class tokens and patches.

    A subclass sets `image_size` (H, W), `in_chans`, `cls_token` (1, T, C), `pos_embed` and `head`, and defines
    `forward`, `forward_features`, `backbone`, and `stages` if layers precede its blocks.
    """

    def backbone(self):
        """List of `BlockPlace`, from the first block to the last."""
        raise NotImplementedError

    def stages(self):
        """List of `Stage`, in the order of the forward pass."""
        return []

    def fit_pos_embed(self, table, recompute=False):  # noqa: ARG002
        """A position embedding for another image size fitted to this model, and what was done, in words.

        Raises ValueError if that is not possible.
        """
        raise ValueError(f"the position embedding of a {type(self).__name__} cannot be resized")

    def forward_intermediates(self, x):
        """Tokens after each block, class tokens first: (B, Cin, H, W) -> list of (B, T + N, C)."""
        blocks = [place.block for place in self.backbone()]
        with all_tokens(blocks), outputs_of(blocks) as outputs:
            self(x)
        return outputs

    def layer_index(self, name):
        """Depth of a parameter: 0 before the first block, 1 to n in the blocks, n + 1 after the last.

        A pooling counts with the block that follows it.
        """
        backbone = self.backbone()
        depths = {id(stage.layer): 0 for stage in self.stages()}
        for depth, place in enumerate(backbone, start=1):
            depths |= {id(place.block): depth, id(place.pool): depth}
        for prefix, layer in self.named_sublayers():
            if id(layer) in depths and name.startswith(f"{prefix}."):
                return depths[id(layer)]
        return 0 if name in ("cls_token", "pos_embed") else len(backbone) + 1


def count_layers(shapes, prefix):
    """N of a list of layers `prefix`0 to `prefix`(N-1), by the names of their tensors."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})
