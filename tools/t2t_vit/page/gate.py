"""Filters requests before Gradio: only those that the page itself makes, to an accepted host name, reach it.

Gradio accepts any host name, and offers more than the page needs: an API, a proxy, files by path. Everything that is
not listed here is refused, including routes that later Gradio versions add.
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
MAX_UPLOAD = 512 * MB  # per request
MAX_KEPT = 2048 * MB  # of all uploads together
MAX_EVENT = MB // 4  # enough for the names of some hundred pictures
_STALE = 600  # an unfinished upload is removed after this many seconds without a write
# Paths of Gradio 4.44, 5 and 6; the last two have most of them below /gradio_api.
_PREFIX = "/gradio_api"
_READ = re.compile(
    r"/|/(config|info|theme\.css|favicon\.ico|queue/data|upload_progress)|/(assets|static|svelte|heartbeat)/.*"
)
_EVENTS = ("/queue/join", "/reset", "/cancel")


class Refused(Exception):
    """The request is refused. The arguments are the (status, text) of the response."""


class Gate:
    """An ASGI application that wraps Gradio's.

    Args:
        app: Gradio's ASGI application.
        uploads: folder with all uploads and drawings. Only files in it are served.
        names: accepted host names in lower case; None for any.
        max_kept: limit for all uploads together, in bytes.
    """

    def __init__(self, app, uploads, names, max_kept=MAX_KEPT):
        self.app, self.uploads, self.names, self.max_kept = app, os.path.realpath(uploads), names, max_kept
        self.coming = 0  # bytes of uploads that are under way

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # Gradio opens no WebSocket
            return await send({"type": "websocket.close"})
        request = Request(scope, receive)
        path = scope["path"].removeprefix(_PREFIX).rstrip("/") or "/"
        try:
            self._check_sender(request)
            if request.method == "POST" and path == "/upload":
                with self._room_for(request):
                    return await self.app(scope, receive, send)
            elif request.method == "POST" and path in _EVENTS:
                receive = _replayed(await self._checked_event(request), receive)
            else:
                self._check_read(request, path)
        except Refused as refusal:
            status, text = refusal.args
            return await PlainTextResponse(text, status, {"connection": "close"})(scope, receive, send)
        await self.app(scope, receive, send)

    def _check_sender(self, request):
        """Refuse unknown host names, and requests from other sites through a visitor's browser. Links are allowed."""
        headers = request.headers
        host = host_name(headers.get("host", ""))
        if self.names is not None and host not in self.names:  # DNS rebinding: a name of another site points here
            raise Refused(403, "this host name is not allowed; to allow it, start demo.py with --allow-host NAME")
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is None:  # not a browser, or plain HTTP to another machine, without this header
            ours = [headers.get("host", ""), *headers.get("x-forwarded-host", "").split(",")]
            is_foreign = origin is not None and not any(_is_at(origin, place.strip()) for place in ours)
        else:
            is_link = request.method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
            is_foreign = site not in ("same-origin", "none") and not is_link
        if is_foreign:
            raise Refused(403, "cross-site request refused")

    def _check_read(self, request, path):
        if request.method == "POST":
            raise Refused(404, "not found")
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "not allowed")
        if path.startswith("/file="):
            if not self._is_ours(path.removeprefix("/file=")):
                raise Refused(403, "not a file of this page")
        elif not _READ.fullmatch(path) or b"deep_link" in urllib.parse.unquote_to_bytes(request.scope["query_string"]):
            raise Refused(404, "not found")

    @contextlib.contextmanager
    def _room_for(self, request):
        """Reserve room for an upload."""
        size = _length(request, MAX_UPLOAD)
        if size + self.coming + _used(self.uploads) > self.max_kept:
            raise Refused(413, f"all uploads together are limited to {self.max_kept // MB} MB: try again in an hour")
        self.coming += size
        try:
            yield
        finally:
            self.coming -= size

    async def _checked_event(self, request):
        """Check the JSON of an event and return it re-encoded, so that another parser cannot read it differently."""
        _length(request, MAX_EVENT)
        files = []

        def note_file(entry):
            files.append(entry.get("path"))
            return entry

        try:
            text = json.dumps(json.loads(await request.body(), object_hook=note_file)).encode()
        except (ValueError, RecursionError, ClientDisconnect):
            raise Refused(400, "not JSON") from None
        if not all(file is None or isinstance(file, str) and self._is_ours(file) for file in files):
            raise Refused(403, "not a file of this page")
        return text

    def _is_ours(self, path):
        """Whether a path is in the folder of the uploads, after links are resolved."""
        try:
            return os.path.realpath(path).startswith(self.uploads + os.sep)
        except ValueError:  # the path contains a NUL
            return False


def _is_at(origin, place):
    """Whether an Origin header names the "name:port" of a Host header. Proxies may leave out the port."""
    scheme, _, netloc = origin.lower().partition("://")
    place = place.lower()
    if place == host_name(place):
        return bool(place) and host_name(netloc) == place
    return netloc == place.removesuffix(":443" if scheme == "https" else ":80")


def _used(folder):
    """Bytes of the files in a folder. Removes unfinished uploads, which lie directly in the folder."""
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


def _length(request, limit):
    """Return the length of the body of a request in bytes. Refuses it if it is longer than `limit`."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or "transfer-encoding" in request.headers:  # transfer-encoding would override the length
        raise Refused(411, "length required")
    if int(length) > limit:
        raise Refused(413, f"at most {limit // 1024:,} KB at a time")
    return int(length)


def _replayed(body, receive):
    """Return an ASGI `receive` function that first returns `body` again, then calls the original `receive`."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        return messages.pop() if messages else await receive()

    return replay
