"""Unpack ImageNet, CIFAR or any class folders: python tools/unpack.py ARCHIVE... --output DIR [--val-list FILE].

Makes DIR/train/<class>/*.JPEG and DIR/val/<class>/*.JPEG of the archives that ImageNet is met in,
DIR/train/<class>/*.png and DIR/test/<class>/*.png of CIFAR-10 and CIFAR-100, and DIR/<class>/* of a tar or zip archive
of class folders alone. May be cut at any time: no image is ever
half-written under its name, and the same command goes on where it was.
"""

import argparse
import contextlib
import errno
import gzip
import hashlib
import json
import lzma
import os
import re
import shlex
import shutil
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

from t2t_vit.cli import exit_with, not_empty
from t2t_vit.common.errors import UserError, one_line
from t2t_vit.config import CLASS_LISTS

CLASS_LIST = CLASS_LISTS["imagenet1k"]
MARKS = ".unpacked.json"  # in DIR: {archive name: [size, mtime in ns, "begun", "doubtful" or "done"]}
VAL_LISTS = ("val_list.txt", "loc_val_solution.csv")  # in an archive, in lower case: of AI Studio and of Kaggle
_CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_LARGEST_LIST = 2**26  # bytes
_DOUBTFUL = (gzip.BadGzipFile, zlib.error, lzma.LZMAError)
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, MemoryError, *_DOUBTFUL)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class ForeignFile(UserError):
    """The user has another file where one from the archive would go."""


def main(args):
    from t2t_vit.common.files import check_not_shipped, display_path

    archives = [(Path(archive), Path(archive).stat()) for archive in args.archives]
    for archive, _ in archives:
        if not archive.is_file():
            raise UserError(f"{archive} is no file")
    val_classes = read_val_list(args.val_list) if args.val_list else None
    folder = Path(args.output)
    check_not_shipped(folder)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    is_first = not (folder / MARKS).exists()
    marks = read_marks(folder)
    check_space(folder, archives, marks)
    for archive, status in archives:
        stamp = [status.st_size, status.st_mtime_ns]
        if marks.get(archive.name) == [*stamp, "done"]:
            print(f"{archive}: unpacked before ({display_path(folder / MARKS)} says so)")
            continue
        # Images of another archive of this name, or of a .gz with a wrong checksum, may be wrong whatever their size.
        before = marks.get(archive.name)
        is_doubtful = before is not None and (before[:2] != stamp or before[-1] == "doubtful")
        write_marks(folder, marks, archive.name, [*stamp, "doubtful" if is_doubtful else "begun"])
        try:
            unpack(
                archive,
                Unpacker(folder, val_classes, [path for path, _ in archives], is_first, trust=not is_doubtful),
            )
        except UserError as error:
            if isinstance(error.__cause__, _DOUBTFUL):
                write_marks(folder, marks, archive.name, [*stamp, "doubtful"])
            if isinstance(error, ForeignFile):
                (folder / MARKS).unlink()  # or the same command would replace the file
            raise
        os.sync()  # or a power cut might leave the mark and take the images
        write_marks(folder, marks, archive.name, [*stamp, "done"])
    print_result(display_path(folder))


# --- What is known beforehand ---


def read_val_list(path):
    """{image name: class folder} of a file of `val_classes_of` lines."""
    from t2t_vit.data.lists import read_lines

    return val_classes_of(read_lines(path, "list", "--val-list"), f"{path} (--val-list)")


def val_classes_of(lines, source):
    """{image name: class folder} of "ILSVRC2012_val_00000001.JPEG 65" lines, or of Kaggle's LOC_val_solution.csv."""
    from t2t_vit.data.dataset import read_classes
    from t2t_vit.data.lists import image_rows

    folders = read_classes(CLASS_LIST).folders
    known = {**{str(i): folder for i, folder in enumerate(folders)}, **{folder: folder for folder in folders}}
    classes = {}
    for number, path, label in image_rows(lines):
        if label not in known:
            raise UserError(
                f"{source}, line {number}: expected 'ILSVRC2012_val_00000001.JPEG 65', the class from 0 to "
                f"{len(folders) - 1} as in {CLASS_LIST.name}, but found {lines[number - 1].strip()[:200]!r}"
            )
        classes[path.replace("\\", "/").rpartition("/")[2]] = known[label]
    if not classes:
        raise UserError(f"{source} is empty")
    return classes


