"""Convert loaded images of any mode and bit depth to 8-bit RGB or grey."""

import numpy as np
from PIL import Image


def conversion_bytes(image, mode):
    """Most bytes per pixel that `to_8_bits` allocates in addition to the image."""
    if _is_plain(image, mode):
        return 0
    if image.mode == "RGBA":
        return 4
    return 8 if _is_deep(image) or _has_transparency(image) else {"L": 1, "RGB": 4}[mode]


def is_dim(image, grey_bits):
    """Whether a loaded 16-bit grey image leaves its four highest bits unused."""
    return _has_16_bits(image) and bool(0 < np.asarray(image).max() < 1 << (grey_bits - 4))


def to_8_bits(image, mode, grey_bits):
    """Convert a loaded image to mode L or RGB. Raises ValueError if its values are outside the supported range."""
    if _is_plain(image, mode):
        return image
    if _is_deep(image):
        image = _scaled(image, _white(image, grey_bits))
    if _has_transparency(image):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(image, mask=image)
        image = opaque
    return image if image.mode == mode else image.convert(mode)


def _scaled(image, white):
    """Convert a grey image of more than 8 bits to mode L."""
    if image.mode == "F":
        return Image.fromarray(np.rint(np.asarray(image) / (white / 255.0)).astype(np.uint8))
    table = np.minimum(np.rint(np.arange(1 << 16) / (white / 255.0)), 255)
    image = image.convert("I").point(table.astype(int).tolist(), "L")
    image.info = {}  # a transparent colour in it would still be a 16-bit value
    return image


def _white(image, grey_bits):
    """Return the value of white in a grey image of over 8 bits. 32-bit integers up to 255 count as 8-bit values."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # or NaN
            raise ValueError(f"its values are floats from {low:g} to {high:g}, but only 0 to 1 is supported")
        return 1.0
    if image.format == "PPM":
        return 65535  # Pillow has scaled it
    if not _has_16_bits(image) and low >= 0 and high <= 255:
        return 255
    white = 2**grey_bits - 1
    if low < 0 or high > white:
        raise ValueError(f"its values run from {low} to {high}, but DATA.GREY_BITS {grey_bits} allows 0 to {white}")
    return white


def _is_plain(image, mode):
    """Whether an image needs no conversion."""
    return image.mode == mode and "transparency" not in image.info


def _is_deep(image):
    return image.mode == "F" or image.mode.startswith("I")


def _has_16_bits(image):
    return image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")  # Pillow before 11.3


def _has_transparency(image):
    return "transparency" in image.info or image.getbands()[-1] in ("A", "a")
