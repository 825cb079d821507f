"""Augmentation policies on PIL images: RandAugment, AutoAugment, 3-Augment, colour jitter.

Operations, magnitudes and policies are those of timm 0.3.4 (timm/data/auto_augment.py), with which the official models
were trained. A level runs from 0 to 10. All random numbers come from the NumPy generator that the caller passes.
"""

import math
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.data.images import RESAMPLING

_MAX_LEVEL = 10.0


# --- Operations: (image, value, canvas) -> image, where canvas is {"resample", "fillcolor"} ---


def _affine(image, matrix, canvas):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **canvas)


def _solarize_add(image, value, _canvas):
    table = [min(255, i + value) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def _posterize(image, bits, _canvas):
    # 0 bits give black, as in the Pillow version of the official runs. Pillow 13 raises an error.
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


_FUNCTIONS = {
    "AutoContrast": lambda image, _value, _canvas: ImageOps.autocontrast(image),
    "Equalize": lambda image, _value, _canvas: ImageOps.equalize(image),
    "Invert": lambda image, _value, _canvas: ImageOps.invert(image),
    "Posterize": _posterize,
    "Solarize": lambda image, value, _canvas: ImageOps.solarize(image, value),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, value, _canvas: ImageEnhance.Color(image).enhance(value),
    "Contrast": lambda image, value, _canvas: ImageEnhance.Contrast(image).enhance(value),
    "Brightness": lambda image, value, _canvas: ImageEnhance.Brightness(image).enhance(value),
    "Sharpness": lambda image, value, _canvas: ImageEnhance.Sharpness(image).enhance(value),
    "Rotate": lambda image, value, canvas: image.rotate(value, **canvas),
    "ShearX": lambda image, value, canvas: _affine(image, (1, value, 0, 0, 1, 0), canvas),
    "ShearY": lambda image, value, canvas: _affine(image, (1, 0, 0, value, 1, 0), canvas),
    "TranslateXRel": lambda image, value, canvas: _affine(image, (1, 0, value * image.width, 0, 1, 0), canvas),
    "TranslateYRel": lambda image, value, canvas: _affine(image, (1, 0, 0, 0, 1, value * image.height), canvas),
}  # fmt: skip


# --- Values: (strength = level / 10, sign) -> value; the sign is -1 half of the time ---


def _enhance(strength, _sign):
    return strength * 1.8 + 0.1


def _enhance_increasing(strength, sign):
    return 1.0 + sign * strength * 0.9


_ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
_VALUES = {
    "AutoContrast": lambda _strength, _sign: None,
    "Equalize": lambda _strength, _sign: None,
    "Invert": lambda _strength, _sign: None,
    "Posterize": lambda strength, _sign: int(strength * 4),
    "Solarize": lambda strength, _sign: int(strength * 256),
    "SolarizeAdd": lambda strength, _sign: int(strength * 110),
    **dict.fromkeys(_ENHANCEMENTS, _enhance),
    "Rotate": lambda strength, sign: sign * strength * 30.0,  # degrees
    "ShearX": lambda strength, sign: sign * strength * 0.3,
    "ShearY": lambda strength, sign: sign * strength * 0.3,
    "TranslateXRel": lambda strength, sign: sign * strength * 0.45,  # of the width
    "TranslateYRel": lambda strength, sign: sign * strength * 0.45,
}
# "inc1": a higher level always means a stronger change.
_INCREASING_VALUES = {
    **_VALUES,
    "Posterize": lambda strength, _sign: 4 - int(strength * 4),
    "Solarize": lambda strength, _sign: 256 - int(strength * 256),
    **dict.fromkeys(_ENHANCEMENTS, _enhance_increasing),
}
_AUTO_AUGMENT_VALUES = {**_VALUES, "PosterizeOriginal": lambda strength, _sign: int(strength * 4) + 4}
_FUNCTIONS["PosterizeOriginal"] = _posterize
OPERATIONS = tuple(_VALUES)


class _Operations:
    """Applies operations at random levels. One of the tables above turns a level into a value.

    `level_std` is the standard deviation of the level (inf: uniform between 0 and the level). `fill` is the colour of
    pixels from outside the image, one number per channel.
    """

    def __init__(self, values, level_std, fill, interpolation):
        self.values, self.level_std, self.fill, self.interpolation = values, level_std, fill, interpolation

    def apply(self, name, image, level, rng):
        value = self.values[name](self.draw_level(level, rng) / _MAX_LEVEL, 1 - 2 * int(rng.integers(2)))
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = ("bilinear", "bicubic")[rng.integers(2)]
        fill = self.fill if len(image.getbands()) > 1 else self.fill[0]
        return _FUNCTIONS[name](image, value, {"resample": RESAMPLING[interpolation], "fillcolor": fill})

    def draw_level(self, level, rng):
        if self.level_std == math.inf:
            level = rng.uniform(0, level)
        elif self.level_std:
            level = rng.normal(level, self.level_std)
        return min(max(level, 0.0), _MAX_LEVEL)


class RandAugment:
    """`count` operations, drawn with replacement, each applied with `probability` (Cubuk et al. 2020)."""

    def __init__(self, operations, count, level, probability):
        self.operations, self.count, self.level, self.probability = operations, count, level, probability

    def __call__(self, image, rng):
        for choice in rng.integers(len(OPERATIONS), size=self.count):
            if rng.random() < self.probability:
                image = self.operations.apply(OPERATIONS[choice], image, self.level, rng)
        return image


class AutoAugment:
    """One of 25 learned pairs of operations with their probabilities and levels (Cubuk et al. 2019)."""

    def __init__(self, operations, policy):
        self.operations = operations
        self.policy = [_parse_pair(pair) for pair in policy]

    def __call__(self, image, rng):
        for name, probability, level in self.policy[rng.integers(len(self.policy))]:
            if rng.random() < probability:
                image = self.operations.apply(name, image, level, rng)
        return image


class ThreeAugment:
    """Makes an image grey, solarized or blurred (Touvron et al. 2022, "DeiT III", section 3)."""

    def __call__(self, image, rng):
        choice = rng.integers(3)
        if choice == 0:
            return image.convert("L").convert(image.mode)
        if choice == 1:
            return ImageOps.solarize(image, 128)
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))


