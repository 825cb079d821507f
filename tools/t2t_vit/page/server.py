"""Serves the page, without requests to other machines.

Gradio and its dependencies are optional, and Gradio reads the environment at import. They are therefore imported inside
the functions.
"""

import contextlib
import logging
import os
import signal
import tempfile

from t2t_vit.common.logger import log, setup_logging
from t2t_vit.deploy.engines import require
from t2t_vit.page.address import address, is_local, listen, names_of, url_of
from t2t_vit.page.shelf import Shelf, look

MAX_FILE = "64mb"
MAX_SESSIONS = 128  # visitors whose pictures are kept, up to 5 MB each; the oldest start again
MAX_CONNECTIONS = 512  # an open page has two


def serve_page(args, cfg):
    """Serve the page that the options of demo.py describe, until Ctrl-C, SIGTERM or SIGHUP. Raises UserError."""
    setup_logging()
    for number in (signal.SIGTERM, signal.SIGHUP):  # end the program as Ctrl-C does, with its uploads
        unless_ignored(number, signal.default_int_handler)
    host, port = address(args)
    with tempfile.TemporaryDirectory(prefix="t2t_demo_") as uploads, listen(host, port) as listener:
        set_environment(uploads)
        require("gradio", "the page")
        from t2t_vit.page.layout import build_page  # imports gradio, which is optional

        shelf = Shelf(args, cfg)
        shelf.ask(shelf.names[0], look, [])  # reports a mistake in the command line before the page is up
        hosts = names_of(listener, host, args.allow_host)
        serve(application(build_page(shelf), uploads, hosts), listener)


def unless_ignored(number, handler):
    """Handle a signal, unless it is ignored: nohup ignores SIGHUP."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def set_environment(folder):
    """What Gradio reads when it is imported: no reports, and uploads in `folder`."""
    tempfile.tempdir = str(folder)  # for unfinished uploads of Gradio 4 and 5
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        os.environ.pop(name, None)  # the socket is ours; a port that is not a number would end the import
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_SSR_MODE="False",
        GRADIO_TEMP_DIR=str(folder),
        HF_HUB_DISABLE_TELEMETRY="1",
    )


def application(page, uploads, hosts):
    """The ASGI application of a `gradio.Blocks`; for `uploads` and `hosts` see `Gate`."""
    # With gradio, which is optional:
    import fastapi
    import gradio

    from t2t_vit.page.gate import Gate  # imports starlette

    page.has_launched = True  # Gradio 5 and 6 check paths only then, and mount_gradio_app does not set it
    page.state_session_capacity = MAX_SESSIONS
    root_path = os.environ.get("GRADIO_ROOT_PATH")  # of a server in front that shows the page below this path
    options = {"root_path": root_path, "max_file_size": MAX_FILE, "show_error": False}
    return Gate(gradio.mount_gradio_app(fastapi.FastAPI(openapi_url=None), page, path="/", **options), uploads, hosts)


def serve(app, listener):
    """Answer at the socket until a signal. A line says when the page is ready."""
    import uvicorn  # comes with gradio

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, limit_concurrency=MAX_CONNECTIONS)
    server = uvicorn.Server(config)
    leave = server.handle_exit

    def leave_quietly(number, frame):
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # no tracebacks of visitors that are cut off
        leave(number, frame)

    server.handle_exit = leave_quietly  # uvicorn installs it for SIGINT and SIGTERM
    unless_ignored(signal.SIGHUP, leave_quietly)
    with contextlib.suppress(KeyboardInterrupt):  # newer ones pass it on after they have closed
        if not is_local(listener):
            log.info("the page has no password: everyone who can reach this machine can use it")
        log.info("%s is ready; Ctrl-C stops it", url_of(listener))
        server.run(sockets=[listener])
