"""Weights from a URL, served by a local HTTP server."""

import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tool
from tqdm import tqdm

from t2t_vit.common.errors import UserError
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint, transfer
from t2t_vit.weights.download import download, local_file

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with its base URL and the requested paths; downloads are cached in a folder of the test."""
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            if self.path == "/slow.pth":  # wait for a second request, which must not come
                second.set() if len(seen) > 1 else second.wait(timeout=2)
            pages = {"/page.pth": b"\n<!DOCTYPE html><html>", "/cut.pth": CONTENT[:1000]}
            lengths = {"/cut.pth": str(len(CONTENT)), "/odd.pth": "many"}
            leads = {"/ftp.pth": "ftp://127.0.0.1/w.pth", "/file.pth": "file:///etc/passwd", "/loop.pth": "/loop.pth",
                     "/on.pth": "/w%20x.pth"}  # fmt: skip
            if self.path.startswith("/missing"):
                self.send_error(404)
                return
            if self.path == "/reset.pth":
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[:1000])
                # Closing with a zero linger sends a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            if self.path in leads:
                self.send_response(302)
                self.send_header("Location", leads[self.path])
                self.end_headers()
                return
            content = pages.get(self.path, CONTENT)
            if self.path in served:
                content = served[self.path].read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", lengths.get(self.path) or str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    seen, served, second = [], {}, threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url, server.seen, server.served = f"http://127.0.0.1:{server.server_port}", seen, served
    yield server
    server.shutdown()
    server.server_close()


def cached(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_file_is_downloaded_once_and_then_read_from_the_cache(server, tmp_path):
    url = f"{server.url}/a/w%20x.pdparams"
    path = download(url)
    assert path.read_bytes() == CONTENT and path.name == "w x.pdparams"
    assert cached(tmp_path) == [path]
    server.shutdown()
    server.server_close()
    assert download(url) == path == download(f"{url}#sha256={SHA256.upper()}")
    assert server.seen == ["/a/w%20x.pdparams"]


def test_files_of_killed_downloads_are_removed(server):
    path = download(f"{server.url}/a/w.pdparams")
    path.unlink()
    left = path.with_name(f".{path.name}.tmp4194305")  # a number that no process has
    left.write_bytes(b"half")
    assert download(f"{server.url}/a/w.pdparams") == path and not left.exists()


def test_addresses_with_the_same_file_name_do_not_collide(server):
    assert download(f"{server.url}/a/w.pth") != download(f"{server.url}/b/w.pth")


@pytest.mark.parametrize("name", ["w.pth#sha256=" + "0" * 64, "name-abcdef00.pth"])
def test_wrong_checksum_leaves_no_file(server, tmp_path, name):
    with pytest.raises(UserError, match=f"has the SHA-256 {SHA256}, not (0{{64}}|abcdef00):"):
        download(f"{server.url}/{name}")
    assert cached(tmp_path) == []


def test_the_right_checksum_is_accepted(server):
    for name in (f"w.pth#sha256={SHA256}", f"name-{SHA256[:8]}.pth", "of-20210311.pth"):
        assert download(f"{server.url}/{name}").read_bytes() == CONTENT
    with pytest.raises(UserError, match="expected #sha256= and 8 to 64 hexadecimal digits"):
        download(f"{server.url}/w.pth#md5=00")


@pytest.mark.parametrize("name, message", [
    ("missing.pth", "answered 404 Not Found: check the address, or download the file by hand and save it as /.*/mis"),
    ("cut.pth", r"cannot be downloaded \(.*received 1000 bytes, expected 3000000\)"),
    ("reset.pth", r"cannot be downloaded \(.*Connection reset by peer\)"),
    ("odd.pth", r"cannot be downloaded \(bad Content-Length\)"),
    ("page.pth", r"is a web page .*: download it by hand and save it as /\S+/page.pth$"),
    ("ftp.pth", "cannot be downloaded .*unsupported protocol 'ftp://'"),
    ("file.pth", "cannot be downloaded .*unsupported protocol 'file://'"),
    ("loop.pth", "cannot be downloaded .*maximum allowed redirects"),
])  # fmt: skip
def test_failures_are_one_line_and_leave_nothing_behind(server, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        download(f"{server.url}/{name}")
    assert cached(tmp_path) == []


@pytest.mark.parametrize("place, asked, name", [
    ("权重/模 型.pth", "/%E6%9D%83%E9%87%8D/%E6%A8%A1%20%E5%9E%8B.pth", "模 型.pth"),
    ("w.pth?名=a b&x=%20", "/w.pth?%E5%90%8D=a%20b&x=%20", "w.pth"), ("a%00%2F..", "/a%00%2F..", "weights"),
    ("x" * 300 + ".pth", None, "x" * 96 + ".pth"), ("on.pth", "/w%20x.pth", "on.pth"),
])  # fmt: skip
def test_unusual_addresses_are_downloaded(server, place, asked, name):
    path = download(f"{server.url}/{place}")
    assert (path.name, path.read_bytes()) == (name, CONTENT)
    assert asked in (None, server.seen[-1])


def test_impossible_addresses_are_one_line():
    for url in (
        "http://[w.pth",
        "http://a" * 40,
        "http://x:port/w",
        "http://\x01/w",
        "http:///w",
        f"http://{'ä' * 80}.de/w",
        "http://",
        "http://127.0.0.1:1/\udcff",
    ):
        with pytest.raises(UserError, match="cannot be downloaded"):
            download(url)


def test_a_socks_proxy_is_named(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5h://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(UserError, match="SOCKS proxy.*pip install httpx|cannot be downloaded"):
        download(f"{server.url}/v.pth")


def test_without_a_network_the_line_has_the_place_for_the_file(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*refused\): check the network and the pro") as error:
        download(f"{server.url}/w.pth")
    place = Path(str(error.value).partition(", or download the file by hand and save it as ")[2])
    place.write_bytes(CONTENT)
    assert download(f"{server.url}/w.pth") == place
    assert download(f"{server.url}/w.pth#sha256={SHA256}") == place


def test_two_processes_download_once(server):
    command = [sys.executable, str(ROOT / "tests/programs/wait_and_download.py"), f"{server.url}/slow.pth"]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    options["env"] = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    paths = {process.communicate()[0] for process in processes}
    assert len(paths) == 1 and server.seen == ["/slow.pth"]


def test_progress_is_shown_on_a_terminal(server, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "progress_bar", lambda _, **options: tqdm(None, **options))
    download(f"{server.url}/w.pth")
    assert "w.pth: 100%" in capsys.readouterr().err


def test_file_urls_and_names_without_suffix(tmp_path):
    path = tmp_path / "w.pdparams"
    path.write_bytes(CONTENT)
    assert local_file(path.as_uri()) == path
    assert local_file(tmp_path / "w") == path
    with pytest.raises(UserError, match="not found; train first, or give a file with --pretrained"):
        local_file(tmp_path / "x")
    with pytest.raises(UserError, match="are a folder; name the file in it, such as .*best.pdparams"):
        local_file(tmp_path)


def test_commands_take_a_url(server, tmp_path):
    weights = tmp_path / "w.pdparams"
    checkpoint.save(weights, create_model("pit_ti", image_size=32).state_dict())
    server.served["/w.pdparams"] = weights
    words = ("--config", ROOT / "configs/pit_ti.yaml", "DATA.IMAGE_SIZE", 32)
    url = f"{server.url}/w.pdparams"
    by_file = tool("predict", "--pretrained", weights, *words, cwd=tmp_path, timeout=300).stdout.splitlines()
    by_url = tool("predict", "--pretrained", url, *words, cwd=tmp_path, timeout=300).stdout.splitlines()
    assert by_url[-1] == by_file[-1] and by_url[-1].startswith("class_id is: ")
    done = tool("predict", "MODEL.PRETRAINED", f"{server.url}/missing", *words[:2], cwd=tmp_path, status=1)
    line = done.stderr.splitlines()[-1]  # behind what predict.py is downloading
    assert line.startswith(f"error: {server.url}/missing answered 404")
