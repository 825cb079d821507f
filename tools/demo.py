"""Try models on a web page: python tools/demo.py [--port N] [--host ADDRESS] [options] [KEY VALUE ...]."""

import os

from t2t_vit.cli import run
from t2t_vit.options import add_engine_option, common_parser, not_empty


def main(args, cfg):
    from t2t_vit.page.server import serve_page  # imports Paddle, which `run` prepares

    serve_page(args, cfg)


def parser():
    parser = common_parser(
        "demo.py",
        "Try models on a web page. Needs gradio.",
        batch_size_key="VAL.BATCH_SIZE",
        examples=["demo.py", "demo.py --pretrained output/finetune/best.pdparams --port 8000"],
    )
    parser.add_argument(
        "--host",
        type=not_empty,
        default=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; default: GRADIO_SERVER_NAME if set, else 127.0.0.1 (reachable from this machine "
        "only). 0.0.0.0 makes the page reachable from other machines; it has no password",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="port; default: GRADIO_SERVER_PORT if set, else the first free port from 7860 on; 0: any free port",
    )
    parser.add_argument(
        "--allow-host",
        type=not_empty,
        action="append",
        default=[],
        metavar="NAME",
        help="accept this host name in the Host header, such as that of a reverse proxy; may be repeated. Default: any "
        "name if other machines can reach the page, else only the names of this machine",
    )
    add_engine_option(parser)
    return parser


if __name__ == "__main__":
    run(main, parser())
