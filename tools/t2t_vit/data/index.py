"""Which image files a folder holds: found once, kept in little memory, remembered on disk.

The 1.28 million paths of ImageNet are 150 MB as Python strings, and as much again in each loader process, because
counting references copies the pages that fork shares. As arrays they are 45 MB in all.
"""

import contextlib
import errno
import hashlib
import os
import re
import time
import unicodedata
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path

EXTENSIONS = {".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif"}
# Folders that Synology, QNAP, macOS, ext4 and Windows add (in lower case); thumbnails in them would double the images.
_FOREIGN = {"@eadir", "#recycle", "#snapshot", "@recycle", "__macosx", "lost+found", "$recycle.bin",
            "system volume information"}  # fmt: skip
# Control characters, line separators and bytes that are not UTF-8: a line of classes.txt cannot hold them.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_VERSION = 2  # of the cache file
_CACHED_FROM = 10_000  # images: a smaller folder is scanned in a moment
_SETTLED_NS = 2 * 10**9  # a folder that changed so recently may change again within one tick of its clock
_ARRAYS = {"header", "found", "stamped", "stamps", "folders", "folder_of", "ends", "names", "class_of"}  # of the file
_CHANGING = (2**62, 0)  # stamp of a folder that changed while it was listed: later than any
_THREADS = 16  # of a scan, for file systems on a network


class Paths(Sequence):
    """List of paths, held as arrays."""

    def __init__(self, folders, folder_of, ends, names):
        self.folders = folders  # list of str
        self.folder_of = folder_of  # int32 (N,)
        self.ends = ends  # int64 (N,), of each name in `names`
        self.names = names  # bytes of all names

    @classmethod
    def of(cls, paths):
        """The same paths, from any iterable of str."""
        folders, folder_of, names = {}, [], []
        for path in paths:
            folder, name = os.path.split(path)
            folder_of.append(folders.setdefault(folder, len(folders)))
            names.append(os.fsencode(name))
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(list(folders), np.array(folder_of, np.int32), ends, b"".join(names))

    @classmethod
    def joined(cls, parts):
        """The paths of several `Paths`, one after the other."""
        folders = [folder for part in parts for folder in part.folders]
        first = np.cumsum([0] + [len(part.folders) for part in parts])
        start = np.cumsum([0] + [len(part.names) for part in parts])
        folder_of = [part.folder_of + np.int32(offset) for part, offset in zip(parts, first)]
        ends = [part.ends + offset for part, offset in zip(parts, start)]
        names = b"".join(part.names for part in parts)
        return cls(folders, _concatenate(folder_of, np.int32), _concatenate(ends, np.int64), names)

    def where(self, chosen):
        """The paths for which `chosen`, bool (N,), is true."""
        starts = self.ends - np.diff(self.ends, prepend=0)
        names = b"".join(
            self.names[start:end] for start, end in zip(starts[chosen].tolist(), self.ends[chosen].tolist())
        )
        return Paths(self.folders, self.folder_of[chosen], np.cumsum((self.ends - starts)[chosen]), names)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        name = self.names[self.ends[i - 1] if i else 0 : self.ends[i]]
        return os.path.join(self.folders[self.folder_of[i]], os.fsdecode(name))

    @property
    def nbytes(self):
        """Memory that grows with the number of paths."""
        return self.folder_of.nbytes + self.ends.nbytes + len(self.names)


def _concatenate(arrays, dtype):
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


def image_files(folder):
    """Paths (str) of all images below a folder, sorted; links are followed, hidden files and folders are not images."""
    return _walk(folder)[0]


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
        stamp = _stamp(parent)
        for name, is_folder in _listed(parent):
            if is_folder and not is_ignored_folder(name):
                waiting.append(os.path.join(parent, name))
            elif not is_folder and is_image_name(name):
                images.append(os.path.join(parent, name))
        stamps[parent] = stamp if stamp == _stamp(parent) else _CHANGING
    return sorted(images), stamps


def _listed(folder):
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


def is_ignored_folder(name):
    """True for hidden folders and those that a file system or a program adds."""
    return name.startswith(".") or name.lower() in _FOREIGN


