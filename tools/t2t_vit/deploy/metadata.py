"""What an exported model says of itself: enough to feed it pictures and to name its answers anywhere. No paddle."""

import dataclasses
import json
import textwrap
from dataclasses import dataclass

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.config import with_keys
from t2t_vit.config_values import CROP_MODES, EXIF, INTERPOLATIONS

VERSION = 1
NAMESPACE = "t2t_vit"  # of the entries in OpenVINO's rt_info


@dataclass(frozen=True)
class Metadata:
    """Entries of an exported file, each stored as JSON under its name."""

    version: int  # of this form
    model: str  # MODEL.NAME
    data: str  # DATA.NAME
    image_size: list  # [height, width] in pixels
    channels: int  # 3 RGB or 1 grey
    mean: list  # per channel, of values in 0..1
    std: list
    crop_pct: float  # VAL.CROP_PCT, likewise the next two
    crop_mode: str
    interpolation: str
    folders: list  # of the classes, in the order of the logits
    classes: list  # their names
    precision: str  # fp32, bf16 or int8
    batch_size: int  # images of one inference; 0 = any number
    weights: str  # SHA-256 of the weights file; "" = of none
    exif: str = "auto"  # DATA.EXIF; older files lack this entry and the next
    grey_bits: int = 16  # DATA.GREY_BITS

    @classmethod
    def of(cls, cfg, classes, precision, batch_size=1, weights="", image_size=None):
        """That of a model of `cfg` with the `ClassList` of its classes."""
        data, val = cfg.DATA, cfg.VAL
        return cls(
            VERSION, cfg.MODEL.NAME, data.NAME, list(image_size or [data.IMAGE_SIZE] * 2), data.CHANNELS,
            list(data.MEAN), list(data.STD), val.CROP_PCT, val.CROP_MODE, val.INTERPOLATION,
            list(classes.folders), list(classes.names), precision, batch_size, weights, data.EXIF, data.GREY_BITS,
        )  # fmt: skip

    @classmethod
    def from_entries(cls, entries, path):
        """From {name: JSON}. Raises UserError if `path` has none, or none that this version reads."""
        if "version" not in entries:
            raise UserError(f"{path} has no description of its model: it is no file of tools/export.py")
        try:
            version = json.loads(entries["version"])
            if version != VERSION:
                raise UserError(
                    f"{path} is of form {_brief(repr(version))}, this program reads {VERSION}; export it again"
                )
            fields = [f.name for f in dataclasses.fields(cls) if f.name in entries or f.default is dataclasses.MISSING]
            metadata = cls(**{name: json.loads(entries[name]) for name in fields})
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"the description of the model in {path} is damaged ({_brief(one_line(error))}); export it again"
            ) from None
        metadata._check(path)
        return metadata

    def _check(self, path):
        """Raise UserError naming the first entry that no export writes."""
        is_count = _numbers([self.channels], 1, 1) and type(self.channels) is int
        length = self.channels if is_count else 0
        rules = [
            *((name, isinstance(getattr(self, name), str), "a text")
              for name in ("model", "data", "precision", "weights")),
            ("image_size", _numbers(self.image_size, 2, 1, 4096) and set(map(type, self.image_size)) == {int},
             "two numbers of pixels"),
            ("channels", is_count and self.channels in (1, 3), "1 or 3"),
            ("mean", _numbers(self.mean, length), f"{length} number(s)"),
            ("std", _numbers(self.std, length, 1e-6), f"{length} positive number(s)"),
            ("crop_pct", _numbers([self.crop_pct], 1, 0.1, 1.0), "0.1 to 1.0"),
            ("crop_mode", self.crop_mode in CROP_MODES, " or ".join(CROP_MODES)),
            ("interpolation", self.interpolation in INTERPOLATIONS, " or ".join(INTERPOLATIONS)),
            ("classes", _texts(self.classes), "a list of names"),
            ("folders", _texts(self.folders) and len(self.folders) == len(self.classes), "a name for each class"),
            ("exif", self.exif in EXIF, ", ".join(EXIF)),
            ("grey_bits", type(self.grey_bits) is int and 8 <= self.grey_bits <= 16, "8 to 16"),
            ("batch_size", type(self.batch_size) is int and self.batch_size >= 0, "0 or more"),
        ]  # fmt: skip
        for name, holds, allowed in rules:
            if not holds:
                value = _brief(repr(getattr(self, name)))
                raise UserError(f"{path} says {name} {value} of itself, but that must be {allowed}; export it again")

    def to_entries(self):
        """{name: JSON}."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in dataclasses.asdict(self).items()}

    def config_keys(self):
        """{config key: value} of what the file fixes."""
        return {
            "MODEL.NAME": self.model,
            "MODEL.NUM_CLASSES": len(self.classes),
            "DATA.CHANNELS": self.channels,
            "DATA.IMAGE_SIZE": self.image_size[0],
            "DATA.MEAN": self.mean,
            "DATA.STD": self.std,
            "DATA.EXIF": self.exif,
            "DATA.GREY_BITS": self.grey_bits,
            "VAL.CROP_PCT": float(self.crop_pct),
            "VAL.CROP_MODE": self.crop_mode,
            "VAL.INTERPOLATION": self.interpolation,
        }

    def settle(self, cfg, given, path):
        """`cfg` with what the file fixes.

        Raises UserError if one of the keys `given` by the user says otherwise, or for a model of oblong images, which
        the commands do not make.
        """
        height, width = self.image_size
        if height != width:
            raise UserError(f"{path} takes images of {height}x{width} pixels, the commands make square ones")
        fixed = self.config_keys()
        values = {}
        for key, value in fixed.items():
            section, _, leaf = key.partition(".")
            if key in given and cfg[section][leaf] != value:
                raise UserError(f"{key} is {cfg[section][leaf]!r} but {path} was exported with {value!r}; export again")
            values[key] = value
        if "DATA.NAME" not in given:
            values["DATA.NAME"] = self.data
        return with_keys(cfg, values)


def _brief(text):
    return textwrap.shorten(text, 80, placeholder=" ...")


def _numbers(values, length, low=-(2.0**53), high=2.0**53):
    return (
        isinstance(values, list)
        and len(values) == length
        and all(type(value) in (int, float) and low <= value <= high for value in values)  # False of NaN
    )


def _texts(values):
    return isinstance(values, list) and len(values) > 0 and all(isinstance(value, str) for value in values)
