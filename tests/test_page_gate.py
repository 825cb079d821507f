"""Attacks on the page fail: reading other files, other host names or sites, too large requests."""

import asyncio
import http.client
import json
import os
import signal
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browser import Recorder
from conftest import ROOT, Page
from test_image_files import png
from test_shelf import shelf_of

from t2t_vit.page import server
from t2t_vit.serve.address import names_of

gate = pytest.importorskip("t2t_vit.page.gate", reason="the page is made with gradio: pip install gradio")
Gate = gate.PageGate

THREE = ROOT / "lit_data/val/3/0103.png"
FILE = {"_type": "gradio.FileData"}


class Stranger:
    """Talks to the page without a browser."""

    def __init__(self, page, folder):
        self.port, self.folder = page.port, next(folder.iterdir())
        status, _ = self.ask("GET", "/gradio_api/queue/status")
        self.prefix = "/gradio_api" if self.config()["api_prefix"] else ""
        assert status == 404

    def config(self):
        config = json.loads(self.ask("GET", "/config")[1])
        return {"api_prefix": "", **config}

    def ask(self, method, path, body=None, **headers):
        """(status, body) of a request; header names are given with _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        with connection.getresponse() as answer:
            return answer.status, answer.read().decode("utf-8", "replace")

    def join(self, event, **headers):
        body = event if isinstance(event, (str, bytes)) else json.dumps(event)
        return self.ask("POST", f"{self.prefix}/queue/join", body, content_type="application/json", **headers)

    def upload(self, *files, name="files"):
        """Paths on the server of files (name, bytes)."""
        parts = [
            f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode() + data + b"\r\n"
            for file, data in files
        ]
        body, kind = b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"
        status, text = self.ask("POST", f"{self.prefix}/upload", body, content_type=kind)
        assert status == 200, text
        return json.loads(text)

    def answers(self, *paths, session="s"):
        """What the page says about uploaded pictures."""
        files = [{"path": path, "meta": FILE} for path in paths]
        status, text = self.join({"data": ["lit_data", files, "gradient"], "fn_index": 0, "session_hash": session})
        assert status == 200, text
        return self.ask("GET", f"{self.prefix}/queue/data?session_hash={session}")[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def page(folder):
    with Page("--port", 0, "--allow-host", "Demo.Example", TMPDIR=str(folder)) as page:
        yield page
        page.process.send_signal(signal.SIGHUP)  # the terminal is closed
        page.process.communicate(timeout=60)  # Gradio's tracebacks of the hostile events
        assert page.process.returncode == 0 and not list(folder.iterdir())


@pytest.fixture(scope="module")
def stranger(page, folder):
    return Stranger(page, folder)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(b"the secret" + THREE.read_bytes())
    return path


def copies(folder):
    return [path for path in folder.rglob("*") if path.is_file() and b"the secret" in path.read_bytes()]


# --- Files of the machine ---


def test_no_event_reads_a_file_of_the_machine(stranger, secret):
    recorder = Recorder()
    outside = [
        str(secret), f"file://{secret}", f"{stranger.folder}/../../{secret}", f"{stranger.folder}", "", "\0", 7, [],
        f"{stranger.folder}x/y.png", recorder.url, f"{recorder.url}/x.png", "/proc/self/environ",
    ]  # fmt: skip
    link = stranger.folder / "link.png"
    link.symlink_to(secret)
    inside = stranger.upload(("three.png", THREE.read_bytes()))[0]
    try:
        for path in [*outside, str(link)]:
            file = {"path": path, "meta": FILE}
            for fields in (
                {"data": [file, None, "gradient"]},
                {"data": ["lit_data", [file], "gradient"]},
                {"data": ["lit_data", [{"path": inside, "meta": FILE}, file], "gradient"]},
                {"data": ["lit_data", [], file], "event_data": {"value": {"image": file}}},
                {"data": [{"value": [[file]]}, None, None]},
            ):
                for number in (0, 3, 5, 6):
                    status, text = stranger.join({"fn_index": number, "session_hash": "thief", **fields})
                    assert (status, text) == (403, "not a file of this page"), (path, fields)
    finally:
        link.unlink()
    assert copies(stranger.folder) == [] and recorder.asked == []


def test_nothing_is_fetched_for_a_visitor(stranger):
    recorder = Recorder()
    inside = stranger.upload(("three.png", THREE.read_bytes()))[0]
    for file in ({"url": recorder.url, "meta": FILE}, {"path": inside, "url": recorder.url, "meta": FILE}):
        stranger.join({"data": ["lit_data", [file], "gradient"], "fn_index": 0, "session_hash": "fetch"})
        stranger.ask("GET", f"{stranger.prefix}/queue/data?session_hash=fetch")
    for prefix in ("", "/gradio_api"):
        for way in ("proxy=", "file="):
            assert stranger.ask("GET", f"{prefix}/{way}{recorder.url}")[0] in (403, 404)
    assert recorder.asked == []


def test_no_path_leads_to_a_file_of_the_machine(stranger, secret):
    link = stranger.folder / "link.png"
    link.symlink_to(secret)
    places = [secret, f"{stranger.folder}/../{secret.name}", f"{stranger.folder}/../../../../..{secret}",
              link, f"{stranger.folder}/%2e%2e/%2e%2e/{secret}", f"//{secret}", f"file://{secret}",
              f"{secret}%00.png"]  # fmt: skip
    try:
        for place in places:
            for way in ("/file=", "/file/", "/static/", "/assets/", "/svelte/", "/custom_component/0/client/x/",
                        "/proxy=", "/stream/", "/"):  # fmt: skip
                for path in (f"{way}{place}", f"{way}{urllib.parse.quote(str(place), safe='')}", f"{way}..{place}"):
                    for prefix in ("", "/gradio_api"):
                        status, text = stranger.ask("GET", prefix + path)
                        assert status in (400, 403, 404) and "the secret" not in text, prefix + path
    finally:
        link.unlink()


def test_uploads_stay_in_their_folder(stranger):
    names = ["../../evil.png", "/tmp/evil.png", "a/../../evil.png", "evil.svg", "evil.html"]
    for path in stranger.upload(*((name, b"<script>") for name in names)):
        assert os.path.realpath(path).startswith(f"{stranger.folder}/")
        connection = http.client.HTTPConnection("127.0.0.1", stranger.port)
        connection.request("GET", f"{stranger.prefix}/file={urllib.parse.quote(path)}")
        with connection.getresponse() as answer:
            assert answer.status == 200 and answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-disposition"].startswith("attachment") or path.endswith("png")


def test_unused_routes_are_closed(stranger):
    for prefix in ("", "/gradio_api"):
        for path in ("/run/predict", "/api/answer", "/call/answer", "/call/v2/answer", "/component_server",
                     "/stream/x", "/login", "/vibe-edit", "/process_recording", "/run-history/connect"):  # fmt: skip
            assert stranger.ask("POST", prefix + path, "{}", content_type="application/json")[0] == 404, path
        for path in ("/openapi.json", "/monitoring", "/deep_link?session_hash=x", "/dev/reload", "/vibe-code", "/token",
                     "/docs", "/?deep_link=x", "/?deep%5Flink=x", "/runs", "/user"):  # fmt: skip
            assert stranger.ask("GET", prefix + path)[0] == 404, path
    assert stranger.ask("PUT", "/config")[0] == stranger.ask("OPTIONS", "/config")[0] == 405


def test_gradio_itself_keeps_files_to_the_uploads(secret, tmp_path, monkeypatch):
    """Without our gate: Gradio and the gate must each protect on their own."""
    from gradio.context import LocalContext

    from t2t_vit.page.layout import build_page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page = build_page(shelf_of())
    server.application(page, tmp_path / "uploads", None)
    answer = list(page.fns.values())[0] if isinstance(page.fns, dict) else page.fns[0]
    LocalContext.blocks.set(page)
    with pytest.raises(Exception, match="secret.png"):
        asyncio.run(page.preprocess_data(answer, ["lit_data", [{"path": str(secret), "meta": FILE}], "gradient"], None))
    assert copies(tmp_path / "uploads") == []


# --- Names and other sites ---


@pytest.mark.parametrize(
    "host, status",
    [("127.0.0.1", 200), ("127.0.0.1:7860", 200), ("LocalHost:99", 200), ("[::1]:7860", 200), ("demo.example", 200),
     ("DEMO.example.:443", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403),
     ("localhost.evil.example", 403), ("evil.example:127.0.0.1", 403), ("0.0.0.0", 403), ("192.0.2.1", 403),
     ("[", 403), ("", 403)],
)  # fmt: skip
def test_page_answers_to_its_names_only(stranger, host, status):
    for method, path in (("GET", "/"), ("GET", "/config")):
        assert stranger.ask(method, path, host=host)[0] == status
    event = {"data": ["lit_data", [], "gradient"], "fn_index": 0, "session_hash": "name"}
    assert stranger.join(event, host=host)[0] == status


LOOPBACK = {"localhost", "127.0.0.1", "::1", "lab"}


@pytest.mark.parametrize(
    "address, allowed, hosts",
    [
        ("127.0.0.1", [], LOOPBACK),
        ("::1", ["a.example"], LOOPBACK | {"a.example"}),
        ("0.0.0.0", [], None),  # AI Studio's proxy passes on a name that cannot be known
        (
            "0.0.0.0",
            ["Me.example:8080", "fe80::1", "[fe80::2]:80", "b."],
            LOOPBACK | {"0.0.0.0", "me.example", "fe80::1", "fe80::2", "b"},
        ),
    ],
)
def test_names_are_those_of_the_options(address, allowed, hosts):
    listener = type("Listener", (), {"getsockname": lambda _self: (address, 7860)})()
    assert names_of(listener, "LAB", allowed) == hosts


@pytest.mark.parametrize(
    "method, headers, allowed",
    [
        ("POST", {}, True),  # no browser
        ("POST", {"origin": "http://127.0.0.1:7860"}, True),
        ("POST", {"origin": "http://127.0.0.1:8888"}, False),  # another page of this machine
        ("POST", {"origin": "http://localhost:7860"}, False),
        ("POST", {"origin": "https://evil.example"}, False),
        ("POST", {"origin": "null"}, False),
        ("POST", {"origin": "http://127.0.0.1:8888", "sec-fetch-site": "same-site"}, False),  # of this machine
        ("POST", {"origin": "https://hub.example", "x-forwarded-host": "hub.example"}, True),
        ("POST", {"sec-fetch-site": "same-origin", "origin": "https://hub.example"}, True),  # behind a proxy
        ("POST", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),  # a form
        ("POST", {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, False),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),  # a link to the page
        ("GET", {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, True),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, False),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
        ("GET", {"origin": "https://evil.example"}, False),
    ],
)
def test_requests_of_other_sites_are_refused(method, headers, allowed, tmp_path):
    path = "/config" if method == "GET" else "/reset"
    headers = {"host": "127.0.0.1:7860", "content-length": "2", **headers}
    assert through(Gate(stub, tmp_path, None), method, path, headers, b"{}")[0] == (200 if allowed else 403)


@pytest.mark.parametrize(
    "host, forwarded, allowed",
    [
        ("server:8080", "", True),
        ("server", "", True),  # nginx's $host
        ("server:80", "", False),  # of another port than the page's
        ("inner:7860", "Server, inner:7860", True),  # through two proxies
        ("inner:7860", "other", False),
    ],
)
def test_a_proxy_over_plain_http_may_leave_out_the_port(host, forwarded, allowed, tmp_path):
    headers = {"host": host, "x-forwarded-host": forwarded, "origin": "http://server:8080", "content-length": "2"}
    status = through(Gate(stub, tmp_path, None), "POST", "/reset", headers, b"{}")[0]
    assert status == (200 if allowed else 403)


# --- Too much ---


async def stub(_scope, receive, send):
    """Stands for Gradio: returns the body of the request."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def through(app, method, path, headers, *parts):
    """(status, body) of a request with a body in parts."""
    scope = {"type": "http", "method": method, "path": path, "query_string": b"",
             "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}  # fmt: skip
    waiting = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]
    sent = []

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    "body, status",
    [
        (b"{}", 200),
        (b"no json", 400),
        (b"[" * 100_000, 400),
        (b'"' + b"x" * gate.MAX_EVENT, 413),
        (json.dumps([{"path": None}] * 1000).encode(), 200),
        (b'{"path": "/etc/passwd", "path": null}', 200),  # Gradio is given the last one
    ],
)
def test_events_must_be_small_json(tmp_path, body, status):
    half, headers = len(body) // 2, {"content-length": str(len(body))}
    found, answer = through(Gate(stub, tmp_path, None), "POST", "/queue/join", headers, body[:half], body[half:])
    assert found == status and b"passwd" not in answer


