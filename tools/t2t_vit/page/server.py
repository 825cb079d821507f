"""Serves the page. It makes no requests to other machines.

Gradio and its dependencies are optional, and Gradio reads the environment when it is imported. They are therefore
imported inside the functions.
"""

import argparse
import os
import tempfile

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.deploy.engines import require
from t2t_vit.page.shelf import Shelf
from t2t_vit.serve.address import listen, names_of
from t2t_vit.serve.running import end_like_interrupted, run_until_signal

PORTS = range(7860, 7960)  # tried if no port is given; 7860 is Gradio's default
MAX_FILE = "64mb"
MAX_SESSIONS = 128  # visitors whose pictures are kept, up to 5 MB each; then the oldest are dropped
HEADERS = [
    # Gradio's page loads fonts and scripts from other sites. With this policy, the browser asks only this server.
    ("content-security-policy", "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"),
    ("x-content-type-options", "nosniff"),
]


def serve_page(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Serve the page for the options of demo.py until Ctrl-C, SIGTERM or SIGHUP. Raises UserError."""
    setup_logging()
    end_like_interrupted()  # the uploads are deleted
    with tempfile.TemporaryDirectory(prefix="t2t_demo_") as uploads, listen(args.host, ports_of(args)) as listener:
        set_environment(uploads)
        require("gradio", "the page")
        from t2t_vit.page.layout import build_page  # imports gradio, which is optional

        shelf = Shelf(args, cfg)
        opened = shelf.ask(shelf.names[0], str)  # fails on a mistake in the command line before the page starts
        if not args.weights_named:
            log.info("note: %s", opened)
        app = application(build_page(shelf), uploads, names_of(listener, args.host, args.allow_host))
        run_until_signal(app, listener, "the page", args.debug, headers=HEADERS, timeout_graceful_shutdown=1)


def ports_of(args):
    """The ports to try: that of --port, else of GRADIO_SERVER_PORT, which AI Studio sets, else PORTS."""
    port = os.environ.get("GRADIO_SERVER_PORT")
    if args.port is not None or not port:
        return PORTS if args.port is None else [args.port]
    try:
        return [int(port)]
    except ValueError:
        raise UserError(f"GRADIO_SERVER_PORT is {port[:80]!r} but must be a number") from None


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
    """Build the ASGI application of a `gradio.Blocks`. For `uploads` and `names` see `PageGate`."""
    # These are installed with gradio, which is optional.
    import fastapi
    import gradio

    from t2t_vit.page.gate import PageGate  # imports starlette

    page.has_launched = True  # Gradio 5 and 6 check paths only if this is set; mount_gradio_app does not
    page.state_session_capacity = MAX_SESSIONS
    root_path = os.environ.get("GRADIO_ROOT_PATH")  # path of the page behind a reverse proxy
    options = {"root_path": root_path, "max_file_size": MAX_FILE, "show_error": False}
    return PageGate(
        gradio.mount_gradio_app(fastapi.FastAPI(openapi_url=None), page, path="/", **options), uploads, names
    )
