"""A map of values laid over a picture. Needs Pillow and NumPy only."""

import math

import numpy as np
from PIL import Image, ImageDraw

SIDE = 256  # pixels: smaller pictures are enlarged to about it

# From low to high, dark to light, as matplotlib's inferno.
_COLOURS = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ]
)  # fmt: skip


def overlay(image, values, strength=0.6, box=None):
    """A map over a picture, from its least value (dark) to its largest (light).

    Args:
        image: PIL image, of which small ones are enlarged.
        values: (rows, columns) of numbers; all zero or not, only their ratio counts.
        strength: 0 shows the picture alone, 1 the colours of the map.
        box: (left, top, right, bottom) of the map in pixels of `image`, which may reach over its edge; what is beside
            it has the value at its edge. None: the whole picture.

    Returns:
        RGB PIL image of the size of `enlarged(image)`.
    """
    large = enlarged(image)
    box = box and scaled(box, large.width / image.width)
    return Image.blend(large, Image.fromarray(coloured(stretched(values, large.size, box))), strength)


def enlarged(image):
    """RGB PIL image; one whose shorter side is below SIDE / 2 enlarged by a whole factor, pixels staying squares."""
    factor = max(1, SIDE // min(image.size))
    size = tuple(factor * length for length in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def stretched(values, size, box=None):
    """(rows, columns) of any numbers -> float (height, width) of 0 to 1 for a picture of `size` (width, height).

    For `box` see `overlay`, but in pixels of that picture.
    """
    values = np.asarray(values, np.float64)
    values = values - values.min()
    relative = (values / (values.max() or 1)).astype(np.float32)
    left, top, right, bottom = box or (0, 0, *size)
    width, height = (right - left) / values.shape[1], (bottom - top) / values.shape[0]  # of a cell
    # The picture's edges, counted in cells from the map's first.
    seen = np.array([-left / width, -top / height, (size[0] - left) / width, (size[1] - top) / height])
    beside = max(0, math.ceil(max(*-seen[:2], *(seen[2:] - values.shape[::-1])) - 1e-6))
    padded = Image.fromarray(np.pad(relative, beside, mode="edge"))
    seen = np.clip(seen + beside, 0, 2 * padded.size)  # of rounding
    return np.clip(np.asarray(padded.resize(size, Image.Resampling.BICUBIC, box=tuple(seen))), 0, 1)


def coloured(values):
    """Values of 0 to 1, (H, W) -> uint8 (H, W, 3)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def cell(box, grid, place):
    """The box of the cell at `place` (row, column) of a grid (rows, columns) over `box` (left, top, right, bottom)."""
    (left, top, right, bottom), (rows, columns), (row, column) = box, grid, place
    width, height = (right - left) / columns, (bottom - top) / rows
    return left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height


def scaled(box, factor):
    return tuple(factor * edge for edge in box)


def marked(image, box):
    """A picture with a frame around the pixels of `box` (left, top, right, bottom)."""
    image = image.copy()
    left, top, right, bottom = (round(edge) for edge in box)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right, bottom), outline="black", width=1)
    draw.rectangle((left - 3, top - 3, right + 2, bottom + 2), outline="white", width=2)
    return image
