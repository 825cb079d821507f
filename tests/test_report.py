"""The report of val.py: figures by class, calibration, and its files."""

import json
import re
import tracemalloc

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, few_digits, tool

from t2t_vit.config import load_config
from t2t_vit.data.classes import ClassList
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import EvalLoader
from t2t_vit.deploy.report import report_of, to_json
from t2t_vit.training.class_counts import BINS, ClassCounts
from t2t_vit.training.evaluator import evaluate
from t2t_vit.weights.build import build_trained_model

CONFIG = ROOT / "configs/lit_data.yaml"


def lit_config(*pairs):
    return load_config(CONFIG, pairs)


@pytest.fixture
def answers():
    """(logits (200, 7), labels (200,)): class 5 has no image, class 6 has none and is never predicted."""
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.standard_normal((200, 7)).astype(np.float32), rng.integers(0, 5, 200)
    logits[np.arange(100), labels[:100]] += 3
    logits[:, 6] = -9
    return logits, labels


def counted(logits, labels, batch=32):
    counts = ClassCounts(logits.shape[1])
    for start in range(0, len(labels), batch):
        counts.add(*(paddle.to_tensor(part[start : start + batch]) for part in (logits, labels)))
    counts.collect()
    return counts


def assert_like_sklearn(report, labels, predicted):
    """The figures by class and their means are those of scikit-learn."""
    metrics = pytest.importorskip("sklearn.metrics")
    found = np.union1d(labels, predicted).tolist()
    assert [row["class_id"] for row in report["classes"]] == found
    expected = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected):
        assert [row[name] for row in report["classes"]] == pytest.approx(values.tolist(), abs=1e-12), name
    for mean in ("macro", "weighted"):
        values = metrics.precision_recall_fscore_support(labels, predicted, average=mean, zero_division=0)[:3]
        assert list(report[mean].values()) == pytest.approx(values, abs=1e-12)
    matrix = metrics.confusion_matrix(labels, predicted, labels=found)
    wrong = {
        (found[i], found[j]): n for i, row in enumerate(matrix.tolist()) for j, n in enumerate(row) if n and i != j
    }
    rows = report["confusions"]
    assert len(rows) == min(30, len(wrong)) and [row["images"] for row in rows] == sorted(wrong.values())[::-1][:30]
    assert all(wrong[row["class_id"], row["predicted_id"]] == row["images"] for row in rows)


def test_figures_by_class_are_those_of_scikit_learn(answers):
    logits, labels = answers
    names = tuple("abcdefg")
    report = report_of(counted(logits, labels), ClassList(names, names, "here"))
    assert_like_sklearn(report, labels, logits.argmax(1))
    assert 5 in [row["class_id"] for row in report["classes"]] and len(report["classes"]) == 6


def test_counting_a_batch_allocates_no_other_matrix():
    classes, labels = 2000, np.array([3, 3, 1999])
    counts, logits = ClassCounts(classes), np.zeros((3, classes), np.float32)
    logits[[0, 1, 2], [3, 3, 5]] = 1
    batch = paddle.to_tensor(logits), paddle.to_tensor(labels)
    counts.add(*batch)
    tracemalloc.start()
    counts.add(*batch)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < counts.matrix.nbytes / 10 and counts.matrix.sum() == 6
    assert (counts.matrix[3, 3], counts.matrix[1999, 5]) == (4, 2)


def test_calibration_error_by_definition(answers):
    logits, labels = answers
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected, sizes = 0.0, []
    for low, high in zip(np.arange(BINS) / BINS, np.arange(1, BINS + 1) / BINS):
        inside = (confidence > low) & (confidence <= high)
        sizes.append(int(inside.sum()))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    counts = counted(logits, labels)
    assert counts.calibration_error() == pytest.approx(expected, abs=1e-6) and expected > 0.02
    assert counts.bins[0].tolist() == sizes and BINS == 15


def test_a_model_that_is_not_finite_gives_valid_json(answers):
    logits, labels = answers
    logits[3] = np.nan
    report = report_of(counted(logits, labels), ClassList(tuple("abcdefg"), tuple("abcdefg"), "here"))
    assert sum(row["support"] for row in report["classes"]) == 200
    assert json.loads(to_json(report))["calibration"]["ece"] is None


def test_val_reports_the_digits(tmp_path):
    words = [*few_digits(tmp_path, 6), "--batch-size", 16]
    done = tool("val", *words, "--json", "--report", tmp_path / "report.json")
    printed, report = json.loads(done.stdout), json.loads((tmp_path / "report.json").read_text())
    assert done.stderr.splitlines()[-3:] == [
        *tool("val", *words).stdout.splitlines()[-2:],
        f"{tmp_path}/report.json written",
    ]
    assert printed.pop("images_per_second") > 0
    assert printed.items() <= report.items() and printed["num_images"] == 60 and printed["data"] == "lit_data"

    cfg = lit_config(
        ("MODEL.NUM_CLASSES", "10"), ("DATA.VAL_LIST", str(tmp_path / "val.txt")), ("VAL.BATCH_SIZE", "16")
    )
    model, _ = build_trained_model(cfg, None)
    seen = []
    scores = evaluate(
        model, EvalLoader(load_data(cfg, ["val"])[1]["val"], cfg), cfg, None, lambda *pair: seen.append(pair)
    )
    logits, labels = (np.concatenate([pair[i].numpy() for pair in seen]) for i in range(2))
    assert_like_sklearn(report, labels, logits.argmax(1))
    assert (printed["top1"], printed["loss"]) == (scores.top1, scores.loss)
    assert report["classes"][3]["name"] == "three" and report["classes"][3]["folder"] == "3"


def test_a_report_to_read(tmp_path):
    words = few_digits(tmp_path, 6)
    tool("val", *words, "--report", tmp_path / "report.md", "--report", tmp_path / "report.txt")
    assert not (tmp_path / "report.md").exists()
    text = (tmp_path / "report.txt").read_text()
    assert re.search(r"^\| top-1 \| [01]\.\d{4} \|$", text, flags=re.MULTILINE)
    assert re.search(r"^\| 3 \| three \| 6 \| [01]\.\d{4} \| [01]\.\d{4} \| [01]\.\d{4} \|$", text, flags=re.MULTILINE)
    assert "VAL.TTA" not in text and "VAL.CLASSES_ONLY" not in text  # not set
    for line in ("## Most frequent confusions", "## Calibration", "| images | 60 |"):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--report", "lit_data/val.txt", "DATA.VAL_LIST", "val.txt"], "lit_data/val.txt comes with the repository"),
        (["--report", ROOT / "output/pretrained/lit_data/x.md"], "which no command changes"),
        (["--report", ROOT / "LICENSE/x.json"], "cannot be written: "),
        (["--real-labels", "/absent.json", "--pretrained", "/absent"], "--real-labels /absent.json not found"),
        (["--real-labels", "README.md"], "README.md is not JSON"),
        (["VAL.TTA", "six"], "VAL.TTA is 'six' but must be flip, five, ten or \"\""),
        (["VAL.TTA", "ten", "VAL.CROP_MODE", "squash"], "VAL.TTA is 'ten' but must be flip or \"\" if VAL.CROP_MODE"),
    ],
)
def test_mistakes_are_one_line(words, message):
    before = (ROOT / "lit_data/val.txt").read_bytes()
    assert message in error_line("val", *words)
    assert (ROOT / "lit_data/val.txt").read_bytes() == before


def test_a_report_of_another_kind_is_a_usage_error():
    done = tool("val", "--report", "photo.jpg", status=2)
    assert "photo.jpg must end in .json, .md or .txt" in done.stderr
