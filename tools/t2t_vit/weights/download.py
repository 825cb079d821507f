"""Download weights from a URL to a cache folder, once and atomically.

Paddle's own downloader (paddle.utils.download) mixes up files of the same name, never times out, and does not lock
between processes. Paddle also depends on httpx.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import urllib.parse
from pathlib import Path

import httpx

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import flush_to_disk, is_url, is_web_page, lock, naming, remove_temporary_files, sha256
from t2t_vit.common.logger import log
from t2t_vit.config import ROOT
from t2t_vit.models.zoo import list_models
from t2t_vit.weights import published
from t2t_vit.weights.transfer import Part, by_mirror, fetch, is_github

# File names of torch.hub: name-<start of the SHA-256>.pth. Digits alone are more likely a date.
_HUB_NAME = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$")


def local_file(
    choice: str | Path, advice: str = "train first, or give a file with --pretrained FILE", folder: Path = ROOT
) -> Path:
    """Return the path of the weights that a setting names: a file (with or without .pdparams), a URL, a published name.

    A relative path starts at `folder`. Raises UserError with `advice` if there is no such file, or if it cannot be
    downloaded.
    """
    word = published.meaning(choice, folder)
    if is_url(word):
        return download(word)
    if word in published.table():
        return download_published(published.table()[word])
    path = Path(word)
    for candidate in (path, path.with_name(path.name + published.SUFFIX)):
        if candidate.is_file():
            return candidate
    if "://" in word:
        raise UserError(f"{word}: only addresses that start with http://, https:// or file:// can be downloaded")
    if "#sha256=" in word:
        raise UserError(f"weights {path} not found; #sha256= is for URLs only")
    if path.is_dir():
        named = published.table().get(path.name)
        other = f"; the published weights are {named.name}" if named and named.name != path.name else ""
        raise UserError(f"weights {path} are a folder; name the file in it, such as {path / 'best.pdparams'}{other}")
    if path.name in list_models() and path.name not in published.table():
        raise UserError(f"weights {path} not found, and no weights of {path.name} are published: {advice}")
    near = ", ".join(published.similar(path.name))
    raise UserError(f"weights {path} not found; {f'did you mean {near}?' if near else advice}")


def download_published(row: published.Published) -> Path:
    """Return the local file of a row of published.tsv; download it first if it is not in the cache.

    Raises UserError like `download`. If only a browser can download it, the message names the page and the place for
    the file.
    """
    if not row.needs_browser:
        return download(row.url)
    path = cache_folder() / row.name
    if not path.is_file():
        _make_folder(path.parent)
        page = f"{row.url} ({row.remark})" if row.remark else row.url
        raise UserError(f"{row.name} needs a browser: download the file of {page} and save it as {path}")
    return path


def cache_folder():
    """Return $T2T_CACHE, or else ~/.cache/t2t_vit. Raises UserError if there is no home folder."""
    folder = os.environ.get("T2T_CACHE") or os.path.expanduser("~/.cache/t2t_vit")
    if folder.startswith("~"):
        raise UserError("there is no home folder to keep downloads in; set T2T_CACHE to a folder")
    return Path(folder)


def remedy_for(path: str | Path) -> str:
    """Return what an error message about a damaged file adds if the file is in the cache; else ""."""
    with contextlib.suppress(UserError):  # there is no cache
        if Path(path).absolute().is_relative_to(cache_folder().absolute()):
            return ": remove it to download it again"
    return ""


def download(url: str) -> Path:
    """Download a URL unless it is in the cache, and return the local file. Several processes download it only once.

    What an interrupted download has left in the cache is continued. The file is checked against URL#sha256=HEX, or the
    hexadecimal digits of a name like name-1a2b3c4d.pth. A file:// URL is used in place.

    Raises:
        UserError: no connection, no such file, a wrong checksum, or a web page instead of the file.
    """
    address, place, checksum = _parse(url)
    if address.startswith("file://"):
        path = Path("/" + place[len("file://") :].partition("/")[2])
        if not path.is_file():
            raise UserError(f"weights {url} not found")
        _check(path, checksum, url)
        return path
    try:
        identity = hashlib.sha256(address.encode()).hexdigest()[:12]
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise UserError(f"{url} cannot be downloaded: the address is not UTF-8") from None
    name = place.rpartition("/")[2].replace("\0", "")[-100:]
    name = "weights" if name in ("", ".", "..") else name
    # One folder per URL, so that files of the same name do not collide.
    path = cache_folder() / identity / name
    _make_folder(path.parent)
    if not _is_complete(path, checksum):
        with open(path.parent / ".lock", "w") as file:
            locked = lock(file, wait=True)  # on a file system without locks, each process downloads for itself
            if not _is_complete(path, checksum):
                if locked:
                    remove_temporary_files(path.parent)
                part = path.with_name(".part" if locked else f".part.tmp{os.getpid()}")
                _download(address, path, checksum, url, Part(part, bool(checksum)), keep=locked)
    return path


def _parse(url):
    """Split a URL: (address without the checksum, the same with readable letters and no query, checksum or "")."""
    address, _, fragment = url.partition("#")
    if fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{8,64}", fragment):
        raise UserError(f"{url}: expected #sha256= and 8 to 64 hexadecimal digits after the URL")
    place = urllib.parse.unquote(address.partition("?")[0])
    in_name = _HUB_NAME.search(place)
    return address, place, fragment[len("sha256=") :].lower() or (in_name.group(1) if in_name else "")


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}); set T2T_CACHE to a folder") from None


def _is_complete(path, checksum):
    return path.is_file() and (not checksum or sha256(path).startswith(checksum))


def _download(address, path, checksum, url, part, keep):
    """Download to `path`. A part that a later command can continue is left behind if `keep` is set."""
    source = by_mirror(address)
    start = part.size()
    log.info("downloading %s to %s%s", source, path, f", from byte {start:,} on" if start else "")
    try:
        with naming(path):
            if fetch(source, part, path.name) and not _is_complete(part.path, checksum):
                log.info("%s: what was there before is of another file; downloading all of it", path.name)
                part.discard()
                fetch(source, part, path.name)
            _check(part.path, checksum, url, f": download it by hand and save it as {path}")
            flush_to_disk(part.path)
            os.replace(part.path, path)
            flush_to_disk(path.parent)
    except UserError:
        part.discard()
        raise
    except httpx.HTTPStatusError as error:
        status = f"{error.response.status_code} {error.response.reason_phrase}"
        raise UserError(
            f"{source} answered {status}: check the address, or download the file by hand and save it as {path}"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:  # ImportError: SOCKS needs socksio
        mirror = ", set T2T_MIRROR to a mirror of GitHub" if is_github(source) else ""
        kept = f"repeat the command, which continues after {part.size():,} bytes, " if keep and part.size() else ""
        raise UserError(
            f"{source} cannot be downloaded ({str(error) or type(error).__name__}): {kept}check the network and the "
            f"proxy variables{mirror}, or download the file by hand and save it as {path}"
        ) from None
    finally:
        if not (keep and part.size()):
            part.discard()


def _check(path, checksum, url, remedy=""):
    """Raise UserError if a file is a web page, or has another checksum."""
    with open(path, "rb") as file:
        if is_web_page(file.read(512)):
            raise UserError(f"{url} is a web page (Google Drive does that), not the file{remedy}")
    if not _is_complete(path, checksum):
        raise UserError(f"{url} has the SHA-256 {sha256(path)}, not {checksum}: it is damaged or a different file")
