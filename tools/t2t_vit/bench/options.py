"""The options of benchmark.py. Imports no paddle."""

import argparse
import itertools

from t2t_vit.config import starts_like_a_key
from t2t_vit.options import common_parser, json_file

BENCHMARKS = {
    "data": "the input pipeline",
    "model": "parameters and multiplications",
    "train": "training steps",
    "infer": "inference",
    "serve": "requests to a server",
    "growth": "how inference grows with images, batches and threads",
}
ENGINES = ("paddle", "inference", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
GROWTH_BATCHES, GROWTH_PIXELS = [1, 2, 4, 8, 16], [224, 288, 384, 448, 512]


def benchmark_parser(kind: str) -> argparse.ArgumentParser:
    """The options of one of `BENCHMARKS`."""
    command, models = f"benchmark.py {kind}", ("MODEL|all", "names of models; default: the model of --config")
    example = "--config configs/t2t_vit_7.yaml --data-path /path/to/imagenet" if kind == "data" else "t2t_vit_7"
    examples = [f"{command} {example}", f"{command} {example} --json speed.json"]
    words = None if kind == "data" else models
    parser = common_parser(command, f"Measure {BENCHMARKS[kind]}.", "TRAIN.BATCH_SIZE", examples, words)
    parser.set_defaults(benchmark=kind, plot=None)
    add = parser.add_argument
    add("--json", type=json_file, metavar="FILE", help="write all figures as JSON"
        f"{'' if kind in ('data', 'model') else '; a killed benchmark continues with it'}")  # fmt: skip
    if kind != "model":
        add("--rounds", type=_number(1), default=5, metavar="R", help="timed rounds; default 5")
    if kind == "data":
        add("--images", type=_number(1), default=256, metavar="N", help="images in a round; default 256")
        return parser
    batches, pixels = (GROWTH_BATCHES, GROWTH_PIXELS) if kind == "growth" else (None, None)
    add("--batch-sizes", type=_list(_number(1)), default=batches, metavar="N,N",
        help=f"batch sizes to measure; default: {batches or '--batch-size, else 16'}")  # fmt: skip
    add("--image-sizes", type=_list(_number(1, 4096)), default=pixels, metavar="N,N",
        help=f"image sizes to measure, in pixels; default: {pixels or 'that of the config'}")  # fmt: skip
    add("--threads", type=_list(_number(1, 1024)), metavar="N,N", help="numbers of threads to measure; default: "
        f"{'1, 2, 4 and so on up to ' if kind == 'growth' else ''}OMP_NUM_THREADS, else one per core")  # fmt: skip
    if kind == "model":
        add("--operations", action="store_true", help="also count the operations of a training step on a GPU")
    if kind in ("train", "infer"):
        add("--baseline", choices=("pytorch",), default="", help="also measure the same models in PyTorch")
    add("--markdown", action="store_true", help="print tables in Markdown")
    if kind == "serve":
        add("--clients", type=_number(1, 256), default=16, metavar="N", help="clients at a time; default 16")
    if kind in ("infer", "serve"):
        for option, choices in (("--engines", ENGINES), ("--precisions", PRECISIONS)):
            add(option, type=_list(_choice(choices)), default=[choices[0]], metavar="X,X",
                help=f"some of {','.join(choices)}; default {choices[0]}")  # fmt: skip
    if kind == "growth":
        add("--plot", default="growth.png", metavar="FILE",
            help="plot to write (.png, .pdf or .svg); default growth.png")  # fmt: skip
    return parser


def split_models(words: list[str]) -> tuple[list[str], list[str]]:
    """Split positional words into (model names, KEY VALUE words)."""
    names = list(itertools.takewhile(lambda word: not starts_like_a_key(word), words))
    return names, words[len(names) :]


def _number(least, most=None):
    def convert(text):
        if not text.isdecimal() or int(text) < least or most and int(text) > most:
            allowed = f"{least} to {most}" if most else f"{least} or more"
            raise argparse.ArgumentTypeError(f"{text!r} must be a number, {allowed}")
        return int(text)

    return convert


def _choice(choices):
    def convert(text):
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return convert


def _list(convert):
    """Option type: a comma-separated list, whose duplicates are removed."""
    return lambda text: list(dict.fromkeys(map(convert, text.split(","))))
