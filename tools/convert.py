"""Convert weights: python tools/convert.py SRC --output FILE [--model NAME] [--to paddle|torch|safetensors].

SRC may be a file, a URL or a published name: weights of the official PyTorch code, timm, PaddleViT, T2T_paddle,
paddle_pit or this repository. They are recognised by their content. No code in them is executed.
"""

import argparse
from pathlib import Path

from t2t_vit.cli import exit_with, import_paddle
from t2t_vit.options import not_empty
from t2t_vit.weights.published import meaning


def main(args):
    import_paddle("cpu")
    from t2t_vit.deploy.model_card import convert_and_describe

    args.source = meaning(args.source, Path.cwd())
    convert_and_describe(args)


def parser():
    parser = argparse.ArgumentParser(
        description="Convert weights of the official PyTorch code, timm, PaddleViT, T2T_paddle, paddle_pit or this "
        "repository, and print statistics of the model's output.",
        epilog="Exit status: 0 done, 1 failed (one line on stderr), 2 wrong options.",
    )
    parser.add_argument(
        "source", type=not_empty, metavar="SRC", help="file, URL or published name, recognised by content"
    )
    parser.add_argument("--output", type=not_empty, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--to",
        choices=("paddle", "torch", "safetensors"),
        help="paddle: for this repository; torch: for the official PyTorch code; safetensors: the same for a model "
        "hub; default: safetensors if FILE ends so, else paddle",
    )
    parser.add_argument(
        "--card", type=not_empty, metavar="FILE", help="also write a model card, README.md, for a run's weights"
    )
    parser.add_argument("--keep-aux-head", action="store_true", help="keep the auxiliary head of Token Labeling")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model", type=not_empty, metavar="NAME", help="t2t_vit_14, pit_s, ...; default: the one that fits"
    )
    model.add_argument(
        "--config",
        type=not_empty,
        metavar="FILE",
        help="config of a model that is not a named variant; default: config.yaml beside SRC",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    exit_with(parser().parse_args, main)
