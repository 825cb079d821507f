"""Unpack ImageNet or CIFAR archives: python tools/unpack.py ARCHIVE... --output DIR [--val-list FILE].

Makes DIR/train/<class>/*.JPEG and DIR/val/<class>/*.JPEG of the archives that ImageNet is met in, and
DIR/train/<class>/*.png and DIR/test/<class>/*.png of CIFAR-10 and CIFAR-100. May be cut at any time: no image is ever
half-written under its name, and the same command goes on where it was.
"""

import argparse
import contextlib
import errno
import gzip
import json
import lzma
import os
import re
import shlex
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

from cli import exit_with, not_empty
from errors import UserError, one_line

CLASS_LIST = "configs/imagenet1k_classes.tsv"
MARKS = ".unpacked.json"  # in DIR: {archive name: [size, mtime in ns, "begun", "doubtful" or "done"]}
SPLITS = {"train": "train", "val": "val", "validation": "val"}
_CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_DOUBTFUL = (gzip.BadGzipFile, zlib.error, lzma.LZMAError)
_DAMAGED = (tarfile.TarError, EOFError, OSError, *_DOUBTFUL)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(args):
    from files import check_not_shipped, shown

    archives = [(Path(archive), Path(archive).stat()) for archive in args.archives]
    for archive, _ in archives:
        if not archive.is_file():
            raise UserError(f"{archive} is no file")
    val_classes = read_val_list(args.val_list) if args.val_list else {}
    folder = Path(args.output)
    check_not_shipped(folder)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    marks = read_marks(folder)
    check_space(folder, archives, marks)
    for archive, status in archives:
        stamp = [status.st_size, status.st_mtime_ns]
        if marks.get(archive.name) == [*stamp, "done"]:
            print(f"{archive}: unpacked before ({shown(folder / MARKS)} says so)")
            continue
        # Images of another archive of this name, or of a .gz with a wrong checksum, may be wrong whatever their size.
        before = marks.get(archive.name)
        is_doubtful = before is not None and (before[:2] != stamp or before[-1] == "doubtful")
        write_marks(folder, marks, archive.name, [*stamp, "doubtful" if is_doubtful else "begun"])
        try:
            unpack(archive, Unpacker(folder, val_classes, trust=not is_doubtful))
        except UserError as error:
            if isinstance(error.__cause__, _DOUBTFUL):
                write_marks(folder, marks, archive.name, [*stamp, "doubtful"])
            raise
        os.sync()  # or a power cut might leave the mark and take the images
        write_marks(folder, marks, archive.name, [*stamp, "done"])
    print_result(shown(folder))


# --- What is known beforehand ---


def read_val_list(path):
    """{image name: class folder} of "ILSVRC2012_val_00000001.JPEG 65" lines."""
    from config import resolve
    from data.dataset import read_classes

    folders = read_classes(resolve(CLASS_LIST)).folders
    classes = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not re.fullmatch("[0-9]+", words[1]) or int(words[1]) >= len(folders):
            raise UserError(
                f"{path}, line {number}: expected 'ILSVRC2012_val_00000001.JPEG 65', the class from 0 to "
                f"{len(folders) - 1} as in {CLASS_LIST}, but found {line.strip()!r}"
            )
        classes[os.path.basename(words[0])] = folders[int(words[1])]
    if not classes:
        raise UserError(f"{path} (--val-list) is empty")
    return classes


def claim(folder):
    """Keep other processes from unpacking to the folder until this one ends."""
    from files import lock

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
    from files import write_text

    marks[name] = mark
    write_text(folder / MARKS, json.dumps(marks, indent=1) + "\n")


def check_space(folder, archives, marks):
    """Raise UserError if archives that are not begun would not fit; JPEG files are as large as their archive."""
    needed = sum(status.st_size for archive, status in archives if archive.name not in marks)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e6:,.0f} MB free but the archives need {needed / 1e6:,.0f} MB; free some, or name "
            "a folder on another disk with --output"
        )


# --- One archive ---


