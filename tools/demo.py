"""Try models on a web page: python tools/demo.py [--port N] [--host ADDRESS] [options] [KEY VALUE ...]."""

import os
import tempfile

from t2t_vit.cli import add_engine_option, common_parser, import_paddle, not_empty, run


def main(args, cfg):
    from t2t_vit.common.logger import setup_logging
    from t2t_vit.deploy.engines import require
    from t2t_vit.page import server
    from t2t_vit.page.shelf import Shelf, look

    setup_logging()
    host, port = address(args)
    import_paddle(cfg.DEVICE)  # which takes handlers of signals away
    server.clean_up_on_signals()
    with tempfile.TemporaryDirectory(prefix="t2t_demo_") as uploads, server.listen(host, port) as listener:
        server.set_environment(uploads)
        require("gradio", "the page")
        from t2t_vit.page.layout import build_page

        shelf = Shelf(args, cfg)
        shelf.ask(shelf.names[0], look, [])  # a mistake in the command line is told here
        hosts = server.names_of(listener, host, args.allow_host)
        server.serve(server.application(build_page(shelf), uploads, hosts), listener)


def address(args):
    """(host, port or None) of the options, else of Gradio's environment variables, which AI Studio sets.

    Raises UserError if GRADIO_SERVER_PORT is no number.
    """
    from t2t_vit.common.errors import UserError

    host = args.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = os.environ.get("GRADIO_SERVER_PORT") or None
    if args.port is None and port is not None:
        if not port.isdecimal():
            raise UserError(f"GRADIO_SERVER_PORT is {port!r} but must be a number")
        return host, int(port)
    return host, args.port


def parser():
    parser = common_parser("Try models on a web page, which needs gradio.", batch_size_key="VAL.BATCH_SIZE")
    parser.usage = "demo.py [options] [KEY VALUE ...]"
    parser.add_argument(
        "--host",
        type=not_empty,
        metavar="ADDRESS",
        help="where to listen; default GRADIO_SERVER_NAME if it is set, else 127.0.0.1, this machine alone; "
        "0.0.0.0: for every machine, without a password",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="default GRADIO_SERVER_PORT if it is set, else the first free one from 7860; 0: any free one",
    )
    parser.add_argument(
        "--allow-host",
        type=not_empty,
        action="append",
        default=[],
        metavar="NAME",
        help="name that a server in front of the page passes on as Host, may be repeated; default: none where the page "
        "listens for this machine alone, else any",
    )
    add_engine_option(parser)
    return parser


if __name__ == "__main__":
    run(main, parser(), paddle=False)
