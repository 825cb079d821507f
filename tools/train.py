"""Train a model: python tools/train.py [--config configs/X.yaml] [--data-path DIR] [KEY VALUE ...].

The same command continues an interrupted run. Several GPUs:
python -m paddle.distributed.launch --gpus 0,1,2,3 [--nnodes 2 --master HOST:PORT] tools/train.py --config ...
"""

import argparse

from t2t_vit.cli import run
from t2t_vit.options import common_parser, not_empty


def main(args, cfg):
    from t2t_vit.training.run import train  # imports Paddle, which `run` prepares

    train(args, cfg)


def parser() -> argparse.ArgumentParser:
    parser = common_parser(
        "train.py",
        "Train a model.",
        batch_size_key="TRAIN.BATCH_SIZE",
        examples=[
            "train.py --config configs/t2t_vit_7.yaml --data-path /path/to/imagenet",
            "train.py --config configs/finetune.yaml --data-path /path/to/pictures --pretrained weights.pdparams",
        ],
    )
    parser.set_defaults(trains=True)
    parser.add_argument(
        "--resume",
        type=not_empty,
        metavar="auto|none|FILE",
        default="auto",
        help="auto (default): continue from the latest state in the run folder, if there is one; none: start a new run "
        "and move an earlier run of this name aside; FILE: continue from a latest.pdparams",
    )
    parser.add_argument("--force", action="store_true", help="continue even if settings that change the result differ")
    return parser


if __name__ == "__main__":
    run(main, parser(), processes="checked")
