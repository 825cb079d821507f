"""The options of visualize.py's pictures. Imports no paddle."""

import argparse
import re

from t2t_vit.options import IMAGES, add_evaluation_options, common_parser, json_file, not_empty

METHODS = ("attention", "rollout", "gradient")
ORDERS = {"worst": "the largest loss first", "best": "the smallest loss first", "random": "drawn from SEED"}
RUN = "--config output/finetune/config.yaml"


def augment_parser() -> argparse.ArgumentParser:
    title = "Draw training images after augmentation and mixing."
    data = "--config configs/t2t_vit_7.yaml --data-path /path/to/imagenet"
    return _parser("augment", title, 4, [data, f"{data} --count 8"], batch_size_key="TRAIN.BATCH_SIZE")


def attention_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "attention", "Draw where a model looks.", 8, [f"photo.jpg {RUN}", f"photo.jpg {RUN} --query 3,4"], words=IMAGES
    )
    parser.set_defaults(opens_run=True)
    add = parser.add_argument
    add("--method", choices=METHODS, help="default: all that support the other options")
    add("--block", type=number_or("all"), metavar="N|all", help="block of the backbone, from 1; default: the last. "
        "rollout and gradient combine all blocks up to it")  # fmt: skip
    add("--head", type=number_or("all"), metavar="N|all", help="head, from 1; default: the mean of the heads")
    add("--class-id", type=int, metavar="N", help="class id for --method gradient; default: the predicted class")
    add("--stage", type=number_or(), metavar="N",
        help="draw the attention in layer N of the T2T module; default: in the backbone")  # fmt: skip
    add("--overlays", type=not_empty, metavar="DIR", help="also write each overlay into a PNG file")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--query", type=place, action="append", metavar="ROW,COLUMN",
        help="draw the attention of this token (from 1,1); may be repeated; default: the class token, or "
        "three tokens with --stage")  # fmt: skip
    add("--token", choices=("class", "distillation"), help="token of a distilled PiT to draw; default: class")
    return parser


def features_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "features",
        "Draw the features of images after each layer of a model.",
        2,
        [f"photo.jpg {RUN}", f"pictures/ {RUN} --count 4"],
        words=IMAGES,
    )
    parser.set_defaults(opens_run=True)
    parser.add_argument(
        "--block", type=number_or("all"), metavar="N|all", help="block, from 1; default: the first, middle and last"
    )
    return parser


def predictions_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "predictions",
        "Draw images with their predictions, and which classes are confused.",
        24,
        [RUN, f"{RUN} --order best --confusion confusion.png"],
    )
    add_evaluation_options(parser)
    add = parser.add_argument
    add("--order", choices=ORDERS, default="worst", help="images with the largest loss (worst, the default) or the "
        "smallest (best), or random ones")  # fmt: skip
    add("--confusion", type=not_empty, metavar="FILE", help="also plot the confusion matrix (with more than 30 "
        "classes, the most confused pairs) as .png, .pdf or .svg; needs matplotlib")  # fmt: skip
    add(
        "--json",
        type=json_file,
        metavar="FILE",
        help="also write the path, classes, probability and loss of every image",
    )
    return parser


def curves_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visualize.py curves",
        description="Draw loss, top-1, learning rate and throughput of training runs.",
        epilog="Example: python tools/visualize.py curves output/finetune log/other_run.log --sheet curves.pdf. "
        "Exit status: 0 done, 1 failed (one line on stderr), 2 wrong options.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=not_empty, metavar="RUN", help="run folder, its metrics.jsonl, log of this repository, "
        "T2T_paddle or paddle_pit, or timm's summary.csv")  # fmt: skip
    add("--sheet", type=not_empty, default="curves.png", metavar="FILE", help=".png, .pdf or .svg; default curves.png")
    add("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _parser(picture, description, count, examples, batch_size_key="VAL.BATCH_SIZE", words=None):
    """The common options, --sheet, and --count with its default."""
    command = f"visualize.py {picture}"
    examples = [f"{command} {example}" for example in examples]
    parser = common_parser(command, description, batch_size_key, examples, words)
    parser.set_defaults(picture=picture)
    add, name = parser.add_argument, f"{picture}.png"
    add("--sheet", type=not_empty, default=name, metavar="FILE", help=f".png, .jpg or .pdf; default {name}")
    add("--count", type=number_or(), default=count, metavar="N", help=f"maximum number of images; default {count}")
    return parser


def number_or(*words):
    """Option type: a whole number from 1, or one of `words`."""

    def convert(text):
        if text in words:
            return text
        if text.isdecimal() and int(text):
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} must be {' or '.join(['a number from 1', *words])}")

    return convert


def place(text):
    """Option type: ROW,COLUMN, both from 1. Returns (row, column) from 0."""
    if not re.fullmatch(r"0*[1-9]\d*,0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be ROW,COLUMN, two numbers from 1")
    return tuple(int(word) - 1 for word in text.split(","))
