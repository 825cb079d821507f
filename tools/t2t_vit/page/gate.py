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

from starlette.requests import ClientDisconnect

from t2t_vit.serve.gate import MB, Gate, Refused, length_of

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


class PageGate(Gate):
    """Wraps Gradio's ASGI application `app`.

    Args:
        app, names: see `Gate`.
        uploads: folder with all uploads and drawings. Only files in it are served.
        max_kept: limit for all uploads together, in bytes.
    """

    def __init__(self, app, uploads, names, max_kept=MAX_KEPT):
        super().__init__(app, names)
        self.uploads, self.max_kept = os.path.realpath(uploads), max_kept
        self.coming = 0  # bytes of uploads that are under way

    async def answer(self, request, send):
        scope, receive = request.scope, request.receive
        path = scope["path"].removeprefix(_PREFIX).rstrip("/") or "/"
        if request.method == "POST" and path == "/upload":
            with self._room_for(request):
                return await self.app(scope, receive, send)
        elif request.method == "POST" and path in _EVENTS:
            receive = _replayed(await self._checked_event(request), receive)
        else:
            self._check_read(request, path)
        await self.app(scope, receive, send)

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
        size = length_of(request, MAX_UPLOAD)
        if size + self.coming + _used(self.uploads) > self.max_kept:
            raise Refused(413, f"all uploads together are limited to {self.max_kept // MB} MB: try again in an hour")
        self.coming += size
        try:
            yield
        finally:
            self.coming -= size

    async def _checked_event(self, request):
        """Check the JSON of an event and return it re-encoded, so that another parser cannot read it differently."""
        length_of(request, MAX_EVENT)
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


def _replayed(body, receive):
    """Return an ASGI `receive` function that first returns `body` again, then calls the original `receive`."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        return messages.pop() if messages else await receive()

    return replay
