"""Weights from the net: downloaded once, whole or not at all, into a cache folder."""

import contextlib
import hashlib
import http.client
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from t2t_vit.common.errors import UserError, printable
from t2t_vit.common.files import atomic_path, is_url, is_web_page, lock, sha256, temporary_path
from t2t_vit.common.logger import log, progress_bar
from t2t_vit.config import resolve

_SUFFIX = ".pdparams"  # which PaddleViT's and MindSpore's users leave out
# Of torch.hub: name-<start of its SHA-256>.pth. Digits alone are rather a date.
_HUB_NAME = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$")
_TIMEOUT = 30  # seconds without an answer
_BLOCK = 2**20  # bytes


def local_file(choice, advice="train first, or give a file with --pretrained FILE"):
    """Path of the weights that a setting names: a file, with or without .pdparams, or a URL.

    Raises UserError with `advice` if there is no such file, or if it cannot be downloaded.
    """
    if is_url(choice):
        return download(str(choice))
    if "://" in str(choice):
        raise UserError(f"{choice}: only http, https and file URLs are fetched")
    path = resolve(choice)
    for candidate in (path, path.with_name(path.name + _SUFFIX)):
        if candidate.is_file():
            return candidate
    raise UserError(f"weights {path} not found; {advice}")


def cache_folder():
    """$T2T_CACHE, else t2t_vit in the user's cache folder. UserError where there is no home folder."""
    if folder := os.environ.get("T2T_CACHE"):
        return Path(folder)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if caches.startswith("~"):
        raise UserError("there is no home folder to keep downloads in; set T2T_CACHE to a folder")
    return Path(caches) / "t2t_vit"


def download(url):
    """The local file of a URL, fetched unless it is in the cache; several processes fetch it once.

    The file is checked against URL#sha256=HEX, or against the hexadecimal digits of a name like name-1a2b3c4d.pth.

    Raises UserError in one line that says what to do: no net, no such file, another checksum, a web page.
    """
    given, _, fragment = url.partition("#")
    try:
        address = given if given.startswith("file://") else _quoted(given)
        place = urllib.parse.urlsplit(address).path
    except ValueError as error:
        raise UserError(f"{url} is no address ({error})") from None
    checksum = _expected_checksum(place, fragment, url)
    if address.startswith("file://"):
        path = Path(urllib.request.url2pathname(place))
        if not path.is_file():
            raise UserError(f"weights {url} not found")
        _check(path, checksum, url)
        return path
    name = os.path.basename(urllib.parse.unquote(place)).replace("\0", "")[-100:]
    name = "weights" if name in ("", ".", "..") else name
    # A folder for each address: files of the same name are not mixed up, nor taken for each other's neighbours.
    folder = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:12]
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); set T2T_CACHE to a folder") from None
    if not _is_cached(path, checksum, address):
        with _only_one(folder):
            if not _is_cached(path, checksum, address):
                temporary_path(path)  # removes what processes that were killed have left
                _fetch(address, path, checksum, url)
    return path


def _is_cached(path, checksum, address):
    found = path.is_file() and _matches(path, checksum)
    if found:
        log.info("%s is in the cache: %s", address, path)
    return found


def _expected_checksum(place, fragment, url):
    """Start of the SHA-256 in hexadecimal that the file must have, or "" if nobody said."""
    if not fragment:
        match = _HUB_NAME.search(place)
        return match.group(1) if match else ""
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment)
    if not match:
        raise UserError(f"{url}: expected #sha256= and 8 to 64 hexadecimal digits behind the URL")
    return match.group(1).lower()


def _quoted(address):
    """A URL in ASCII, as it is sent: people paste blanks and letters of any language. Raises ValueError."""
    parts = urllib.parse.urlsplit(address.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    rest = (urllib.parse.quote(part, safe="/%:@!$&'()*+,;=~?[]") for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, *rest, ""))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone, also where urllib would go to ftp."""

    def redirect_request(self, request, file, code, message, headers, address):
        if not address.startswith(("http://", "https://")):
            raise urllib.error.URLError(f"it leads to {address}, and only http and https are followed")
        return super().redirect_request(request, file, code, message, headers, address)


@contextlib.contextmanager
def _only_one(folder):
    """Wait until no other process of this machine fetches into the folder."""
    with open(folder / ".lock", "w") as file:
        lock(file, wait=True)  # without locks each process fetches for itself
        yield


def _fetch(address, path, checksum, url):
    by_hand = "download it by hand and give the file with --pretrained FILE"
    log.info("downloading %s to %s", address, path)
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(address, timeout=_TIMEOUT) as answer, atomic_path(path) as temporary:
            _copy(answer, temporary, path.name)
            _check_page(temporary, url, by_hand)
            _check(temporary, checksum, url)
    except urllib.error.HTTPError as error:
        reason = str(error.reason).partition("\n")[0].rstrip(".")  # of a loop of redirects, several lines
        raise UserError(f"{address} answered {error.code} {reason}; check the address, or {by_hand}") from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, socket.timeout, EOFError,
            ValueError) as error:  # fmt: skip
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{address} cannot be downloaded ({reason}): {_proxy_advice() or 'no net here?'} {by_hand[0].upper()}"
            f"{by_hand[1:]}"
        ) from None


def _proxy_advice():
    """What to set instead of a SOCKS proxy, which urllib does not use; "" if there is none."""
    socks = [scheme for scheme, proxy in urllib.request.getproxies().items() if proxy.startswith("socks")]
    names = ", ".join(f"{scheme}_proxy" for scheme in socks)
    return f"{names} names a SOCKS proxy, which is not supported; set https_proxy=http://HOST:PORT." if socks else ""


def _copy(answer, temporary, name):
    """Write an answer to a file, with a progress bar; EOFError if it ends early."""
    length = answer.headers.get("Content-Length") or "0"
    total = int(length) if length.isdecimal() and len(length) < 20 else 0
    received = 0
    bar = progress_bar(None, total=total or None, unit="B", unit_scale=True, desc=printable(name))
    with open(temporary, "wb") as file, bar:
        while block := _read(answer):
            file.write(block)
            received += len(block)
            bar.update(len(block))
    if received < total:
        raise EOFError(f"it ended after {received:,} of {total:,} bytes")


def _read(answer):
    try:
        return answer.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:  # not to be taken for an error of the disk
        raise EOFError(str(error)) from error


def _check_page(path, url, by_hand):
    with open(path, "rb") as file:
        start = file.read(512)
    if is_web_page(start):
        raise UserError(f"{url} gives a web page, not the file (share links such as Google Drive's do); {by_hand}")


def _matches(path, checksum):
    return not checksum or sha256(path).startswith(checksum)


def _check(path, checksum, url):
    if not _matches(path, checksum):
        raise UserError(f"{url} has the SHA-256 {sha256(path)}, not {checksum}; the file is damaged or another one")
