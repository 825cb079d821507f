"""The soft splits of the T2T module (Yuan et al., ICCV 2021, arXiv:2101.11986, section 3.1), or what replaces them.

Parameter names are those of the official code (yitu-opensource/T2T-ViT, models/t2t_vit.py, T2T_module).

Sizes: B images, Cin channels, H x W pixels, N tokens, C embedding width, E token width (64).
"""

import math

import paddle.nn.functional as F
from paddle import nn

from t2t_vit.models.family import Stage
from t2t_vit.models.layers import Linear, as_tokens, init_from_fan_in
from t2t_vit.models.recompute import recomputed
from t2t_vit.models.token_layers import TOKEN_LAYERS, TokenPerformer

# Kernel, stride and padding of each soft split.
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))

TOKENS_TYPES = (*TOKEN_LAYERS, "convolution", "patch")


def split_grids(image_size, splits):
    """(height, width) of the token grid after each soft split of an (H, W) image.

    Raises ValueError if the image is too small for a split.
    """
    grids, size = [], tuple(image_size)
    for kernel, stride, padding in splits:
        size = tuple((length + 2 * padding - kernel) // stride + 1 for length in size)
        if min(size) < 1:
            raise ValueError(
                f"an image of {image_size[0]}x{image_size[1]} pixels is too small for the soft splits {splits}"
            )
        grids.append(size)
    return grids


class T2TModule(nn.Layer):
    """Tokens-to-Token module (paper, section 3.1): soft splits with token layers between them.

    (B, Cin, H, W) -> (B, N, C), N = product of `self.grids[-1]`. Two token types are ablations of the paper (table 7)
    without token layers: "convolution" replaces the soft splits by convolutions of the same geometry, "patch" by one
    convolution, the patch embedding of a ViT. Its patches are as far apart as the tokens of the splits together, 16
    pixels for the variants, and do not overlap. A single split is used as it is.
    """

    recompute = False  # see recompute_activations

    def __init__(self, image_size, in_chans, embed_dim, tokens_type, token_dim, splits):
        super().__init__()
        if tokens_type not in TOKENS_TYPES:
            raise ValueError(f"unknown token type {tokens_type!r}: choose one of {', '.join(TOKENS_TYPES)}")
        if len(image_size) != 2:
            raise ValueError(f"image_size is {image_size}: give one number or (height, width)")
        self.splits = [tuple(split) for split in splits]
        if not splits or any(len(split) != 3 or min(split[:2]) < 1 or split[2] < 0 for split in self.splits):
            raise ValueError(f"splits is {splits}: give (kernel, stride, padding) of each, kernel and stride 1 or more")
        if tokens_type == "patch" and len(splits) > 1:
            side = math.prod(stride for _, stride, _ in splits)
            self.splits = [(side, side, 0)]
        if tokens_type != "patch" and len(splits) < 2:
            raise ValueError(f"one soft split, {self.splits[0]}, needs tokens_type patch, not {tokens_type}")
        self.grids = split_grids(image_size, self.splits)
        self.is_convolutional = tokens_type in ("convolution", "patch")
        if self.is_convolutional:
            self._add_convolutions(in_chans, token_dim, embed_dim)
            return
        width = in_chans
        for i, (kernel, _, _) in enumerate(self.splits[:-1], start=1):
            self.add_sublayer(f"attention{i}", TOKEN_LAYERS[tokens_type](width * kernel**2, token_dim))
            width = token_dim
        self.project = Linear(width * self.splits[-1][0] ** 2, embed_dim)

    def _add_convolutions(self, in_chans, token_dim, embed_dim):
        widths = [in_chans] + [token_dim] * (len(self.splits) - 1)
        for i, (split, width) in enumerate(zip(self.splits[:-1], widths)):
            init_from_fan_in(self.add_sublayer(f"soft_split{i}", nn.Conv2D(width, token_dim, *split)))
        self.project = nn.Conv2D(widths[-1], embed_dim, *self.splits[-1])
        init_from_fan_in(self.project)

    @property
    def token_layers(self):
        """The token layers, or all convolutions if the module is convolutional."""
        splits = range(len(self.splits) - 1)
        if self.is_convolutional:
            return [*(getattr(self, f"soft_split{i}") for i in splits), self.project]
        return [getattr(self, f"attention{i + 1}") for i in splits]

    def stages(self):
        """List the `Stage`s of the module. The last one makes the patches of the backbone."""
        places = [(self.grids[i], self.splits[: i + 1]) for i in range(len(self.splits))]
        if self.is_convolutional:
            names = [f"convolution {i + 1}" for i in range(len(places))] if len(places) > 1 else [""]
            of_layers = zip(self.token_layers, places, names)
            return [Stage(layer, *place, output_name=name) for layer, place, name in of_layers]
        kind = "performer" if isinstance(self.token_layers[0], TokenPerformer) else "transformer"
        layers = [
            Stage(layer, *place, f"soft split {i}", f"{kind} {i}")
            for i, (layer, place) in enumerate(zip(self.token_layers, places), start=1)
        ]
        return [*layers, Stage(self.project, *places[-1], f"soft split {len(places)}")]

    def forward(self, x):
        if not self.is_convolutional:
            return self._soft_split_tokens(x)
        for convolution in self.token_layers:
            x = convolution(x)  # (B, E or C, h, w)
        return as_tokens(x)  # (B, N, C)

    def _soft_split_tokens(self, x):
        # On a GPU, unfold and its gradient start one kernel per image (unfold_kernel_impl.h, 2.6.2 and 3.3.1).
        for layer, split, (height, width) in zip(self.token_layers, self.splits, self.grids):
            x = F.unfold(x, *split).transpose([0, 2, 1])  # (B, h*w, Cin*k*k)
            x = recomputed(layer, x) if self.recompute else layer(x)  # (B, h*w, E)
            x = x.transpose([0, 2, 1]).reshape([x.shape[0], x.shape[2], height, width])  # (B, E, h, w)
        x = F.unfold(x, *self.splits[-1]).transpose([0, 2, 1])  # (B, N, E*k*k)
        return self.project(x)  # (B, N, C)
