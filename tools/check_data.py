"""Check a data set: python tools/check_data.py [--config C] --data-path DIR [--jobs N] [--json FILE] [KEY VALUE ...].

Reads every image, reports problems that would stop or harm training, and prints a command that fits the data.
"""

from t2t_vit import cli
from t2t_vit.common.runtime import cores
from t2t_vit.options import common_parser, json_file


def main(args, cfg):
    from t2t_vit.data.check import check  # after the options are parsed: it imports NumPy and Pillow

    return check(args, cfg, cli.overrides(args))


def parser():
    parser = common_parser(
        "check_data.py",
        "Check a data set before training.",
        batch_size_key="VAL.BATCH_SIZE",
        examples=[
            "check_data.py --data-path /path/to/imagenet",
            "check_data.py --config configs/finetune.yaml --data-path /path/to/pictures --json report.json",
        ],
    )
    parser.add_argument(
        "--jobs", type=int, default=cores(), metavar="N", help="threads that read images; default: one per core"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the whole report as JSON")
    return parser


if __name__ == "__main__":
    cli.run(main, parser(), paddle=False)
