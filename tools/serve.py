"""Answer HTTP requests with a model: python tools/serve.py [--port N] [--host ADDRESS] [options] [KEY VALUE ...]."""

from t2t_vit.cli import run
from t2t_vit.options import WAIT_MS, add_address_options, add_engine_option, common_parser, milliseconds


def main(args, cfg):
    from t2t_vit.serve.server import serve

    serve(args, cfg)


def parser():
    parser = common_parser(
        "serve.py",
        "Answer HTTP requests with a model. Needs fastapi, uvicorn and python-multipart.",
        batch_size_key="VAL.BATCH_SIZE",
        examples=["serve.py", "serve.py --pretrained output/lit_data/export/lit_data.onnx --port 8080"],
    )
    add_address_options(parser, "the server", host="127.0.0.1", port=8000)
    parser.add_argument(
        "--wait-ms",
        type=milliseconds,
        default=WAIT_MS,
        metavar="MS",
        help=f"how long a picture waits for pictures of other requests, to be computed in one batch; default {WAIT_MS}",
    )
    add_engine_option(parser)
    return parser


if __name__ == "__main__":
    run(main, parser(), paddle=False)
