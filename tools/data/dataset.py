"""ImageNet-style data sets: class folders or list files, one class list for both splits."""

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import resolve
from data.index import EXTENSIONS, Paths, class_folders, scan
from errors import UserError

log = logging.getLogger("t2t")

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation", "test")}


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
    repeated = sorted({folder for folder in folders if folders.count(folder) > 1})
    if repeated:
        raise UserError(f"class list {path} names {some(repeated)} more than once")
    return ClassList(tuple(folders), tuple(names), str(path))


def load_data(cfg, splits=("train", "val")):
    """Class list and `Split`s of the data set that the config names.

    Returns:
        (ClassList, {split name: Split}).

    Raises:
        UserError: for a missing or empty folder, a class that the class list does not know, a label out of range,
            a class count that is not MODEL.NUM_CLASSES. Classes without images in one split are logged as a warning.
    """
    root, given = data_root(cfg)
    lists = {"train": cfg.DATA.TRAIN_LIST, "val": cfg.DATA.VAL_LIST}
    classes = load_classes(cfg, root, lists)
    if len(classes) != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES} but {classes.source} has {len(classes)} classes; "
            f"set MODEL.NUM_CLASSES {len(classes)}"
        )
    loaded = {}
    for name in splits:
        if given and name not in given:
            raise UserError(f"DATA.PATH {cfg.DATA.PATH} is no {name} folder; give the folder above it")
        if lists[name]:
            loaded[name] = read_list(root, name, root / lists[name], len(classes))
        else:
            folder = given.get(name) or split_folder(root, name)
            loaded[name] = _scan_split(folder, name, classes, resolve(cfg.OUTPUT))
        _warn_of_empty_classes(loaded[name], classes)
    return classes, loaded


def data_root(cfg):
    """(folder above the splits, {split: its folder if that is what DATA.PATH names})."""
    root = resolve(cfg.DATA.PATH)
    if not root.is_dir():
        fault = "is no folder" if root.exists() else "not found"
        raise UserError(f"data folder {root} {fault}; give it with --data-path DIR (DATA.PATH)")
    if not any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names):
        for split, names in SPLIT_FOLDERS.items():
            if root.name in names:
                return root.parent, {split: root}
    return root, {}


def split_folder(root, split, required=True):
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    # A folder of class folders, named otherwise, serves as the validation split.
    if split == "val" and not (root / "train").is_dir() and class_folders(root):
        return root
    if required:
        raise UserError(f"data folder {root} has no {split}/ folder")
    return None


def load_classes(cfg, root, lists):
    if cfg.DATA.CLASSES:
        return read_classes(resolve(cfg.DATA.CLASSES))
    if (root / "classes.txt").is_file():
        return read_classes(root / "classes.txt")
    if any(lists.values()):
        ids = tuple(str(i) for i in range(cfg.MODEL.NUM_CLASSES))
        return ClassList(ids, ids, "MODEL.NUM_CLASSES")
    folder = split_folder(root, "train", required=False) or split_folder(root, "val")
    folders = tuple(class_folders(folder))
    if not folders:
        raise UserError(f"{folder} has no class folders")
    return ClassList(folders, folders, str(folder))


def _scan_split(folder, name, classes, spare_folder):
    found = class_folders(folder)
    if not found:
        raise UserError(f"{folder} has no class folders")
    ids = {class_folder: i for i, class_folder in enumerate(classes.folders)}
    unknown = [class_folder for class_folder in found if class_folder not in ids]
    if unknown:
        raise UserError(f"{folder} has class folders that {classes.source} has not: {some(unknown)}")
    found, paths, class_of = scan(folder, spare_folder)
    if not paths:
        raise UserError(f"the class folders of {folder} hold no images ({', '.join(sorted(EXTENSIONS))})")
    return Split(name, str(folder), paths, np.array([ids[class_folder] for class_folder in found], np.int32)[class_of])


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
