"""Metadata in an exported file: enough to prepare images and name the classes. Does not import Paddle."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.config import default_config, with_keys
from t2t_vit.data.classes import ClassList

VERSION = 1
NAMESPACE = "t2t_vit"  # section of our entries in OpenVINO's rt_info
_KEYS = {  # {entry: config key that it stores}
    "model": "MODEL.NAME",
    "channels": "DATA.CHANNELS",
    "mean": "DATA.MEAN",
    "std": "DATA.STD",
    "crop_pct": "VAL.CROP_PCT",
    "crop_mode": "VAL.CROP_MODE",
    "interpolation": "VAL.INTERPOLATION",
    "exif": "DATA.EXIF",
    "grey_bits": "DATA.GREY_BITS",
}


@dataclass(frozen=True)
class Metadata:
    """The metadata entries of an exported file. Each is stored as JSON under its name."""

    version: int
    model: str
    data: str  # DATA.NAME
    image_size: list  # [height, width] in pixels
    channels: int  # 3 RGB or 1 grey
    mean: list  # per channel, for values in 0..1
    std: list
    crop_pct: float
    crop_mode: str
    interpolation: str
    folders: list  # folders of the classes, in the order of the logits
    classes: list  # names of the classes
    precision: str  # fp32, bf16 or int8
    batch_size: int  # images per inference; 0 = any number
    weights: str  # SHA-256 of the weights file; "" = no file
    exif: str = "auto"  # older files lack this entry and the next one
    grey_bits: int = 16

    @classmethod
    def of(cls, cfg: CfgNode, classes: ClassList, precision: str, batch_size: int = 1, weights: str = "") -> Metadata:
        """Build the `Metadata` of a model from its config and `ClassList`."""
        return cls(
            version=VERSION,
            data=cfg.DATA.NAME,
            image_size=[cfg.DATA.IMAGE_SIZE] * 2,
            folders=list(classes.folders),
            classes=list(classes.names),
            precision=precision,
            batch_size=batch_size,
            weights=weights,
            **{name: _get(cfg, key) for name, key in _KEYS.items()},
        )

    @classmethod
    def from_entries(cls, entries: dict[str, str], path: str | Path) -> Metadata:
        """Build `Metadata` from {name: JSON text}. Raises UserError like `from_values`."""
        known = [field.name for field in dataclasses.fields(cls) if field.name in entries]
        try:
            return cls.from_values({name: json.loads(entries[name]) for name in known}, path)
        except (ValueError, TypeError, RecursionError) as error:
            raise _damaged(path, error) from None

    @classmethod
    def from_values(cls, values: dict[str, Any], path: str | Path) -> Metadata:
        """Build `Metadata` from {name: value}. Raises UserError for missing or damaged entries or another version."""
        if "version" not in values:
            raise UserError(f"{path} does not describe its model: it was not made by tools/export.py")
        if values["version"] != VERSION:
            version = str(values["version"])[:20]
            raise UserError(f"{path} has format version {version}, this program reads {VERSION}; export it again")
        try:
            known = [field.name for field in dataclasses.fields(cls) if field.name in values]
            metadata = cls(**{name: values[name] for name in known})
            metadata._check()
        except (ValueError, TypeError, ArithmeticError, UserError) as error:
            raise _damaged(path, error) from None
        return metadata

    def _check(self):
        """Raise an error for the first entry with an invalid value."""
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if type(value) is not kind and (kind is not float or type(value) is not int):
                raise ValueError(f"{name} is {value!r}")
        if len(self.image_size) != 2 or not all(type(side) is int and 1 <= side <= 4096 for side in self.image_size):
            raise ValueError(f"image_size is {self.image_size!r}")
        names = self.folders + self.classes
        if len(self.folders) != len(self.classes) or not all(isinstance(name, str) for name in names):
            raise ValueError("classes and folders must be lists of names of the same length")
        if self.batch_size < 0:
            raise ValueError(f"batch_size is {self.batch_size}")
        if not (self.channels and len(self.mean) == len(self.std) == self.channels):
            raise ValueError(f"channels is {self.channels}, mean {self.mean!r}, std {self.std!r}")
        with_keys(default_config(), self.config_keys())  # checks the rest

    def to_entries(self) -> dict[str, str]:
        """Return {name: JSON text}."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in dataclasses.asdict(self).items()}

    def config_keys(self) -> dict[str, Any]:
        """Return {config key: value} for all keys that the file determines."""
        size = {"MODEL.NUM_CLASSES": len(self.classes), "DATA.IMAGE_SIZE": self.image_size[0]}
        return size | {key: getattr(self, name) for name, key in _KEYS.items()} | {"VAL.CROP_PCT": float(self.crop_pct)}

    def settle(self, cfg: CfgNode, given: Sequence[str], path: str | Path) -> CfgNode:
        """Return `cfg` with the values of the file for all keys that it determines.

        Raises UserError if the user has set one of them (in `given`) to another value, or if the input is not square.
        """
        height, width = self.image_size
        if height != width:
            raise UserError(f"{path} takes images of {height}x{width} pixels, but the commands need square images")
        values = self.config_keys()
        for key, value in values.items():
            if key in given and _get(cfg, key) != value:
                raise UserError(f"{key} is {_get(cfg, key)!r} but {path} was exported with {value!r}; export again")
        if "DATA.NAME" not in given:
            values["DATA.NAME"] = self.data
        return with_keys(cfg, values)


def _get(cfg, key):
    section, _, leaf = key.partition(".")
    return cfg[section][leaf]


def _damaged(path, error):
    reason = textwrap.shorten(one_line(error), 120, placeholder=" ...")
    return UserError(f"the description of the model in {path} is damaged ({reason}); export it again")
