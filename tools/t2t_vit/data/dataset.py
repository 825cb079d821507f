"""ImageNet-style data sets: class folders or list files, with one class list for both splits."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.data.classes import ClassList, composed, load_classes, some
from t2t_vit.data.holdout import held_out
from t2t_vit.data.index import EXTENSIONS, class_folders, scan
from t2t_vit.data.layout import Layout, innermost, split_folders
from t2t_vit.data.lists import image_rows, read_lines
from t2t_vit.data.paths import Paths

log = logging.getLogger("t2t")

_SIZES = 1000  # number of file sizes compared on resume, enough to notice that images were resized


@dataclass(frozen=True)
class Split:
    """The images of one split: image `paths[i]` has class `labels[i]`."""

    name: str
    source: str  # folder or list file
    paths: Paths
    labels: np.ndarray  # int32 (N,)

    def __len__(self) -> int:
        return len(self.paths)

    def checksum(self) -> str:
        """CRC-32 of the file names and labels. Does not depend on the folder of the data set."""
        names = b"".join(os.path.basename(name) for name in self.paths.names)
        return f"{zlib.crc32(self.labels.tobytes(), zlib.crc32(names)):08x}"

    def sizes_checksum(self) -> str:
        """CRC-32 of the sizes of up to 1000 evenly spaced files. Reading all would take minutes on a network disk."""
        sizes = [_size(self.paths[i]) for i in range(0, len(self), max(1, -(-len(self) // _SIZES)))]
        return f"{zlib.crc32(np.array(sizes, '<i8').tobytes()):08x}"


def _size(path):
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def most_skipped(images: int) -> int:
    """Return how many images DATA.ON_ERROR skip may replace in an epoch of `images`."""
    return max(3, images // 100)


def load_data(
    cfg: CfgNode, splits: Sequence[str] = ("train", "val"), model_file: str | Path | None = None
) -> tuple[ClassList, dict[str, Split]]:
    """Find the classes and images of the data set that the config names.

    Args:
        cfg: config.
        splits: names of the splits to load.
        model_file: weights file to name in errors, if it determines MODEL.NUM_CLASSES and the user cannot set that.
            Class folders may then be named after the numbers of the classes, as in ImageNet-V2.

    Returns:
        (ClassList, {split name: Split}).

    Raises:
        UserError: for a missing or empty folder, a class that is not in the class list, a label out of range, a class
            count that is not MODEL.NUM_CLASSES (unless that is 0), a class too small for DATA.VAL_FRACTION.
            Classes without images in one split are only logged as a warning.
    """
    layout = Layout(cfg)
    classes = load_classes(cfg, layout)
    _check_number(classes, cfg, model_file)
    loaded = {}
    for name in splits:
        if layout.lists[name]:
            loaded[name] = read_list(layout.root, name, layout.root / layout.lists[name], classes)
        elif name not in loaded:
            loaded |= scan_splits(layout, name, classes, cfg, by_number=model_file is not None)
        _warn_of_empty_classes(loaded[name], classes, cfg)
    return classes, {name: loaded[name] for name in splits}


def _check_number(classes, cfg, model_file):
    """Raise UserError if the number of classes is not MODEL.NUM_CLASSES, or too small."""
    if not cfg.MODEL.NUM_CLASSES and len(classes) < 2:
        below = Path(classes.source) / classes.folders[0]
        is_nested = below.is_dir() and class_folders(below)  # the only class folder is in fact the data set
        raise UserError(
            f"{classes.source} has a single class, {classes.folders[0]}; training needs two or more"
            + (f"; did you mean --data-path {below}?" if is_nested else "")
        )
    if cfg.MODEL.NUM_CLASSES and len(classes) != cfg.MODEL.NUM_CLASSES:
        if model_file:
            raise UserError(
                f"{classes.source} has {len(classes)} classes but {model_file} was trained for "
                f"{cfg.MODEL.NUM_CLASSES}; give the data set of these classes with --data-path DIR"
            )
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES} but {classes.source} has {len(classes)} classes; "
            f"set MODEL.NUM_CLASSES {len(classes)}"
        )


def _warn_of_empty_classes(split, classes, cfg):
    empty = np.flatnonzero(np.bincount(split.labels, minlength=len(classes)) == 0)
    if len(empty) and not (split.name == "val" and cfg.VAL.CLASSES_ONLY):
        names = [classes.folders[i] for i in empty]
        log.warning("warning: %s", empty_classes(names, len(classes), split.name, split.source, cfg))


def empty_classes(names: Sequence[str], total: int, split: str, place: str | Path, cfg: CfgNode) -> str:
    """Describe the classes `names`, of `total`, that have no image in `place`, the folder or list of a split."""
    hint = "; VAL.CLASSES_ONLY True leaves them out of the predictions"
    line = f"{len(names)} of {total} classes have no image in {place}: {some(names)}"
    return line + (hint if split == "val" and not cfg.VAL.CLASSES_ONLY else "")


# --- Folders ---


def scan_splits(layout, name, classes, cfg, by_number=False):
    """Scan the class folders of a split: {name: Split}, with both splits if they share the folder.

    For `by_number` see `folder_ids`.
    """
    folder = layout.require(name)
    found, paths, class_of = scan(folder)
    if not found:
        raise UserError(f"{folder} has no class folders")
    ids = folder_ids(found, classes, by_number)
    unknown = [class_folder for class_folder in found if composed(class_folder) not in ids]
    if unknown:
        raise UserError(f"{folder} has class folders that are not in {classes.source}: {some(unknown)}")
    if ids.keys() != set(classes.folders):
        log.info("the class folders of %s are numbers of classes in %s", folder, classes.source)
    if not len(paths):
        raise UserError(f"the class folders of {folder} contain no images ({', '.join(sorted(EXTENSIONS))})")
    labels = np.array([ids[composed(class_folder)] for class_folder in found], np.int32)[class_of]
    if not layout.shared:
        return {name: Split(name, str(folder), paths, labels)}
    validates = held_out(paths, class_of, found, cfg.DATA.VAL_FRACTION, cfg.SEED)
    source = f"{folder} (DATA.VAL_FRACTION {cfg.DATA.VAL_FRACTION:g})"
    parts = {"train": ~validates, "val": validates}
    return {split: Split(split, source, paths.where(chosen), labels[chosen]) for split, chosen in parts.items()}


def folder_ids(found, classes, by_number):
    """Return {class folder: class id} of a class list.

    With `by_number`, the folders `found` may be named after the numbers of the classes, as in ImageNet-V2, unless the
    list names one of them.
    """
    ids = {class_folder: i for i, class_folder in enumerate(classes.folders)}
    numbers = {str(i): i for i in range(len(classes))}
    return numbers if by_number and not ids.keys() & set(found) and numbers.keys() >= set(found) else ids


# --- List files ---


def read_list(root, name, list_file, classes, any_number=False):
    """Read a `Split` from a list file (see `image_rows`). Its paths are relative to the split's folder or to `root`.

    A label is the number or the name of a class. If `classes` is None or `any_number`, any number is accepted.
    """
    ids = {folder: i for i, folder in enumerate(classes.folders)} if classes else {}
    number_of_labels = len(classes) if classes and not any_number else 2**31
    paths, labels = [], []
    lines = read_lines(list_file, "list file", f"DATA.{name.upper()}_LIST")
    for number, path, label in image_rows(lines):
        where = f"{list_file}, line {number}"
        is_number = label and label.isascii() and label.isdigit() and len(label) < 20
        if not is_number and (not label or composed(label) not in ids):
            found = repr(lines[number - 1].strip()[:200])
            also = " (a number from 0, or the name of a class)" if label else ""
            raise UserError(f"{where}: expected 'relative/path label'{also} but found {found}")
        label = int(label) if is_number else ids[composed(label)]
        if label >= number_of_labels:
            limit = f"the last of {number_of_labels} classes is {number_of_labels - 1} (MODEL.NUM_CLASSES)"
            limit = limit if number_of_labels < 2**31 else "it is too large"
            raise UserError(f"{where}: label {label} is out of range, {limit}")
        paths.append(path)
        labels.append(label)
    if not paths:
        raise UserError(f"list file {list_file} is empty")
    base, paths = _list_base(root, name, list_file, paths)
    _warn_of_repeated(paths, labels, list_file)
    return Split(name, str(list_file), Paths.of(paths, base), np.array(labels, np.int32))


def _list_base(root, name, list_file, paths):
    """Return (folder that the paths of a list are relative to, the paths as spelled on this system)."""
    folders = split_folders(root, name)
    bases = list(dict.fromkeys([*map(innermost, folders), *folders, root]))
    relative = next((i for i, path in enumerate(paths) if not os.path.isabs(path)), 0)
    for spelling in (paths, [path.replace("\\", "/") for path in paths]):  # as written; from Windows
        for base in bases:
            if (base / spelling[relative]).is_file():
                return base, spelling
    raise UserError(f"{list_file} names {paths[relative]}, which is in none of {', '.join(map(str, bases))}")


def _warn_of_repeated(paths, labels, list_file):
    """Log how many lines repeat a path. Raises UserError if such lines differ in their label."""
    number = len(paths) - len(set(paths))
    if not number:
        return
    label_of = {}
    for path, label in zip(paths, labels):
        if label_of.setdefault(path, label) != label:
            raise UserError(f"{list_file} gives {path} two labels, {label_of[path]} and {label}")
    log.warning("warning: %d lines of %s repeat an earlier line; these images count more than once", number, list_file)
