"""Find the classes of ImageNet's validation images, whose archive has no class folders."""

import contextlib

from t2t_vit.common.errors import UserError
from t2t_vit.config import CLASS_LISTS
from t2t_vit.data import archives
from t2t_vit.data.classes import read_classes
from t2t_vit.data.lists import image_rows, lines_of, read_lines

VAL_LISTS = ("val_list.txt", "loc_val_solution.csv")  # lower-case names in archives of AI Studio, Kaggle
_LARGEST_LIST = 2**26  # limit in bytes


class ValClasses:
    """The classes of the images in ILSVRC2012_img_val.tar, read from a file or from the first list in the archives."""

    def __init__(self, paths, val_list):
        self.paths, self.classes = paths, None
        if val_list:
            self.classes = val_classes_of(read_lines(val_list, "list", "--val-list"), f"{val_list} (--val-list)")

    def class_of(self, name):
        """Return the class folder of an image. Raises UserError if it is unknown."""
        if self.classes is None:
            self.classes = self._find()
        file = name.rpartition("/")[2]
        if file not in self.classes:
            advice = "give a list of the classes with --val-list FILE (scripts/aistudio.sh: JOB_VAL_LIST=FILE)"
            raise UserError(f"the class of {name} is not known; {'it is not in the list' if self.classes else advice}")
        return self.classes[file]

    def _find(self):
        for path in self.paths:
            with open(path, "rb") as file:
                for entry in archives.entries(file):
                    if entry.is_safe and entry.parts[-1].lower() in VAL_LISTS and entry.size <= _LARGEST_LIST:
                        source = f"{path}: {entry.name}"
                        print(f"classes of the validation images: {source}")
                        with entry.open() as stream, contextlib.suppress(ValueError):
                            return val_classes_of(lines_of(stream.read()), source)
        return {}


def val_classes_of(lines, source):
    """Parse "ILSVRC2012_val_00000001.JPEG 65" lines or Kaggle's LOC_val_solution.csv: {image name: class folder}."""
    folders = read_classes(CLASS_LISTS["imagenet1k"]).folders
    known = {**{str(i): folder for i, folder in enumerate(folders)}, **{folder: folder for folder in folders}}
    classes = {}
    for number, path, label in image_rows(lines):
        if label not in known:
            raise UserError(
                f"{source}, line {number}: expected 'ILSVRC2012_val_00000001.JPEG 65', the class from 0 to "
                f"{len(folders) - 1} as in imagenet1k_classes.tsv, but found {lines[number - 1].strip()[:200]!r}"
            )
        classes[path.replace("\\", "/").rpartition("/")[2]] = known[label]
    if not classes:
        raise UserError(f"{source} is empty")
    return classes
