"""A map of values laid over a picture. Needs Pillow and NumPy only."""

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


def overlay(image, values, strength=0.6):
    """A map over a picture, from its least value (dark) to its largest (light).

    Args:
        image: PIL image, of which small ones are enlarged.
        values: (rows, columns) of numbers, stretched over the whole picture; all zero or not, only their ratio counts.
        strength: 0 shows the picture alone, 1 the colours of the map.

    Returns:
        RGB PIL image of the size of `enlarged(image)`.
    """
    image = enlarged(image)
    colours = Image.fromarray(coloured(stretched(values, image.size)))
    return Image.blend(image, colours, strength)


def enlarged(image):
    """RGB PIL image; one whose shorter side is below SIDE / 2 enlarged by a whole factor, pixels staying squares."""
    factor = max(1, SIDE // min(image.size))
    size = tuple(factor * length for length in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def stretched(values, size):
    """(rows, columns) of any numbers -> float (height, width) of 0 to 1 for a picture of `size` (width, height)."""
    values = np.asarray(values, np.float64)
    values = values - values.min()
    scaled = (values / (values.max() or 1)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(scaled).resize(size, Image.Resampling.BICUBIC))
    return np.clip(smooth, 0, 1)


def coloured(values):
    """Values of 0 to 1, (H, W) -> uint8 (H, W, 3)."""
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def marked(image, place, grid):
    """A picture with a frame around the cell at `place` (row, column) of a grid (rows, columns)."""
    image = image.copy()
    (row, column), (rows, columns) = place, grid
    width, height = image.size
    box = [column * width / columns, row * height / rows, (column + 1) * width / columns, (row + 1) * height / rows]
    left, top, right, bottom = (round(edge) for edge in box)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right, bottom), outline="black", width=1)
    draw.rectangle((left - 3, top - 3, right + 2, bottom + 2), outline="white", width=2)
    return image
