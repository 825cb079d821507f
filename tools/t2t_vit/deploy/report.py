"""The report of val.py: the figures of an evaluation as JSON, or as Markdown tables to read."""

from __future__ import annotations

import json
import math
from typing import Any

from t2t_vit.common.errors import printable
from t2t_vit.common.files import write_text
from t2t_vit.data.classes import ClassList
from t2t_vit.training.class_counts import BINS, ClassCounts, class_figures, confused_pairs

PAIRS = 30  # confusions in a report
_MEANS = ("precision", "recall", "f1")
_LABELS = {  # in Markdown
    "tta": "VAL.TTA", "classes_only": "VAL.CLASSES_ONLY", "num_images": "images", "top1": "top-1", "top5": "top-5",
    "real_top1": "ReaL accuracy", "real_images": "images with ReaL labels",
}  # fmt: skip


def to_json(value: Any, indent: int | None = None) -> str:
    """Format figures as JSON. JSON has no NaN and infinity: they become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(path: str, figures: dict[str, Any], counts: ClassCounts, classes: ClassList) -> None:
    """Write the report of an evaluation: JSON to a .json file, else Markdown.

    Args:
        path: file to write.
        figures: {name: value} of the whole evaluation.
        counts: `ClassCounts` of all its images.
        classes: `ClassList` of the data.
    """
    report = {**figures, **report_of(counts, classes)}
    is_json = path.lower().endswith(".json")
    write_text(path, to_json(report, indent=1) + "\n" if is_json else "\n".join(_lines(report)) + "\n")


def report_of(counts: ClassCounts, classes: ClassList) -> dict[str, Any]:
    """Return the figures by class, their means, the calibration and the most frequent confusions.

    As in scikit-learn, a class counts if it has images or is predicted, and 0 / 0 gives 0.
    """
    figures = class_figures(counts.matrix)
    predicted = counts.matrix.sum(axis=0)
    found = (figures["support"] + predicted).nonzero()[0]
    weights = figures["support"] / figures["support"].sum()
    return {
        "macro": {name: float(figures[name][found].mean()) for name in _MEANS},
        "weighted": {name: float((figures[name] * weights).sum()) for name in _MEANS},
        "calibration": {"ece": counts.calibration_error(), "bins": _bins(counts)},
        "classes": [
            {"class_id": int(i), "folder": classes.folders[i], "name": classes.names[i],
             **{name: values[i].item() for name, values in figures.items()}, "predicted": predicted[i].item()}
            for i in found
        ],
        "confusions": [
            {"class_id": true, "name": classes.names[true], "predicted_id": other, "predicted": classes.names[other],
             "images": images, "fraction": fraction}
            for true, other, images, fraction in confused_pairs(counts.matrix)[:PAIRS]
        ],
    }  # fmt: skip


def _bins(counts):
    """List the bins of the confidence: (low, high], images, mean confidence and accuracy (None without images)."""
    rows = []
    for number, (images, confidence, hits) in enumerate(counts.bins.T.tolist()):
        means = (confidence / images, hits / images) if images else (None, None)
        edges = {"low": number / BINS, "high": (number + 1) / BINS}
        rows.append({**edges, "images": int(images), "confidence": means[0], "accuracy": means[1]})
    return rows


# --- Markdown ---


def _lines(report):
    means = {f"{mean} {name}": value for mean in ("macro", "weighted") for name, value in report[mean].items()}
    figures = {name: value for name, value in report.items() if not isinstance(value, (dict, list))}
    is_set = {name: value is not False and value not in ("", None) for name, value in figures.items()}
    whole = {_LABELS.get(name, name): value for name, value in figures.items() if is_set[name]}
    whole |= {f"ECE, {BINS} bins": report["calibration"]["ece"], **means}
    yield from ["# Evaluation", "", *_table(("figure", "value"), whole.items())]
    rows = [[row[key] for key in ("class_id", "name", "support", *_MEANS)] for row in report["classes"]]
    yield from ["", "## Classes", "", *_table(("id", "class", "images", "precision", "recall", "F1"), rows)]
    rows = [[row[key] for key in ("name", "predicted", "images", "fraction")] for row in report["confusions"]]
    yield from ["", "## Most frequent confusions", ""]
    yield from _table(("true class", "predicted class", "images", "fraction of the class"), rows)
    rows = [
        [f"{row['low']:.3f} to {row['high']:.3f}", row["images"], row["confidence"], row["accuracy"]]
        for row in report["calibration"]["bins"] if row["images"]
    ]  # fmt: skip
    yield from ["", "## Calibration", "", *_table(("confidence", "images", "mean confidence", "accuracy"), rows)]


def _table(titles, rows):
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(value):
    return f"{value:.4f}" if isinstance(value, float) else printable(value).replace("|", "\\|")
