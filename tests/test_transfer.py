"""Downloads that continue after an interruption, and the mirror of GitHub, with a local HTTP server."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
from conftest import ROOT

from t2t_vit.common.errors import UserError
from t2t_vit.weights import download as download_module
from t2t_vit.weights import transfer
from t2t_vit.weights.download import download
from t2t_vit.weights.formats import read_weights
from t2t_vit.weights.published import table

CONTENT = np.random.default_rng(0).bytes(400_000)
OTHER = np.random.default_rng(1).bytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server has and how it behaves."""

    content: bytes = CONTENT
    headers: dict = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    checks_if_range: bool = True
    cuts: list = field(default_factory=list)  # for each connection in turn: number of bytes before it breaks
    stop: threading.Event | None = None  # what a connection waits for before it breaks
    names_size: bool = True  # whether Content-Range has the size of the file
    short: bool = False  # answers a range with fewer bytes than asked for
    asked: list = field(default_factory=list)  # (path, Range, If-Range)
    url: str = ""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server that serves one content under all paths; downloads are cached in a folder of the test."""
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
            site.asked.append((self.path, wanted, condition))
            total, start = len(site.content), 0
            size = total if site.names_size else "*"
            matches = not site.checks_if_range or condition in (None, *site.headers.values())
            if site.ranges and wanted and matches:
                start = int(wanted[len("bytes=") : -1])
            if start >= total:
                self.send_error(416)
                return
            body = site.content[start : start + 1000 if start and site.short else None]
            self.send_response(206 if start else 200)
            for name, value in site.headers.items():
                self.send_header(name, value)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{size}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: site.cuts.pop(0) if site.cuts else None])
            if site.stop:
                site.stop.wait(60)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()


def left(tmp_path):
    """Names of the files in the cache."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock")


def interrupted(site, url, after=100_000):
    """Download until the connection breaks twice, the second time at once, so that the command gives up."""
    site.cuts = [after, 0]
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        download(url)
    site.asked.clear()
    return str(error.value)


def test_a_lost_connection_is_continued_at_once(site, tmp_path):
    site.cuts = [100_000, 50_000]
    assert download(f"{site.url}/w.pth").read_bytes() == CONTENT
    assert site.asked == [("/w.pth", wanted, wanted and '"one"') for wanted in (None, "bytes=100000-", "bytes=150000-")]
    assert left(tmp_path) == ["w.pth"]


def test_the_next_command_continues(site, tmp_path):
    message = interrupted(site, f"{site.url}/w.pth")
    assert "): repeat the command, which continues after 100,000 bytes, check the network" in message
    assert left(tmp_path) == [".part", ".part.validator"]
    assert download(f"{site.url}/w.pth").read_bytes() == CONTENT
    assert site.asked == [("/w.pth", "bytes=100000-", '"one"')] and left(tmp_path) == ["w.pth"]


def test_connections_that_always_break_are_given_up(site):
    site.cuts = [10] * 20
    with pytest.raises(UserError, match="cannot be downloaded .* continues after 50 bytes"):
        download(f"{site.url}/w.pth")
    assert len(site.asked) == 5


def test_a_date_continues_too(site):
    site.headers = {"ETag": 'W/"weak"', "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}
    interrupted(site, f"{site.url}/w.pth")
    assert download(f"{site.url}/w.pth").read_bytes() == CONTENT
    assert site.asked == [("/w.pth", "bytes=100000-", "Mon, 02 Nov 2026 10:00:00 GMT")]


@pytest.mark.parametrize("checks_if_range", [True, False])
def test_a_file_that_has_changed_is_downloaded_from_its_start(site, checks_if_range):
    site.checks_if_range = checks_if_range
    interrupted(site, f"{site.url}/w.pth")
    site.content, site.headers = OTHER, {"ETag": '"two"'}
    assert download(f"{site.url}/w.pth").read_bytes() == OTHER


@pytest.mark.parametrize("setting", ["ranges", "short"])
def test_a_server_that_does_not_send_the_rest_sends_everything(site, setting):
    interrupted(site, f"{site.url}/w.pth")
    setattr(site, setting, setting == "short")
    assert download(f"{site.url}/w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("fragment, asked", [("", [True, False]), (f"#sha256={SHA256}", [True])])
def test_the_rest_of_a_file_of_unknown_size_needs_a_checksum(site, fragment, asked):
    interrupted(site, f"{site.url}/w.pth{fragment}")
    site.names_size = False
    assert download(f"{site.url}/w.pth{fragment}").read_bytes() == CONTENT
    assert [wanted is not None for _, wanted, _ in site.asked] == asked


def test_a_damaged_download_can_be_removed(site, tmp_path):
    path = download(f"{site.url}/w.pdparams")
    (tmp_path / "mine.pdparams").write_bytes(CONTENT)
    with pytest.raises(UserError, match=r"damaged or not .*\): remove it to download it again$"):
        read_weights(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty: remove it to download it again$"):
        read_weights(path)
    with pytest.raises(UserError, match=r"damaged or not .*\)$"):
        read_weights(tmp_path / "mine.pdparams")


def test_a_part_that_is_already_whole_is_no_dead_end(site, tmp_path):
    interrupted(site, f"{site.url}/w.pth")
    (part,) = (tmp_path / "cache").rglob(".part")
    part.write_bytes(CONTENT)
    assert download(f"{site.url}/w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": '"one"', "Content-Encoding": "gzip"}])
def test_what_cannot_be_recognised_again_is_not_kept(site, tmp_path, headers):
    site.headers, site.cuts = headers, [100_000]
    with pytest.raises(UserError, match=r"cannot be downloaded \([^)]*\)+: check the network"):
        download(f"{site.url}/w.pth")
    assert len(site.asked) == 1 and left(tmp_path) == []


def test_a_checksum_is_enough_to_continue(site, tmp_path):
    site.headers = {}
    url = f"{site.url}/w.pth#sha256={SHA256}"
    interrupted(site, url)
    assert left(tmp_path) == [".part"]
    assert download(url).read_bytes() == CONTENT and site.asked == [("/w.pth", "bytes=100000-", None)]


def test_a_part_of_another_file_is_noticed_by_the_checksum(site, tmp_path):
    site.headers, site.content = {}, OTHER
    url = f"{site.url}/w.pth#sha256={SHA256}"
    interrupted(site, url)
    site.content = CONTENT
    assert download(url).read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in site.asked] == ["bytes=100000-", None]
    site.content = OTHER
    wrong = f"{site.url}/x.pth#sha256={SHA256}"
    interrupted(site, wrong)
    with pytest.raises(UserError, match=f"has the SHA-256 {hashlib.sha256(OTHER).hexdigest()}, not {SHA256}"):
        download(wrong)
    assert left(tmp_path) == ["w.pth"]


