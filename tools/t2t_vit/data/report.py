"""The findings of tools/check_data.py, as text and as JSON."""

import functools
import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from t2t_vit.common.errors import one_line, printable
from t2t_vit.common.logger import progress_bar
from t2t_vit.data.images import ImageError, load_image, stored_form
from t2t_vit.data.paths import Paths

SHOWN = 10  # number of unreadable files to print per split; --json lists all
_CHUNK = 64  # images per task of a reading thread


@dataclass
class SplitReport:
    """Facts about the images of one split. `read_images` fills in those that need the files."""

    name: str
    source: str
    paths: Paths
    classes: dict  # {class folder, or number in a list file: images}; empty folders too
    misfit: str = ""  # error about the first label out of range in a list file
    unreadable: dict = field(default_factory=dict)  # {path: reason}
    sides: Counter = field(default_factory=Counter)  # {shorter side in pixels: images}
    modes: Counter = field(default_factory=Counter)  # {Pillow's name: images}
    rotated: int = 0  # images that EXIF rotates or mirrors
    digests: list = field(default_factory=list)  # hash of each file, b"" if unreadable

    def read_images(self, how, jobs):
        """Read all images in `jobs` threads. `how`: keyword arguments of `load_image`."""
        with ThreadPool(jobs) as pool:  # Pillow releases Python's lock (GIL) while it decodes
            looks = pool.imap(functools.partial(_look, how), self.paths, _CHUNK)
            bar = progress_bar(looks, total=len(self.paths), desc=f"check {self.name}", unit=" images")
            for path, (reason, digest, side, mode, is_rotated) in zip(self.paths, bar):
                self.digests.append(digest)
                if reason:
                    self.unreadable[path] = reason
                    continue
                self.sides[side] += 1
                self.modes[mode] += 1
                self.rotated += is_rotated


def _look(how, path):
    """Return (reason why a file cannot be read or "", hash of its content, shorter side, Pillow mode, is rotated)."""
    try:
        image = load_image(path, **how)  # as in evaluation
        digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=8).digest()
        return "", digest, min(image.size), *stored_form(path)
    except (ImageError, OSError) as error:
        return one_line(error), b"", 0, "", False


@dataclass
class Findings:
    """`faults` would stop or harm training, `notes` would not. `settings` are {key: value} that fit the data."""

    faults: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    command: str = ""


def spread(counter):
    """Return (smallest, median, largest) of the values in a Counter; zeros if it is empty."""
    values = sorted(counter.elements()) or [0]
    return values[0], values[len(values) // 2], values[-1]


def print_report(splits, findings):
    for split in splits:
        unreadable = len(split.unreadable)
        show(f"{split.name}: {len(split.paths):,} images in {len(split.classes):,} classes, {unreadable:,} unreadable "
             f"({split.source})")  # fmt: skip
        if split.sides:
            for title, counter in (
                ("images per class", Counter(split.classes.values())),
                ("shorter side in pixels", split.sides),
            ):
                smallest, median, largest = spread(counter)
                print(f"  {title}: {smallest:,} to {largest:,}, median {median:,}")
        deep = {mode: number for mode, number in split.modes.items() if mode.startswith(("I", "F"))}
        for title, counter in (
            ("Pillow modes", split.modes),
            ("more than 8 bits, by Pillow mode", Counter(deep)),
            ("rotated or mirrored by EXIF (DATA.EXIF)", Counter(images=split.rotated)),
        ):
            if any(counter.values()):
                show(f"  {title}: " + ", ".join(f"{name} {number:,}" for name, number in counter.most_common()))
        for reason in itertools.islice(split.unreadable.values(), SHOWN):
            show(f"  {reason}")
        if unreadable > SHOWN:
            print(f"  and {unreadable - SHOWN:,} more (--json FILE lists all)")
    for kind, lines in (("fault", findings.faults), ("note", findings.notes)):
        for line in lines:
            show(f"{kind}: {line}")
    if any(split.sides for split in splits):
        print("settings that fit:")
        show(findings.command)


def show(line):
    """Print a line, with the control characters in names escaped."""
    print(printable(line))


def to_json(splits, findings):
    """Return the whole report as a dict. It names only the images that cannot be read."""
    left_out = ("name", "paths", "misfit", "digests")
    reports = {
        split.name: {"files": len(split.paths), **{k: v for k, v in vars(split).items() if k not in left_out}}
        for split in splits
    }
    return {"splits": reports, **vars(findings)}
