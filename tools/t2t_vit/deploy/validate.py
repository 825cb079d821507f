"""The command val.py: evaluate a model on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import paddle
from yacs.config import CfgNode

from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.data.classes import ClassList
from t2t_vit.data.dataset import Split, load_data
from t2t_vit.data.loader import EvalLoader
from t2t_vit.deploy.open_model import OpenedModel, open_model
from t2t_vit.parallel import processes
from t2t_vit.training.evaluator import Scores, evaluate
from t2t_vit.weights.build import first_difference, refuse_other_order


def validate(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Evaluate the model of a command line and log its loss and its top-1 and top-5 accuracy."""
    setup_logging(main=processes.is_main())
    opened, _, split = open_evaluation(args, cfg)
    log.info("%s on %d images of %s", opened, len(split), display_path(split.source))
    scores = evaluate_split(opened, split, log_every=opened.cfg.VAL.LOG_EVERY)
    log.info(scores.line())
    log.info("%s final val acc is:%.4f", opened.cfg.DATA.NAME, scores.top1)


def open_evaluation(args: argparse.Namespace, cfg: CfgNode) -> tuple[OpenedModel, ClassList, Split]:
    """Open the model and the --split of a command line. Returns (`OpenedModel`, `ClassList`, `Split`).

    Raises UserError like `open_model` and `load_data`, or if model and data have the same classes in different orders.
    """
    opened = open_model(args, cfg)
    if opened.model is None:
        processes.setup(opened.cfg)  # the scores are computed with Paddle
    classes, splits = load_data(opened.cfg, [args.split], model_file=display_path(opened.path))
    if other := first_difference(classes, opened.classes):
        refuse_other_order(classes, opened.classes)
        log.warning("warning: %s; DATA.CLASSES FILE makes the data set use the class ids of a class list", other)
    return opened, classes, splits[args.split]


def evaluate_split(
    opened: OpenedModel, split: Split, log_every: int | None = None, each_batch: Callable | None = None
) -> Scores:
    """Evaluate an opened model on a split and return `Scores`. Each process evaluates a part. See `evaluate`."""
    model = opened.model or (lambda images: paddle.to_tensor(opened.predictor(images.numpy())))
    loader = EvalLoader(split, opened.cfg, processes.rank(), processes.world_size())
    return evaluate(model, loader, opened.cfg, log_every, each_batch=each_batch)
