"""Write files atomically, so that a crash leaves either the old or the new file; check paths before writing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from t2t_vit.common.errors import UserError

_TEMPORARY = ".tmp"  # suffix, followed by the process id
# Errors of file systems that cannot lock files (Lustre) or cannot flush folders (CIFS, vboxsf).
_NOT_SUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF}
_CHECKOUT = Path(__file__).resolve().parents[3]
_PUBLISHED = [_CHECKOUT / name for name in ("output/pretrained", "log/pretrained")]
_SHIPPED = re.compile(  # whose kinds the commands write too; below _CHECKOUT
    r"(docs|lit_data|tests)/.*|README\w*\.md|(CONTRIBUTING|CITATION|LICENSE|requirements)(\.\w+)?",
    re.IGNORECASE,
)


# --- Writing ---


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it is flushed to disk and renamed to `path`, else removed.

    A link is followed. A pipe or device such as /dev/stdout is written directly.
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


def write_text(path: str | Path, text: str) -> None:
    """Replace the text of `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Re-raise an OSError with `path` as its file name, because it may name a temporary file or none (disk full)."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or error}", str(path)) from error


def flush_to_disk(file: IO | str | Path) -> None:
    """Wait until a file or folder (an open file or a path) is on disk."""
    if not isinstance(file, (str, Path)):
        file.flush()
        os.fsync(file.fileno())
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED or not os.path.isdir(file):
            raise
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: str | Path) -> None:
    """Remove temporary files of killed processes from a folder that only this process writes to."""
    for path in Path(folder).glob(f".*{_TEMPORARY}[0-9]*"):
        if path.is_file():
            path.unlink()


def lock(file: IO | int, wait: bool = False) -> bool:
    """Lock an open file against other processes until it is closed. Returns False on a file system without locks.

    Raises BlockingIOError if another process holds the lock and `wait` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    return True


# --- Checks before writing ---


def check_writable(path: str | Path) -> None:
    """Raise OSError if `path` cannot be written, UserError if it is in a published run."""
    path = Path(path)
    if path.is_dir():
        raise OSError(errno.EISDIR, "is a folder", str(path))
    check_not_shipped(path)
    if path.exists() and not path.is_file():  # a pipe or /dev/stdout
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "cannot be written: no permission", str(path))
        return
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, f"no permission to write in {path.parent}")


def check_outputs(
    paths: Iterable[str | Path | None], inputs: Iterable[str | Path] = (), pictures: Iterable[str | Path] = ()
) -> None:
    """Raise an error if an output cannot be written, is also an input, or is given twice.

    Args:
        paths: output files; None is ignored.
        inputs: files that the command reads; they may be missing.
        pictures: more input files, possibly millions. To save time, only files with the name of an output are compared.
    """
    outputs = [path for path in paths if path]
    for number, path in enumerate(outputs):
        check_writable(path)
        if os.path.realpath(path) in [os.path.realpath(other) for other in outputs[:number]]:
            raise UserError(f"{path} is given for two outputs; give each its own name")
    existing = [path for path in outputs if os.path.exists(path)]
    names = {os.path.basename(os.path.realpath(path)).casefold() for path in existing}
    same_name = (path for path in pictures if os.path.basename(path).casefold() in names) if existing else ()
    for other in (*inputs, *same_name):
        for path in existing:
            if os.path.exists(other) and os.path.samefile(path, other):
                raise UserError(
                    f"{path} is read by this command and would be overwritten; give the output another name"
                )


def check_not_shipped(path: str | Path) -> None:
    """Raise UserError if a path is inside a run that comes with the repository, or is an existing file of it."""
    real, shown = Path(os.path.realpath(path)), display_path(path)
    is_inside = real.is_file() and real.is_relative_to(_CHECKOUT)
    if is_inside and _SHIPPED.fullmatch(real.relative_to(_CHECKOUT).as_posix()):
        raise UserError(f"{shown} comes with the repository, and no command changes it; choose another path")
    for folder in _PUBLISHED:
        if holds(folder, path):
            raise UserError(f"{shown} is in {display_path(folder)}, which no command changes; choose another path")


def holds(folder: str | Path, path: str | Path) -> bool:
    """True if `path` is an existing `folder` or is inside it. Resolves links and differences in letter case."""
    if not os.path.isdir(folder):
        return False
    real = Path(os.path.realpath(path))
    return any(os.path.exists(place) and os.path.samefile(folder, place) for place in (real, *real.parents))


# --- Reading and names ---


def read_text(path: str | Path, most_bytes: int) -> str:
    """Read a UTF-8 file. Raises ValueError if it is larger than `most_bytes` or is not text."""
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error}") from None


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_web_page(start: bytes) -> bool:
    """True if the first bytes of a file are HTML, because some download links lead to a web page instead."""
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def is_url(text: str | Path) -> bool:
    """True for http, https and file URLs."""
    return str(text).startswith(("http://", "https://", "file://"))


def display_path(path: str | Path) -> Path:
    """Format `path` for messages: relative if it is below the current folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder was removed
        return Path(path)
    path = Path(path).absolute()
    return path.relative_to(here) if path.is_relative_to(here) else path
