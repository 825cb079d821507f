"""Lay a map of values over a picture. Needs only Pillow and NumPy."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SIDE = 256  # small pictures are enlarged to about this many pixels
STRENGTH = 0.6  # opacity of the map: 0 shows only the picture, 1 only the map
Box = tuple[float, float, float, float]  # left, top, right, bottom; in pixels

# Colours from low (dark) to high (light) values, as in matplotlib's inferno.
_COLOURS = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ]
)  # fmt: skip


def overlay(image: Image.Image, values: np.ndarray, box: Box | None = None, mark: Box | None = None) -> Image.Image:
    """Lay a map over a picture, each value as a cell. Colours run from the smallest (dark) to the largest (light).

    Args:
        image: PIL image; a small one is enlarged.
        values: (rows, columns) of numbers.
        box: (left, top, right, bottom) of the map in pixels of `image`, possibly beyond the image. Outside the box, the
            nearest cell continues. None: the whole picture.
        mark: box of a frame to draw, in pixels of `image`.

    Returns:
        RGB PIL image of the size of `enlarged(image)`.
    """
    large = enlarged(image)
    factor = large.width / image.width
    edges = [factor * edge for edge in box or (0, 0, *image.size)]
    relative = stretched(values, large.size, edges)
    drawn = Image.blend(large, Image.fromarray(coloured(relative)), STRENGTH)
    if mark:
        left, top, right, bottom = (round(factor * edge) for edge in mark)
        draw = ImageDraw.Draw(drawn)
        draw.rectangle((left - 1, top - 1, right, bottom), outline="black", width=1)
        draw.rectangle((left - 3, top - 3, right + 2, bottom + 2), outline="white", width=2)
    return drawn


def enlarged(image: Image.Image) -> Image.Image:
    """Convert to RGB, and enlarge by an integer factor, without interpolation, if a side is at most SIDE / 2."""
    factor = max(1, SIDE // min(image.size))
    size = tuple(factor * length for length in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def stretched(values, size, box):
    """Scale the values to 0..1, and repeat each in its cell of a `box` of a picture of `size` (width, height).

    Returns float (height, width). Values between the cells would suggest more detail than the tokens have.
    """
    values = np.asarray(values, np.float64)
    values = values - values.min()
    cells = []  # for each axis, the cell of every pixel
    for start, end, length, count in zip(box[:2], box[2:], size, values.shape[::-1]):
        places = (np.arange(length) + 0.5 - start) * count / (end - start)
        cells.append(places.clip(0, count - 1).astype(int))
    return (values / (values.max() or 1))[np.ix_(*cells[::-1])]


def coloured(values: np.ndarray) -> np.ndarray:
    """Colour values from 0 to 1: (H, W) -> uint8 (H, W, 3)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def cell(box: Box, grid: tuple[int, int], place: tuple[int, int]) -> Box:
    """Return the box of the cell at `place` (row, column), where a grid (rows, columns) covers `box`."""
    (left, top, right, bottom), (rows, columns), (row, column) = box, grid, place
    width, height = (right - left) / columns, (bottom - top) / rows
    return left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height