def find_val_list(archives):
    """{image name: class folder} of the first list in `archives`, {} if there is none."""
    from t2t_vit.data.archives import entries
    from t2t_vit.data.lists import lines_of

    for path in archives:
        with open(path, "rb") as file:
            for entry in entries(file, path):
                if entry.is_safe and entry.parts[-1].lower() in VAL_LISTS and entry.size <= _LARGEST_LIST:
                    source = f"{path}: {entry.name}"
                    print(f"classes of the validation images: {source}")
                    with entry.open() as stream, contextlib.suppress(ValueError):
                        return val_classes_of(lines_of(stream.read()), source)
    return {}


def claim(folder):
    """Keep other processes from unpacking to the folder until this one ends."""
    from t2t_vit.common.files import lock

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)  # no harm where the file system has no locks
    except BlockingIOError:
        raise UserError(f"another process unpacks to {folder}") from None


def read_marks(folder):
    try:
        return dict(json.loads((folder / MARKS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def write_marks(folder, marks, name, mark):
    from t2t_vit.common.files import write_text

    marks[name] = mark
    write_text(folder / MARKS, json.dumps(marks, indent=1) + "\n")


def check_space(folder, archives, marks):
    """Raise UserError if archives that are not begun would not fit."""
    from t2t_vit.data.archives import unpacked_size

    try:
        needed = sum(unpacked_size(archive) for archive, _ in archives if archive.name not in marks)
    except zipfile.BadZipFile:
        return  # which is told where the archive is unpacked
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e6:,.0f} MB free but the archives need {needed / 1e6:,.0f} MB; free some, or name "
            "a folder on another disk with --output"
        )


# --- One archive ---


class Unpacker:
    """Where the entries of an archive go, and how many there were.

    Args:
        folder: to unpack to.
        val_classes: {image name: class folder} of validation images that lie in one folder; None: a list in `archives`.
        archives: paths of all archives of the data set.
        is_first: whether nothing was unpacked here before: then no file is replaced.
        trust: that a file of the right size is the right one.
    """

    def __init__(self, folder, val_classes, archives, is_first=False, trust=True):
        self.folder, self.val_classes, self.archives = folder, val_classes, archives
        self.is_first, self.trust = is_first, trust
        self.written = self.present = self.other = self.lists = self.repeated = 0
        self.unsafe = []
        self.targets = set()  # hashes of the paths of this archive
        self.unplaced = set()  # folders of images that are below no folder of a split, as tuples
        self.above_classes = None  # where there are no splits: number of folders above the class folders

    def add(self, entries, progress, prefix=""):
        """Unpack entries of an archive; their names count from `prefix`."""
        from t2t_vit.data.archives import tar_entries

        for entry in entries:
            progress()
            class_archive = _CLASS_ARCHIVE.fullmatch(entry.parts[-1]) if entry.parts else None
            if not entry.is_safe or not entry.parts:
                self.unsafe.append(entry.name)
            elif class_archive:
                with entry.open() as inner:
                    self.add(tar_entries(inner), progress, f"train/{class_archive.group(1)}/")
            elif target := self.place(prefix + "/".join(entry.parts)):
                self.write(entry, self.folder / target)
            else:
                self.other += 1

    def add_cifar(self, path, form):
        """Unpack an archive of CIFAR-10 or CIFAR-100."""
        from PIL import Image

        from t2t_vit.common.logger import progress_bar
        from t2t_vit.data.cifar import read_archive

        for name, pixels in progress_bar(read_archive(path, form), desc=path.name, unit=" images"):
            if self.trust and (self.folder / name).is_file():
                self.present += 1
                continue
            with replacing(self.folder / name) as file:
                Image.fromarray(pixels).save(file, "PNG")
            self.written += 1

    def place(self, name):
        """Path below the folder for an entry of this name, or None if it is not wanted.

        Raises UserError for a validation image whose class is not known.
        """
        from t2t_vit.data.index import is_ignored_folder, is_image_name

        *parents, file = name.split("/")
        if any(map(is_ignored_folder, parents)):
            return None
        at, split = next(((i, split) for i, part in enumerate(parents) if (split := split_of(part))), (None, None))
        if split is None and len(parents) <= 1 and file.endswith(".txt") and not file.startswith("."):
            return file  # a list beside train/ and val/
        if not is_image_name(file):
            return None
        below = parents[at + 1 :] if split else []
        below = below[1:] if split and below[:1] == [parents[at]] else below  # seg_train/seg_train/cat
        if below:
            return "/".join([split, *below, file])
        if _VAL_IMAGE.fullmatch(file) or split == "val":
            return f"val/{self.val_class(name, file)}/{file}"
        return self._place_alone(parents, file) if split is None else None

    def val_class(self, name, file):
        if self.val_classes is None:
            self.val_classes = find_val_list(self.archives)
        if file not in self.val_classes:
            advice = "give a list of the classes with --val-list FILE (scripts/aistudio.sh: JOB_VAL_LIST=FILE)"
            raise UserError(f"the class of {name} is not known; {'the list lacks it' if self.val_classes else advice}")
        return self.val_classes[file]

    def _place_alone(self, parents, file):
        """Path of an image in class folders without splits, None as long as it is not known which they are."""
        if self.above_classes is None:
            self.unplaced.add(tuple(parents))
            return None
        below = parents[self.above_classes :]
        return "/".join([*below, file]) if below else None

    def finds_class_folders(self):
        """Whether the images that had no place are in class folders; those are then placed the next time."""
        folders = self.unplaced
        while folders and not self.written + self.present:
            depth = len(os.path.commonprefix(list(folders)))
            deeper = {folder for folder in folders if len(folder) > depth}
            if len({folder[depth] for folder in deeper}) > 1:
                self.above_classes, self.other, self.unsafe = depth, 0, []
                self.lists, self.targets = 0, set()
                return True
            if deeper == folders:
                return False
            folders = deeper  # without images beside the folder that holds them all
        return False

    def write(self, entry, target):
        """Write one file, unless it is there."""
        is_list = target.suffix == ".txt"
        self.lists += is_list
        key = hash(str(target))  # a million paths would take much memory
        is_new = key not in self.targets
        self.repeated += not is_new
        self.targets.add(key)
        if self.trust and is_new and target.is_file() and target.stat().st_size == entry.size:
            self.present += not is_list
            return
        if self.is_first and is_new and os.path.lexists(target):
            raise ForeignFile(
                f"{target} already exists and differs from the file in the archive; give another --output"
            )
        with entry.open() as source, replacing(target) as file:
            file.writelines(blocks(source))
        self.written += not is_list


def split_of(name):
    """train, val or test for the folder of a split, None for any other."""
    from t2t_vit.data.dataset import SPLIT_FOLDERS

    if name.lower() in SPLIT_FOLDERS["train"]:
        return "train"
    if name.lower() in SPLIT_FOLDERS["val"]:
        return "test" if "test" in name.lower() else "val"
    return None


def blocks(source):
    """Content of a member. Its errors are the archive's, whatever their type."""
    try:
        while block := source.read(2**20):
            yield block
    except OSError as error:
        raise tarfile.ReadError(one_line(error)) from error


@contextlib.contextmanager
def replacing(target):
    """Yield a file that becomes `target` when it is complete, and is removed if it will not be.

    Unlike files.atomic_path it does not wait for the disk: a million times, that would take hours.
    """
    # Always the same name, so that what a killed process left is overwritten by the next.
    name = os.fsencode(target.name)  # which may be as long as the disk allows, 255 bytes
    short = target.name if len(name) < 240 else hashlib.blake2b(name, digest_size=8).hexdigest()
    temporary = target.with_name(f".{short}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise UserError(
                f"the disk is full at {target}; free some space and give the same command again, it goes on there"
            ) from error
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def unpack(path, unpacker):
    """Unpack one archive and say what was in it; UserError for a damaged one, of which all before the damage stays."""
    from t2t_vit.data.cifar import form_of

    try:
        if form := form_of(path):
            unpacker.add_cifar(path, form)
        else:
            add_archive(path, unpacker)
            if unpacker.finds_class_folders():
                add_archive(path, unpacker)
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        reason = reason.splitlines()[0].rstrip(": ")  # tarfile adds a line for each compression that it tried
        raise UserError(
            f"{path} is damaged, incomplete or no tar or zip archive ({reason}); "
            f"{unpacker.written + unpacker.present:,} images of it are unpacked; fetch it again and repeat the "
            "command, which goes on"
        ) from error
    if unpacker.unsafe:
        names = ", ".join(map(ascii, unpacker.unsafe[:3]))
        print(f"warning: {path}: {len(unpacker.unsafe)} links, devices or names that cannot be files below the folder "
              f"were left out: {names}", file=sys.stderr)  # fmt: skip
    if unpacker.repeated:
        print(f"warning: {path}: {unpacker.repeated} files have the place of an earlier one; the last one is kept",
              file=sys.stderr)  # fmt: skip
    if not unpacker.written + unpacker.present + unpacker.lists:
        raise UserError(
            f"{path} holds no images in train/ or val/ folders, nor in two or more class folders, nor ImageNet's own "
            "archives or images"
        )
    print(f"{path}: {unpacker.written:,} images written, {unpacker.present:,} there before, {unpacker.other:,} other "
          "files left out")  # fmt: skip


def add_archive(path, unpacker):
    from t2t_vit.common.logger import progress_bar
    from t2t_vit.data.archives import entries

    inner = _CLASS_ARCHIVE.fullmatch(path.name)  # someone took the outer archive apart
    prefix = f"train/{inner.group(1)}/" if inner else ""
    bar_options = {"total": path.stat().st_size, "unit": "B", "unit_scale": True, "desc": path.name}
    with open(path, "rb") as file, progress_bar(None, **bar_options) as bar:
        unpacker.add(entries(file, path), lambda: bar.update(max(0, file.tell() - bar.n)), prefix)


# --- Command ---


def print_result(folder):
    for split in ("train", "val", "test"):
        if (folder / split).is_dir():
            print(f"{split}: {counted(folder / split)}")
    if not any((folder / split).is_dir() for split in ("train", "val", "test")):
        print(counted(folder))
    place = shlex.quote(str(folder))
    print(f"check:  python tools/check_data.py --data-path {place}")
    config, keys = recipe(folder)
    print(f"train:  bash scripts/train.sh configs/{config} --data-path {place}{keys}")


def counted(folder):
    from t2t_vit.data.index import class_folders, image_files

    counts = [len(image_files(folder / name)) for name in class_folders(folder)]
    return f"{sum(counts):,} images in {len(counts):,} classes"


def recipe(folder):
    """(config, keys) to train on the data set with."""
    from t2t_vit.data.dataset import split_folder
    from t2t_vit.data.index import class_folders, image_files

    splits = [split_folder(folder, split) for split in ("train", "val")]
    classes = set(class_folders(next(filter(None, splits), folder)))
    if classes and all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return "t2t_vit_7.yaml", ""
    images = image_files(folder / "test") if (folder / "test").is_dir() else []
    if images and all(re.fullmatch(r"\d{5}\.png", os.path.basename(image)) for image in images):  # of add_cifar
        keys = " NAME cifar100 DATA.NAME CIFAR-100 MODEL.NUM_CLASSES 100" if len(classes) == 100 else ""
        return "cifar10_augment.yaml", keys
    return "finetune.yaml", " --pretrained FILE"


def parser():
    parser = argparse.ArgumentParser(
        description="Unpack ImageNet to DIR/train/<class>/ and DIR/val/<class>/, CIFAR to DIR/train/<class>/ and "
        "DIR/test/<class>/, other class folders likewise. Repeat it to go on where it was cut.",
        epilog="Archives, also as .tar.gz: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_w.tar (AI "
        "Studio), Light_ILSVRC2012_part_0.tar and _1.tar, Kaggle's imagenet-object-localization-challenge.zip, and any "
        "other tar or zip with train/ and val/ (or validation/, test/ and the like) folders, or with class folders; "
        "cifar-10-binary.tar.gz and cifar-100-binary.tar.gz, or the same in Python form. "
        "Exit status: 0 done, 1 a failure told in one line, 2 an unknown option.",
    )
    parser.add_argument("archives", nargs="+", type=not_empty, metavar="ARCHIVE")
    parser.add_argument("--output", type=not_empty, required=True, metavar="DIR", help="becomes the data set's folder")
    parser.add_argument(
        "--val-list",
        type=not_empty,
        metavar="FILE",
        help="classes of the images of ILSVRC2012_img_val.tar, 'ILSVRC2012_val_00000001.JPEG 65' lines with the ids of "
        f"{CLASS_LIST.name}, or Kaggle's LOC_val_solution.csv; default: {' or '.join(VAL_LISTS)} in the archives. Not "
        "ILSVRC2012_validation_ground_truth.txt, which numbers the classes otherwise",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    exit_with(parser().parse_args, main)
