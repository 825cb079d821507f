"""Evaluate a model: python tools/val.py [--config configs/X.yaml] [--data-path DIR] [--pretrained FILE]."""

from t2t_vit.cli import run
from t2t_vit.options import add_evaluation_options, common_parser


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
        ],
    )
    add_evaluation_options(parser)
    return parser


if __name__ == "__main__":
    run(main, parser(), processes="several")
