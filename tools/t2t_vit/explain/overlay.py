"""Lay a map of values over a picture. Needs only Pillow and NumPy."""

from __future__ import annotations

import math

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
    """Lay a map over a picture. Colours run from its smallest value (dark) to its largest (light).

    Args:
        image: PIL image; a small one is enlarged.
        values: (rows, columns) of numbers.
        box: (left, top, right, bottom) of the map in pixels of `image`, possibly beyond the image. Outside the box, the
            values at its edge are repeated. None: the whole picture.
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
    """Scale values to 0..1, and resize them from their `box` to a picture of `size` (width, height): float (H, W)."""
    values = np.asarray(values, np.float64)
    values = values - values.min()
    relative = (values / (values.max() or 1)).astype(np.float32)
    left, top, right, bottom = box
    width, height = (right - left) / values.shape[1], (bottom - top) / values.shape[0]  # size of a cell
    # The edges of the picture, in cells from the first cell of the map.
    seen = np.array([-left / width, -top / height, (size[0] - left) / width, (size[1] - top) / height])
    beside = max(0, math.ceil(max(*-seen[:2], *(seen[2:] - values.shape[::-1])) - 1e-6))
    padded = Image.fromarray(np.pad(relative, beside, mode="edge"))
    seen = np.clip(seen + beside, 0, 2 * padded.size)  # rounding may go beyond the edges
    return np.clip(np.asarray(padded.resize(size, Image.Resampling.BICUBIC, box=tuple(seen))), 0, 1)


def coloured(values):
    """Colour values from 0 to 1: (H, W) -> uint8 (H, W, 3)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def cell(box: Box, grid: tuple[int, int], place: tuple[int, int]) -> Box:
    """Return the box of the cell at `place` (row, column), where a grid (rows, columns) covers `box`."""
    (left, top, right, bottom), (rows, columns), (row, column) = box, grid, place
    width, height = (right - left) / columns, (bottom - top) / rows
    return left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height
