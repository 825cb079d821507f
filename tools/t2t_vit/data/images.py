"""Read image files as pixels.

Pillow is the reference. Evaluation uses nothing else. In training, plain JPEG files go through libjpeg-turbo
(simplejpeg) and a SIMD resizer (cykooz.resizer) if both are installed. Measured on one core with 76 ImageNet files:
decoding takes 1.4 ms with simplejpeg, 1.5 with OpenCV (61 MB), 1.9 with Pillow, 2.7 with pyvips; a crop to 224x224
takes 0.3 ms with cykooz.resizer and 0.6 to 1.0 with Pillow. OpenCV resizes without a filter, and PyTurboJPEG needs a
system library.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import os
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, PngImagePlugin
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.data.depth import conversion_bytes, is_dim, to_8_bits

try:
    import cykooz_resizer
    import simplejpeg
except ImportError:
    cykooz_resizer = simplejpeg = None

log = logging.getLogger("t2t")
warnings.filterwarnings("ignore", module="PIL")  # warnings about palettes, large images, damaged EXIF data
# The only formats that are opened. Pillow supports more, but EPS, for one, starts Ghostscript. AVIF: Pillow >= 11.3.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MOST_BYTES = 512 << 20  # limit for a decoded image and its conversion; EXIF rotation takes twice as much
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # allow a text of 64 MB, the limit for all texts
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PIL_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112  # EXIF tag
_ORIENTATION_SIGNS = (b"Exif\0\0", b"tiff:Orientation")  # a JPEG file with an orientation contains one of these
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_warned = []  # holds the first image that looks too dark
# Extra bytes per pixel that a decoder allocates: whole canvases (WEBP, AVIF) or coefficients (progressive JPEG).
_DECODER_BYTES = {"WEBP": 8, "AVIF": 8, "progressive": 6}
# A crop is decoded at a reduced scale if its shorter side is then still 1.5 times the output's and at least 240 pixels.
# Compared with full decoding, the PSNR is above 40 dB. At half scale and exactly the output's size, it would be 28 dB.
_REDUCED_MARGIN, _SMALLEST_REDUCED = 1.5, 240


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
    path: str | Path, channels: int = 3, upright: bool = False, grey_bits: int = 16, most_bytes: int = MOST_BYTES
) -> Image.Image:
    """Read an image file as an 8-bit RGB (3 channels) or grey (1) PIL image.

    Transparent pixels are blended with white. Of an animation, the first frame is read.

    Args:
        path: path of the file.
        channels: 1 or 3.
        upright: whether to rotate as EXIF says. The official evaluation does not.
        grey_bits: bits that hold values in 16-bit grey images.
        most_bytes: limit for the decoded image, checked before it is decoded.

    Raises:
        ImageError: naming the file and the reason.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait forever
        raise ImageError(f"image {path} cannot be read: it is not a file")
    try:
        with open_image(path) as image:
            picture = _read(image, _PIL_MODES[channels], upright, grey_bits, most_bytes)
            picture.info = {}  # otherwise saving keeps the EXIF orientation, and viewers rotate the image again
            return picture
    except FileNotFoundError:
        raise ImageError(f"image {path} {'is a broken link' if os.path.islink(path) else 'not found'}") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on broken files
        reason = _format_of(path) if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
        raise ImageError(f"image {path} cannot be read: {reason}") from error


def convert_image(
    image: Image.Image, channels: int = 3, upright: bool = False, grey_bits: int = 16, most_bytes: int = MOST_BYTES
) -> Image.Image:
    """Convert a PIL image of any mode like `load_image` a file, and with its errors. `image` does not change."""
    try:
        return _read(image, _PIL_MODES[channels], upright, grey_bits, most_bytes)
    except Exception as error:  # as in load_image
        reason = str(error) or repr(error)
        raise ImageError(f"image {getattr(image, 'filename', '')} cannot be read: {reason}") from error


def _read(image, mode, upright, grey_bits, most_bytes):
    """Decode an opened image and convert it to mode L or RGB."""
    _check_size(image, mode, most_bytes)
    upright = upright and image.format != "TIFF"  # Pillow itself rotates TIFF images in load()
    image.load()
    if is_dim(image, grey_bits):
        _warn_of_dim(getattr(image, "filename", "") or "an image", grey_bits)
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


def _format_of(path):
    """Return the reason why a file that is in none of FORMATS cannot be read."""
    with open(path, "rb") as file:
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


