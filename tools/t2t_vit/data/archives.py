"""Entries of tar and zip archives, one after the other. Hostile archives cannot fill the memory or leave the folder."""

import contextlib
import os
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from t2t_vit.common.errors import UserError
from t2t_vit.data.classes import UNWRITABLE

_HEADERS = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE}  # fmt: skip
_LONGEST_HEADER = 2**20  # bytes of a tar header; tarfile reads a header into memory at once
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}  # those of zipfile
_DRIVE = re.compile("[A-Za-z]:")


@dataclass(frozen=True)
class Entry:
    """A file of an archive. It must be read before the next entry is requested."""

    name: str
    size: int  # bytes; None if unknown
    is_safe: bool  # a plain file whose name can be a path below a folder
    open: Callable  # () -> binary stream

    @property
    def parts(self):
        """Folders and file name."""
        return [part for part in self.name.split("/") if part not in ("", ".")]


def is_zip(path):
    """True if a file begins like a zip archive."""
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6", b"PK\7\x08")


def unpacked_size(path):
    """Bytes that the files of an archive need: of a tar archive its own size, as images hardly compress."""
    if not is_zip(path):
        return os.path.getsize(path)
    with open(path, "rb") as file, _open_zip(file) as archive:
        return sum(info.file_size for info in archive.infolist())


def entries(file, path):
    """Yield the `Entry`s of an archive that is open as `file`; `path` names it in errors."""
    return _zip_entries(file, path) if is_zip(path) else tar_entries(file)


# --- tar ---


class _Member(tarfile.TarInfo):
    """Entry of an archive. A damaged header raises ReadError; tarfile would take it for the end of the archive."""

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
        except tarfile.EOFHeaderError:
            raise
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise tarfile.ReadError(str(error)) from None
        if member.size < 0:  # the next entry would be this one again
            raise tarfile.ReadError(f"an entry of {member.size} bytes")
        return member


def open_tar(path=None, file=None):
    """`tarfile.TarFile` of a path or an open file, compressed or not."""
    return tarfile.open(path, mode="r:*", fileobj=file, tarinfo=_Member)


def tar_entries(file):
    """Yield the `Entry`s of a tar archive; folders are left out."""
    with open_tar(file=file) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # otherwise it grows to gigabytes
            if member.isdir():
                continue
            name = _readable(os.fsencode(member.name))
            # A sparse entry of a few bytes can fill the disk with zeros.
            is_safe = member.isreg() and not member.issparse() and _is_below(name)
            yield Entry(name, member.size, is_safe, lambda member=member: archive.extractfile(member))
        while archive.fileobj is not file and archive.fileobj.read(2**20):
            pass  # the checksum of a .gz is at its end


# --- zip ---


def _open_zip(file):
    try:
        return zipfile.ZipFile(file)
    except (ValueError, OverflowError, NotImplementedError, struct.error) as error:
        raise zipfile.BadZipFile(str(error)) from None


def _zip_entries(file, path):
    with _open_zip(file) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        for info in files:
            if info.flag_bits & 1:
                raise UserError(f"{path} is encrypted; unpack it with another program")
            if info.compress_type not in _METHODS:
                raise UserError(f"{path} uses compression method {info.compress_type}; unpack it with another program")
        for info in files:
            name = info.filename
            if not info.flag_bits & 0x800:  # not marked as UTF-8, so that zipfile decoded each byte as a character
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
    """True for a name that stays below the folder and that a class list can hold."""
    outside = name.startswith(("/", "\\")) or _DRIVE.match(name) or ".." in re.split(r"[/\\]", name)
    return not outside and not UNWRITABLE.search(name)