def test_incomplete_events_are_refused(tmp_path):
    assert through(Gate(stub, tmp_path, None), "POST", "/queue/join", {"content-length": "2"})[0] == 400
    for headers in ({}, {"content-length": "2", "transfer-encoding": "chunked"}):
        assert through(Gate(stub, tmp_path, None), "POST", "/queue/join", headers, b"{}")[0] == 411


def test_uploads_have_a_limit(tmp_path):
    app = Gate(stub, tmp_path, None, max_kept=1000)

    def status(length):
        return through(app, "POST", "/upload", {} if length is None else {"content-length": str(length)}, b"")[0]

    assert [status(length) for length in (100, None, -1, "1e2", gate.MAX_UPLOAD + 1)] == [200, 411, 411, 411, 413]
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/old.png").write_bytes(bytes(500))
    (tmp_path / "tmp1").write_bytes(bytes(450))  # under way
    assert [status(length) for length in (50, 51)] == [200, 413]
    past = time.time() - 3600
    for path in (tmp_path / "tmp1", tmp_path / "kept/old.png"):
        os.utime(path, (past, past))
    assert status(500) == 200  # the broken-off upload is removed, the picture is kept
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old.png"]
    (tmp_path / "link").symlink_to(tmp_path / "absent")  # a file that is removed while they are counted
    assert status(500) == 200


