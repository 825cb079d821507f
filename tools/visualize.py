"""Draw sheets of images and plots: python tools/visualize.py PICTURE [options] [KEY VALUE ...]."""

import argparse
import sys

from t2t_vit.cli import exit_with, run, split_images
from t2t_vit.pictures import options

PICTURES = {
    "augment": ("training images after augmentation and mixing", options.augment_parser),
    "attention": ("where a model looks", options.attention_parser),
    "features": ("the features of images after each layer of a model", options.features_parser),
    "curves": ("loss and accuracy of training runs by epoch", options.curves_parser),
    "predictions": ("images with their predictions, and which classes are confused", options.predictions_parser),
}


def draw(args, cfg):
    from t2t_vit.pictures import attention, augment, features, predictions  # import paddle, which `run` prepares

    functions = {
        "augment": augment.draw_augment,
        "attention": attention.draw_attention,
        "features": features.draw_features,
        "predictions": predictions.draw_predictions,
    }
    return functions[args.picture](args, cfg)


def draw_curves(args):
    from t2t_vit.pictures.curves import draw_curves  # after --help

    draw_curves(args)


def parser():
    parser = argparse.ArgumentParser(
        description="Draw training images, attention maps, features, training curves or predictions.",
        usage="visualize.py PICTURE [options] [KEY VALUE ...]",
        epilog="visualize.py PICTURE --help lists the options of a picture.",
    )
    described = "; ".join(f"{name}: {what}" for name, (what, _) in PICTURES.items())
    parser.add_argument("picture", choices=PICTURES, metavar="PICTURE", help=described)
    return parser


def main(words):
    picture = parser().parse_args(words[:1]).picture
    picture_parser, words = PICTURES[picture][1](), words[1:]
    if picture == "curves":  # reads no config and needs no paddle
        exit_with(lambda: picture_parser.parse_args(words), draw_curves)
    takes_images = picture in ("attention", "features")
    run(draw, picture_parser, words, split_words=split_images if takes_images else None)


if __name__ == "__main__":
    main(sys.argv[1:])
