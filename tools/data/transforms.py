"""A picture to uint8 pixels of the model's input size.

Everything random is drawn from the NumPy generator that the caller passes.
"""

import math

import numpy as np

from data.augment import build_augment
from data.images import RESAMPLING, to_array, to_image

_LONGEST = 50  # sides; a centre crop shows none of what is left out, which would be resized to gigabytes


class TrainTransform:
    """Random-resized crop, horizontal flip, augmentation: picture -> uint8 (S, S, channels)."""

    def __init__(self, cfg):
        self.size = cfg.DATA.IMAGE_SIZE
        self.scale = cfg.AUG.SCALE
        self.log_ratio = [math.log(ratio) for ratio in cfg.AUG.RATIO]
        self.interpolation = cfg.AUG.INTERPOLATION
        self.hflip = cfg.AUG.HFLIP
        self.augment = build_augment(cfg)

    def __call__(self, picture, rng):
        """Transform a `PillowPicture` or `JpegPicture`."""
        name = ("bilinear", "bicubic")[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        pixels = picture.crop(self.crop_box(picture.size, rng), self.size, name)
        if rng.random() < self.hflip:
            pixels = mirrored(pixels)
        if not self.augment:
            return pixels
        image = to_image(pixels)
        for augment in self.augment:
            image = augment(image, rng)
        return to_array(image)

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


def mirrored(pixels):
    """uint8 (H, W, channels) from right to left."""
    whole = pixels.view(f"V{pixels.shape[2]}")  # (H, W, 1) of whole pixels, which NumPy copies 2.4 times faster
    return np.ascontiguousarray(whole[:, ::-1]).view(np.uint8)


def _middle(image, ratio):
    """The image without the ends that make it more than `ratio` times as long as wide."""
    width, height = image.size
    longest = ratio * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


class EvalTransform:
    """Official evaluation: shorter side to floor(S / crop), centre crop; PIL image -> uint8 (S, S, channels).

    VAL.CROP_MODE squash resizes to (S, S) whatever the shape, as zhl98/T2T_paddle evaluates.
    """

    def __init__(self, cfg):
        self.size = cfg.DATA.IMAGE_SIZE
        self.resize = math.floor(self.size / cfg.VAL.CROP_PCT)
        self.resampling = RESAMPLING[cfg.VAL.INTERPOLATION]
        self.squash = cfg.VAL.CROP_MODE == "squash"

    def __call__(self, image):
        if self.squash:
            return to_array(image.resize((self.size, self.size), self.resampling))
        image = _middle(image, _LONGEST)
        width, height = image.size
        # Sizes and offsets are rounded as torchvision's Resize and CenterCrop round them.
        if width <= height:
            new_size = self.resize, max(self.resize, int(self.resize * height / width))
        else:
            new_size = max(self.resize, int(self.resize * width / height)), self.resize
        image = image.resize(new_size, self.resampling)
        left, top = (int(round((length - self.size) / 2.0)) for length in new_size)
        return to_array(image.crop((left, top, left + self.size, top + self.size)))