def test_uploads_in_progress_are_counted(tmp_path):
    async def slow(*_):
        assert app.coming == 600 and through_second()[0] == 413
        raise ConnectionError

    def through_second():
        with ThreadPoolExecutor() as pool:  # which has no event loop yet
            return pool.submit(through, app, "POST", "/upload", headers, b"").result()

    app, headers = Gate(slow, tmp_path, None, max_kept=1000), {"content-length": "600"}
    with pytest.raises(ConnectionError):
        through(app, "POST", "/upload", headers, b"")
    assert app.coming == 0


def test_page_survives_decompression_bombs(stranger, page):
    bombs = [png(13000, 13700, 16, 0), png(13000, 13700, 8, 3, (b"PLTE", bytes(3)), (b"tRNS", b"\0")),
             png(16000, 11000, 8, 2), png(9000, 9000, 8, 6)]  # fmt: skip
    paths = stranger.upload(*((f"bomb{i}.png", data) for i, data in enumerate(bombs)), ("x.png", THREE.read_bytes()))
    status = Path(f"/proc/{page.process.pid}/status")
    before = memory(status)
    text = stranger.answers(*paths, session="bombs")
    assert text.count("MB decoded, the limit is 192 MB") == len(bombs)
    assert '"three"' in text and str(stranger.folder) not in text.partition("cannot be read")[2].partition('"')[0]
    assert memory(status) - before < 300


def memory(status):
    """Largest memory of a process so far, in MB; 0 where the system does not say."""
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def test_queue_is_limited():
    from t2t_vit.page.layout import MAX_WAITING, build_page

    page = build_page(shelf_of())
    assert page._queue.max_size == MAX_WAITING and not page.api_open


def test_notes_do_not_show_folders():
    from t2t_vit.page.layout import _note

    lines = [
        "config /home/me/runs/x.yaml: MODEL.NAME is 'a' or/and https://x.example/a/b",
        "a/b.png, (/srv/data/c.png)",
    ]
    expected = "config x.yaml: MODEL.NAME is 'a' or/and https://x.example/a/b\na/b.png, (c.png)"
    assert _note(lines)["value"] == expected
