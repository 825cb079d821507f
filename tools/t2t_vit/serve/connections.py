"""Closes connections that send nothing, so that they do not take the places of others. Imports uvicorn."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 10  # within which the head of the first request must come; of a later one, twice that


class HttpProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol. Its own timeout counts only between requests, and ends with the first byte of a head."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_if_idle, None)

    def _close_if_idle(self, idle):
        """Close the connection if it has been idle after the request `idle` (None: before the first) all the time."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # it may be a web socket now
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is idle:
            self.transport.close()
        else:
            self.loop.call_later(HEAD_SECONDS, self._close_if_idle, self.cycle if is_idle else "busy")
