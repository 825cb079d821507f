"""Unpack ImageNet, CIFAR or any class folders to DIR/train/<class>/ and DIR/val/<class>/.

An interrupted command leaves no half-written images. Repeat it to continue.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_not_shipped, display_path, lock, write_text
from t2t_vit.data.index import class_folders, image_files
from t2t_vit.data.unpacker import DamagedArchive, ForeignFile, Unpacker
from t2t_vit.data.val_classes import ValClasses

MARKS = ".unpacked.json"  # in DIR: {archive name: [size, mtime in ns, "begun", "doubtful" or "done"]}


def unpack(paths: Iterable[str | Path], output: str | Path, val_list: str | Path | None = None) -> None:
    """Unpack archives to the folder `output`, and print the number of images and classes.

    `val_list`: file with the classes of ImageNet's validation images, see `val_classes.ValClasses`.

    Raises:
        UserError: an archive is damaged or has no images, a class is unknown, or the disk is full.
    """
    paths, folder = [Path(path) for path in paths], Path(output)
    stamps = {path: _stamp(path) for path in paths}
    val_classes = ValClasses(paths, val_list)
    check_not_shipped(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder):
        _unpack_all(stamps, folder, val_classes)
    _print_result(display_path(folder))


def _unpack_all(stamps, folder, val_classes):
    """Unpack the archives in `stamps`, {path: [size, mtime in ns]}, that are not done yet."""
    is_new = not (folder / MARKS).exists()
    marks = _read_marks(folder)
    _check_space(folder, sum(size for path, (size, _) in stamps.items() if path.name not in marks))
    for path, stamp in stamps.items():
        before = marks.get(path.name, [*stamp, "begun"])
        if before == [*stamp, "done"]:
            print(f"{path}: already unpacked (recorded in {display_path(folder / MARKS)})")
            continue
        # Do not trust files from a damaged archive or another archive of this name, even if their size is right.
        is_trusted = before == [*stamp, "begun"]
        _write_mark(folder, marks, path, [*stamp, "begun" if is_trusted else "doubtful"])
        try:
            Unpacker(folder, val_classes, is_new, is_trusted).unpack(path)
        except DamagedArchive:
            _write_mark(folder, marks, path, [*stamp, "doubtful"])
            raise
        except ForeignFile:
            (folder / MARKS).unlink()  # so that a second attempt does not overwrite the file
            raise
        os.sync()  # write the images to disk before the mark, in case of a power cut
        _write_mark(folder, marks, path, [*stamp, "done"])


def _stamp(path):
    """[size, mtime in ns] of an archive."""
    status = path.stat()
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    return [status.st_size, status.st_mtime_ns]


# --- The folder ---


@contextlib.contextmanager
def claim(folder):
    """Lock the folder against other processes. Raises UserError if another one is unpacking to it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)  # does nothing on a file system without locks
        yield
    except BlockingIOError:
        raise UserError(f"another process is unpacking to {folder}") from None
    finally:
        os.close(descriptor)


def _read_marks(folder):
    try:
        return dict(json.loads((folder / MARKS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _write_mark(folder, marks, path, mark):
    marks[path.name] = mark
    write_text(folder / MARKS, json.dumps(marks, indent=1) + "\n")


def _check_space(folder, needed):
    """Raise UserError if the disk has less free space than the archives need. Images hardly compress."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e6:,.0f} MB free but the archives need {needed / 1e6:,.0f} MB; free some, or give "
            "a folder on another disk with --output"
        )


def _print_result(folder):
    splits = [folder / split for split in ("train", "val", "test") if (folder / split).is_dir()]
    for split in splits or [folder]:
        counts = [len(image_files(split / name)) for name in class_folders(split)]
        print(f"{split}: {sum(counts):,} images in {len(counts):,} classes")
    print(f"check:  python tools/check_data.py --data-path {shlex.quote(str(folder))}")
