"""Image file to uint8 pixels of the model's input size.

Everything random is drawn from the NumPy generator that the caller passes.
"""

import math
import warnings

import numpy as np
from PIL import Image

from errors import UserError

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PIL_MODES = {1: "L", 3: "RGB"}


class ImageError(UserError):
    """An image file that cannot be read."""


def load_image(path, channels=3):
    """Read any image that Pillow opens, as an 8-bit RGB (3 channels) or grey (1) PIL image.

    Transparent pixels are laid over white; 16-bit grey is scaled down; of an animation the first frame counts. EXIF
    orientation is ignored, as in the official evaluation.

    Raises:
        ImageError: naming the file and the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on palettes and large pictures
            with Image.open(path) as image:
                image.load()
                return _convert(image, _PIL_MODES[channels])
    except FileNotFoundError:
        raise ImageError(f"image {path} not found") from None
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


def _to_array(image):
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]  # (H, W, channels)


class TrainTransform:
    """Random-resized crop and horizontal flip: PIL image -> uint8 (S, S, channels)."""

    def __init__(self, cfg):
        self.size = cfg.DATA.IMAGE_SIZE
        self.scale = cfg.AUG.SCALE
        self.log_ratio = [math.log(ratio) for ratio in cfg.AUG.RATIO]
        self.interpolation = cfg.AUG.INTERPOLATION
        self.hflip = cfg.AUG.HFLIP

    def __call__(self, image, rng):
        name = ("bilinear", "bicubic")[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        image = image.crop(self.crop_box(image.size, rng)).resize((self.size, self.size), _RESAMPLING[name])
        if rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_array(image)

    def crop_box(self, size, rng):
        """(left, top, right, bottom) of a random crop, by timm's RandomResizedCropAndInterpolation: ten tries, then
        the largest centred crop within the ratios."""
        width, height = size
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*self.log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        low, high = (math.exp(value) for value in self.log_ratio)
        w, h = width, height
        if width / height < low:
            h = max(1, round(width / low))
        elif width / height > high:
            w = max(1, round(height * high))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


class EvalTransform:
    """Official evaluation: shorter side to floor(S / crop), centre crop; PIL image -> uint8 (S, S, channels)."""

    def __init__(self, cfg):
        self.size = cfg.DATA.IMAGE_SIZE
        self.resize = math.floor(self.size / cfg.VAL.CROP_PCT)
        self.resampling = _RESAMPLING[cfg.VAL.INTERPOLATION]

    def __call__(self, image, rng=None):
        width, height = image.size
        # Sizes and offsets are rounded as torchvision's Resize and CenterCrop round them.
        if width <= height:
            new_size = self.resize, max(self.resize, int(self.resize * height / width))
        else:
            new_size = max(self.resize, int(self.resize * width / height)), self.resize
        image = image.resize(new_size, self.resampling)
        left, top = (int(round((length - self.size) / 2.0)) for length in new_size)
        return _to_array(image.crop((left, top, left + self.size, top + self.size)))