def is_image_name(name):
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _stamp(folder):
    with contextlib.suppress(OSError):
        status = os.stat(folder)
        return status.st_mtime_ns, status.st_size
    return _CHANGING


def class_folders(folder):
    """Names of the folders in a folder, without ignored ones, sorted as text: the order of the images of a data set.

    The order of the classes is `class_order`. A run that began with another order of the classes keeps its images.
    """
    return sorted(name for name, is_folder in _listed(folder) if is_folder and not is_ignored_folder(name))


def composed(name):
    """A name with each accent in one character with its letter; macOS splits them."""
    return unicodedata.normalize("NFC", name)


def class_order(names):
    """Names of class folders in the order of their ids: as numbers where all are numbers, else as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def scan(folder, spare_folder):
    """Images below each class folder of `folder`.

    A large result is kept in a file beside `folder`, or in `spare_folder` where that cannot be written, and taken from
    there as long as no folder has another modification time or size.

    Returns:
        (names of the class folders, `Paths`, int32 (N,) class folder of each path).
    """
    folder = Path(folder)
    found = class_folders(folder)
    for file in _cache_files(folder, spare_folder):
        remembered = _read_cache(file, folder, found)
        if remembered:
            return found, *remembered
    start = time.monotonic_ns()
    with ThreadPoolExecutor(_THREADS) as threads:
        walks = threads.map(lambda name: _walk(folder / name), found)
        parts, stamps = [], {}
        for images, part_stamps in tqdm(walks, f"scanning {folder.name}", len(found), leave=False, disable=None):
            parts.append(Paths.of(images))
            stamps.update(part_stamps)
    paths = Paths.joined(parts)
    class_of = np.repeat(np.arange(len(found), dtype=np.int32), [len(part) for part in parts])
    if len(paths) >= _CACHED_FROM:
        content = _cache_content(folder, found, stamps, paths, class_of)
        _write_cache(_cache_files(folder, spare_folder), content, time.monotonic_ns() - start)
    return found, paths, class_of


def _cache_files(folder, spare_folder):
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return folder.parent / f".index_of_{folder.name}.npz", Path(spare_folder) / f".index_{name}.npz"


def _text(strings):
    return np.frombuffer(os.fsencode("\0".join(strings)), np.uint8)


def _strings(array):
    return os.fsdecode(array.tobytes()).split("\0")


def _cache_content(folder, found, stamps, paths, class_of):
    return {
        "header": _text([str(_VERSION), str(folder.resolve()), " ".join(sorted(EXTENSIONS))]),
        "found": _text(found),
        "stamped": _text([os.path.relpath(path, folder) for path in stamps]),
        "stamps": np.array(list(stamps.values()), np.int64),
        "folders": _text([os.path.relpath(path, folder) for path in paths.folders]),
        "folder_of": paths.folder_of,
        "ends": paths.ends,
        "names": np.frombuffer(paths.names, np.uint8),
        "class_of": class_of,
    }


class _Unsettled(Exception):
    """A folder changed so recently that it may have changed since without another modification time."""


def _write_cache(files, content, age_ns):
    """Write the first of the files that can be written, of what was found `age_ns` ago."""
    for file in files:
        try:
            with atomic_path(file) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, **content)
                # By the clock of the disk, which may be another than ours.
                if content["stamps"][:, 0].max() > os.stat(temporary).st_mtime_ns - age_ns - _SETTLED_NS:
                    raise _Unsettled
            return
        except OSError:
            continue
        except _Unsettled:
            return


def _read_cache(file, folder, found):
    """(`Paths`, class folder of each) of a cache file that still holds; None otherwise."""
    try:
        with np.load(file, allow_pickle=False) as content:
            content = dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    header = [str(_VERSION), str(folder.resolve()), " ".join(sorted(EXTENSIONS))]
    if set(content) != _ARRAYS or _strings(content["header"]) != header or _strings(content["found"]) != found:
        return None
    for name, stamp in zip(_strings(content["stamped"]), content["stamps"].tolist()):
        if _stamp(folder / name) != tuple(stamp):
            return None
    folders = [str(folder / name) for name in _strings(content["folders"])]
    paths = Paths(folders, content["folder_of"], content["ends"], content["names"].tobytes())
    return paths, content["class_of"]
