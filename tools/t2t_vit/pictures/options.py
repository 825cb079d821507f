"""The options of visualize.py's pictures. Imports no paddle."""

import argparse
import re

from t2t_vit.cli import add_evaluation_options, common_parser, json_file, not_empty

METHODS = ("attention", "rollout", "gradient")
FUSIONS = ("mean", "max", "min")
FEATURES = ("pca", "norm", "mean")
ORDERS = {"worst": "the largest loss first", "best": "the smallest loss first", "random": "drawn from SEED"}


def augment_parser():
    parser = _parser("augment", "Draw training images as they are after augmentation and mixing.", "TRAIN.BATCH_SIZE")
    _add_sheet(parser, "augment", count=4)
    return parser


def attention_parser():
    parser = _parser("attention", "Draw where a model looks.", words="[IMAGE|FOLDER|GLOB ...] ")
    parser.set_defaults(opens_run=True)
    _add_sheet(parser, "attention", count=8)
    add = parser.add_argument
    add("--method", choices=METHODS, help="default: all three, as far as the other options allow")
    add("--block", type=number_or("all"), metavar="N|all", help="block of the backbone, from 1; default: the last; "
        "rollout and gradient go from the first block to it")  # fmt: skip
    add("--head", type=number_or("all", *FUSIONS), metavar="N|all|mean|max|min",
        help="head, from 1, or a value over all heads; default: mean")  # fmt: skip
    add("--class-id", type=int, metavar="N", help="class of --method gradient; default: the predicted one")
    add("--query", type=place, action="append", metavar="ROW,COLUMN",
        help="token that looks, from 1,1 on its grid, may be repeated; default: the class token")  # fmt: skip
    add("--stage", type=int, metavar="N",
        help="layer of the T2T module to look into; without --query, three tokens on its diagonal look")  # fmt: skip
    add("--token", choices=("class", "distillation"), help="token of a distilled PiT that looks; default: class")
    add("--overlays", type=not_empty, metavar="DIR", help="also write each overlay into a PNG file")
    return parser


def features_parser():
    parser = _parser("features", "Draw what the layers of a model make of images.", words="[IMAGE|FOLDER|GLOB ...] ")
    parser.set_defaults(opens_run=True)
    _add_sheet(parser, "features", count=8)
    add = parser.add_argument
    add("--show", choices=FEATURES, default="pca", help="principal components, norm or mean of each token; default pca")
    add("--block", type=number_or("all"), metavar="N|all",
        help="block, from 1; default: the first, middle and last")  # fmt: skip
    return parser


def predictions_parser():
    parser = _parser("predictions", "Draw images with their predictions, and the confusion of the classes.")
    add_evaluation_options(parser)
    add = parser.add_argument
    add("--order", choices=ORDERS, default="worst", help="images with the largest loss (worst, the default) or the "
        "smallest (best), or random ones")  # fmt: skip
    _add_sheet(parser, "predictions", count=32)
    add("--confusion", type=not_empty, metavar="FILE", help="also draw the confusion matrix, or of more than 30 "
        "classes the most confused pairs, as .png, .pdf or .svg; needs matplotlib")  # fmt: skip
    add("--json", type=json_file, metavar="FILE", help="also write path, classes, probability and loss of every image")
    return parser


def curves_parser():
    parser = argparse.ArgumentParser(
        prog="visualize.py curves",
        description="Draw loss, top-1, learning rate and throughput of training runs.",
        epilog="Exit status: 0 done, 1 a failure, which is one line on stderr, 2 an unknown option.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=not_empty, metavar="RUN", help="run folder, its metrics.jsonl, log of this repository, "
        "T2T_paddle or paddle_pit, or timm's summary.csv")  # fmt: skip
    add("--sheet", type=not_empty, default="curves.png", metavar="FILE", help=".png, .pdf or .svg; default curves.png")
    add("--json", type=json_file, metavar="FILE", help="also write the numbers of every epoch")
    add("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _parser(picture, description, batch_size_key="VAL.BATCH_SIZE", words=""):
    parser = common_parser(description, batch_size_key)
    parser.prog = f"visualize.py {picture}"
    parser.usage = f"visualize.py {picture} [options] {words}[KEY VALUE ...]"
    return parser


def _add_sheet(parser, picture, count):
    """--sheet and --count, the number of images."""
    name = f"{picture}.png"
    parser.add_argument(
        "--sheet", type=not_empty, default=name, metavar="FILE", help=f".png, .jpg or .pdf; default {name}"
    )
    parser.add_argument("--count", type=int, default=count, metavar="N", help=f"images at most; default {count}")


def number_or(*words):
    """Type of an option whose value is a whole number from 1, or one of `words`."""

    def convert(text):
        if text in words or text.isdecimal() and int(text):
            return int(text) if text.isdecimal() else text
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 or {', '.join(words)}")

    return convert


def place(text):
    """Type of an option ROW,COLUMN, both from 1: (row, column) from 0."""
    if not re.fullmatch(r"0*[1-9]\d*,0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be ROW,COLUMN, two numbers from 1")
    return tuple(int(word) - 1 for word in text.split(","))