# --- Training ---


def reader_name(reader: str) -> str:
    """Return the reader that is used for DATA.READER in this environment: "turbo" or "pillow"."""
    return "turbo" if reader == "turbo" and simplejpeg else "pillow"


def open_picture(path, channels, reader, upright=False, grey_bits=16):
    """Open an image for training as a `JpegPicture` or `PillowPicture`. For the arguments see `load_image`.

    Raises:
        ImageError: the image cannot be read. The message names the file and the reason.
    """
    if channels == 3 and reader_name(reader) == "turbo" and os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                data = file.read()
            if data.startswith(b"\xff\xd8\xff"):
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
                is_usual = colours in ("YCbCr", "Gray") and width * height <= Image.MAX_IMAGE_PIXELS
                if is_usual and not (upright and _is_rotated(data)):
                    return JpegPicture(path, data, (width, height))
        except (OSError, ValueError, SyntaxError):
            pass  # let Pillow read it or report what is wrong
    return PillowPicture(load_image(path, channels, upright, grey_bits))


def _is_rotated(data):
    """Whether EXIF or XMP data in the bytes of a JPEG file rotate it."""
    # Searching the bytes first is much faster than asking Pillow.
    return any(sign in data for sign in _ORIENTATION_SIGNS) and stored_form(io.BytesIO(data))[1]


class PillowPicture:
    """A picture that Pillow has decoded."""

    def __init__(self, image):
        self.image = image
        self.size = image.size

    def crop(self, box, size, interpolation):
        """Crop `box` (left, top, right, bottom) and resize it to `size` (width, height): uint8 (H, W, channels)."""
        return to_array(self.image.crop(box).resize(size, RESAMPLING[interpolation]))


class JpegPicture:
    """A JPEG file in memory. It is decoded when the crop is known."""

    def __init__(self, path, data, size):
        self.path, self.data, self.size = path, data, size

    def crop(self, box, size, interpolation):
        """Like `PillowPicture.crop`: values differ by up to 2 if bilinear; PSNR above 40 dB if bicubic or reduced."""
        width, height = self.size
        reduction = _reduction(box, min(size))
        try:
            # With the rounded-up size as the minimum, the scale is exactly 1/1, 1/2, 1/4 or 1/8.
            pixels = simplejpeg.decode_jpeg(
                self.data, "RGB", min_height=-(-height // reduction), min_width=-(-width // reduction),
                min_factor=reduction,
            )  # fmt: skip
        except ValueError:  # damaged or just unusual: let Pillow decide
            return PillowPicture(load_image(self.path)).crop(box, size, interpolation)
        return _crop_and_resize(pixels, [edge / reduction for edge in box], size, interpolation)


def _reduction(box, side):
    """Return the factor by which decoding reduces a crop that is resized to `side`: 1, 2, 4 or 8."""
    shorter = min(box[2] - box[0], box[3] - box[1])
    smallest = max(_REDUCED_MARGIN * side, _SMALLEST_REDUCED)
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or shorter >= factor * smallest)


def _crop_and_resize(pixels, box, size, interpolation):
    """Crop `box` (left, top, right, bottom; may lie between pixels) and resize it, anti-aliased like Pillow."""
    left, top, right, bottom = box
    x, y, x_end, y_end = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    rows = pixels.reshape(len(pixels), -1)[y:y_end, 3 * x : 3 * x_end]  # NumPy copies one merged axis 8 times faster
    rgb = cykooz_resizer.PixelType.U8x3
    part = cykooz_resizer.CropBox(left - x, top - y, right - left, bottom - top)
    source = cykooz_resizer.ImageData(x_end - x, y_end - y, rgb, np.ascontiguousarray(rows).tobytes())
    target = cykooz_resizer.ImageData(*size, rgb)
    _resizer().resize(source, target, cykooz_resizer.ResizeOptions(_algorithm(interpolation), crop_box=part))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size[1], size[0], 3)


@functools.cache
def _resizer():
    return cykooz_resizer.Resizer()


@functools.cache
def _algorithm(interpolation):
    filters = cykooz_resizer.FilterType  # Pillow's bicubic is Catmull-Rom
    return cykooz_resizer.ResizeAlg.convolution(
        {"bilinear": filters.bilinear, "bicubic": filters.catmull_rom}[interpolation]
    )
