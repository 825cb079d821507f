"""The command val.py: evaluate a model on a data set."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_outputs, display_path
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.data.classes import ClassList
from t2t_vit.data.dataset import Split, load_data
from t2t_vit.data.loader import EvalLoader, EvalOrder
from t2t_vit.deploy.open_model import OpenedModel, open_model
from t2t_vit.deploy.report import to_json, write_report
from t2t_vit.parallel import processes
from t2t_vit.training.class_counts import ClassCounts
from t2t_vit.training.evaluator import Scores, evaluate
from t2t_vit.training.real_labels import RealAccuracy, read_real_labels
from t2t_vit.weights.build import first_difference, refuse_other_order


def validate(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Evaluate the model of a command line, log its scores, and write and print what the options ask for."""
    setup_logging(main=processes.is_main(), aside=args.json)
    check_outputs([args.report], [*args.inputs, *filter(None, [args.real_labels])])
    if args.real_labels and not os.path.exists(args.real_labels):
        raise UserError(f"--real-labels {args.real_labels} not found")
    opened, classes, split = open_evaluation(args, cfg)
    check_outputs([args.report], pictures=split.paths)
    counts = ClassCounts(len(classes)) if args.report else None
    real = _real_accuracy(args.real_labels, split, len(classes)) if args.real_labels else None
    counters = [counter for counter in (counts, real) if counter]
    log.info(
        "%s on %d images of %s%s", opened, len(split), display_path(split.source), _ways(opened.cfg, split, classes)
    )
    start = time.perf_counter()
    scores = evaluate_split(opened, split, log_every=opened.cfg.VAL.LOG_EVERY, each_batch=_each(counters))
    seconds = time.perf_counter() - start
    for counter in counters:
        counter.collect()
    log.info(scores.line())
    if real:
        log.info("ReaL acc: %.4f of %d images with labels", real.top1(), real.images)
    log.info("%s final val acc is:%.4f", opened.cfg.DATA.NAME, scores.top1)
    if processes.is_main():
        figures = main_figures(opened, split, scores, real)
        if counts:
            write_report(args.report, figures, counts, classes)
            log.info("%s written", display_path(args.report))
        if args.json:
            print(to_json({**figures, "images_per_second": round(len(split) / seconds, 2)}), flush=True)


def _real_accuracy(path, split, num_classes):
    mine = EvalOrder(len(split), 1, processes.rank(), processes.world_size()).mine
    return RealAccuracy(read_real_labels(path, split, num_classes), mine)


def _each(counters):
    """Return a function that gives each batch to all counters, or None without counters."""

    def add(logits, labels):
        for counter in counters:
            counter.add(logits, labels)

    return add if counters else None


def _ways(cfg, split, classes):
    """Describe VAL.TTA and VAL.CLASSES_ONLY, if they are on."""
    tta = f", VAL.TTA {cfg.VAL.TTA}" if cfg.VAL.TTA else ""
    number = len(np.unique(split.labels))
    return tta + (f", predicting only the {number} of {len(classes)} classes in it" if cfg.VAL.CLASSES_ONLY else "")


def main_figures(opened: OpenedModel, split: Split, scores: Scores, real: RealAccuracy | None) -> dict[str, Any]:
    """Return the figures of an evaluation that are not by class, with what was evaluated."""
    val = opened.cfg.VAL
    figures = {
        "model": opened.cfg.MODEL.NAME,
        "weights": str(display_path(opened.path)),
        "data": opened.cfg.DATA.NAME,
        "source": str(display_path(split.source)),
        "tta": val.TTA,
        "classes_only": val.CLASSES_ONLY,
        "num_images": scores.num_images,
        "loss": scores.loss,
        "top1": scores.top1,
        "top5": scores.top5,
    }
    return figures | ({"real_top1": real.top1(), "real_images": real.images} if real else {})


def open_evaluation(args: argparse.Namespace, cfg: CfgNode) -> tuple[OpenedModel, ClassList, Split]:
    """Open the model and the --split of a command line. Returns (`OpenedModel`, `ClassList`, `Split`).

    Raises UserError like `open_model` and `load_data`, or if model and data have the same classes in different orders.
    """
    opened = open_model(args, cfg, parallel=cfg.VAL.BATCH_SIZE > 1)
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
    return evaluate(model, loader, opened.cfg, log_every, each_batch=each_batch, only=loader.only)