class ColorJitter:
    """Scales brightness, contrast and saturation by uniform(1 - strength, 1 + strength), in random order."""

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, image, rng):
        for name in rng.permutation(("Brightness", "Contrast", "Color")):
            factor = rng.uniform(max(0.0, 1 - self.strength), 1 + self.strength)
            image = getattr(ImageEnhance, name)(image).enhance(factor)
        return image


# --- From the config ---


def build_augment(cfg: CfgNode) -> list[Callable[[Image.Image, np.random.Generator], Image.Image]]:
    """Return a list of functions (image, rng) -> image for AUG.AUTO_AUGMENT and AUG.COLOR_JITTER.

    RandAugment and AutoAugment turn colour jitter off, as in timm.

    Raises:
        UserError: for a policy that cannot be read.
    """
    aug = cfg.AUG
    augment = [] if not aug.AUTO_AUGMENT else [_parse(aug.AUTO_AUGMENT, cfg)]
    if aug.COLOR_JITTER and aug.AUTO_AUGMENT in ("", "3a"):
        augment.append(ColorJitter(aug.COLOR_JITTER))
    return augment


def _parse(text, cfg):
    """Parse a policy such as "rand-m9-mstd0.5-inc1", "v0-mstd0.5" or "3a": a name, then options in any order."""
    name, *words = text.split("-")
    options = {"m": 10.0, "n": 2, "mstd": 0.0, "inc": 0, "p": 0.5} if name == "rand" else {"mstd": 0.0}
    if name == "3a":
        options = {}
    matches = [re.fullmatch(r"(mstd)(inf)|(?:(n|inc)([0-9]+)|(m|mstd|p)([0-9]+(?:\.[0-9]+)?))", word) for word in words]
    given = [tuple(filter(None, match.groups())) for match in matches if match]
    if len(dict(given)) < len(words) or not set(dict(given)) <= set(options):
        raise _policy_error(text)
    options.update((key, float(value)) for key, value in given)
    fill = tuple(min(255, round(255 * mean)) for mean in cfg.DATA.MEAN)

    def operations(values):
        return _Operations(values, options["mstd"], fill, cfg.AUG.INTERPOLATION)

    if name == "rand":
        count, level, probability = options["n"], options["m"], options["p"]
        if not (1 <= count <= 100 and options["inc"] <= 1 and level <= _MAX_LEVEL and probability <= 1):
            raise _policy_error(text)
        values = _INCREASING_VALUES if options["inc"] else _VALUES
        return RandAugment(operations(values), int(count), level, probability)
    if name in _POLICIES:
        return AutoAugment(operations(_AUTO_AUGMENT_VALUES), _POLICIES[name])
    if name == "3a":
        return ThreeAugment()
    raise _policy_error(text)