def test_a_killed_process_is_continued(site, tmp_path):
    site.cuts, site.stop = [100_000], threading.Event()
    program = str(ROOT / "tests/programs/wait_and_download.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    process = subprocess.Popen([sys.executable, program, f"{site.url}/w.pth"], stdin=subprocess.PIPE, env=environment)
    process.stdin.write(b"\n")
    process.stdin.flush()
    end = time.monotonic() + 60
    while not (parts := list((tmp_path / "cache").rglob(".part"))) and time.monotonic() < end:
        time.sleep(0.02)
    while parts[0].stat().st_size < 50_000 and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    size = parts[0].stat().st_size
    site.stop.set()
    site.asked.clear()
    assert download(f"{site.url}/w.pth").read_bytes() == CONTENT
    assert site.asked == [("/w.pth", f"bytes={size}-", '"one"')] and left(tmp_path) == ["w.pth"]


def test_on_a_file_system_without_locks_nothing_is_shared(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "lock", lambda *_, **__: False)
    interrupted(site, f"{site.url}/w.pth")
    assert left(tmp_path) == []
    assert download(f"{site.url}/w.pth").read_bytes() == CONTENT and left(tmp_path) == ["w.pth"]


# --- A mirror of GitHub ---


def test_files_of_github_come_from_the_mirror(site, monkeypatch):
    row = table()["t2t_vit_14"]
    monkeypatch.setenv("T2T_MIRROR", f"{site.url}/prefix/")
    path = download_module.local_file("t2t_vit_14")
    assert path.read_bytes() == CONTENT and path.name == "81.5_T2T_ViT_14.pth.tar"
    assert [path for path, *_ in site.asked] == [f"/prefix/{row.url}"]
    monkeypatch.delenv("T2T_MIRROR")
    assert download(row.url) == path  # its place in the cache is that of the URL itself
    monkeypatch.setenv("T2T_MIRROR", site.url)
    download(f"{site.url}/other.pth")
    assert site.asked[-1][0] == "/other.pth"


def test_a_mirror_that_is_no_address_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("T2T_CACHE", str(tmp_path))
    for mirror in ("ghproxy.example", "http://", "https:///x", "http://a b/c", "http://a/?u=", "http://a/#x"):
        monkeypatch.setenv("T2T_MIRROR", mirror)
        line = f"T2T_MIRROR is {mirror}: set it to the address of a mirror of GitHub, such as"
        with pytest.raises(UserError, match=re.escape(line)):
            download(table()["t2t_vit_14"].url)
    monkeypatch.setenv("T2T_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="^http://127.0.0.1:9/https://github.com/.* cannot be downloaded"):
        download(table()["t2t_vit_14"].url)


@pytest.mark.parametrize("status, body, message", [
    (204, b"", "the server answered 204 instead of the file"), (206, CONTENT, "answered 206 instead"),
    (200, b"", "the server sent 0 bytes, which is not the file"),
])  # fmt: skip
def test_an_answer_that_is_not_the_file_is_refused(tmp_path, monkeypatch, status, body, message):
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))
    answer = httpx.Response(status, content=body, request=httpx.Request("GET", "https://host/w.pdparams"))
    monkeypatch.setattr(httpx, "stream", lambda *_args, **_options: contextlib.nullcontext(answer))
    with pytest.raises(UserError, match=message):
        download("https://host/w.pdparams")
    assert not list((tmp_path / "cache").rglob("w.pdparams"))


def test_the_rest_of_a_file_has_the_size_that_the_server_said():
    for size, content_range in ((9, ""), (9, "bytes 5-8/9"), (9, "bytes 5-8/*")):
        transfer._check_size(size, content_range)
    with pytest.raises(httpx.TransportError, match="the connection ended after 8 of 9 bytes"):
        transfer._check_size(8, "bytes 5-8/9")
    with pytest.raises(ValueError, match="sent 10 bytes"):
        transfer._check_size(10, "bytes 5-8/9")
