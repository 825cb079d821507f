"""Read images for training: decode and crop them in one step.

Plain JPEG files go through libjpeg-turbo (simplejpeg) and a SIMD resizer (cykooz.resizer) if both are installed.
Measured on one core with 76 ImageNet files: decoding takes 1.4 ms with simplejpeg, 1.5 with OpenCV (61 MB), 1.9 with
Pillow, 2.7 with pyvips; a crop to 224x224 takes 0.3 ms with cykooz.resizer and 0.6 to 1.0 with Pillow. OpenCV resizes
without a filter, and PyTurboJPEG needs a system library. No Python binding decodes only the rows of the crop
(jpeg_skip_scanlines): simplejpeg, imagecodecs, jpeglib and ajpegli decode whole images, and PyTurboJPEG and turbojpeg
crop by writing a new JPEG file (November 2026).
"""

import functools
import io
import math
import os

import numpy as np
from PIL import Image

from t2t_vit.data.images import RESAMPLING, load_image, stored_form, to_array

try:
    import cykooz_resizer
    import simplejpeg
except ImportError:
    cykooz_resizer = simplejpeg = None

_ORIENTATION_SIGNS = (b"Exif\0\0", b"tiff:Orientation")  # a JPEG file with an orientation contains one of these
# A crop is decoded at a reduced scale if its shorter side is then still 1.5 times the output's and at least 240 pixels.
# Compared with full decoding, the PSNR is above 40 dB. At half scale and exactly the output's size, it would be 28 dB.
_REDUCED_MARGIN, _SMALLEST_REDUCED = 1.5, 240


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
