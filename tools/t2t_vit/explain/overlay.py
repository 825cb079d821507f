"""A map of values laid over a picture. Needs Pillow and NumPy only."""

import math

import numpy as np
from PIL import Image, ImageDraw

SIDE = 256  # pixels, to which small pictures are enlarged

# From low to high, dark to light, as matplotlib's inferno.
_COLOURS = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ]
)  # fmt: skip


def overlay(image, values, strength=0.6, box=None):
    """A map over a picture, from its smallest value (dark) to its largest (light).

    Args:
        image: PIL image; a small one is enlarged.
        values: (rows, columns) of numbers.
        strength: 0 shows the picture alone, 1 the colours of the map.
        box: (left, top, right, bottom) of the map in pixels of `image`. It may extend beyond the image; outside the
            box, the values at its edge continue. None: the whole picture.

    Returns:
        RGB PIL image of the size of `enlarged(image)`.
    """
    large = enlarged(image)
    box = box and scaled(box, large.width / image.width)
    return Image.blend(large, Image.fromarray(coloured(stretched(values, large.size, box))), strength)


def enlarged(image):
    """RGB PIL image, enlarged by a whole factor (without interpolation) if its shorter side is below SIDE / 2."""
    factor = max(1, SIDE // min(image.size))
    size = tuple(factor * length for length in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def stretched(values, size, box=None):
    """(rows, columns) of numbers -> float (height, width) of 0 to 1, for a picture of `size` (width, height).

    `box` is that of `overlay`, in pixels of that picture.
    """
    values = np.asarray(values, np.float64)
    values = values - values.min()
    relative = (values / (values.max() or 1)).astype(np.float32)
    left, top, right, bottom = box or (0, 0, *size)
    width, height = (right - left) / values.shape[1], (bottom - top) / values.shape[0]  # of a cell
    # The edges of the picture, in cells from the first cell of the map.
    seen = np.array([-left / width, -top / height, (size[0] - left) / width, (size[1] - top) / height])
    beside = max(0, math.ceil(max(*-seen[:2], *(seen[2:] - values.shape[::-1])) - 1e-6))
    padded = Image.fromarray(np.pad(relative, beside, mode="edge"))
    seen = np.clip(seen + beside, 0, 2 * padded.size)  # rounding may exceed the edges
    return np.clip(np.asarray(padded.resize(size, Image.Resampling.BICUBIC, box=tuple(seen))), 0, 1)


def coloured(values):
    """Values of 0 to 1, (H, W) -> uint8 (H, W, 3)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def cell(box, grid, place):
    """Box (left, top, right, bottom) of the cell at `place` (row, column) of a grid (rows, columns) over `box`."""
    (left, top, right, bottom), (rows, columns), (row, column) = box, grid, place
    width, height = (right - left) / columns, (bottom - top) / rows
    return left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height


def scaled(box, factor):
    return tuple(factor * edge for edge in box)


def marked(image, box):
    """A picture with a frame around `box` (left, top, right, bottom)."""
    image = image.copy()
    left, top, right, bottom = (round(edge) for edge in box)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right, bottom), outline="black", width=1)
    draw.rectangle((left - 3, top - 3, right + 2, bottom + 2), outline="white", width=2)
    return image
