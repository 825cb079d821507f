"""The gate in front of Gradio: only requests of this page's own visitors, to this page's names, reach it.

Gradio answers to any host name, and offers more than the page needs: an API, a proxy, files by path. What is not listed
here is refused, including routes that later Gradio versions add.
"""

import contextlib
import json
import os
import re
import time
import urllib.parse

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse

from t2t_vit.page.address import host_name

MB = 1 << 20
MAX_UPLOAD = 512 * MB  # of one request
MAX_KEPT = 2048 * MB  # in the folder of the uploads
MAX_JSON = 1 * MB  # of an event
MAX_FILES = 256  # in an event; Gradio hashes each
_STALE = 600  # seconds without a write, after which an unfinished upload is removed
# Paths of Gradio 4.44, 5 and 6; the last two have most of them below /gradio_api.
_PREFIX = "/gradio_api"
_READ = re.compile(
    r"/|/(config|info|theme\.css|favicon\.ico|queue/data|upload_progress)/?|/(assets|static|svelte|heartbeat)/.*"
)
_EVENTS = ("/queue/join", "/reset", "/cancel")
_HEADERS = (
    # Gradio's page loads fonts and scripts from elsewhere; with this the browser asks its own server only.
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"),
    (b"x-content-type-options", b"nosniff"),
)


class Refused(Exception):
    """A request that is answered with (status, text)."""


class Gate:
    """An ASGI application in front of Gradio's.

    Args:
        app: Gradio's.
        uploads: folder with all uploads and drawings; only files in it are served.
        hosts: names of the page in small letters; None: any.
        max_upload: bytes of one upload.
        max_kept: bytes of all uploads.
    """

    def __init__(self, app, uploads, hosts, max_upload=MAX_UPLOAD, max_kept=MAX_KEPT):
        self.app, self.uploads, self.hosts = app, os.path.realpath(uploads), hosts
        self.max_upload, self.max_kept = max_upload, max_kept
        self.coming = 0  # bytes of unfinished uploads

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # Gradio opens no WebSocket
            return await send({"type": "websocket.close"})
        request, send = Request(scope, receive), _with_headers(send)
        try:
            _check_host(request.headers, self.hosts)
            _check_origin(request)
            path = scope["path"].removeprefix(_PREFIX) if scope["path"].startswith(f"{_PREFIX}/") else scope["path"]
            if request.method == "POST" and path == "/upload":
                with self._room_for(request.headers.get("content-length", "")):
                    return await self.app(scope, receive, send)
            if request.method == "POST":
                receive = _replayed(await self._checked_event(request, path), receive)
            else:
                self._check_read(request, path)
        except Refused as refusal:
            status, text = refusal.args
            return await PlainTextResponse(text, status, {"connection": "close"})(scope, receive, send)
        await self.app(scope, receive, send)

    def _check_read(self, request, path):
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "not allowed")
        if path.startswith("/file="):
            if not self._is_ours(path.removeprefix("/file=")):
                raise Refused(403, "not a file of this page")
        elif not _READ.fullmatch(path) or b"deep_link" in urllib.parse.unquote_to_bytes(request.scope["query_string"]):
            raise Refused(404, "not found")

    def _is_ours(self, path):
        """Whether a path, after links are resolved, is in the folder of the uploads."""
        try:
            return os.path.realpath(path).startswith(self.uploads + os.sep)
        except ValueError:  # a NUL in it
            return False

    async def _checked_event(self, request, path):
        """The JSON of an event, written again so that no other parser reads it differently. Raises Refused."""
        if path.rstrip("/") not in _EVENTS:
            raise Refused(404, "not found")
        files = []
        try:
            event = json.loads(await _body(request), object_hook=lambda found: files.append(found.get("path")) or found)
            text = json.dumps(event).encode()
        except (ValueError, RecursionError):
            raise Refused(400, "not JSON") from None
        files = [file for file in files if file is not None]
        if len(files) > MAX_FILES:
            raise Refused(413, f"at most {MAX_FILES} pictures at a time")
        if not all(isinstance(file, str) and self._is_ours(file) for file in files):
            raise Refused(403, "not a file of this page")
        return text

    @contextlib.contextmanager
    def _room_for(self, length):
        """Reserve room for an upload. Raises Refused if it is too large or the folder is full."""
        if not length.isdecimal():
            raise Refused(411, "length required")
        size = int(length)
        if size > self.max_upload or self.coming + size + _used(self.uploads) > self.max_kept:
            text = f"at most {self.max_upload // MB} MB at a time and {self.max_kept // MB} MB of all visitors"
            raise Refused(413, text)
        self.coming += size
        try:
            yield
        finally:
            self.coming -= size


def _used(folder):
    """Bytes of the files in a folder. Uploads that were broken off are removed from it."""
    used = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(FileNotFoundError):  # Gradio has removed it
                state = os.stat(path)
                if place == folder and time.time() - state.st_mtime > _STALE:
                    os.unlink(path)
                else:
                    used += state.st_size
    return used


def _check_host(headers, hosts):
    """Refuse other names: another site may let its own name point to this machine (DNS rebinding)."""
    if hosts is not None and host_name(headers.get("host", "")) not in hosts:
        raise Refused(403, "this page has another name; if the name is right, start demo.py with --allow-host NAME")


def _check_origin(request):
    """Refuse what another site makes a visitor's browser send, except links to the page.

    Browsers describe the two sites in Sec-Fetch-Site, but not over plain HTTP to another machine.
    """
    headers = request.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        is_link = request.method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        is_foreign = site not in ("same-origin", "none") and not is_link
    else:
        ours = [headers.get("host", ""), *headers.get("x-forwarded-host", "").split(",")]
        is_foreign = origin is not None and not any(_is_at(origin, place.strip()) for place in ours)
    if is_foreign:
        raise Refused(403, "sent by another site")


def _is_at(origin, place):
    """Whether an Origin is at the "name:port" of a Host header; proxies often leave out the port."""
    scheme, _, netloc = origin.lower().partition("://")
    place = place.lower()
    if place == host_name(place):
        return bool(place) and host_name(netloc) == place
    return netloc == place.removesuffix(":443" if scheme == "https" else ":80")


async def _body(request):
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_JSON:
                raise Refused(413, "too long")
    except ClientDisconnect:
        raise Refused(400, "broken off") from None
    return body


def _replayed(body, receive):
    """A `receive` that returns `body`, then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        return messages.pop() if messages else await receive()

    return replay


def _with_headers(send):
    async def send_more(message):
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_HEADERS]}
        await send(message)

    return send_more
