"""The picture `predictions`: images with what a model takes them for, and which classes it confuses."""

import json
import os

from t2t_vit.cli import common_parser, json_file, not_empty
from t2t_vit.pictures.augment import short_name
from t2t_vit.pictures.sheet import (
    COLUMNS,
    FAINT,
    TILE,
    blank,
    check_sheet,
    heading,
    left_of,
    save,
    stack,
    thumbnail,
    write,
)
from val import add_evaluation_options, open_model

ORDERS = {"worst": "the largest loss first", "best": "the smallest loss first", "random": "drawn from SEED"}
MOST = 5000  # images on a sheet, 425 MB in memory
RIGHT, WRONG = (0, 120, 60), (190, 30, 30)
LARGEST_MATRIX = 30  # classes; of more, the most confused pairs are drawn
PAIRS = 30
_LONGEST_NAME = 20  # letters beside the matrix


def main(args, cfg):
    from t2t_vit.common.files import check_outputs, display_path, write_text
    from t2t_vit.common.logger import log, setup_logging
    from t2t_vit.data.loader import EvalLoader
    from t2t_vit.parallel import processes
    from t2t_vit.training.evaluator import evaluate

    check_options(args)
    processes.setup(cfg)
    setup_logging()
    model, weights, cfg, classes, split = open_model(args, cfg)
    check_outputs((args.sheet, args.confusion), pictures=split.paths)
    outcomes = Outcomes()
    scores = evaluate(model, EvalLoader(split, cfg), cfg, each_batch=outcomes.add)
    outcomes.join()
    title = f"{cfg.DATA.NAME}: top-1 {scores.top1:.4f}, top-5 {scores.top5:.4f} of {len(split)} images"
    chosen = outcomes.order(args.order, cfg.SEED)[: args.count]
    which = f"{len(chosen)} images, {ORDERS[args.order]}: the predicted class, the true one, their probabilities"
    save(sheet(outcomes, split, classes, cfg, chosen, heading(title, f"{cfg.NAME}, {which}, the file")), args.sheet)
    if args.confusion:
        draw_confusion(outcomes.label, outcomes.predicted, classes.names, title, args.confusion)
    if args.json:
        write_text(args.json, json.dumps(told(outcomes, split, classes, scores), indent=1) + "\n")
    log.info("%s with %s on %s", cfg.MODEL.NAME, display_path(weights), display_path(split.source))
    log.info(scores.line())
    for path in filter(None, (args.sheet, args.confusion, args.json)):
        log.info("%s written", display_path(path))


def parser():
    parser = common_parser(
        "Draw images with what a model takes them for, and which classes it confuses.", batch_size_key="VAL.BATCH_SIZE"
    )
    parser.usage = "visualize.py predictions [options] [KEY VALUE ...]"
    add_evaluation_options(parser)
    add = parser.add_argument
    add("--order", choices=ORDERS, default="worst", help="which images: worst (default) or best by loss, or random")
    add("--count", type=int, default=2 * COLUMNS, metavar="N", help=f"images on the sheet; default {2 * COLUMNS}")
    add(
        "--sheet", type=not_empty, default="predictions.png", metavar="FILE",
        help=".png or .jpg; default predictions.png",
    )  # fmt: skip
    add(
        "--confusion", type=not_empty, metavar="FILE",
        help=f".png, .pdf or .svg of the confusion matrix, of more than {LARGEST_MATRIX} classes of the most confused "
        "pairs; needs matplotlib",
    )  # fmt: skip
    add("--json", type=json_file, metavar="FILE", help="write path, classes, probability and loss of every image")
    return parser


def check_options(args):
    """Raise UserError for an option that would fail after the evaluation."""
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.figures import check_suffix, require_matplotlib
    from t2t_vit.common.files import check_outputs

    if not 1 <= args.count <= MOST:
        raise UserError(f"--count is {args.count} but must be 1 to {MOST}")
    check_sheet(args.sheet)
    if args.confusion:
        check_suffix(args.confusion, "--confusion")
        require_matplotlib()
    check_outputs((args.sheet, args.confusion, args.json), args.inputs)


# --- Numbers ---


class Outcomes:
    """What became of each image, in the order of the split: arrays `label`, `predicted`, `probability`, `loss`."""

    def __init__(self):
        self.batches = []

    def add(self, logits, labels):
        """Note a batch: logits (B, K), labels (B,)."""
        import paddle
        import paddle.nn.functional as F

        from t2t_vit.training.evaluator import top_classes

        predicted = top_classes(logits)[:, 0]
        losses = -F.log_softmax(logits)
        of = (paddle.take_along_axis(losses, classes.unsqueeze(1), 1)[:, 0].numpy() for classes in (predicted, labels))
        self.batches.append((labels.numpy(), predicted.numpy(), *of))

    def join(self):
        import numpy as np

        self.label, self.predicted, loss_of_predicted, self.loss = map(np.concatenate, zip(*self.batches))
        self.probability = np.exp(-loss_of_predicted)

    def order(self, order, seed):
        """Indices of all images, in an order of `ORDERS`; a loss that is not finite is the largest."""
        import numpy as np

        if order == "random":
            return np.random.default_rng(seed).permutation(len(self.loss))
        loss = np.nan_to_num(self.loss, nan=np.inf)
        return np.argsort(-loss if order == "worst" else loss, kind="stable")


