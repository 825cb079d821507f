"""Find the image files below a folder."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import progress_bar
from t2t_vit.data.paths import Paths

EXTENSIONS = {".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif"}
# Folders that Synology, QNAP, macOS, ext4 and Windows add (in lower case). Their thumbnails would count as images.
_SYSTEM_FOLDERS = {"@eadir", "#recycle", "#snapshot", "@recycle", "__macosx", "lost+found", "$recycle.bin",
                   "system volume information"}  # fmt: skip
_THREADS = 16  # threads of a scan, which help on network file systems


def is_image_name(name):
    """True if a file is not hidden and has the extension of an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def is_ignored_folder(name):
    """True for hidden folders and for folders that a file system or a program adds."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def class_folders(folder: str | Path) -> list[str]:
    """List the class folders in a folder, sorted as text.

    The images of a data set follow this order. Class ids follow `classes.class_order`.
    """
    return sorted(name for name, is_folder in _listed(folder) if is_folder and not is_ignored_folder(name))


def image_files(folder: str | Path) -> list[str]:
    """List the paths (str) of all images below a folder, sorted. Links are followed, hidden files are skipped."""
    images, waiting = [], [os.fspath(folder)]
    # Do not follow a link to a parent folder: it would give this class the images of all classes.
    above = os.path.realpath(os.path.dirname(os.path.abspath(folder)))
    seen = {above, *map(str, Path(os.path.realpath(folder)).parents)}
    while waiting:
        parent = waiting.pop()
        real = os.path.realpath(parent)
        if real in seen:
            continue
        seen.add(real)
        for name, is_folder in _listed(parent):
            if is_folder and not is_ignored_folder(name):
                waiting.append(os.path.join(parent, name))
            elif not is_folder and is_image_name(name):
                images.append(os.path.join(parent, name))
    return sorted(images)


def scan(folder):
    """Find the images below each class folder of `folder`.

    Returns:
        (names of the class folders, `Paths`, int32 (N,): index of the class folder of each path).
    """
    found, start_of_name, parts = class_folders(folder), len(os.path.join(folder, "")), []
    with ThreadPoolExecutor(_THREADS) as threads:
        images_of_classes = threads.map(lambda name: image_files(folder / name), found)
        for images in progress_bar(images_of_classes, desc=f"scanning {folder.name}", total=len(found)):
            parts.append(Paths.of(image[start_of_name:] for image in images).names)
    class_of = np.repeat(np.arange(len(found), dtype=np.int32), [len(part) for part in parts])
    return found, Paths(folder, np.concatenate([*parts, np.zeros(0, bytes)])), class_of


def _listed(folder):
    """List the entries of a folder: [(name, whether it is a folder), ...].

    Raises:
        UserError: the folder or a link in it cannot be read. os.walk would skip a linked class folder silently.
    """
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, _is_folder(entry)) for entry in entries]
    except OSError as error:
        raise UserError(f"folder {error.filename or folder} cannot be read: {error.strerror}") from error


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise
