"""The picture `predictions`: images with their predictions, by default those with the largest loss."""

import dataclasses
import json
import math
import os
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from t2t_vit.common.errors import UserError
from t2t_vit.common.figures import check_suffix, require_matplotlib
from t2t_vit.common.files import check_outputs, display_path, write_text
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.data.images import load_image, reading
from t2t_vit.deploy.validate import evaluate_split, open_evaluation
from t2t_vit.pictures.confusion import draw_confusion
from t2t_vit.pictures.options import ORDERS
from t2t_vit.pictures.sheet import FAINT, Cell, Heading, check_sheet, save_sheet, short_name
from t2t_vit.training.evaluator import top_classes

COLUMNS = 16
MAX_COUNT = 5000  # images on a sheet, 430 MB in memory
RIGHT, WRONG = (0, 120, 60), (190, 30, 30)


@dataclass(frozen=True)
class Outcomes:
    """Arrays with a value for each image, in the order of the split."""

    label: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray  # of the predicted class
    loss: np.ndarray


def draw_predictions(args, cfg):
    """Evaluate a model and write the files that the options name. Raises UserError."""
    check_options(args)
    setup_logging()
    opened, classes, split = open_evaluation(args, cfg)
    cfg = opened.cfg
    check_outputs((args.sheet, args.confusion), pictures=split.paths)
    scores, outcomes = evaluate_images(opened, split)
    log.info("%s on %s", opened, display_path(split.source))
    log.info(scores.line())
    title = f"{cfg.DATA.NAME}: top-1 {scores.top1:.4f}, top-5 {scores.top5:.4f} of {len(split)} images"
    chosen = order_images(outcomes.loss, args.order, cfg.SEED)[: args.count]
    note = f"{len(chosen)} images, {ORDERS[args.order]}: the predicted class, the true one, their probabilities"
    cells = [image_cell(outcomes, split, classes.names, cfg, index) for index in chosen]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    save_sheet([Heading(title, (f"{cfg.NAME}, {note}, the file",)), *rows], args.sheet, columns=COLUMNS)
    if args.confusion:
        draw_confusion(outcomes.label, outcomes.predicted, classes.names, title, args.confusion)
        log.info("%s written", display_path(args.confusion))
    if args.json:
        write_text(args.json, json.dumps(report(scores, outcomes, split, classes.names), indent=1) + "\n")
        log.info("%s written", display_path(args.json))


def check_options(args):
    """Raise UserError or OSError for an option that would fail after the evaluation."""
    if not 1 <= args.count <= MAX_COUNT:
        raise UserError(f"--count is {args.count} but must be 1 to {MAX_COUNT}")
    check_sheet(args.sheet)
    if args.confusion:
        check_suffix(args.confusion, "--confusion")
        require_matplotlib()
    check_outputs((args.sheet, args.confusion, args.json), args.inputs)


def evaluate_images(opened, split):
    """(`Scores`, `Outcomes`) of an `OpenedModel` on a `Split`."""
    batches = []

    def add(logits, labels):
        predicted = top_classes(logits)[:, 0]
        losses = -F.log_softmax(logits)  # (B, K)
        of = (paddle.take_along_axis(losses, classes.unsqueeze(1), 1)[:, 0].numpy() for classes in (predicted, labels))
        batches.append((labels.numpy(), predicted.numpy(), *of))

    scores = evaluate_split(opened, split, each_batch=add)
    labels, predicted, losses_of_predicted, losses = map(np.concatenate, zip(*batches))
    return scores, Outcomes(labels, predicted, np.exp(-losses_of_predicted), losses)


def order_images(losses, order, seed):
    """Indices of all images in an order of `ORDERS`; a loss that is not finite counts as the largest."""
    if order == "random":
        return np.random.default_rng(seed).permutation(len(losses))
    losses = np.nan_to_num(losses, nan=np.inf)
    return np.argsort(-losses if order == "worst" else losses, kind="stable")


def image_cell(outcomes, split, names, cfg, index):
    """An image with the predicted class, the true class and the file's name."""
    label, predicted = outcomes.label[index], outcomes.predicted[index]
    lines = (
        (f"{outcomes.probability[index]:.2f} {short_name(names[predicted])}", RIGHT if label == predicted else WRONG),
        (f"{math.exp(-outcomes.loss[index]):.2f} {short_name(names[label])}", FAINT),
        (os.path.basename(split.paths[index]), FAINT),
    )
    return Cell(load_image(split.paths[index], **reading(cfg)), lines)


def report(scores, outcomes, split, names):
    """What --json writes: the scores, and each image in the order of the split."""
    results = [
        {
            "path": str(display_path(path)),
            "label": int(label),
            "name": names[label],
            "predicted": int(predicted),
            "predicted_name": names[predicted],
            "probability": float(probability) if math.isfinite(probability) else None,
            "loss": float(loss) if math.isfinite(loss) else None,
        }
        for path, label, predicted, probability, loss in zip(
            split.paths, outcomes.label, outcomes.predicted, outcomes.probability, outcomes.loss
        )
    ]
    return {**dataclasses.asdict(scores), "results": results}