def told(outcomes, split, classes, scores):
    """What --json writes: scores, and each image in the order of the split."""
    import dataclasses
    import math

    from t2t_vit.common.files import display_path

    results = [
        {
            "path": str(display_path(path)),
            "label": int(label),
            "name": classes.names[label],
            "predicted": int(predicted),
            "predicted_name": classes.names[predicted],
            "probability": float(probability) if math.isfinite(probability) else None,
            "loss": float(loss) if math.isfinite(loss) else None,
        }
        for path, label, predicted, probability, loss in zip(
            split.paths, outcomes.label, outcomes.predicted, outcomes.probability, outcomes.loss
        )
    ]
    return {**dataclasses.asdict(scores), "results": results}


def confusion_matrix(labels, predicted, num_classes):
    """Images (K, K) of each true class (row) that were taken for each class (column)."""
    import numpy as np

    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def confused_pairs(labels, predicted, num_classes):
    """(true class, predicted class, images, share of the true class's images), the most images first."""
    import numpy as np

    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong].astype(np.int64) * num_classes + predicted[wrong], return_counts=True)
    of_class = np.bincount(labels, minlength=num_classes)
    order = np.argsort(-counts, kind="stable")
    rows = zip((pairs // num_classes)[order].tolist(), (pairs % num_classes)[order].tolist(), counts[order].tolist())
    return [(true, other, count, count / int(of_class[true])) for true, other, count in rows]


# --- The sheet ---


def sheet(outcomes, split, classes, cfg, chosen, head):
    """The contact sheet of the images with the indices `chosen`, which are read again, below the strip `head`."""
    rows = [chosen[start : start + COLUMNS] for start in range(0, len(chosen), COLUMNS)]
    return stack([head, *(image_strip(outcomes, split, classes, cfg, row) for row in rows)])


def image_strip(outcomes, split, classes, cfg, row):
    """Images of one row, each above predicted class, true class and file name."""
    import math

    from t2t_vit.data.images import load_image, reading

    strip, draw = blank(TILE + 72)
    for column, index in enumerate(row):
        left, label, predicted = left_of(column), outcomes.label[index], outcomes.predicted[index]
        strip.paste(thumbnail(load_image(split.paths[index], **reading(cfg))), (left, 0))
        lines = (
            (outcomes.probability[index], classes.names[predicted], RIGHT if label == predicted else WRONG),
            (math.exp(-outcomes.loss[index]), classes.names[label], FAINT),
        )
        for line, (probability, name, ink) in enumerate(lines):
            write(draw, f"{probability:.2f} {short_name(name)}", left, TILE + 4 + 20 * line, TILE, ink=ink)
        write(draw, os.path.basename(split.paths[index]), left, TILE + 46, TILE, size=11, ink=FAINT)
    return strip


# --- The confusion ---


def draw_confusion(labels, predicted, names, title, path):
    from t2t_vit.common.figures import figure_to, plain

    short = [short_name(name) for name in names]
    short = [plain(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}...") for name in short]
    if len(names) <= LARGEST_MATRIX:
        side = 2.5 + 0.5 * len(names)
        with figure_to(path, (max(side + 1, 6.5), side)) as figure:
            draw_matrix(figure.subplots(), confusion_matrix(labels, predicted, len(names)), short, plain(title))
        return
    pairs = confused_pairs(labels, predicted, len(names))[:PAIRS]
    with figure_to(path, (9, 1.5 + 0.28 * len(pairs))) as figure:
        draw_pairs(figure.subplots(), pairs, short, plain(title))


def draw_matrix(axes, matrix, names, title):
    """Counts on the colour of their share of the row."""
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(matrix):
        for other, count in enumerate(row):
            if count:
                ink = "white" if shares[true, other] > 0.5 else "black"
                axes.text(other, true, str(count), ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)


def draw_pairs(axes, pairs, names, title):
    """A bar for each pair, the most confused one on top."""
    if not pairs:
        axes.text(0.5, 0.5, "no image is taken for another class", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        axes.set_title(title)
        return
    axes.barh(range(len(pairs)), [count for _, _, count, _ in pairs])
    axes.set_yticks(range(len(pairs)), [f"{names[true]} → {names[other]}" for true, other, _, _ in pairs])
    for place, (_, _, count, share) in enumerate(pairs):
        axes.text(count, place, f" {share:.0%}", va="center", fontsize=8)
    axes.margins(x=0.1)
    axes.set(title=title, ylim=(len(pairs) - 0.4, -0.6))
    axes.set_xlabel("images of the true class → taken for another; their share of the class")
