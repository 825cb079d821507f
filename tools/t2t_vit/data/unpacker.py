"""Unpack one archive: choose the entries, decide where they go, and write the files."""

import contextlib
import errno
import os
import re
import sys
import tarfile

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.logger import progress_bar
from t2t_vit.data import archives, cifar
from t2t_vit.data.index import is_ignored_folder, is_image_name
from t2t_vit.data.layout import split_named

_CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")


class DamagedArchive(UserError):
    """The archive cannot be read to the end."""


class ForeignFile(UserError):
    """The folder already contains a different file with the name of a file in the archive."""


class Unpacker:
    """Writes the images of one archive.

    Args:
        folder: folder to unpack to.
        val_classes: `ValClasses`.
        is_new: True if nothing was unpacked to the folder before. Existing files are then never replaced.
        is_trusted: True if an existing file of the right size counts as unpacked.
    """

    def __init__(self, folder, val_classes, is_new, is_trusted):
        self.folder, self.val_classes, self.is_new, self.is_trusted = folder, val_classes, is_new, is_trusted
        self.depth = None  # depth of the class folders in an archive without splits
        self.unplaced = set()  # folders (tuples) with images that belong to no split

    def unpack(self, path):
        """Unpack the archive and print what was in it."""
        try:
            self._read(path)
            if not self.images and (depth := class_depth(self.unplaced)) is not None:
                self.depth = depth
                self._read(path)
        except UserError:
            raise
        except Exception as error:  # tarfile, zipfile and the decompression modules can raise nearly anything
            reason = str(error) or type(error).__name__
            reason = reason.splitlines()[0].rstrip(": ")  # tarfile adds a line per compression that it tried
            raise DamagedArchive(
                f"{path} is damaged, incomplete or not a tar or zip archive ({reason}); {self.images:,} of its images "
                "are unpacked; download it again and repeat the command"
            ) from error
        if self.unsafe:
            names = ", ".join(map(ascii, self.unsafe[:3]))
            _warn(f"{path}: skipped {len(self.unsafe)} links, devices and unsafe names: {names}")
        if self.repeated:
            _warn(f"{path}: skipped {self.repeated} files that would replace an earlier one")
        if not self.images:
            raise UserError(
                f"{path} contains no images in train/ or val/ folders, and fewer than two class folders with images"
            )
        print(f"{path}: {self.written:,} images written, {self.images - self.written:,} already there, "
              f"{self.other:,} other files skipped")  # fmt: skip

    def _read(self, path):
        """Write the images of the archive, with a progress bar."""
        self.images = self.written = self.other = self.repeated = 0
        self.unsafe = []
        self.names = {}  # {hash of a path: hash of its name in the archive}, because a million paths need much memory
        options = {"total": path.stat().st_size, "unit": "B", "unit_scale": True, "desc": path.name}
        with open(path, "rb") as file, progress_bar(None, **options) as bar:
            form, inner = cifar.form_of(file), _CLASS_ARCHIVE.fullmatch(path.name)
            entries = cifar.entries(file, path, form) if form else archives.entries(file)
            place = str if form else self._place  # CIFAR images are already named by their path
            # A single n01440764.tar is one class of ILSVRC2012_img_train.tar that was unpacked by hand.
            prefix = f"train/{inner[1]}/" if inner else ""
            self._add(entries, lambda: bar.update(max(0, file.tell() - bar.n)), place, prefix)

    def _add(self, entries, progress, place, prefix="", archive=""):
        """Unpack entries, below `prefix`. `archive`: name of the class archive that holds them, if one does."""
        for entry in entries:
            progress()
            name = "/".join(entry.parts)
            class_archive = _CLASS_ARCHIVE.fullmatch(entry.parts[-1]) if entry.parts else None
            if not entry.is_safe or not entry.parts:
                self.unsafe.append(entry.name)
            elif class_archive:
                with entry.open() as inner:
                    self._add(archives.tar_entries(inner), progress, place, f"train/{class_archive[1]}/", name)
            elif target := place(prefix + name):
                self._write(entry, self.folder / target, hash((archive, name)))
            else:
                self.other += 1

    def _place(self, name):
        """Return the path below the folder for an entry of this name, or None to skip it."""
        *parents, file = name.split("/")
        if any(map(is_ignored_folder, parents)) or not is_image_name(file):
            return None
        at, split = next(((i, split) for i, part in enumerate(parents) if (split := _split_of(part))), (0, ""))
        below = parents[at + 1 :] if split else []
        below = below[1:] if split and below[:1] == [parents[at]] else below  # seg_train/seg_train/cat
        if below:
            return "/".join([split, *below, file])
        if _VAL_IMAGE.fullmatch(file) or split == "val":
            return f"val/{self.val_classes.class_of(name)}/{file}"
        if not split and self.depth is None:
            self.unplaced.add(tuple(parents))
        elif not split and parents[self.depth :]:
            return "/".join([*parents[self.depth :], file])
        return None

    def _write(self, entry, target, name):
        """Write one file, unless it exists. If several entries have the same `name`, the last is kept, as in tar."""
        key = hash(target)
        is_again = key in self.names
        if is_again and self.names[key] != name:
            self.repeated += 1
            return
        self.names[key] = name
        is_there = self.is_trusted and target.is_file() and entry.size in (None, target.stat().st_size)
        if is_again or not is_there:
            if not is_again and self.is_new and os.path.lexists(target):
                raise ForeignFile(f"{target} exists and differs from the file in the archive; give another --output")
            with entry.open() as source, _replacing(target) as file:
                file.writelines(_blocks(source))
            self.written += not is_again
        self.images += not is_again


def _split_of(name):
    """Return train, val or test if the folder is named like a split, else None."""
    split = split_named(name)
    return "test" if split and "test" in name.lower() else split


def class_depth(folders):
    """Return the depth of the class folders, given the folders of all images as a set of tuples.

    Images next to the folder that contains all others are ignored. Returns None for fewer than two class folders.
    """
    while folders:
        depth = len(os.path.commonprefix(list(folders)))
        folders = {folder for folder in folders if len(folder) > depth}
        if len({folder[depth] for folder in folders}) > 1:
            return depth
    return None


def _blocks(source):
    """Yield the content of an entry. Every OSError becomes tarfile.ReadError: the archive cannot be read."""
    try:
        while block := source.read(2**20):
            yield block
    except OSError as error:
        raise tarfile.ReadError(one_line(error)) from error


@contextlib.contextmanager
def _replacing(target):
    """Yield a temporary file. It is renamed to `target` when complete, and removed after an error.

    Unlike files.atomic_path, this does not wait for the disk, which would take hours for a million files.
    """
    temporary = target.with_name(".unpack.part")  # a fixed name, so that a file left by a killed process is overwritten
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full at {target}; free some space and repeat the command") from error
        raise UserError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _warn(line):
    print(f"warning: {line}", file=sys.stderr)
