"""Serves the page. It makes no requests to other machines.

Gradio and its dependencies are optional, and Gradio reads the environment when it is imported. They are therefore
imported inside the functions.
"""

import argparse
import contextlib
import os
import signal
import tempfile

from yacs.config import CfgNode

from t2t_vit.common.logger import log, setup_logging
from t2t_vit.deploy.engines import require
from t2t_vit.page.address import is_local, listen, names_of, port_of, url_of
from t2t_vit.page.shelf import Shelf

MAX_FILE = "64mb"
MAX_SESSIONS = 128  # visitors whose pictures are kept, up to 5 MB each; then the oldest are dropped
MAX_CONNECTIONS = 512  # an open page has two
HEADERS = [
    # Gradio's page loads fonts and scripts from other sites. With this policy, the browser asks only this server.
    ("content-security-policy", "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"),
    ("x-content-type-options", "nosniff"),
]


def serve_page(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Serve the page for the options of demo.py until Ctrl-C, SIGTERM or SIGHUP. Raises UserError."""
    setup_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that the uploads are deleted
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup, it stays ignored
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="t2t_demo_") as uploads, listen(args.host, port_of(args)) as listener:
        set_environment(uploads)
        require("gradio", "the page")
        from t2t_vit.page.layout import build_page  # imports gradio, which is optional

        shelf = Shelf(args, cfg)
        opened = shelf.ask(shelf.names[0], str)  # fails on a mistake in the command line before the page starts
        if not args.weights_named:
            log.info("note: %s", opened)
        app = application(build_page(shelf), uploads, names_of(listener, args.host, args.allow_host))
        serve(app, listener, args.debug)


def set_environment(folder):
    """Set the variables that Gradio reads at import: no telemetry, and uploads in `folder`."""
    tempfile.tempdir = str(folder)  # for unfinished uploads of Gradio 4 and 5
    os.environ.pop("GRADIO_SERVER_PORT", None)  # the import would fail if it is not a number; we open the socket
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_SSR_MODE="False",
        GRADIO_TEMP_DIR=str(folder),
        HF_HUB_DISABLE_TELEMETRY="1",
    )


def application(page, uploads, names):
    """Build the ASGI application of a `gradio.Blocks`. For `uploads` and `names` see `Gate`."""
    # These are installed with gradio, which is optional.
    import fastapi
    import gradio

    from t2t_vit.page.gate import Gate  # imports starlette

    page.has_launched = True  # Gradio 5 and 6 check paths only if this is set; mount_gradio_app does not
    page.state_session_capacity = MAX_SESSIONS
    root_path = os.environ.get("GRADIO_ROOT_PATH")  # path of the page behind a reverse proxy
    options = {"root_path": root_path, "max_file_size": MAX_FILE, "show_error": False}
    return Gate(gradio.mount_gradio_app(fastapi.FastAPI(openapi_url=None), page, path="/", **options), uploads, names)


def serve(app, listener, debug):
    """Serve on the socket until a signal comes. Logs a line when the page is ready; `debug` also logs errors."""
    import uvicorn  # comes with gradio

    limits = {"timeout_graceful_shutdown": 1, "limit_concurrency": MAX_CONNECTIONS}
    # Errors are hidden too, because at exit each open connection would print a traceback.
    config = uvicorn.Config(app, log_level="warning" if debug else "critical", headers=HEADERS, **limits)
    with contextlib.suppress(KeyboardInterrupt):  # newer versions raise it again after closing
        if not is_local(listener):
            log.info("the page has no password: everyone who can reach this machine can use it")
        log.info("%s is ready; Ctrl-C stops it", url_of(listener))
        uvicorn.Server(config).run(sockets=[listener])
