"""Loaded images of any mode and bit depth to 8-bit RGB or grey."""

import numpy as np
from PIL import Image

_STRIP = 1 << 22  # pixels that are converted at a time


def is_plain(image, mode):
    """Whether an image needs no conversion to mode L or RGB."""
    return image.mode == mode and "transparency" not in image.info


def is_dim(image, grey_bits):
    """Whether a loaded 16-bit grey image leaves its four highest bits unused."""
    return _has_16_bits(image) and bool(0 < _extrema(image)[1] < 1 << (grey_bits - 4))


def to_8_bits(image, mode, grey_bits):
    """The loaded image in mode L or RGB, converted strip by strip to save memory.

    Raises ValueError if the range of its values is unknown.
    """
    if is_plain(image, mode):
        return image
    white = _white(image, grey_bits)
    whole, top = Image.new(mode, image.size), 0
    for strip in _strips(image):
        whole.paste(_converted_strip(strip, mode, white), (0, top))
        top += strip.height
    return whole


def _converted_strip(image, mode, white):
    if white is not None:
        image = Image.fromarray(np.rint(np.asarray(image) / (white / 255.0)).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _white(image, grey_bits):
    """The value of white in a grey image of more than 8 bits; None for any other mode.

    32-bit integers up to 255 count as 8-bit values. Raises ValueError if the range is unknown.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    low, high = _extrema(image)
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # or NaN
            raise ValueError(f"its values are floats from {low:g} to {high:g}, only 0 to 1 can be read")
        return 1.0
    if image.format == "PPM":
        return 65535  # Pillow has scaled it
    if not _has_16_bits(image) and low >= 0 and high <= 255:
        return 255
    white = 2**grey_bits - 1
    if low < 0 or high > white:
        raise ValueError(f"its values run from {low} to {high}, but DATA.GREY_BITS {grey_bits} allows 0 to {white}")
    return white


def _extrema(image):
    """(smallest, largest) value of a grey image; NaN if any is."""
    ends = [(pixels.min(), pixels.max()) for pixels in map(np.asarray, _strips(image))]
    return np.min([low for low, _ in ends]), np.max([high for _, high in ends])


def _strips(image):
    """The image in strips of at most _STRIP pixels, top to bottom."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows)))


def _has_16_bits(image):
    return image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")  # Pillow before 11.3
