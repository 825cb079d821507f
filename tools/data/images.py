"""Image files to pixels.

Pillow is the reference, and the only way of evaluation. In training, plain JPEG files go through libjpeg-turbo
(simplejpeg) and a SIMD resizer (cykooz.resizer), where both are installed. Chosen by measuring, one core, 76 ImageNet
files: decoding takes 1.4 ms with simplejpeg, 1.5 with OpenCV (61 MB), 1.9 with Pillow, 2.7 with pyvips, and PyTurboJPEG
needs a library of the system; crop to 224x224 takes 0.3 ms with cykooz.resizer and 0.6 to 1.0 with Pillow, to which
OpenCV's unfiltered resizing does not compare.
"""

import functools
import math
import os
import warnings

import numpy as np
from PIL import Image

from errors import UserError

try:
    import cykooz_resizer
    import simplejpeg
except ImportError:
    cykooz_resizer = simplejpeg = None

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PIL_MODES = {1: "L", 3: "RGB"}
_JPEG_START = b"\xff\xd8\xff"
# A crop is decoded at a reduced scale while its shorter side stays 1.5 times the output's, and 240 pixels: then the
# result is above 40 dB of the unreduced one. At half the scale and exactly the output's size it would be 28.
_REDUCED_MARGIN, _SMALLEST_REDUCED = 1.5, 240


class ImageError(UserError):
    """An image file that cannot be read."""


def load_image(path, channels=3):
    """Read any image that Pillow opens, as an 8-bit RGB (3 channels) or grey (1) PIL image.

    Transparent pixels are laid over white; 16-bit grey is scaled down; of an animation the first frame counts. EXIF
    orientation is ignored, as in the official evaluation.

    Raises:
        ImageError: naming the file and the reason.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for ever
        raise ImageError(f"image {path} cannot be read: it is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on palettes and large pictures
            with Image.open(path) as image:
                image.load()
                return _convert(image, _PIL_MODES[channels])
    except FileNotFoundError:
        raise ImageError(f"image {path} {'is a link to nothing' if os.path.islink(path) else 'not found'}") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on broken files
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
        raise ImageError(f"image {path} cannot be read: {reason}") from error


def _convert(image, mode):
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        grey = np.asarray(image).astype(np.float64) / 257.0
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def to_array(image):
    """PIL image of mode L or RGB -> uint8 (H, W, channels)."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def to_image(pixels):
    """uint8 (H, W, 1 or 3) -> PIL image of mode L or RGB."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def reader_name(reader):
    """What DATA.READER means in this environment: "turbo" or "pillow"."""
    return "turbo" if reader == "turbo" and simplejpeg else "pillow"


def open_picture(path, channels, reader):
    """A picture that knows its `size` (width, height) and reads a crop of itself.

    Raises:
        ImageError: naming the file and the reason.
    """
    if channels == 3 and reader_name(reader) == "turbo" and os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                data = file.read()
            if data.startswith(_JPEG_START):
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
                if colours in ("YCbCr", "Gray") and width * height <= Image.MAX_IMAGE_PIXELS:
                    return JpegPicture(path, data, (width, height))
        except (OSError, ValueError):
            pass  # Pillow reads it, or says what is wrong
    return PillowPicture(load_image(path, channels))


class PillowPicture:
    """A picture that Pillow has read."""

    def __init__(self, image):
        self.image = image
        self.size = image.size

    def crop(self, box, size, interpolation):
        """Part within `box` (left, top, right, bottom) resized to `size` (width, height), uint8 (H, W, channels)."""
        return to_array(self.image.crop(box).resize(size, RESAMPLING[interpolation]))


class JpegPicture:
    """A JPEG file in memory, decoded when its crop is known."""

    def __init__(self, path, data, size):
        self.path, self.data, self.size = path, data, size

    def crop(self, box, size, interpolation):
        """As `PillowPicture.crop`: within 2 of its values if bilinear, above 40 dB if bicubic or reduced."""
        width, height = self.size
        reduction = _reduction(box, min(size))
        try:
            # Asking for the rounded-up size at most reduces by exactly 1/1, 1/2, 1/4 or 1/8.
            pixels = simplejpeg.decode_jpeg(
                self.data, "RGB", min_height=-(-height // reduction), min_width=-(-width // reduction),
                min_factor=reduction,
            )  # fmt: skip
        except ValueError:  # broken, or merely unusual: Pillow decides
            return PillowPicture(load_image(self.path)).crop(box, size, interpolation)
        return _crop_and_resize(pixels, [edge / reduction for edge in box], size, interpolation)


def _reduction(box, side):
    shorter = min(box[2] - box[0], box[3] - box[1])
    smallest = max(_REDUCED_MARGIN * side, _SMALLEST_REDUCED)
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or shorter >= factor * smallest)


def _crop_and_resize(pixels, box, size, interpolation):
    """Part within `box` (left, top, right, bottom; they may lie between pixels), anti-aliased like Pillow's resize."""
    left, top, right, bottom = box
    x, y, x_end, y_end = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    rows = pixels.reshape(len(pixels), -1)[y:y_end, 3 * x : 3 * x_end]  # in one axis NumPy copies them 8 times faster
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
    filters = cykooz_resizer.FilterType  # Pillow's bicubic is Catmull and Rom's
    return cykooz_resizer.ResizeAlg.convolution(
        {"bilinear": filters.bilinear, "bicubic": filters.catmull_rom}[interpolation]
    )
