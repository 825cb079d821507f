"""The picture `predictions`: images with their predictions, by default the images with the largest loss."""

import argparse
import dataclasses
import json
import math

import numpy as np
import paddle.nn.functional as F
from yacs.config import CfgNode

from t2t_vit.common.figures import check_suffix, require_matplotlib
from t2t_vit.common.files import check_outputs, display_path, write_text
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.data.images import load_image, reading
from t2t_vit.deploy.validate import evaluate_split, open_evaluation
from t2t_vit.pictures.confusion import draw_confusion
from t2t_vit.pictures.options import ORDERS
from t2t_vit.pictures.sheet import FAINT, RIGHT, WRONG, Cell, Heading, check_sheet, save_sheet, short_name, short_path
from t2t_vit.training.class_counts import confusion_matrix
from t2t_vit.training.evaluator import top_classes

COLUMNS = 6  # which a page of a README can show


def draw_predictions(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Evaluate a model and write the files that the options name. Raises UserError."""
    check_sheet(args.sheet)
    if args.confusion:
        check_suffix(args.confusion, "--confusion")
        require_matplotlib()
    check_outputs((args.sheet, args.confusion, args.json), args.inputs)
    setup_logging()
    opened, classes, split = open_evaluation(args, cfg)
    cfg = opened.cfg
    check_outputs((args.sheet, args.confusion), pictures=split.paths)
    scores, results = evaluate_images(opened, split, classes.names)
    log.info("%s on %s", opened, display_path(split.source))
    log.info(scores.line())
    title = title_of(cfg.DATA.NAME, scores, len(classes), len(split))
    chosen = ordered(results, args.order, cfg.SEED)[: args.count]
    notes = (
        f"{cfg.NAME}: {len(chosen)} images, {ORDERS[args.order]}",
        "below an image: the predicted class (red: wrong), the true class, their probabilities, the file",
    )
    cells = [image_cell(result, cfg) for result in chosen]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    save_sheet([Heading(title, notes), *rows], args.sheet, columns=COLUMNS)
    if args.confusion:
        labels, predicted = (np.array([result[key] for result in results]) for key in ("label", "predicted"))
        draw_confusion(confusion_matrix(labels, predicted, len(classes)), classes.names, title, args.confusion)
        log.info("%s written", display_path(args.confusion))
    if args.json:
        write_text(args.json, json.dumps({**dataclasses.asdict(scores), "results": results}, indent=1) + "\n")
        log.info("%s written", display_path(args.json))


def title_of(data, scores, num_classes, num_images):
    top5 = f", top-5 {scores.top5:.4f}" if num_classes > 5 else ""  # of five classes it is always 1
    return f"{data}: top-1 {scores.top1:.4f}{top5} of {num_images} images"


def evaluate_images(opened, split, names):
    """Evaluate an `OpenedModel` on a `Split`. Returns (`Scores`, a dict for each image, in the order of the split).

    "probability" is that of the predicted class. "probability" and "loss" are None if they are not finite.
    """
    results = []

    def add(logits, labels):
        log_probabilities = F.log_softmax(logits).numpy()  # (B, K)
        for row, label, predicted in zip(log_probabilities, labels.tolist(), top_classes(logits)[:, 0].tolist()):
            results.append(
                {
                    "path": str(display_path(split.paths[len(results)])),
                    "label": label,
                    "name": names[label],
                    "predicted": predicted,
                    "predicted_name": names[predicted],
                    "probability": _finite(math.exp(row[predicted])),
                    "loss": _finite(-float(row[label])),
                }
            )

    scores = evaluate_split(opened, split, each_batch=add)
    return scores, results


def _finite(number):
    return number if math.isfinite(number) else None


def ordered(results, order, seed):
    """Sort the results in one of the `ORDERS`. A loss that is not finite counts as the largest."""
    if order == "random":
        return [results[index] for index in np.random.default_rng(seed).permutation(len(results))]
    losses = [math.inf if result["loss"] is None else result["loss"] for result in results]
    places = sorted(range(len(results)), key=losses.__getitem__, reverse=order == "worst")
    return [results[place] for place in places]


def image_cell(result, cfg):
    """Build the cell of an image, with the predicted class, the true class and the file name."""
    loss, probability = (math.nan if result[key] is None else result[key] for key in ("loss", "probability"))
    colour = RIGHT if result["label"] == result["predicted"] else WRONG
    lines = (
        (f"{probability:.2f} {short_name(result['predicted_name'])}", colour),
        (f"{math.exp(-loss):.2f} {short_name(result['name'])}", FAINT),
        (short_path(result["path"]), FAINT),
    )
    return Cell(load_image(result["path"], **reading(cfg)), lines)
