"""The picture `features`: the features of an image after each layer of a model."""

import argparse

import numpy as np
from yacs.config import CfgNode

from t2t_vit.explain.features import features
from t2t_vit.pictures.model import chosen_numbers, open_pictures
from t2t_vit.pictures.sheet import Cell, Heading, save_sheet, short_path, table

NOTES = (
    "tokens with similar features have similar colours:",
    "the first three principal components of the layer, over all images here",
)


def draw_features(args: argparse.Namespace, cfg: CfgNode) -> int:
    """Write the sheet. Returns the exit status: 1 if an image cannot be read.

    Raises UserError for options that do not fit the model.
    """
    opened, pictures, status = open_pictures(args, cfg)
    layers = list(zip(*(features(opened.model, picture.pixels) for picture in pictures)))
    columns = [column(layer) for layer in chosen(layers, args.block)]
    cells = [Cell(picture.image, (short_path(picture.path),)) for picture in pictures]
    heading = Heading(f"{opened.cfg.NAME}: features after each layer", NOTES)
    save_sheet([heading, *table(cells, [[row] for row in zip(*columns)])], args.sheet)
    return status


def chosen(layers, block):
    """Return the layers to draw: all before the blocks, and the blocks that --block selects.

    Args:
        layers: for each layer, (name, tokens, grid) of every image.
        block: number from 1, "all", or None for the first, middle and last.
    """
    blocks = [layer for layer in layers if layer[0][0].startswith("block ")]
    count = len(blocks)
    indices = chosen_numbers("--block", block, count, "the model's blocks") if block else {0, count // 2, count - 1}
    return layers[: len(layers) - count] + [blocks[i] for i in sorted(indices)]


def column(layer):
    """Build the column of `Cell`s for one layer, one per image."""
    name, _, (rows, columns) = layer[0]
    tokens = np.concatenate([tokens.numpy() for _, tokens, _ in layer]).astype(np.float64)  # (images, N, C)
    width = tokens.shape[2]
    colours, explained = principal_colours(tokens.reshape(-1, width))
    lines = (name, f"{rows}x{columns}, width {width}", f"variance {100 * explained:.0f}%")
    return [Cell(each, lines) for each in colours.reshape(len(layer), rows, columns, 3)]


def principal_colours(tokens):
    """Colour tokens (M, C) by their first three principal components. Returns (uint8 (M, 3), explained variance).

    The sign of a component is chosen so that its largest weight is positive. Values are clipped to percentiles 1 to 99.
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
