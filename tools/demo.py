"""Try models on a web page: python tools/demo.py [--port N] [--host ADDRESS] [options] [KEY VALUE ...]."""

import os

from t2t_vit.cli import run
from t2t_vit.options import add_address_options, add_engine_option, common_parser


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
    host = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    hosts = "GRADIO_SERVER_NAME if set, else 127.0.0.1"
    ports = "GRADIO_SERVER_PORT if set, else the first free port from 7860 on"
    add_address_options(parser, "the page", host, None, (hosts, ports))
    add_engine_option(parser)
    return parser


if __name__ == "__main__":
    run(main, parser())
