"""The command serve.py: answer HTTP requests with a model."""

import argparse

from yacs.config import CfgNode

from t2t_vit.common.logger import log, setup_logging
from t2t_vit.deploy.engines import require
from t2t_vit.deploy.open_model import open_model
from t2t_vit.serve.address import listen, names_of
from t2t_vit.serve.classifier import Classifier
from t2t_vit.serve.running import end_like_interrupted, run_until_signal

LAST_REQUESTS = 30  # seconds that requests may take after a signal
HEADERS = [("x-content-type-options", "nosniff")]


def serve(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Serve the model of the options of serve.py until Ctrl-C, SIGTERM or SIGHUP. Raises UserError."""
    setup_logging()
    end_like_interrupted()
    require_packages()
    from t2t_vit.serve.api import build_api  # imports fastapi, which is optional

    with listen(args.host, [args.port]) as listener:
        opened = open_model(args, cfg, parallel=True)
        log.info("%s%s", "" if args.weights_named else "note: ", opened)
        with Classifier(opened, args.wait_ms / 1000) as classify:
            api = build_api(opened, classify, names_of(listener, args.host, args.allow_host))
            options = {"headers": HEADERS, "timeout_graceful_shutdown": LAST_REQUESTS}
            run_until_signal(api, listener, "the server", args.debug, **options)


def require_packages() -> None:
    """Raise UserError if a library of the server is missing."""
    for module in ("fastapi", "uvicorn", "python_multipart"):
        require(module, "the server", "fastapi uvicorn python-multipart")
