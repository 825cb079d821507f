"""Transfer a file over HTTP: what a lost connection has left is continued, and GitHub may be reached by a mirror."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from t2t_vit.common.errors import UserError, printable
from t2t_vit.common.logger import log, progress_bar

_TIMEOUT = 30  # seconds without a response
_TRIES = 5  # connections for one file, as long as each of them brings more of it
_GITHUB = re.compile(r"https?://([\w-]+\.)*github(usercontent)?\.com/")
_MIRROR = re.compile(r"https?://[^/?#\s][^?#\s]*")  # with a host, without a query


@dataclass(frozen=True)
class Part:
    """The beginning of a file, which a later connection may continue.

    Attributes:
        path: the bytes so far. A file beside it holds the validator: the ETag or date of this version of the file.
        is_checked: whether the whole file has a known checksum. Then it may be continued without a validator.
    """

    path: Path
    is_checked: bool

    @property
    def validator(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return self._beside().read_text(encoding="ascii").strip()
        return ""

    def keep_validator(self, text: str) -> None:
        self.discard()
        if text:
            self._beside().write_text(text, encoding="ascii")

    def size(self) -> int:
        """Return the number of bytes that can be continued."""
        can_continue = self.path.is_file() and (self.is_checked or self.validator)
        return self.path.stat().st_size if can_continue else 0

    def discard(self) -> None:
        for path in (self.path, self._beside()):
            path.unlink(missing_ok=True)

    def _beside(self):
        return self.path.with_name(f"{self.path.name}.validator")


def by_mirror(address: str) -> str:
    """Return the address to ask: a URL of GitHub after $T2T_MIRROR/, any other as it is.

    Raises UserError if the variable is no address.
    """
    mirror = os.environ.get("T2T_MIRROR", "").strip()
    if not mirror or not is_github(address):
        return address
    if not _MIRROR.fullmatch(mirror):
        raise UserError(
            f"T2T_MIRROR is {mirror}: set it to the address of a mirror of GitHub, such as https://host/prefix"
        )
    return f"{mirror.rstrip('/')}/{address}"


def is_github(address: str) -> bool:
    return bool(_GITHUB.match(address))


def fetch(address: str, part: Part, name: str) -> bool:
    """Write the content of a URL to `part.path`. Returns whether the beginning is from an earlier connection.

    Raises:
        httpx.HTTPStatusError: the server's answer is an error.
        httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError: no connection, or it was lost too often.
    """
    tries = 0
    while True:
        before, tries = part.size(), tries + 1
        try:
            return _transfer(address, part, name)
        except httpx.TransportError as error:
            if tries == _TRIES or part.size() <= before:
                raise
            log.info("%s: %s; continuing after %s bytes", name, error, f"{part.size():,}")


def _transfer(address, part, name):
    """Use one connection. Returns whether it continued `part`."""
    start = part.size()
    headers = {"Accept-Encoding": "identity"}  # the position in a compressed answer would be unknown
    if start:
        headers["Range"] = f"bytes={start}-"
        headers |= {"If-Range": part.validator} if part.validator else {}
    with httpx.stream("GET", address, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as answer:
        if start and not _continues(answer, start, part):
            if answer.status_code in (206, 416):  # not the whole file: ask for it
                part.discard()
                return _transfer(address, part, name)
            start = 0  # a server without ranges, or the file has changed
        answer.raise_for_status()
        if not start:
            if answer.status_code != 200:
                raise ValueError(f"the server answered {answer.status_code} instead of the file")
            part.keep_validator(_validator(answer))
        _write(answer, part.path, start, name)
        _check_size(part.path.stat().st_size, answer.headers.get("Content-Range", "") if start else "")
    return start > 0


def _check_size(size, content_range):
    """Raise if a file is empty, or has another size than a Content-Range says."""
    total = content_range.rpartition("/")[2]
    if total.isdecimal() and size < int(total):
        raise httpx.RemoteProtocolError(f"the connection ended after {size:,} of {int(total):,} bytes")
    if not size or (total.isdecimal() and size > int(total)):
        raise ValueError(f"the server sent {size:,} bytes, which is not the file")


def _continues(answer, start, part):
    """Whether an answer has the rest of the same file, from byte `start`. Some servers do not check If-Range.

    Without the size of the file (*), only a checksum can show whether it is the whole rest.
    """
    found = re.fullmatch(rf"bytes {start}-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if answer.status_code != 206 or not found or _validator(answer) != part.validator:
        return False
    return part.is_checked if found[2] == "*" else int(found[2]) == int(found[1]) + 1  # to the end


def _validator(answer):
    """Return the strong ETag or the date of a file; "" if it has neither or was compressed on the way."""
    tag = answer.headers.get("ETag", "")
    is_plain = answer.headers.get("Content-Encoding", "identity") == "identity"
    text = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
    return text if is_plain and text.isascii() and text.isprintable() else ""


def _write(answer, path, start, name):
    """Write a response to a file from byte `start`, with a progress bar."""
    length = answer.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    bar = progress_bar(None, total=total, initial=start, unit="B", unit_scale=True, desc=printable(name))
    with open(path, "ab" if start else "wb") as file, bar:
        for block in answer.iter_bytes():
            file.write(block)
            bar.update(len(block))
