"""ImageNet-style data sets: class folders or list files, one class list for both splits."""

import logging
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import resolve, with_keys
from data.holdout import held_out
from data.index import EXTENSIONS, Paths, class_folders, scan
from errors import UserError

log = logging.getLogger("t2t")

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation", "test")}
VAL_SHARE = 0.2  # of DATA.VAL_SHARE, as it is suggested


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


def read_classes(path):
    """Read a class list: one folder name a line, or tab-separated index, folder and name under a header line."""
    path = Path(path)
    try:
        lines = [line.rstrip("\r\n") for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"class list {path} not found (DATA.CLASSES)") from None
    except UnicodeDecodeError:
        raise UserError(f"class list {path} is not a text file") from None
    if not lines:
        raise UserError(f"class list {path} is empty")
    if "\t" not in lines[0]:
        return _class_list(lines, lines, path)
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows):
        if len(row) != 3 or row[0] != str(number):
            raise UserError(f"class list {path}, line {number + 2}: expected '{number}<tab>folder<tab>name'")
    return _class_list([row[1] for row in rows], [row[2] for row in rows], path)


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
            a class count that is not MODEL.NUM_CLASSES (unless that is 0), a class too small for DATA.VAL_SHARE.
            Classes without images in one split are logged as a warning.
    """
    layout = Layout(cfg)
    classes = load_classes(cfg, layout)
    if not cfg.MODEL.NUM_CLASSES and len(classes) < 2:
        raise UserError(f"{classes.source} has a single class, {classes.folders[0]}; a training needs two or more")
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
    loaded = {}
    for name in splits:
        if layout.lists[name]:
            loaded[name] = read_list(layout.root, name, layout.root / layout.lists[name], len(classes))
        elif name not in loaded:
            loaded |= _scan_splits(layout, name, classes, cfg)
        _warn_of_empty_classes(loaded[name], classes)
    return classes, {name: loaded[name] for name in splits}


def above_train(cfg):
    """The config of a training with the folder above train/ for DATA.PATH, where that is train/ with val/ beside it."""
    path = resolve(cfg.DATA.PATH)
    if path.name != "train" or (path / "train").is_dir():
        return cfg
    if not any((path.parent / name).is_dir() for name in SPLIT_FOLDERS["val"]):
        return cfg
    return with_keys(cfg, {"DATA.PATH": str(path.parent)})


class Layout:
    """Where the splits of the data set lie that DATA.PATH names.

    root: folder above the splits; lists: {split: list file or ""}; shared: folder of class folders of which
    DATA.VAL_SHARE validates and the rest trains, None where each split has its own.
    """

    def __init__(self, cfg):
        self.root = resolve(cfg.DATA.PATH)
        if not self.root.is_dir():
            fault = "is no folder" if self.root.exists() else "not found"
            raise UserError(f"data folder {self.root} {fault}; give it with --data-path DIR (DATA.PATH)")
        self.lists = {"train": cfg.DATA.TRAIN_LIST, "val": cfg.DATA.VAL_LIST}
        self.given = None  # split whose folder is DATA.PATH itself
        if not any(self.own(split) for split in SPLIT_FOLDERS):
            self.given = next((split for split, names in SPLIT_FOLDERS.items() if self.root.name in names), None)
        self._given_folder = self.root
        self.root = self.root.parent if self.given else self.root
        self.shared, self.wants_share = None, cfg.DATA.VAL_SHARE > 0
        if self.wants_share and not any(self.lists.values()) and self.could_be_shared():
            self.shared, self.given = self.folder("train") or self.root, None

    def own(self, split):
        """Folder of its own that a split has below `root`, or None."""
        return next((self.root / name for name in SPLIT_FOLDERS[split] if (self.root / name).is_dir()), None)

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
            hint = f"; DATA.VAL_SHARE {VAL_SHARE} takes a part of {'train/' if split == 'val' else 'each class'} for it"
        raise UserError(f"data folder {self.root} has no {split}/ folder{hint}")


def load_classes(cfg, layout):
    """`ClassList` of the data set. Raises UserError if there is none."""
    if cfg.DATA.CLASSES:
        return read_classes(resolve(cfg.DATA.CLASSES))
    if (layout.root / "classes.txt").is_file():
        return read_classes(layout.root / "classes.txt")
    if any(layout.lists.values()):
        if not cfg.MODEL.NUM_CLASSES:
            raise UserError("MODEL.NUM_CLASSES is 0 but list files name no classes; set it, or DATA.CLASSES")
        ids = tuple(str(i) for i in range(cfg.MODEL.NUM_CLASSES))
        return ClassList(ids, ids, "MODEL.NUM_CLASSES")
    folder = layout.shared or layout.own("train") or layout.require("val")
    folders = tuple(class_folders(folder))
    if not folders:
        raise UserError(f"{folder} has no class folders")
    return ClassList(folders, folders, str(folder))


def _scan_splits(layout, name, classes, cfg):
    """{name: Split}, and the other split too where both share a folder."""
    folder = layout.require(name)
    found = class_folders(folder)
    if not found:
        raise UserError(f"{folder} has no class folders")
    ids = {class_folder: i for i, class_folder in enumerate(classes.folders)}
    unknown = [class_folder for class_folder in found if class_folder not in ids]
    if unknown:
        raise UserError(f"{folder} has class folders that {classes.source} has not: {some(unknown)}")
    found, paths, class_of = scan(folder, resolve(cfg.OUTPUT))
    if not paths:
        raise UserError(f"the class folders of {folder} hold no images ({', '.join(sorted(EXTENSIONS))})")
    labels = np.array([ids[class_folder] for class_folder in found], np.int32)[class_of]
    if not layout.shared:
        return {name: Split(name, str(folder), paths, labels)}
    validates = held_out(paths, class_of, found, folder, cfg.DATA.VAL_SHARE, cfg.SEED)
    source = f"{folder} (DATA.VAL_SHARE {cfg.DATA.VAL_SHARE:g})"
    parts = {"train": ~validates, "val": validates}
    return {split: Split(split, source, paths.where(chosen), labels[chosen]) for split, chosen in parts.items()}


def read_list(root, name, list_file, num_classes):
    """Read "relative/path label" lines; the path may hold blanks and counts from the split's folder or from `root`."""
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"list file {list_file} not found (DATA.{name.upper()}_LIST)") from None
    except UnicodeDecodeError:
        raise UserError(f"list file {list_file} is not a text file") from None
    except OSError as error:
        raise UserError(f"list file {list_file}: {error.strerror} (DATA.{name.upper()}_LIST)") from None
    paths, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        *path, label = line.strip().rsplit(None, 1)
        if not path or not (label.isascii() and label.isdigit() and len(label) < 20):
            found = repr(line.strip()[:200])
            raise UserError(f"{list_file}, line {number}: expected 'relative/path label' but found {found}")
        if int(label) >= num_classes:
            raise UserError(
                f"{list_file}, line {number}: label {label} is out of range, the last of {num_classes} classes is "
                f"{num_classes - 1} (MODEL.NUM_CLASSES)"
            )
        paths.append(path[0])
        labels.append(int(label))
    if not paths:
        raise UserError(f"list file {list_file} is empty")
    base = _list_base(root, name, list_file, paths[0])
    return Split(name, str(list_file), Paths.of(str(base / path) for path in paths), np.array(labels, np.int32))


def _list_base(root, name, list_file, first):
    bases = [root / folder for folder in SPLIT_FOLDERS[name]] + [root]
    for base in bases:
        if (base / first).is_file():
            return base
    raise UserError(f"{list_file} names {first}, which is in none of {', '.join(map(str, bases))}")


def _warn_of_empty_classes(split, classes):
    empty = np.flatnonzero(np.bincount(split.labels, minlength=len(classes)) == 0)
    if len(empty):
        names = some([classes.folders[i] for i in empty])
        log.warning("warning: %d of %d classes have no image in %s: %s", len(empty), len(classes), split.source, names)


def some(names, limit=5):
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
