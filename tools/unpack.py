"""Unpack ImageNet, CIFAR or any class folders: python tools/unpack.py ARCHIVE... --output DIR [--val-list FILE].

Makes DIR/train/<class>/*.JPEG and DIR/val/<class>/*.JPEG of ImageNet's archives, DIR/train/<class>/*.png and
DIR/test/<class>/*.png of CIFAR-10 and CIFAR-100, and DIR/<class>/* of a tar or zip archive of class folders alone.
"""

import argparse

from t2t_vit.cli import exit_with, not_empty


def main(args):
    from t2t_vit.data.unpack import unpack  # after the options are parsed: it imports NumPy and Pillow

    unpack(args.archives, args.output, args.val_list)


def parser():
    parser = argparse.ArgumentParser(
        description="Unpack ImageNet to DIR/train/<class>/ and DIR/val/<class>/, CIFAR to DIR/train/<class>/ and "
        "DIR/test/<class>/, and other class folders in the same way. An interrupted command continues when repeated.",
        epilog="Archives, also as .tar.gz: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_w.tar (AI "
        "Studio), Light_ILSVRC2012_part_0.tar and _1.tar, Kaggle's imagenet-object-localization-challenge.zip; "
        "cifar-10-binary.tar.gz and cifar-100-binary.tar.gz, or the same in Python form; any other tar or zip with "
        "train/ and val/ (or validation/, test/ and the like) folders, or with class folders. "
        "Exit status: 0 done, 1 a failure in one line, 2 an unknown option.",
    )
    parser.add_argument("archives", nargs="+", type=not_empty, metavar="ARCHIVE")
    parser.add_argument("--output", type=not_empty, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "--val-list",
        type=not_empty,
        metavar="FILE",
        help="classes of the images of ILSVRC2012_img_val.tar: 'ILSVRC2012_val_00000001.JPEG 65' lines with the ids of "
        "imagenet1k_classes.tsv, or Kaggle's LOC_val_solution.csv; default: val_list.txt or "
        "LOC_val_solution.csv in the archives. Not ILSVRC2012_validation_ground_truth.txt, which numbers the classes "
        "in another order",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    exit_with(parser().parse_args, main)
