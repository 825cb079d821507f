"""Find the splits of a data set below the folder DATA.PATH."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.config import resolve, with_keys
from t2t_vit.data.index import class_folders

# Folder names of a split; the first one that exists is used. They may also be capitalised or upper case.
SPLIT_FOLDERS = {
    "train": ("train", "training", "train_set", "training_set", "seg_train"),
    "val": ("val", "valid", "validation", "val_set", "validation_set", "test", "testing", "test_set", "seg_test"),
}
VAL_FRACTION = 0.2  # the value of DATA.VAL_FRACTION that messages suggest


def split_named(name):
    """ "train" or "val" for the name of a split's folder, None for any other."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), None)


def split_folders(root, split):
    """List the folders in `root` that are named like the split, the preferred one first."""
    # Do not list `root`, because it may contain a million images.
    found = []
    for name in SPLIT_FOLDERS[split]:
        for folder in (root / name, root / name.capitalize(), root / name.upper()):
            if folder.is_dir() and not any(map(folder.samefile, found)):  # macOS ignores letter case
                found.append(folder)
    return found


def split_folder(root: Path, split: str) -> Path | None:
    """Find the folder below `root` with the class folders of a split, or None. Skips a test folder without classes."""
    for folder in split_folders(root, split):
        inner = innermost(folder)
        is_labelled = inner != folder or any(name != folder.name for name in class_folders(folder))
        if is_labelled or "test" not in folder.name.lower():
            return inner
    return None


def innermost(folder):
    """Return `folder`, or the only folder in it if both have the same name: seg_train/seg_train/cat/*.jpg."""
    inner = folder / folder.name
    is_double = inner.is_dir() and class_folders(folder) == [folder.name] and class_folders(inner)
    return inner if is_double else folder


def above_train(cfg: CfgNode) -> CfgNode:
    """Move DATA.PATH one folder up if it is a train/ folder with a val/ folder beside it, and return the config."""
    path = resolve(cfg.DATA.PATH)
    path = path.parent if innermost(path.parent) == path else path
    if split_named(path.name) != "train" or not path.is_dir():
        return cfg
    if split_folders(path, "train") and innermost(path) == path or not split_folder(path.parent, "val"):
        return cfg
    return with_keys(cfg, {"DATA.PATH": str(path.parent)})


def with_data_name(cfg: CfgNode) -> CfgNode:
    """If DATA.NAME is empty, return the config with the name of the data folder, above train/ or val/, instead."""
    path = resolve(cfg.DATA.PATH)
    while split_named(path.name) and path != path.parent:
        path = path.parent
    return cfg if cfg.DATA.NAME else with_keys(cfg, {"DATA.NAME": path.name or "data"})


class Layout:
    """Folders and list files of the splits.

    Attributes:
        root: folder above the splits.
        lists: {split: name of its list file, or ""}.
        given: "train" or "val" if DATA.PATH is the folder of that split, else None.
        shared: folder of class folders that DATA.VAL_FRACTION divides between both splits, else None.
    """

    def __init__(self, cfg):
        self.root = resolve(cfg.DATA.PATH)
        if not self.root.is_dir():
            fault = "is not a folder" if self.root.exists() else "not found"
            raise UserError(f"data folder {self.root} {fault}; give it with --data-path DIR (DATA.PATH)")
        self.lists = {"train": cfg.DATA.TRAIN_LIST, "val": cfg.DATA.VAL_LIST}
        self.given = None
        self._given_folder = innermost(self.root)
        if self._given_folder != self.root or not any(self.own(split) for split in SPLIT_FOLDERS):
            self.given = split_named(self.root.name)
        self.root = self.root.parent if self.given else self.root
        self.shared, self.is_divided = None, cfg.DATA.VAL_FRACTION > 0
        if self.is_divided and self.could_be_shared():
            self.shared, self.given = self.folder("train") or self.root, None

    def own(self, split):
        """The split's own folder below `root`, or None."""
        return split_folder(self.root, split)

    def could_be_shared(self):
        """Whether DATA.VAL_FRACTION could divide train/ or the data folder, because there is no validation split."""
        if any(self.lists.values()) or self.own("val") or self.given == "val":
            return False
        return bool(class_folders(self.own("train") or self.root))

    def folder(self, split):
        """Return the folder with the class folders of a split, or None."""
        if self.shared:
            return self.shared
        if self.given:
            return self._given_folder if self.given == split else None
        if self.own(split):
            return self.own(split)
        # Class folders directly in the data folder are used for validation, unless a list file uses them for training.
        is_val = split == "val" and not self.own("train") and not self.lists["train"] and class_folders(self.root)
        return self.root if is_val else None

    def require(self, split):
        """Return the folder with the class folders of a split. Raises UserError if there is none."""
        if folder := self.folder(split):
            return folder
        if self.given:
            raise UserError(f"DATA.PATH {self._given_folder} is not a {split} folder; give the folder above it")
        if self.is_divided and not self.own("train") and not class_folders(self.root):
            raise UserError(f"data folder {self.root} has no folders with pictures; make a folder for each class")
        hint = ""
        if self.could_be_shared():
            place = "train/" if split == "val" else "each class"
            hint = f"; DATA.VAL_FRACTION {VAL_FRACTION} holds out a part of {place} for validation"
        raise UserError(f"data folder {self.root} has no {split}/ folder{hint}")
