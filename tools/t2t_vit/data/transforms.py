"""Transform a picture to uint8 pixels of the model's input size.

All random numbers come from the NumPy generator that the caller passes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from t2t_vit.data.augment import build_augment
from t2t_vit.data.images import RESAMPLING, to_array, to_image

# {VAL.TTA: (places of the crops, as fractions of the free room to their left and above; whether each is also mirrored)}
_CENTRE, _CORNERS = (0.5, 0.5), ((0, 0), (1, 0), (0, 1), (1, 1))
_VIEWS = {
    "": ((_CENTRE,), False),
    "flip": ((_CENTRE,), True),
    "five": ((_CENTRE, *_CORNERS), False),
    "ten": ((_CENTRE, *_CORNERS), True),
}
_LONGEST = 50  # largest aspect ratio; longer images are cropped first, because resizing them takes gigabytes


class TrainTransform:
    """Random-resized or padded crop, horizontal flip, augmentation: picture -> uint8 (S, S, channels)."""

    def __init__(self, cfg):
        self.size = cfg.DATA.IMAGE_SIZE
        self.scale = cfg.AUG.SCALE
        self.log_ratio = [math.log(ratio) for ratio in cfg.AUG.RATIO]
        self.padding = int(self.size * cfg.AUG.PADDED_CROP)
        self.is_padded = cfg.AUG.PADDED_CROP > 0
        self.interpolation = cfg.AUG.INTERPOLATION
        self.hflip = cfg.AUG.HFLIP
        self.augmentations = build_augment(cfg)
        # (name, function of (picture or pixels, generator)), in the order of the calls. The benchmark times each step.
        self.steps = [("crop and resize", self.crop), ("flip", self.flip), ("augment", self.augment)]

    def __call__(self, picture, rng):
        """Transform a `PillowPicture` or `JpegPicture`."""
        pixels = picture
        for _, step in self.steps:
            pixels = step(pixels, rng)
        return pixels

    def crop(self, picture, rng):
        """Take a random crop, as the config says: uint8 (S, S, channels)."""
        name = ("bilinear", "bicubic")[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        if self.is_padded:
            return self._padded_crop(picture, name, rng)
        return picture.crop(self.crop_box(picture.size, rng), (self.size, self.size), name)

    def flip(self, pixels, rng):
        return mirrored(pixels) if rng.random() < self.hflip else pixels

    def augment(self, pixels, rng):
        if not self.augmentations:
            return pixels
        image = to_image(pixels)
        for augment in self.augmentations:
            image = augment(image, rng)
        return to_array(image)

    def _padded_crop(self, picture, name, rng):
        """Resize the shorter side to S, add a black border, and crop S x S at a random place.

        T2T-ViT uses this for the transfer to CIFAR: torchvision's Resize(S) and RandomCrop(S, padding).
        """
        box = _middle(picture.size, _LONGEST)
        pixels = picture.crop(box, _resized((box[2] - box[0], box[3] - box[1]), self.size), name)
        border = (self.padding, self.padding)
        pixels = np.pad(pixels, (border, border, (0, 0)))
        top, left = (int(rng.integers(length - self.size + 1)) for length in pixels.shape[:2])
        return np.ascontiguousarray(pixels[top : top + self.size, left : left + self.size])

    def crop_box(self, size, rng):
        """Draw a random crop (left, top, right, bottom), as in timm's RandomResizedCropAndInterpolation.

        If ten draws do not fit into the image, returns the largest centred crop within the ratios.
        """
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
    """Flip an image left to right: uint8 (H, W, channels)."""
    whole = pixels.view(f"V{pixels.shape[2]}")  # (H, W, 1): NumPy copies whole pixels 2.4 times faster than channels
    return np.ascontiguousarray(whole[:, ::-1]).view(np.uint8)


def _middle(size, ratio):
    """Return the middle part (left, top, right, bottom) of an image that is more than `ratio` times as long as wide."""
    width, height = size
    longest = ratio * min(width, height)
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return left, top, left + min(width, longest), top + min(height, longest)


def _resized(size, shorter):
    """Return (width, height) with the shorter side resized to `shorter`, rounded as in torchvision's Resize."""
    width, height = size
    if width <= height:
        return shorter, max(shorter, int(shorter * height / width))
    return max(shorter, int(shorter * width / height)), shorter


class EvalTransform:
    """Resizes the shorter side to floor(S / VAL.CROP_PCT), then crops the centre, as in the official evaluation.

    PIL image -> uint8 (S, S, channels). VAL.CROP_MODE squash resizes any shape to (S, S), as zhl98/T2T_paddle does.
    `views` gives the views of VAL.TTA instead: the centre first, then the corners of the resized image as in
    torchvision's FiveCrop, then all of them mirrored.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.size = cfg.DATA.IMAGE_SIZE
        self.resize = math.floor(self.size / cfg.VAL.CROP_PCT)
        self.resampling = RESAMPLING[cfg.VAL.INTERPOLATION]
        self.squash = cfg.VAL.CROP_MODE == "squash"
        self.places, self.mirrors = _VIEWS[cfg.VAL.TTA]

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self._crop(self._resize(image), _CENTRE)

    def views(self, image: Image.Image) -> np.ndarray:
        """PIL image -> uint8 (V, S, S, channels), or (S, S, channels) without VAL.TTA."""
        image = self._resize(image)
        crops = [self._crop(image, place) for place in self.places]
        crops += [mirrored(crop) for crop in crops] if self.mirrors else []
        return np.stack(crops) if len(crops) > 1 else crops[0]

    def _resize(self, image):
        if self.squash:
            return image.resize((self.size, self.size), self.resampling)
        box = _middle(image.size, _LONGEST)
        if box != (0, 0, *image.size):
            image = image.crop(box)
        return image.resize(_resized(image.size, self.resize), self.resampling)

    def _crop(self, image, place):
        # Rounded as in torchvision's CenterCrop.
        left, top = (round((length - self.size) * part) for length, part in zip(image.size, place))
        return to_array(image.crop((left, top, left + self.size, top + self.size)))


def model_input(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalise pixels for a model: uint8 (B, H, W, C) -> float32 (B, C, H, W)."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    # NumPy computes whole planes 7 times faster than channels.
    return normalized(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), mean, std)


def num_views(cfg: CfgNode) -> int:
    """Return the number of views of an image that VAL.TTA asks for."""
    places, mirrors = _VIEWS[cfg.VAL.TTA]
    return len(places) * (1 + mirrors)


def views_of(images: Any) -> list:
    """List the views of a batch, each (B, H, W, C), for images (B, V, H, W, C) or (B, H, W, C); tensors or arrays."""
    return [images] if images.ndim == 4 else [images[:, view] for view in range(images.shape[1])]


def normalized(images: Any, mean: Any, std: Any) -> Any:
    """Normalise uint8 images to float32, (x / 255 - mean) / std. Takes Paddle tensors or NumPy arrays."""
    return (images.astype("float32") / 255.0 - mean) / std
