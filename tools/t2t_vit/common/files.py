"""Files: written so that a crash leaves either the old one or the new one, never a part; and how they are named."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
from pathlib import Path

from t2t_vit.common.errors import UserError

_TEMPORARY = ".tmp"  # and the number of the process
# What a file system answers that has no locks (Lustre), or does not flush folders (CIFS, vboxsf).
_NOT_OFFERED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF}
_SHIPPED = [Path(__file__).resolve().parents[3] / name for name in ("output/pretrained", "log/pretrained")]


def remove_temporary_files(folder):
    """Remove what a killed process left in a folder that no other process writes to."""
    for path in Path(folder).glob(f".*{_TEMPORARY}[0-9]*"):
        _remove(path)


def temporary_path(path):
    """Name beside `path` for what will take its place; what dead processes left under such names is removed."""
    for earlier in path.parent.glob(f".{glob.escape(path.name)}{_TEMPORARY}*"):
        process = earlier.name.rpartition(_TEMPORARY)[2]
        if process.isdigit() and not _lives(int(process)):
            with contextlib.suppress(OSError):  # another process removes it too
                _remove(earlier)
    return path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}")


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _lives(process):
    """Whether a process other than this one has the number."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return process != os.getpid()


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`, else remove it.

    A link is followed to its file; what is no regular file (a pipe, /dev/stdout) is written as it is.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
            flush_to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def naming(path):
    """Give an OSError, which may name a temporary file or none (disk full), the name that the user knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path)) from error


def check_writable(path):
    """Raise OSError now if `path` could not be written later."""
    path = Path(path)
    if path.is_dir():
        raise OSError(errno.EISDIR, "is a folder", str(path))
    check_not_shipped(path)
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "cannot be written: no right to write to it", str(path))
        return
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, f"no right to write in {path.parent}")


def check_outputs(paths, inputs=(), pictures=()):
    """Raise an error now if one of `paths` (None aside) could not be written later, or must not be.

    Args:
        paths: files that a command will write. None may be another of them, nor an input.
        inputs: files that the command reads, whether they are there or not.
        pictures: more of them, so many that only those with the name of an output are looked at.
    """
    paths = list(filter(None, paths))
    for number, path in enumerate(paths):
        check_writable(path)
        if os.path.realpath(path) in map(os.path.realpath, paths[:number]):
            raise UserError(f"{path} is named for two files; give each its own name")
    existing = [path for path in paths if os.path.exists(path)]
    if not existing:
        return
    names = {os.path.basename(os.path.realpath(path)).casefold() for path in existing}
    for other in (*inputs, *(path for path in pictures if os.path.basename(path).casefold() in names)):
        for path in existing:
            if os.path.exists(other) and os.path.samefile(path, other):
                raise UserError(
                    f"{path} is read by this command and would be overwritten; give the output another name"
                )


def check_not_shipped(path):
    """Raise UserError for a path among the runs that come with the repository, which no command changes."""
    for folder in _SHIPPED:
        if holds(folder, path):
            raise UserError(
                f"{display_path(path)} lies in {display_path(folder)}, which is kept as it came; give another place"
            )


def holds(folder, path):
    """Whether `folder` is there and `path` is it or lies in it, whatever links and letter cases name them."""
    if not os.path.isdir(folder):
        return False
    real = Path(os.path.realpath(path))
    return any(os.path.exists(place) and os.path.samefile(folder, place) for place in (real, *real.parents))


def lock(file, wait=False):
    """Lock an open file against other processes until it is closed. False where the file system has no locks.

    Raises BlockingIOError if another process holds it, unless this is to `wait`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _NOT_OFFERED:
            return False
        raise
    return True


def sha256(path):
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_web_page(start):
    """True if a file that begins with these bytes is an HTML page, such as a share link gives instead of the file."""
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def is_url(text):
    """True for what is fetched from elsewhere: http, https and file URLs."""
    return str(text).startswith(("http://", "https://", "file://"))


def display_path(path):
    """`path` as a user would type it: relative where it lies below the current folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return Path(path)
    path = Path(path).absolute()
    return path.relative_to(here) if path.is_relative_to(here) else path


def read_text(path, most_bytes):
    """The text of a file of settings or names. Raises ValueError if it is too large to be one, or is no text."""
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text: {error}") from None


def write_text(path, text):
    """Replace the text of `path`, complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(file):
    """Wait until an open file, or the file or folder of a path, is on disk."""
    if hasattr(file, "flush"):
        file.flush()
        os.fsync(file.fileno())
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED or not os.path.isdir(file):
            raise
    finally:
        os.close(descriptor)
