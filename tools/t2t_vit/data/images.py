"""Read image files as pixels.

Pillow is the reference. Evaluation uses nothing else; training has a faster reader beside it (crop_reader.py).
"""

from __future__ import annotations

import functools
import io
import logging
import os
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, PngImagePlugin
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.data.depth import conversion_bytes, is_dim, to_8_bits

log = logging.getLogger("t2t")
warnings.filterwarnings("ignore", module="PIL")  # warnings about palettes, large images, damaged EXIF data
# The only formats that are opened. Pillow supports more, but EPS, for one, starts Ghostscript. AVIF: Pillow >= 11.3.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MOST_BYTES = 512 << 20  # limit for a decoded image and its conversion; EXIF rotation takes twice as much
VISITORS_BYTES = 192 << 20  # the same for images of visitors of a page or server: 50 megapixels in RGB
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # allow a text of 64 MB, the limit for all texts
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PIL_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_warned = []  # holds the first image that looks too dark
# Extra bytes per pixel that a decoder allocates: whole canvases (WEBP, AVIF) or coefficients (progressive JPEG).
_DECODER_BYTES = {"WEBP": 8, "AVIF": 8, "progressive": 6}


class ImageError(UserError):
    """An image file that cannot be read."""


def reading(cfg: CfgNode, by_hand: bool = False) -> dict[str, Any]:
    """Return the keyword arguments of `load_image` and `open_picture` that the config sets.

    Args:
        by_hand: True for images that a user picks, False for a data set. DATA.EXIF auto rotates images picked by hand.
    """
    data = cfg.DATA
    is_imagenet = data.CLASSES == "imagenet1k" or os.path.basename(data.CLASSES) == "imagenet1k_classes.tsv"
    upright = data.EXIF == "upright" or data.EXIF == "auto" and (by_hand or not is_imagenet)
    return {"channels": data.CHANNELS, "upright": upright, "grey_bits": data.GREY_BITS}


# --- Pillow ---


def load_image(
    path: str | Path,
    channels: int = 3,
    upright: bool = False,
    grey_bits: int = 16,
    most_bytes: int = MOST_BYTES,
    data: bytes | None = None,
) -> Image.Image:
    """Read an image file as an 8-bit RGB (3 channels) or grey (1) PIL image.

    Transparent pixels are blended with white. Of an animation, the first frame is read.

    Args:
        path: path of the file.
        channels: 1 or 3.
        upright: whether to rotate as EXIF says. The official evaluation does not.
        grey_bits: bits that hold values in 16-bit grey images.
        most_bytes: limit for the decoded image, checked before it is decoded.
        data: contents of the file. With them, `path` is only its name in messages, and no file is opened.

    Raises:
        ImageError: naming the file and the reason.
    """
    if data is None and os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait forever
        raise ImageError(f"image {path} cannot be read: it is not a file")
    try:
        with open_image(path if data is None else io.BytesIO(data)) as image:
            picture = _read(image, path, _PIL_MODES[channels], upright, grey_bits, most_bytes)
            picture.info = {}  # otherwise saving keeps the EXIF orientation, and viewers rotate the image again
            return picture
    except FileNotFoundError:
        raise ImageError(f"image {path} {'is a broken link' if os.path.islink(path) else 'not found'}") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on broken files
        is_unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = _format_of(path, data) if is_unknown else str(error) or repr(error)
        raise ImageError(f"image {path} cannot be read: {reason}") from error


def convert_image(
    image: Image.Image, channels: int = 3, upright: bool = False, grey_bits: int = 16, most_bytes: int = MOST_BYTES
) -> Image.Image:
    """Convert a PIL image of any mode like `load_image` a file, and with its errors. `image` does not change."""
    name = getattr(image, "filename", "") or "of Pillow"
    try:
        return _read(image, name, _PIL_MODES[channels], upright, grey_bits, most_bytes)
    except Exception as error:  # as in load_image
        raise ImageError(f"image {name} cannot be read: {str(error) or repr(error)}") from error


def _read(image, path, mode, upright, grey_bits, most_bytes):
    """Decode an opened image and convert it to mode L or RGB. `path` is its name in a warning."""
    _check_size(image, mode, most_bytes)
    upright = upright and image.format != "TIFF"  # Pillow itself rotates TIFF images in load()
    image.load()
    if is_dim(image, grey_bits):
        _warn_of_dim(path, grey_bits)
    turn = _UPRIGHT.get(_orientation(image)) if upright else None
    image = to_8_bits(image, mode, grey_bits)
    return image if turn is None else image.transpose(turn)


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """`Image.open`, limited to FORMATS."""
    return Image.open(file, formats=_formats())


def stored_form(file):
    """Return (Pillow mode, whether EXIF rotates or mirrors it) of an image file."""
    with open_image(file) as image:
        return image.mode, _orientation(image) in _UPRIGHT


@functools.cache
def _formats():
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _format_of(path, data):
    """Return the reason why a file that is in none of FORMATS cannot be read. For the arguments see `load_image`."""
    with open(path, "rb") if data is None else io.BytesIO(data) as file:
        head = file.read(12)
    if head[4:11] == b"ftypavi":
        return "AVIF needs Pillow 11.3 or newer: pip install -U pillow"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "HEIC is not supported: save it as JPEG"
    return "not an image"


def _check_size(image, mode, most_bytes):
    """Raise ValueError if the opened image would take too much memory."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    decoder = _DECODER_BYTES.get("progressive" if "progressive" in image.info else image.format, 0)
    size = image.width * image.height * (stored + decoder + conversion_bytes(image, mode))
    if size > most_bytes:
        raise ValueError(
            f"{image.width}x{image.height} pixels take {size >> 20} MB decoded, the limit is {most_bytes >> 20} MB; "
            "resize it first"
        )


def _orientation(image):
    """EXIF orientation of an open image, 1 (upright) to 8."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises nearly anything on damaged EXIF data
        return 1


def _warn_of_dim(path, grey_bits):
    if not _warned:
        _warned.append(path)
        log.warning(
            "warning: %s uses at most %d of %d bits and looks nearly black; set DATA.GREY_BITS to the bits that hold "
            "values, often 12 (only the first such image is named)", path, grey_bits - 4, grey_bits
        )  # fmt: skip


# --- Pixels ---


def to_array(image):
    """PIL image of mode L or RGB -> uint8 (H, W, channels)."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def to_image(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W, 1 or 3) -> PIL image of mode L or RGB."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
