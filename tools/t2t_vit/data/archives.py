"""Read tar and zip archives entry by entry. A hostile archive cannot fill the memory or write outside the folder."""

import contextlib
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from t2t_vit.data.classes import UNWRITABLE

_HEADERS = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE}  # fmt: skip
_LONGEST_HEADER = 2**20  # bytes; tarfile reads a whole header into memory
_DRIVE = re.compile("[A-Za-z]:")


@dataclass(frozen=True)
class Entry:
    """A file of an archive. It must be read before the next entry is requested."""

    name: str
    size: Optional[int]  # bytes; None if unknown
    is_safe: bool  # a regular file whose path stays below the folder
    open: Callable  # () -> binary stream

    @property
    def parts(self):
        """The parts of the path: folders, then the file name."""
        return [part for part in self.name.split("/") if part not in ("", ".")]


def entries(file):
    """Yield the `Entry`s of an archive that is open as `file`.

    Errors of `tarfile`, `zipfile` and the decompression modules are not caught.
    """
    is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
    file.seek(0)
    return _zip_entries(file) if is_zip else tar_entries(file)


# --- tar ---


class _Member(tarfile.TarInfo):
    """A tar entry. A damaged header raises ReadError; plain tarfile would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, archive):
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not documented
            raise
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise tarfile.ReadError(str(error)) from None
        if member.size < 0:  # reading would loop on this entry forever
            raise tarfile.ReadError(f"an entry of {member.size} bytes")
        return member


def tar_entries(file):
    """Yield the `Entry`s of a tar archive; folders are left out."""
    with tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise this list grows to gigabytes
            if member.isdir():
                continue
            name = _readable(os.fsencode(member.name))
            # A sparse entry of a few bytes could fill the disk with zeros.
            is_safe = member.isreg() and not member.issparse() and _is_below(name)
            yield Entry(name, member.size, is_safe, lambda member=member: archive.extractfile(member))
        while archive.fileobj is not file and archive.fileobj.read(2**20):
            pass  # read to the end, where a .gz file has its checksum


# --- zip ---


def _zip_entries(file):
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            name = info.filename
            if not info.flag_bits & 0x800:  # not marked as UTF-8: zipfile decoded each byte as a character
                with contextlib.suppress(UnicodeEncodeError):
                    name = _readable(name.encode("cp437"))
            if "/" not in name:
                name = name.replace("\\", "/")  # written on Windows
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_safe = kind in (0, stat.S_IFREG) and _is_below(name)
            yield Entry(name, info.file_size, is_safe, lambda info=info: archive.open(info))


# --- Names ---


def _readable(name):
    """Decode a name: UTF-8, or the encoding of Chinese Windows."""
    for encoding in ("utf-8", "gb18030"):
        with contextlib.suppress(UnicodeDecodeError):
            return name.decode(encoding)
    return os.fsdecode(name)


def _is_below(name):
    """True if a name stays below the folder and can be written to a class list."""
    outside = name.startswith(("/", "\\")) or _DRIVE.match(name) or ".." in re.split(r"[/\\]", name)
    return not outside and not UNWRITABLE.search(name)
