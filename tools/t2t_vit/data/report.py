"""What tools/check_data.py has found, as text and as JSON."""

import itertools
import math
from array import array
from collections import Counter
from dataclasses import dataclass, field

from t2t_vit.common.errors import printable
from t2t_vit.data.paths import Paths

SHOWN = 10  # unreadable files of a split that are printed; --json has all


@dataclass
class SplitReport:
    """The images of one split."""

    name: str
    source: str
    paths: Paths
    classes: dict  # {class folder, or number in a list file: images}; empty folders too
    unreadable: dict = field(default_factory=dict)  # {path: reason}
    sides: Counter = field(default_factory=Counter)  # {shorter side in pixels: images}
    modes: Counter = field(default_factory=Counter)  # {Pillow's name: images}
    rotated: int = 0  # images that EXIF rotates or mirrors
    dim: int = 0  # 16-bit images that use 12 bits or fewer
    digests: array = field(default_factory=lambda: array("Q"))  # hash of each file, 0 if unreadable
    grey: list = field(default_factory=lambda: [0, 0.0, 0.0])  # grey images, sums of their means and mean squares


@dataclass
class Findings:
    """`faults` would stop or spoil a training, `notes` would not; `settings` {key: value} fit the data."""

    faults: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    command: str = ""


def spread(counter):
    """(smallest, median, largest) of the values that a Counter counts; zeros if there are none."""
    values = sorted(counter.elements()) or [0]
    return values[0], values[len(values) // 2], values[-1]


def histogram(title, counter):
    """Lines of a text histogram by powers of two."""
    smallest, median, largest = spread(counter)
    yield f"  {title}: {smallest:,} to {largest:,}, median {median:,}"
    bins = Counter()
    for value, number in counter.items():
        bins[value.bit_length()] += number
    for bits in range(smallest.bit_length(), largest.bit_length() + 1):
        bar = "#" * math.ceil(40 * bins[bits] / max(bins.values()))
        yield f"    {2**bits // 2:>6} - {2**bits - 1:<6} {bins[bits]:>9,} {bar}".rstrip()


def print_report(splits, findings):
    for split in splits:
        unreadable = len(split.unreadable)
        show(f"{split.name}: {len(split.paths):,} images in {len(split.classes):,} classes, {unreadable:,} unreadable "
             f"({split.source})")  # fmt: skip
        if split.sides:
            print(*histogram("images per class", Counter(split.classes.values())), sep="\n")
            print(*histogram("shorter side in pixels", split.sides), sep="\n")
        deep = {mode: number for mode, number in split.modes.items() if mode.startswith(("I", "F"))}
        for title, counter in (
            ("Pillow modes", split.modes),
            ("more than 8 bits, by Pillow mode", Counter(deep)),
            ("rotated or mirrored by EXIF (DATA.EXIF)", Counter(images=split.rotated)),
            ("16-bit images that use 12 bits or fewer (DATA.GREY_BITS)", Counter(images=split.dim)),
        ):
            if any(counter.values()):
                show(f"  {title}: " + ", ".join(f"{name} {number:,}" for name, number in counter.most_common()))
        for reason in itertools.islice(split.unreadable.values(), SHOWN):
            show(f"  {reason}")
        if unreadable > SHOWN:
            print(f"  and {unreadable - SHOWN:,} more, which --json FILE lists")
    for kind, lines in (("fault", findings.faults), ("note", findings.notes)):
        for line in lines:
            show(f"{kind}: {line}")
    if any(split.sides for split in splits):
        print("settings that fit:")
        show(findings.command)


def show(line):
    """Print a line with names that may hold control characters."""
    print(printable(line))


def to_json(splits, findings):
    """The whole report. It names only those images that cannot be read."""
    left_out = ("name", "paths", "grey", "digests")
    reports = {
        split.name: {"files": len(split.paths), **{k: v for k, v in vars(split).items() if k not in left_out}}
        for split in splits
    }
    return {"splits": reports, **vars(findings)}
