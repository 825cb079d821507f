"""Evaluate a model: python tools/val.py [--config configs/X.yaml] [--data-path DIR] [--pretrained FILE]."""

from t2t_vit.cli import run
from t2t_vit.options import add_evaluation_options, common_parser, not_empty, report_file


def main(args, cfg):
    from t2t_vit.deploy.validate import validate

    validate(args, cfg)


def parser():
    parser = common_parser(
        "val.py",
        "Evaluate a model: top-1, top-5 and loss.",
        batch_size_key="VAL.BATCH_SIZE",
        examples=[
            "val.py --config configs/t2t_vit_7.yaml --data-path /path/to/imagenet --pretrained weights.pdparams",
            "val.py --pretrained output/finetune/best.pdparams --split train",
            "val.py --pretrained output/finetune/best.pdparams --report report.md",
        ],
    )
    add_evaluation_options(parser)
    add = parser.add_argument
    add(
        "--report",
        type=report_file,
        metavar="FILE",
        help="also write precision, recall and F1 of each class, the calibration error and the most frequent "
        "confusions: as JSON (.json), or as Markdown tables (.md, .txt)",
    )
    add("--json", action="store_true", help="print the main figures as one line of JSON; the log goes to stderr")
    add(
        "--real-labels",
        type=not_empty,
        metavar="FILE",
        help="real.json of ImageNet ReaL: also compute the accuracy of its labels",
    )
    return parser


if __name__ == "__main__":
    run(main, parser(), processes="several")