def _policy_error(text):
    return UserError(
        f"AUG.AUTO_AUGMENT is {text!r} but must be rand-m9-mstd0.5-inc1 (m: level 0 to 10, n: operations per image, "
        "mstd: spread of the level, inc1: stronger at higher levels, p: probability of each), original, v0, "
        'original-mstd0.5, 3a or ""'
    )


def _parse_pair(text):
    """ "Rotate .6 9, Color 1 2" -> [("Rotate", 0.6, 9.0), ("Color", 1.0, 2.0)]"""
    words = [part.split() for part in text.split(",")]
    return [(name, float(probability), float(level)) for name, probability, level in words]


_POLICIES = {
    # The ImageNet policy of Cubuk et al. 2019.
    "original": (
        "PosterizeOriginal .4 8, Rotate .6 9", "Solarize .6 5, AutoContrast .6 5", "Equalize .8 8, Equalize .6 3",
        "PosterizeOriginal .6 7, PosterizeOriginal .6 6", "Equalize .4 7, Solarize .2 4", "Equalize .4 4, Rotate .8 8",
        "Solarize .6 3, Equalize .6 7", "PosterizeOriginal .8 5, Equalize 1 2", "Rotate .2 3, Solarize .6 8",
        "Equalize .6 8, PosterizeOriginal .4 6", "Rotate .8 8, Color .4 0", "Rotate .4 9, Equalize .6 2",
        "Equalize 0 7, Equalize .8 8", "Invert .6 4, Equalize 1 8", "Color .6 4, Contrast 1 8",
        "Rotate .8 8, Color 1 2", "Color .8 8, Solarize .8 7", "Sharpness .4 7, Invert .6 8",
        "ShearX .6 5, Equalize 1 9", "Color .4 0, Equalize .6 3", "Equalize .4 7, Solarize .2 4",
        "Solarize .6 5, AutoContrast .6 5", "Invert .6 4, Equalize 1 8", "Color .6 4, Contrast 1 8",
        "Equalize .8 8, Equalize .6 3",
    ),
    # As EfficientNet was trained (tensorflow/tpu, efficientnet/autoaugment.py).
    "v0": (
        "Equalize .8 1, ShearY .8 4", "Color .4 9, Equalize .6 3", "Color .4 1, Rotate .6 8",
        "Solarize .8 3, Equalize .4 7", "Solarize .4 2, Solarize .6 2", "Color .2 0, Equalize .8 8",
        "Equalize .4 8, SolarizeAdd .8 3", "ShearX .2 9, Rotate .6 8", "Color .6 1, Equalize 1 2",
        "Invert .4 9, Rotate .6 0", "Equalize 1 9, ShearY .6 3", "Color .4 7, Equalize .6 0",
        "Posterize .4 6, AutoContrast .4 7", "Solarize .6 8, Color .6 9", "Solarize .2 4, Rotate .8 9",
        "Rotate 1 7, TranslateYRel .8 9", "ShearX 0 0, Solarize .8 4", "ShearY .8 0, Color .6 4",
        "Color 1 0, Rotate .6 2", "Equalize .8 4, Equalize 0 8", "Equalize 1 4, AutoContrast .6 2",
        "ShearY .4 7, SolarizeAdd .6 7", "Posterize .8 2, Solarize .6 10", "Solarize .6 8, Equalize .6 1",
        "Color .8 6, Rotate .4 5",
    ),
}  # fmt: skip
