"""Unpack ImageNet, CIFAR or any class folders: python tools/unpack.py ARCHIVE... --output DIR [--val-list FILE].

ImageNet becomes DIR/train/<class>/*.JPEG and DIR/val/<class>/*.JPEG, CIFAR-10 and CIFAR-100 become
DIR/train/<class>/*.png and DIR/test/<class>/*.png, and a tar or zip archive with only class folders DIR/<class>/*.
"""

import argparse

from t2t_vit.cli import exit_with
from t2t_vit.options import not_empty


def main(args):
    from t2t_vit.data.unpack import unpack  # after the options are parsed: it imports NumPy and Pillow

    unpack(args.archives, args.output, args.val_list)


def parser():
    parser = argparse.ArgumentParser(
        description="Unpack ImageNet to DIR/train/<class>/ and DIR/val/<class>/, CIFAR to DIR/train/<class>/ and "
        "DIR/test/<class>/, and other class folders in the same way. Repeat an interrupted command to continue.",
        epilog="Archives, also as .tar.gz: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_w.tar (AI "
        "Studio), Light_ILSVRC2012_part_0.tar and _1.tar, Kaggle's imagenet-object-localization-challenge.zip; "
        "cifar-10-binary.tar.gz and cifar-100-binary.tar.gz, or their Python versions; any other tar or zip with "
        "train/ and val/ (or validation/, test/ and the like) folders, or with class folders. "
        "Exit status: 0 done, 1 failed (one line on stderr), 2 wrong options.",
    )
    parser.add_argument("archives", nargs="+", type=not_empty, metavar="ARCHIVE")
    parser.add_argument("--output", type=not_empty, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "--val-list",
        type=not_empty,
        metavar="FILE",
        help="list of the classes of the images in ILSVRC2012_img_val.tar: lines like 'ILSVRC2012_val_00000001.JPEG "
        "65' with class ids as in imagenet1k_classes.tsv, or Kaggle's LOC_val_solution.csv; default: val_list.txt or "
        "LOC_val_solution.csv in the archives. Do not use ILSVRC2012_validation_ground_truth.txt, which numbers the "
        "classes in another order",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    exit_with(parser().parse_args, main)
