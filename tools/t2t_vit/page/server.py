"""How the page is served: at one address, with nothing fetched from or told to any other."""

import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import tempfile
import urllib.parse

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.logger import log
from t2t_vit.page.gate import Gate, host_name

FIRST_PORT, TRIED_PORTS = 7860, 100  # where Gradio's pages usually are
LARGEST_FILE = "64mb"
MOST_SESSIONS = 128  # visitors whose pictures are remembered, up to 5 MB each; the oldest start anew
MOST_CONNECTIONS = 512  # an open page holds two


def set_environment(folder):
    """What Gradio reads from the environment at import: nothing is reported, uploads go to `folder`."""
    tempfile.tempdir = str(folder)  # where Gradio 4 and 5 keep an upload that is under way
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


def names_of(listener, host, allowed):
    """Names that the page answers to; None = any, where others than this machine reach it and no list says otherwise.

    Args:
        host: that the user gave, or its default.
        allowed: names of --allow-host.
    """
    address = listener.getsockname()[0]
    if not allowed and not ipaddress.ip_address(address).is_loopback:
        return None
    root = urllib.parse.urlsplit(os.environ.get("GRADIO_ROOT_PATH") or "").netloc
    given = (host_name(f"[{name}]" if name.count(":") > 1 else name) for name in (host, address, *allowed))
    return {"localhost", "127.0.0.1", "::1", host_name(root), *given} - {""}


def application(page, uploads, hosts):
    """The ASGI application of a `gradio.Blocks`. Arguments as of `Gate`."""
    import fastapi
    import gradio

    page.has_launched = True  # Gradio 5 and 6 check no path before, and mount_gradio_app does not set it
    page.state_session_capacity = MOST_SESSIONS
    root_path = os.environ.get("GRADIO_ROOT_PATH")  # of a server in front that shows the page below a path of its own
    keys = {"root_path": root_path, "max_file_size": LARGEST_FILE, "show_error": False}
    return Gate(gradio.mount_gradio_app(fastapi.FastAPI(openapi_url=None), page, path="/", **keys), uploads, hosts)


def serve(app, listener):
    """Answer at the socket until Ctrl-C, SIGTERM or SIGHUP; the log says from when on."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, limit_concurrency=MOST_CONNECTIONS)
    server = uvicorn.Server(config)
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
