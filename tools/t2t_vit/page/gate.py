"""Which requests reach Gradio: those that its page makes, by a name of this page, from no other site.

Gradio itself answers to any name, and offers more than the page needs: an API, a proxy, files by their path. What is
not listed here is refused, so that an option that a later Gradio adds stays closed.
"""

import contextlib
import json
import os
import re
import time
import urllib.parse

MB = 1 << 20
MOST_UPLOADED = 512 * MB  # in one request
MOST_KEPT = 2048 * MB  # in the folder of the uploads
MOST_JSON = 1 * MB  # of an event of the page
MOST_FILES = 256  # in an event; each is hashed anew
_STALE = 600  # seconds without a write, after which an upload is no longer under way
# Of Gradio 4.44, 5 and 6; the last two have most of it below /gradio_api.
_PREFIX = "/gradio_api"
_READ = re.compile(
    r"/|/(config|info|theme\.css|favicon\.ico|queue/data|upload_progress)/?|/(assets|static|svelte|heartbeat)/.*"
)
_EVENTS = ("/queue/join", "/reset", "/cancel")
_HEADERS = (
    # Gradio's page would ask for fonts and scripts elsewhere; with this the browser asks its own server only.
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"),
    (b"x-content-type-options", b"nosniff"),
)


class Refused(Exception):
    """A request that is answered by (status, text)."""


class Gate:
    """An ASGI application in front of Gradio's.

    Args:
        uploads: folder of everything that is uploaded or shown, the only files that are handed out.
        hosts: names of the page in small letters; None = any.
    """

    def __init__(self, app, uploads, hosts):
        self.app, self.uploads, self.hosts = app, os.path.realpath(uploads), hosts
        self.coming = 0  # bytes of uploads that are under way

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # Gradio opens no WebSocket
            return await send({"type": "websocket.close"})
        headers = _text_headers(scope)
        try:
            _check_host(headers, self.hosts)
            _check_origin(scope["method"], headers)
            path = scope["path"].removeprefix(_PREFIX) if scope["path"].startswith(f"{_PREFIX}/") else scope["path"]
            if scope["method"] == "POST":
                return await self._post(path, headers, scope, receive, _with_headers(send))
            self._check_read(scope, path)
        except Refused as refusal:
            return await _refuse(send, *refusal.args)
        await self.app(scope, receive, _with_headers(send))

    def _check_read(self, scope, path):
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "not allowed")
        if path.startswith("/file="):
            if not self._is_ours(path.removeprefix("/file=")):
                raise Refused(403, "no file of this page")
        elif not _READ.fullmatch(path) or b"deep_link" in urllib.parse.unquote_to_bytes(scope["query_string"]):
            raise Refused(404, "not found")

    async def _post(self, path, headers, scope, receive, send):
        if path == "/upload":
            with self._room_for(headers):
                return await self.app(scope, receive, send)
        if path.rstrip("/") not in _EVENTS:
            raise Refused(404, "not found")
        event = self._checked_event(await _body(receive))
        await self.app(scope, _replayed(event, receive), send)

    def _is_ours(self, path):
        """Whether a path, links followed, lies in the folder of the uploads."""
        try:
            return os.path.realpath(path).startswith(self.uploads + os.sep)
        except ValueError:  # a NUL in it
            return False

    def _checked_event(self, body):
        """The JSON of an event, written anew: no parser sees anything else in it. Raises Refused."""
        try:
            event = json.loads(body)
            text = json.dumps(event).encode()
        except (ValueError, RecursionError):
            raise Refused(400, "no JSON") from None
        files = list(_files(event))
        if len(files) > MOST_FILES:
            raise Refused(413, f"at most {MOST_FILES} pictures at a time")
        if not all(isinstance(path, str) and self._is_ours(path) for path in files):
            raise Refused(403, "no file of this page")
        return text

    @contextlib.contextmanager
    def _room_for(self, headers):
        """Keeps a place for an upload. Raises Refused if it is too large or the folder is full."""
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise Refused(411, "length required")
        size = int(length)
        if size > MOST_UPLOADED or self.coming + size + _used(self.uploads) > MOST_KEPT:
            raise Refused(413, f"at most {MOST_UPLOADED // MB} MB at a time, {MOST_KEPT // MB} MB of all visitors")
        self.coming += size
        try:
            yield
        finally:
            self.coming -= size


def _files(value):
    """What stands under "path" anywhere in an event, but null."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                yield value["path"]
            value = list(value.values())
        waiting += value if isinstance(value, list) else []


def _used(folder):
    """Bytes of the files in a folder, from which broken-off uploads are removed."""
    used = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                state = os.stat(path)
                if place == folder and time.time() - state.st_mtime > _STALE:
                    os.unlink(path)
                else:
                    used += state.st_size
    return used


def _text_headers(scope):
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _check_host(headers, hosts):
    """Refuse a name that is not ours: a foreign site may let its own name point to this machine (DNS rebinding)."""
    if hosts is not None and host_name(headers.get("host", "")) not in hosts:
        raise Refused(403, "this page has another name; if the name is right, start demo.py with --allow-host NAME")


def host_name(netloc):
    """The name in small letters of "Name:port", "[::1]:port" or a URL's part like it; "" of nonsense."""
    try:
        return (urllib.parse.urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _check_origin(method, headers):
    """Refuse what another site makes a visitor's browser send, but for links to the page.

    Sec-Fetch-Site is what the browser says of the two sites. Over plain HTTP to another machine it is missing.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        is_link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
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


async def _body(receive):
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "broken off")
        body += message.get("body", b"")
        if len(body) > MOST_JSON:
            raise Refused(413, "too long")
        if not message.get("more_body"):
            return body


def _replayed(body, receive):
    """A `receive` that hands out `body`, then what still comes."""
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


async def _refuse(send, status, text):
    send = _with_headers(send)
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
