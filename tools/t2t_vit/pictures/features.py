"""The picture `features`: what the layers of a model make of images."""

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.explain.features import features
from t2t_vit.explain.overlay import coloured, enlarged
from t2t_vit.pictures.attention import short_path
from t2t_vit.pictures.model import OVERLAY_TILE, open_pictures
from t2t_vit.pictures.sheet import Cell, Heading, lines_of, paired, save_sheet

NOTES = {
    "pca": (
        "each token coloured by the first three principal components of its layer, over all images of the sheet: "
        "tokens that are alike to the layer have the same colour",
        "rows x columns of tokens, width of each, variance explained by the three components",
    ),
    "norm": ("the norm of each token",),
    "mean": ("the mean of each token's values",),
}
for _show in ("norm", "mean"):
    NOTES[_show] += (
        "from the smallest of the layer on the sheet (dark) to the largest (light)",
        "rows x columns of tokens, width of each, smallest and largest value",
    )


def draw_features(args, cfg):
    """Write the sheet that the options describe. Returns 1 if an image cannot be read.

    Raises UserError for options that do not fit the model.
    """
    opened, pictures, status = open_pictures(args, cfg)
    layers = list(zip(*(features(opened.model, picture.pixels) for picture in pictures)))
    columns = [column(layer, args.show) for layer in chosen(layers, args.block)]
    lines = []
    for picture, row in zip(pictures, zip(*columns)):
        lines += lines_of(Cell(enlarged(picture.image), (short_path(picture.path),)), [row])
    heading = Heading(f"{opened.cfg.NAME}: what its layers make of an image", NOTES[args.show])
    save_sheet([heading, *paired(lines)], args.sheet, OVERLAY_TILE)
    return status


def chosen(layers, block):
    """The layers to draw: all before the blocks, and the blocks that --block chooses.

    Args:
        layers: for each layer, the (name, tokens, grid) of every image.
        block: number from 1, "all", or None for the first, middle and last.

    Raises UserError for a block that does not exist.
    """
    blocks = [layer for layer in layers if layer[0][0].startswith("block ")]
    before = layers[: len(layers) - len(blocks)]
    if block == "all":
        return layers
    if block and block > len(blocks):
        raise UserError(f"--block is {block} but the model's blocks are 1 to {len(blocks)}")
    indices = [block - 1] if block else sorted({0, len(blocks) // 2, len(blocks) - 1})
    return before + [blocks[i] for i in indices]


def column(layer, show):
    """The `Cell` of every image for one layer, with uint8 (rows, columns, 3)."""
    name, _, (rows, columns) = layer[0]
    tokens = np.concatenate([tokens.numpy() for _, tokens, _ in layer]).astype(np.float64)  # (images, N, C)
    if show == "pca":
        colours, explained = principal_colours(tokens.reshape(-1, tokens.shape[2]))
        caption = f"{100 * explained:.0f} %"
    else:
        values = np.linalg.norm(tokens, axis=-1) if show == "norm" else tokens.mean(axis=-1)
        caption = f"{values.min():.2g} to {values.max():.2g}"
        colours = coloured((values - values.min()) / ((values.max() - values.min()) or 1))
    lines = (name, f"{rows}x{columns} of {tokens.shape[2]}, {caption}")
    return [Cell(each, lines) for each in colours.reshape(len(layer), rows, columns, 3)]


def principal_colours(tokens):
    """The first three principal components of tokens (M, C) as colours, uint8 (M, 3), and the variance they explain.

    The largest weight of each component is made positive. The values are clipped to their percentiles 1 to 99.
    """
    centred = tokens - tokens.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # in ascending order
    directions = directions[:, ::-1][:, :3]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    values = centred @ directions
    low, high = np.percentile(values, (1, 99), axis=0)
    colours = np.zeros((len(tokens), 3))
    colours[:, : values.shape[1]] = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.rint(255 * colours).astype(np.uint8), variances[::-1][:3].sum() / (variances.sum() or 1)
