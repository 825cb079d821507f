"""How the page is served: at one address, with nothing fetched from or told to any other."""

import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket

from engine.logger import log
from errors import UserError, one_line

FIRST_PORT, TRIED_PORTS = 7860, 100  # where Gradio's pages usually are
LARGEST_FILE = "64mb"
# Gradio's page would ask for fonts and scripts elsewhere; with this the browser asks its own server only.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def set_environment(folder):
    """What Gradio reads from the environment at import: nothing is reported, uploads go to `folder`."""
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        os.environ.pop(name, None)  # the socket is ours; a port that is no number would end the import
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_SSR_MODE="False",
        GRADIO_TEMP_DIR=str(folder),
        HF_HUB_DISABLE_TELEMETRY="1",
    )


def clean_up_on_signals():
    """From now on SIGTERM and a closed terminal end the program as Ctrl-C does. Under nohup SIGHUP stays ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        _unless_ignored(number, signal.default_int_handler)


def _unless_ignored(number, handler):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def listen(host, port):
    """A socket that listens at `host` and `port`, or where that is None at the first free one from FIRST_PORT.

    Raises UserError: the port is taken or not allowed, the host no address of this machine.
    """
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"the port is {port} but must be 0 (any free one) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host {host!r} is no address: {one_line(error)}") from None
    for number in range(FIRST_PORT, FIRST_PORT + TRIED_PORTS) if port is None else [port]:
        try:
            return socket.create_server((address[0], number), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            told = {
                errno.EADDRNOTAVAIL: f"host {host} is no address of this machine",
                errno.EACCES: f"no right to open port {number}: give one above 1023 by --port",
            }
            raise UserError(told.get(error.errno) or f"{host}, port {number}: {one_line(error)}") from None
    if port is None:
        raise UserError(f"all ports from {FIRST_PORT} to {number} of {host} are taken: give one by --port")
    raise UserError(f"port {port} of {host} is taken: give another by --port, or 0 for any free one")


def url_of(listener):
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def serve(page, listener):
    """Answer at the socket until Ctrl-C, SIGTERM or SIGHUP; the log says from when on."""
    import fastapi
    import gradio
    import uvicorn

    app = fastapi.FastAPI(openapi_url=None)
    root_path = os.environ.get("GRADIO_ROOT_PATH")  # of a server in front that shows the page below a path of its own
    app = gradio.mount_gradio_app(app, page, path="/", root_path=root_path, max_file_size=LARGEST_FILE)
    server = uvicorn.Server(uvicorn.Config(_with_policy(app), log_level="warning", timeout_graceful_shutdown=1))
    server.handle_exit = _quietly(server.handle_exit)
    _unless_ignored(signal.SIGHUP, server.handle_exit)  # SIGINT and SIGTERM it takes over itself
    with contextlib.suppress(KeyboardInterrupt):  # which newer ones pass on after they have closed
        if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            log.info("the page has no password: whoever reaches this machine reaches it")
        log.info("%s is ready; Ctrl-C stops it", url_of(listener))
        server.run(sockets=[listener])


def _quietly(leave):
    """A handler of signals that calls `leave`, and from then on no traceback tells of visitors that are cut off."""

    def handle(number, frame):
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        leave(number, frame)

    return handle


def _with_policy(app):
    """An ASGI application whose every answer carries `_POLICY`."""

    async def answer(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", _POLICY)]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return answer
