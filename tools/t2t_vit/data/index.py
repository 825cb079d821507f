"""The image files below a folder, and a cache file that remembers them."""

import contextlib
import errno
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path
from t2t_vit.common.logger import progress_bar
from t2t_vit.data.paths import Paths

EXTENSIONS = {".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif"}
# Folders that Synology, QNAP, macOS, ext4 and Windows add (in lower case). Thumbnails in them would double the images.
_SYSTEM_FOLDERS = {"@eadir", "#recycle", "#snapshot", "@recycle", "__macosx", "lost+found", "$recycle.bin",
                   "system volume information"}  # fmt: skip
_VERSION = 4  # of the cache file
_SETTLED_NS = 60 * 10**9  # a folder that changed so recently may change again with the same time stamp
_THREADS = 16  # of a scan; they help on network file systems


def is_image_name(name):
    """True for a visible file with the ending of an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def is_ignored_folder(name):
    """True for hidden folders and those that a file system or a program adds."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def class_folders(folder):
    """Names of the folders in a folder, sorted as text, without ignored ones.

    Images of a data set keep this order. The order of the class ids is `classes.class_order`.
    """
    return sorted(name for name, is_folder in _listed(folder) if is_folder and not is_ignored_folder(name))


def image_files(folder):
    """Paths (str) of all images below a folder, sorted. Links are followed, hidden files and folders are skipped."""
    return _walk(folder)[0]


def scan(folder, spare_folder, cached_from=10_000):
    """Find the images below each class folder of `folder`.

    A result of `cached_from` images or more is cached in a file beside `folder`, or in `spare_folder` if that cannot be
    written. The cache is valid while no folder has another modification time or size.

    Returns:
        (names of the class folders, `Paths`, int32 (N,) class folder of each path).
    """
    folder = Path(folder)
    found = class_folders(folder)
    for file in _cache_files(folder, spare_folder):
        if cached := _read_cache(file, folder, found):
            return found, *cached
    start, start_of_name = time.time_ns(), len(os.path.join(folder, ""))
    parts, stamps = [], {}
    with ThreadPoolExecutor(_THREADS) as threads:
        walks = threads.map(lambda name: _walk(folder / name), found)
        for images, part_stamps in progress_bar(walks, desc=f"scanning {folder.name}", total=len(found)):
            parts.append(Paths.of(image[start_of_name:] for image in images).names)
            stamps.update(part_stamps)
    paths = Paths(folder, np.concatenate([*parts, np.zeros(0, bytes)]))
    class_of = np.repeat(np.arange(len(found), dtype=np.int32), [len(part) for part in parts])
    is_settled = all(modified < start - _SETTLED_NS for modified, _ in stamps.values())
    if len(paths) >= cached_from and is_settled:
        _write_cache(_cache_files(folder, spare_folder), _header(folder, found, stamps), paths, class_of)
    return found, paths, class_of


# --- Folders ---


def _walk(folder):
    """(sorted image paths, {folder: (mtime_ns, size)} of each folder that was read)."""
    images, stamps, waiting = [], {}, [os.fspath(folder)]
    # A link to a folder above would give this class the images of all classes.
    above = os.path.realpath(os.path.dirname(os.path.abspath(folder)))
    seen = {above, *map(str, Path(os.path.realpath(folder)).parents)}
    while waiting:
        parent = waiting.pop()
        real = os.path.realpath(parent)
        if real in seen:
            continue
        seen.add(real)
        stamps[parent] = _stamp(parent)  # before the listing, so that a later change is noticed
        for name, is_folder in _listed(parent):
            if is_folder and not is_ignored_folder(name):
                waiting.append(os.path.join(parent, name))
            elif not is_folder and is_image_name(name):
                images.append(os.path.join(parent, name))
    return sorted(images), stamps


def _listed(folder):
    """[(name, whether it is a folder), ...]"""
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


def _stamp(folder):
    """(mtime_ns, size) of a folder; None if it is gone."""
    with contextlib.suppress(OSError):
        status = os.stat(folder)
        return status.st_mtime_ns, status.st_size
    return None


# --- Cache file ---


def _cache_files(folder, spare_folder):
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return folder.parent / f".index_of_{folder.name}.npz", Path(spare_folder) / f".index_{name}.npz"


def _header(folder, found, stamps):
    """Everything that makes a cache file valid, as JSON."""
    return {
        "version": _VERSION, "folder": str(folder.resolve()), "extensions": sorted(EXTENSIONS), "classes": found,
        "stamps": {os.path.relpath(path, folder): list(stamp) for path, stamp in stamps.items()},
    }  # fmt: skip


def _checksum(names, class_of):
    """Checksum of the two arrays of a cache file, with their types."""
    digest = hashlib.sha256(f"{names.dtype} {names.shape} {class_of.dtype}".encode())
    digest.update(np.ascontiguousarray(names).view(np.uint8))
    digest.update(np.ascontiguousarray(class_of).view(np.uint8))
    return digest.hexdigest()


def _write_cache(files, header, paths, class_of):
    """Write the first of the files that can be written."""
    header = {**header, "checksum": _checksum(paths.names, class_of)}
    header = np.frombuffer(json.dumps(header).encode(), np.uint8)
    for file in files:
        with contextlib.suppress(OSError):
            with atomic_path(file) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, header=header, names=paths.names, class_of=class_of)
            return


def _read_cache(file, folder, found):
    """(`Paths`, class folder of each path) of a cache file; None if it is missing, damaged or out of date."""
    try:
        with np.load(file, allow_pickle=False) as content:
            header = json.loads(content["header"].tobytes())
            checksum = header.pop("checksum")
            stamps = {folder / name: tuple(stamp) for name, stamp in header["stamps"].items()}
            if header != _header(folder, found, stamps):
                return None
            if any(_stamp(path) != stamp for path, stamp in stamps.items()):
                return None
            names, class_of = content["names"], content["class_of"]
            # In a forged file, names of no bytes would take no space, however many there are.
            is_right = names.dtype.kind == "S" and names.dtype.itemsize > 0 and class_of.dtype == np.int32
            is_right = is_right and names.ndim == 1 and names.shape == class_of.shape
            is_right = is_right and np.isin(class_of, range(len(found))).all()
            if not is_right or _checksum(names, class_of) != checksum:  # zipfile does not notice every changed byte
                return None
            return Paths(folder, names), class_of
    except Exception:  # NumPy and zipfile raise nearly anything on a damaged file
        return None
