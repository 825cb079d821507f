"""Refuses requests before an application sees them: of unknown host names, of other sites, too large.

A browser sends requests of any page that it shows, also to servers that only its own machine can reach.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from t2t_vit.serve.address import host_name

MB = 1 << 20


class Refused(Exception):
    """The request is refused. The arguments are the (status, text) of the response."""


class Gate:
    """An ASGI application that wraps another one.

    Args:
        app: the other application.
        names: accepted host names in lower case; None for any.
    """

    def __init__(self, app: Any, names: set[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no application here opens a WebSocket
            return await send({"type": "websocket.close"})
        request = Request(scope, receive)
        try:
            self._check_sender(request)
            await self.answer(request, send)
        except Refused as refusal:
            await self.refusal(*refusal.args)(scope, receive, send)

    async def answer(self, request: Request, send: Any) -> None:
        """Pass an accepted request on. Raises Refused, before anything is sent."""
        await self.app(request.scope, request.receive, send)

    def refusal(self, status: int, text: str) -> Response:
        return PlainTextResponse(text, status, {"connection": "close"})

    def _check_sender(self, request):
        """Refuse unknown host names, and requests from other sites through a visitor's browser. Links are allowed."""
        headers = request.headers
        host = host_name(headers.get("host", ""))
        if self.names is not None and host not in self.names:  # DNS rebinding: a name of another site points here
            raise Refused(403, "this host name is not allowed; to allow it, start the server with --allow-host NAME")
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is None:  # not a browser, or plain HTTP to another machine, without this header
            ours = [headers.get("host", ""), *headers.get("x-forwarded-host", "").split(",")]
            is_foreign = origin is not None and not any(_is_at(origin, place.strip()) for place in ours)
        else:
            is_link = request.method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
            is_foreign = site not in ("same-origin", "none") and not is_link
        if is_foreign:
            raise Refused(403, "cross-site request refused")


def length_of(request: Request, limit: int) -> int:
    """Return the length of the body of a request in bytes. Refuses it if it is longer than `limit`."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or "transfer-encoding" in request.headers:  # transfer-encoding would override the length
        raise Refused(411, "a Content-Length header is required")
    if len(length) > 15 or int(length) > limit:
        raise Refused(413, f"at most {limit // 1024:,} KB at a time")
    return int(length)


def _is_at(origin, place):
    """Whether an Origin header names the "name:port" of a Host header. Proxies may leave out the port."""
    scheme, _, netloc = origin.lower().partition("://")
    place = place.lower()
    if place == host_name(place):
        return bool(place) and host_name(netloc) == place
    return netloc == place.removesuffix(":443" if scheme == "https" else ":80")
