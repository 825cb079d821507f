"""Runs an ASGI application on a socket until a signal comes."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Any

from t2t_vit.common.logger import log
from t2t_vit.serve.address import is_local, url_of

MAX_CONNECTIONS = 512  # an open page has two; requests on further connections get status 503


def end_like_interrupted() -> None:
    """Let SIGTERM and SIGHUP end the process like Ctrl-C, so that it closes what it has open. SIGHUP under nohup does
    nothing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def run_until_signal(app: Any, listener: socket.socket, what: str, debug: bool, **options: Any) -> None:
    """Serve an ASGI application. Logs a line when it is ready. At a signal, running requests are finished.

    Args:
        app: the application.
        listener: the socket.
        what: "the page" or "the server", for the log.
        debug: whether to log errors.
        options: of uvicorn.Config.
    """
    import uvicorn  # optional

    from t2t_vit.serve.connections import HttpProtocol  # imports uvicorn

    # Errors are hidden too, because at exit each open connection of a page would print a traceback.
    level = "warning" if debug else "critical"
    options |= {"log_level": level, "access_log": False, "limit_concurrency": MAX_CONNECTIONS, "http": HttpProtocol}
    config = uvicorn.Config(app, **options)
    with contextlib.suppress(KeyboardInterrupt):  # newer versions raise it again after closing
        if not is_local(listener):
            log.info("%s has no password: everyone who can reach this machine can use it", what)
        log.info("%s is ready; Ctrl-C stops it", url_of(listener))
        uvicorn.Server(config).run(sockets=[listener])