class _Member(tarfile.TarInfo):
    """Entry of an archive. What is cut off or damaged is an error, where tarfile would take it for the end."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


class Unpacker:
    """Where the members of an archive go, and how many there were."""

    def __init__(self, folder, val_classes, trust=True):
        self.folder, self.val_classes = folder, val_classes
        self.trust = trust  # that a file of the right size is the right one
        self.written = self.present = self.other = self.lists = 0
        self.unsafe = []

    def add(self, stream, progress, prefix=""):
        """Unpack all of a tar archive; its names count from `prefix`."""
        with tarfile.open(fileobj=stream, mode="r:*", tarinfo=_Member) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # which would grow to gigabytes
                progress()
                class_archive = _CLASS_ARCHIVE.fullmatch(os.path.basename(member.name))
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if member.isdir():
                    continue
                if member.name.startswith("/") or ".." in parts or not member.isreg():
                    self.unsafe.append(member.name)
                elif class_archive:
                    with archive.extractfile(member) as inner:
                        self.add(inner, progress, f"train/{class_archive.group(1)}/")
                elif target := self.place(prefix + "/".join(parts)):
                    self.write(archive, member, self.folder / target)
                else:
                    self.other += 1
            while archive.fileobj is not stream and archive.fileobj.read(2**20):
                pass  # to the end of a .gz, where its checksum is

    def add_cifar(self, path, form):
        """Unpack an archive of CIFAR-10 or CIFAR-100."""
        from PIL import Image

        from data.cifar import read_archive
        from engine.logger import progress_bar

        for name, pixels in progress_bar(read_archive(path, form), desc=path.name, unit=" images"):
            if self.trust and (self.folder / name).is_file():
                self.present += 1
                continue
            with replacing(self.folder / name) as file:
                Image.fromarray(pixels).save(file, "PNG")
            self.written += 1

    def place(self, name):
        """Path below the folder for a member of this name, or None if it is not wanted.

        Raises UserError for a validation image whose class is not known.
        """
        from data.index import is_image_name

        *parents, file = name.split("/")
        split = next((i for i, part in enumerate(parents) if part in SPLITS), None)
        if split is None and len(parents) <= 1 and file.endswith(".txt") and not file.startswith("."):
            return file  # a list beside train/ and val/
        if not is_image_name(file):
            return None
        if split is not None and parents[split + 1 :]:
            return "/".join([SPLITS[parents[split]], *parents[split + 1 :], file])
        if _VAL_IMAGE.fullmatch(file) or split is not None and SPLITS[parents[split]] == "val":
            if file not in self.val_classes:
                advice = "give a list of the classes with --val-list FILE (scripts/aistudio.sh: JOB_VAL_LIST=FILE)"
                raise UserError(
                    f"the class of {name} is not known; {'--val-list lacks it' if self.val_classes else advice}"
                )
            return f"val/{self.val_classes[file]}/{file}"
        return None

    def write(self, archive, member, target):
        """Write one file, unless it is there."""
        is_list = target.suffix == ".txt"
        self.lists += is_list
        if self.trust and target.is_file() and target.stat().st_size == member.size:
            self.present += not is_list
            return
        with archive.extractfile(member) as source, replacing(target) as file:
            file.writelines(blocks(source))
        self.written += not is_list


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
    temporary = target.with_name(f".{target.name}.part")
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
    from data.cifar import form_of

    try:
        if form := form_of(path):
            unpacker.add_cifar(path, form)
        else:
            add_imagenet(path, unpacker)
    except _DAMAGED as error:
        reason = str(error).splitlines()[0].rstrip(": ")  # tarfile adds a line for each compression that it tried
        raise UserError(
            f"{path} is damaged, incomplete or no tar archive ({reason}); "
            f"{unpacker.written + unpacker.present:,} images of it are unpacked; fetch it again and repeat the "
            "command, which goes on"
        ) from error
    if unpacker.unsafe:
        names = ", ".join(unpacker.unsafe[:3])
        print(f"warning: {path}: {len(unpacker.unsafe)} links, devices or names outside the archive's folder were "
              f"left out: {names}", file=sys.stderr)  # fmt: skip
    if not unpacker.written + unpacker.present + unpacker.lists:
        raise UserError(f"{path} holds no images in train/ or val/ folders, nor ImageNet's own archives or images")
    print(f"{path}: {unpacker.written:,} images written, {unpacker.present:,} there before, {unpacker.other:,} other "
          "files left out")  # fmt: skip


def add_imagenet(path, unpacker):
    from engine.logger import progress_bar

    inner = _CLASS_ARCHIVE.fullmatch(path.name)  # someone took the outer archive apart
    prefix = f"train/{inner.group(1)}/" if inner else ""
    bar_options = {"total": path.stat().st_size, "unit": "B", "unit_scale": True, "desc": path.name}
    with open(path, "rb") as file, progress_bar(None, **bar_options) as bar:
        unpacker.add(file, lambda: bar.update(file.tell() - bar.n), prefix)


# --- Command ---


def print_result(folder):
    from data.index import class_folders, image_files

    for split in ("train", "val", "test"):
        if (folder / split).is_dir():
            counts = [len(image_files(folder / split / name)) for name in class_folders(folder / split)]
            print(f"{split}: {sum(counts):,} images in {len(counts):,} classes")
    place = shlex.quote(str(folder))
    print(f"check:  python tools/check_data.py --data-path {place}")
    options = f"configs/t2t_vit_7.yaml --data-path {place}"
    if (folder / "test").is_dir():
        options = f"configs/cifar10_augment.yaml --data-path {place}"
        if len(class_folders(folder / "test")) == 100:
            options += " NAME cifar100 DATA.NAME CIFAR-100 MODEL.NUM_CLASSES 100"
    print(f"train:  bash scripts/train.sh {options}")


def parser():
    parser = argparse.ArgumentParser(
        description="Unpack ImageNet to DIR/train/<class>/ and DIR/val/<class>/, CIFAR to DIR/train/<class>/ and "
        "DIR/test/<class>/. Repeat it to go on where it was cut.",
        epilog="Archives, also as .tar.gz: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_w.tar (AI "
        "Studio), Light_ILSVRC2012_part_0.tar and _1.tar, and any other with train/ and val/ (or validation/) folders; "
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
        f"{CLASS_LIST}; not ILSVRC2012_validation_ground_truth.txt, which numbers the classes otherwise",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    exit_with(parser().parse_args, main)
