"""ImageNet-style data sets: class folders or list files, one class list for both splits."""

import logging
import os
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.config import class_list, resolve, with_keys
from t2t_vit.data.holdout import held_out
from t2t_vit.data.index import EXTENSIONS, UNWRITABLE, Paths, class_folders, class_order, composed, scan
from t2t_vit.data.lists import class_rows, image_rows, read_lines, respelled

log = logging.getLogger("t2t")

# Names that folders of a split have, the first of them first; also capitalised or in capitals.
SPLIT_FOLDERS = {
    "train": ("train", "training", "train_set", "training_set", "seg_train"),
    "val": ("val", "valid", "validation", "val_set", "validation_set", "test", "testing", "test_set", "seg_test"),
}
VAL_FRACTION = 0.2  # of DATA.VAL_FRACTION, as it is suggested
_SIZES = 1000  # files whose sizes are compared when a run is resumed: enough to notice pictures that were resized


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of their ids: folder names, and names to show."""

    folders: tuple
    names: tuple
    source: str

    def __len__(self):
        return len(self.folders)

    def to_text(self):
        """The classes in the form that `read_classes` reads."""
        rows = zip(range(len(self)), self.folders, self.names)
        return "index\tfolder\tname\n" + "".join(f"{i}\t{folder}\t{name}\n" for i, folder, name in rows)


@dataclass(frozen=True)
class Split:
    """Images of one split: `paths[i]` shows class `labels[i]`."""

    name: str
    source: str
    paths: Paths
    labels: np.ndarray  # int32 (N,)

    def __len__(self):
        return len(self.paths)

    def checksum(self):
        """Of file names and labels, wherever the files lie."""
        return f"{zlib.crc32(self.labels.tobytes(), zlib.crc32(self.paths.names)):08x}"

    def sizes_checksum(self):
        """Of the sizes in bytes of at most 1000 files, evenly spread; all would take minutes on a network."""
        sizes = [_size(self.paths[i]) for i in range(0, len(self), max(1, -(-len(self) // _SIZES)))]
        return f"{zlib.crc32(np.array(sizes, '<i8').tobytes()):08x}"


def _size(path):
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def most_skipped(images):
    """Number of images of an epoch of `images` that DATA.ON_ERROR skip may replace."""
    return max(3, images // 100)


def read_classes(path):
    """Read a class list in one of the forms of `class_rows`."""
    rows = class_rows(read_lines(path, "class list", "DATA.CLASSES"), path)
    return _class_list([composed(folder) for folder, _ in rows], [name for _, name in rows], path)


def _class_list(folders, names, path):
    repeated = sorted(folder for folder, count in Counter(folders).items() if count > 1)
    if repeated:
        raise UserError(f"class list {path} names {some(repeated)} more than once")
    return ClassList(tuple(folders), tuple(names), str(path))


def load_data(cfg, splits=("train", "val"), model_file=None):
    """Class list and `Split`s of the data set that the config names.

    Args:
        cfg: config.
        splits: their names.
        model_file: what MODEL.NUM_CLASSES was read from, where no setting can change it.

    Returns:
        (ClassList, {split name: Split}).

    Raises:
        UserError: for a missing or empty folder, a class that the class list does not know, a label out of range,
            a class count that is not MODEL.NUM_CLASSES (unless that is 0), a class too small for DATA.VAL_FRACTION.
            Classes without images in one split are logged as a warning.
    """
    layout = Layout(cfg)
    classes = load_classes(cfg, layout)
    _check_number(classes, cfg, model_file)
    loaded = {}
    for name in splits:
        if layout.lists[name]:
            loaded[name] = read_list(layout.root, name, layout.root / layout.lists[name], classes)
        elif name not in loaded:
            loaded |= _scan_splits(layout, name, classes, cfg)
        _warn_of_empty_classes(loaded[name], classes)
    return classes, {name: loaded[name] for name in splits}


def _check_number(classes, cfg, model_file):
    """Raise UserError if the number of classes is not MODEL.NUM_CLASSES, or too small."""
    if not cfg.MODEL.NUM_CLASSES and len(classes) < 2:
        raise UserError(
            f"{classes.source} has a single class, {classes.folders[0]}; a training needs two or more"
            f"{_hint_below(Path(classes.source) / classes.folders[0])}"
        )
    if cfg.MODEL.NUM_CLASSES and len(classes) != cfg.MODEL.NUM_CLASSES:
        if model_file:
            raise UserError(
                f"{classes.source} has {len(classes)} classes but {model_file} was trained for "
                f"{cfg.MODEL.NUM_CLASSES}; give the data that it is for with --data-path DIR"
            )
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES} but {classes.source} has {len(classes)} classes; "
            f"set MODEL.NUM_CLASSES {len(classes)}"
        )


def _hint_below(folder):
    """Advice where the only folder of a data set is the data set."""
    return f"; perhaps --data-path {folder} is meant" if folder.is_dir() and class_folders(folder) else ""


def split_folders(root, split):
    """Folders of `root` that are named like the split, the likeliest first."""
    # Not by listing `root`, which may hold a million images.
    found = []
    for name in SPLIT_FOLDERS[split]:
        for folder in (root / name, root / name.capitalize(), root / name.upper()):
            if folder.is_dir() and not any(map(folder.samefile, found)):  # a disk of macOS knows no capitals
                found.append(folder)
    return found


def split_folder(root, split):
    """Folder of the class folders of a split below `root`, or None. A test folder without classes validates nothing."""
    for folder in split_folders(root, split):
        inner = _innermost(folder)
        is_labelled = inner != folder or any(name != folder.name for name in class_folders(folder))
        if is_labelled or "test" not in folder.name.lower():
            return inner
    return None


def _innermost(folder):
    """`folder`, or the folder of the same name alone in it: some archives hold seg_train/seg_train/cat/*.jpg."""
    inner = folder / folder.name
    is_double = inner.is_dir() and class_folders(folder) == [folder.name] and class_folders(inner)
    return inner if is_double else folder


def _split_named(name):
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), None)


def above_train(cfg):
    """The config of a training with the folder above train/ for DATA.PATH, where that is train/ with val/ beside it."""
    path = resolve(cfg.DATA.PATH)
    path = path.parent if _innermost(path.parent) == path else path
    if _split_named(path.name) != "train" or not path.is_dir():
        return cfg
    if split_folders(path, "train") and _innermost(path) == path or not split_folder(path.parent, "val"):
        return cfg
    return with_keys(cfg, {"DATA.PATH": str(path.parent)})


class Layout:
    """Where the splits of the data set lie that DATA.PATH names.

    root: folder above the splits; lists: {split: list file or ""}; shared: folder of class folders of which
    DATA.VAL_FRACTION validates and the rest trains, None where each split has its own.
    """

    def __init__(self, cfg):
        self.root = resolve(cfg.DATA.PATH)
        if not self.root.is_dir():
            fault = "is no folder" if self.root.exists() else "not found"
            if self.root.name != self.root.name.strip():
                fault += f" (its name {self.root.name!r} begins or ends with a blank or a line break)"
            raise UserError(f"data folder {self.root} {fault}; give it with --data-path DIR (DATA.PATH)")
        self.lists = {"train": cfg.DATA.TRAIN_LIST, "val": cfg.DATA.VAL_LIST}
        self.given = None  # split whose folder is DATA.PATH itself
        self._given_folder = _innermost(self.root)
        if self._given_folder != self.root or not any(self.own(split) for split in SPLIT_FOLDERS):
            self.given = _split_named(self.root.name)
        self.root = self.root.parent if self.given else self.root
        self.shared, self.wants_share = None, cfg.DATA.VAL_FRACTION > 0
        if self.wants_share and not any(self.lists.values()) and self.could_be_shared():
            self.shared, self.given = self.folder("train") or self.root, None

    def own(self, split):
        """Folder of its own that a split has below `root`, or None."""
        return split_folder(self.root, split)

    def could_be_shared(self):
        """Whether a folder of class folders, train/ or the data folder itself, has no validation split beside it."""
        return not self.own("val") and self.given != "val" and bool(class_folders(self.own("train") or self.root))

    def folder(self, split):
        """Folder of the class folders of a split; None if there is none."""
        if self.shared:
            return self.shared
        if self.given:
            return self._given_folder if self.given == split else None
        if self.own(split):
            return self.own(split)
        # A folder of class folders, named otherwise, serves as the validation split; not one of which a list trains.
        is_val = split == "val" and not self.own("train") and not self.lists["train"] and class_folders(self.root)
        return self.root if is_val else None

    def require(self, split):
        """The same; raises UserError, saying what to do, if there is none."""
        if folder := self.folder(split):
            return folder
        if self.given:
            raise UserError(f"DATA.PATH {self._given_folder} is no {split} folder; give the folder above it")
        if self.wants_share and not self.own("train") and not class_folders(self.root):
            raise UserError(f"data folder {self.root} has no folders with pictures; make one for each class")
        hint = ""
        if not any(self.lists.values()) and self.could_be_shared():
            place = "train/" if split == "val" else "each class"
            hint = f"; DATA.VAL_FRACTION {VAL_FRACTION} takes a part of {place} for it"
        raise UserError(f"data folder {self.root} has no {split}/ folder{hint}")


def load_classes(cfg, layout):
    """`ClassList` of the data set. Raises UserError if there is none."""
    if cfg.DATA.CLASSES:
        return read_classes(class_list(cfg))
    if (layout.root / "classes.txt").is_file():
        return read_classes(layout.root / "classes.txt")
    if any(layout.lists.values()):
        if not cfg.MODEL.NUM_CLASSES:
            raise UserError("MODEL.NUM_CLASSES is 0 but list files name no classes; set it, or DATA.CLASSES")
        ids = tuple(str(i) for i in range(cfg.MODEL.NUM_CLASSES))
        return ClassList(ids, ids, "MODEL.NUM_CLASSES")
    folder = layout.shared or layout.own("train") or layout.require("val")
    folders = class_folders(folder)
    if not folders:
        raise UserError(f"{folder} has no class folders")
    if unwritable := next(filter(UNWRITABLE.search, folders), None):
        raise UserError(
            f"{folder} has a class folder {unwritable!r}: no class list can hold its name, because of bytes that are "
            "not UTF-8 or a control character; rename it"
        )
    folders = tuple(dict.fromkeys(map(composed, class_order(folders))))
    return ClassList(folders, folders, str(folder))


def _scan_splits(layout, name, classes, cfg):
    """{name: Split}, and the other split too where both share a folder."""
    folder = layout.require(name)
    found = class_folders(folder)
    if not found:
        raise UserError(f"{folder} has no class folders")
    ids = {class_folder: i for i, class_folder in enumerate(classes.folders)}
    unknown = [class_folder for class_folder in found if composed(class_folder) not in ids]
    if unknown:
        raise UserError(f"{folder} has class folders that {classes.source} has not: {some(unknown)}")
    found, paths, class_of = scan(folder, resolve(cfg.OUTPUT))
    if not paths:
        raise UserError(f"the class folders of {folder} hold no images ({', '.join(sorted(EXTENSIONS))})")
    labels = np.array([ids[composed(class_folder)] for class_folder in found], np.int32)[class_of]
    if not layout.shared:
        return {name: Split(name, str(folder), paths, labels)}
    validates = held_out(paths, class_of, found, folder, cfg.DATA.VAL_FRACTION, cfg.SEED)
    source = f"{folder} (DATA.VAL_FRACTION {cfg.DATA.VAL_FRACTION:g})"
    parts = {"train": ~validates, "val": validates}
    return {split: Split(split, source, paths.where(chosen), labels[chosen]) for split, chosen in parts.items()}


def read_list(root, name, list_file, classes, any_number=False):
    """`Split` of a list file in one of the forms of `image_rows`; its paths count from the split's folder or `root`.

    A label is the number of a class or its name in `classes` (or None); with `any_number` any int32.
    """
    ids = {folder: i for i, folder in enumerate(classes.folders)} if classes else {}
    number_of_classes = 2**31 if any_number else len(classes)
    paths, labels = [], []
    lines = read_lines(list_file, "list file", f"DATA.{name.upper()}_LIST")
    for number, path, label in image_rows(lines):
        is_number = label and label.isascii() and label.isdigit() and len(label) < 20
        if not is_number and (not label or composed(label) not in ids):
            found = repr(lines[number - 1].strip()[:200])
            also = " (a number from 0, or the name of a class)" if label else ""
            raise UserError(f"{list_file}, line {number}: expected 'relative/path label'{also} but found {found}")
        if is_number and int(label) >= number_of_classes:
            raise UserError(
                f"{list_file}, line {number}: label {label} is out of range, the last of {number_of_classes} classes "
                f"is {number_of_classes - 1} (MODEL.NUM_CLASSES)"
            )
        paths.append(path)
        labels.append(int(label) if is_number else ids[composed(label)])
    if not paths:
        raise UserError(f"list file {list_file} is empty")
    base, paths = _list_base(root, name, list_file, paths)
    _warn_of_repeated(paths, labels, list_file)
    return Split(name, str(list_file), Paths.of(os.path.join(base, path) for path in paths), np.array(labels, np.int32))


def _list_base(root, name, list_file, paths):
    """(folder that the paths of a list count from, the paths as they are spelled there)."""
    folders = split_folders(root, name)
    bases = [*dict.fromkeys(map(_innermost, folders)), *folders, root]
    relative = next((i for i, path in enumerate(paths) if not os.path.isabs(path)), 0)
    for spelling in respelled(paths):
        for base in bases:
            if (base / spelling[relative]).is_file():
                return base, spelling
    places = ", ".join(map(str, dict.fromkeys(bases)))
    raise UserError(f"{list_file} names {paths[relative]}, which is in none of {places}")


def _warn_of_repeated(paths, labels, list_file):
    number = len(paths) - len(set(paths))
    if not number:
        return
    label_of = {}
    for path, label in zip(paths, labels):
        if label_of.setdefault(path, label) != label:
            raise UserError(f"{list_file} gives {path} two labels, {label_of[path]} and {label}")
    log.warning("warning: %d lines of %s repeat an earlier line; such images count more than once", number, list_file)


def _warn_of_empty_classes(split, classes):
    empty = np.flatnonzero(np.bincount(split.labels, minlength=len(classes)) == 0)
    if len(empty):
        names = some([classes.folders[i] for i in empty])
        log.warning("warning: %d of %d classes have no image in %s: %s", len(empty), len(classes), split.source, names)


def some(names, limit=5):
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
