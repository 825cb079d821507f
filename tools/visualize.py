"""Pictures to look at: python tools/visualize.py PICTURE [options] [KEY VALUE ...].

PICTURE is one of `PICTURES`; `visualize.py PICTURE --help` tells what it takes.
"""

import importlib
import sys

from t2t_vit.cli import common_parser, exit_with, first_word, run

PICTURES = {
    "augment": "what training sees of images",
    "attention": "where a model looks",
    "features": "what the layers of a model make of images",
    "curves": "training runs by epoch",
    "predictions": "images with what a model takes them for, and which classes it confuses",
}


def main(args, _):
    from t2t_vit.common.errors import UserError

    raise UserError(f"give {args.words} before the options: visualize.py {args.words} ...")


def parser():
    described = "; ".join(f"{name}: {what}" for name, what in PICTURES.items())
    parser = common_parser(f"Pictures to look at. {described}.", batch_size_key="VAL.BATCH_SIZE")
    parser.usage = f"visualize.py {{{','.join(PICTURES)}}} [options] [KEY VALUE ...]; --help after it tells its options"
    return parser


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in PICTURES:
        picture = importlib.import_module(f"t2t_vit.pictures.{sys.argv[1]}")
        if getattr(picture, "READS_CONFIG", True):
            run(picture.main, picture.parser(), sys.argv[2:], split_words=getattr(picture, "split_words", None))
        else:
            exit_with(lambda: picture.parser().parse_args(sys.argv[2:]), picture.main)
    else:
        run(main, parser(), split_words=first_word("picture", PICTURES))
