"""Predictions: the sheet and the confusion agree with losses and counts that are computed independently."""

import json
import math
import re
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, few_digits, tool
from PIL import Image

import visualize
from t2t_vit.config import load_config, with_classes
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image
from t2t_vit.data.transforms import EvalTransform
from t2t_vit.pictures import confusion, predictions
from t2t_vit.pictures.predictions import COLUMNS
from t2t_vit.pictures.sheet import FAINT, GAP, LINE, MARGIN, SHADE, TILE
from t2t_vit.training.class_counts import confused_pairs, confusion_matrix
from t2t_vit.weights.build import build_trained_model

CONFIG = ROOT / "configs/lit_data.yaml"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TOP, ROW = MARGIN + 54 + 2 * LINE, TILE + 3 * LINE + 14


def started(*words):
    """Status of the command, run within this process."""
    with pytest.raises(SystemExit) as end:
        visualize.main(["predictions", "--config", str(CONFIG), *map(str, words)])
    return end.value.code


def result(folder, *words):
    """(pixels of the sheet, what --json wrote)"""
    assert started(*words, "--sheet", folder / "sheet.png", "--json", folder / "results.json") == 0
    return pixels_of(folder), json.loads((folder / "results.json").read_text())


def pixels_of(folder):
    return np.asarray(Image.open(folder / "sheet.png"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """(output lines, pixels of the sheet, what --json wrote, confusion) of the shipped model on all digits of val/."""
    folder = tmp_path_factory.mktemp("predictions")
    pytest.importorskip("matplotlib")
    files = [folder / name for name in ("sheet.png", "confusion.svg", "results.json")]
    words = zip(("--sheet", "--confusion", "--json"), files)
    done = tool("visualize", "predictions", "--count", 18, *(word for pair in words for word in pair), fresh=False)
    lines = done.stdout.splitlines()
    assert done.stderr == "" and lines[2:] == [f"{file} written" for file in files]
    return lines, pixels_of(folder), json.loads(files[2].read_text()), files[1].read_text()


@pytest.fixture(scope="module")
def expected():
    """(paths, labels, probabilities (N, K)) of the digits, computed image by image in float64 after the model."""
    cfg = load_config(CONFIG, [])
    classes, splits = load_data(cfg, ["val"])
    cfg = with_classes(cfg, len(classes))
    model, _ = build_trained_model(cfg, None)
    transform, split = EvalTransform(cfg), splits["val"]
    pixels = np.stack([transform(load_image(path, cfg.DATA.CHANNELS)) for path in split.paths]).astype(np.float32)
    images = (pixels / 255 - np.float32(cfg.DATA.MEAN)) / np.float32(cfg.DATA.STD)
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images.transpose(0, 3, 1, 2))).numpy().astype(np.float64)
    exponentials = np.exp(logits)
    return list(split.paths), split.labels, exponentials / exponentials.sum(1, keepdims=True)


def tiles(sheet, count):
    """Pixels of the sheet's first tiles."""
    places = [(TOP + i // COLUMNS * ROW, MARGIN + i % COLUMNS * (TILE + GAP)) for i in range(count)]
    return [sheet[top : top + TILE, left : left + TILE] for top, left in places]


def enlarged(path):
    """A digit of 8x8 pixels as a tile shows it."""
    return np.asarray(Image.open(path).convert("RGB")).repeat(TILE // 8, 0).repeat(TILE // 8, 1)


def test_scores_are_those_of_val(shipped):
    lines, _, report, confusion = shipped
    printed = tool("val").stdout.splitlines()
    assert lines[1] == printed[-2]
    top1, top5 = re.search(r"top-1: (\S+), top-5: (\S+)", printed[-2]).groups()
    assert f"lit_data: top-1 {top1}, top-5 {top5} of 360 images" in confusion
    results = report["results"]
    assert report["num_images"] == len(results) == 360
    assert report["top1"] == sum(row["label"] == row["predicted"] for row in results) / 360
    assert report["loss"] == pytest.approx(sum(row["loss"] for row in results) / 360, rel=1e-5)


def test_every_image_has_its_loss_and_probability(shipped, expected):
    paths, labels, probabilities = expected
    for row, path, label, mine in zip(shipped[2]["results"], paths, labels, probabilities):
        assert row["path"] == path or ROOT / row["path"] == ROOT / path
        assert (row["label"], row["predicted"]) == (label, mine.argmax())
        assert row["probability"] == pytest.approx(mine.max(), abs=1e-5)
        assert row["loss"] == pytest.approx(-math.log(mine[label]), abs=1e-4)
        assert row["name"] == NAMES[label]


def test_sheet_shows_the_worst_first(shipped, expected):
    paths, labels, probabilities = expected
    losses = -np.log(probabilities[np.arange(len(labels)), labels])
    worst = np.argsort(-losses, kind="stable")[:18]
    assert len(set(losses[worst].round(4))) == 18, "the order is not certain"
    sheet = shipped[1]
    assert sheet.shape[0] == TOP + 18 // COLUMNS * ROW + MARGIN
    for tile, index in zip(tiles(sheet, 18), worst):
        assert (tile == enlarged(paths[index])).all()
    red = np.abs(sheet.astype(int) - predictions.WRONG).max(-1) < 30
    wrong = [red[TOP + TILE : TOP + ROW, MARGIN + i * (TILE + GAP) :][:, :TILE].any() for i in range(COLUMNS)]
    assert wrong == [bool(probabilities[index].argmax() != labels[index]) for index in worst[:COLUMNS]]
    assert any(wrong) and not all(wrong)


def test_confusion_is_counted_by_hand(shipped):
    counts = Counter((row["label"], row["predicted"]) for row in shipped[2]["results"])
    labels, predicted = (np.array([row[key] for row in shipped[2]["results"]]) for key in ("label", "predicted"))
    matrix = confusion_matrix(labels, predicted, 10)
    assert {(i, j): n for i, row in enumerate(matrix.tolist()) for j, n in enumerate(row) if n} == counts
    drawn = Counter(re.findall(r"<!-- (\d+) -->", shipped[3]))
    assert drawn == Counter(str(count) for count in counts.values())
    pairs = confused_pairs(matrix)
    expected = {pair: n for pair, n in counts.items() if pair[0] != pair[1]}
    assert {(true, other): n for true, other, n, _ in pairs} == expected
    for true, _, n, share in pairs:
        assert share == n / sum(count for (label, _), count in counts.items() if label == true)


def test_captions_are_the_classes_their_probabilities_and_the_file():
    digit = ROOT / "lit_data/val/7/0081.png"
    result = {"path": str(digit), "label": 7, "name": "seven, 7", "predicted": 1, "predicted_name": "one"}
    cell = predictions.image_cell({**result, "probability": 0.75, "loss": math.log(5)}, load_config(CONFIG, []))
    assert cell.lines == (("0.75 one", predictions.WRONG), ("0.20 seven", FAINT), ("7/0081.png", FAINT))


@pytest.mark.parametrize("num_classes, top5", [(3, ""), (5, ""), (6, ", top-5 0.9000")])
def test_the_title_has_no_top_5_of_few_classes(num_classes, top5):
    scores = SimpleNamespace(top1=0.75, top5=0.9)
    assert predictions.title_of("pets", scores, num_classes, 40) == f"pets: top-1 0.7500{top5} of 40 images"


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_matrix_fills_its_picture(tmp_path, num_classes):
    pytest.importorskip("matplotlib")
    classes = np.arange(num_classes)
    title = "pictures of my own: top-1 0.7297 of 1000 images"
    confusion.draw_confusion(np.eye(num_classes, dtype=int), [f"name {i}" for i in classes], title, tmp_path / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    ink = pixels < 128
    for edge in (ink[:20], ink[-20:], ink[:, :20], ink[:, -20:]):  # no empty edge, nothing cut
        assert edge.any()
    assert not any(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
    assert 0.8 < pixels.shape[1] / pixels.shape[0] < 1.4


def test_pairs_of_many_classes():
    labels, predicted = np.array([40, 40, 40, 7, 7, 0, 0, 39]), np.array([39, 39, 40, 8, 9, 1, 1, 40])
    assert confused_pairs(confusion_matrix(labels, predicted, 41)) == [
        (0, 1, 2, 1), (40, 39, 2, 2 / 3), (7, 8, 1, 0.5), (7, 9, 1, 0.5), (39, 40, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("num_classes, texts", [(30, {"c2", "5"}), (31, {"c2 → c3", " 100%"})])
def test_confusion_of_few_and_many_classes(tmp_path, num_classes, texts):
    pytest.importorskip("matplotlib")
    wrong, right = np.zeros((2, num_classes, num_classes), int)
    wrong[2, 3] = right[2, 2] = 5
    names = [f"c{i}, alias" for i in range(num_classes)]
    confusion.draw_confusion(wrong, names, "two $x$", tmp_path / "x.svg")
    drawn = set(re.findall(r"<!-- (.*) -->", (tmp_path / "x.svg").read_text()))
    assert texts | {"two $x$"} <= drawn
    confusion.draw_confusion(right, names, "none", tmp_path / "none.svg")
    nothing = "no image is classified wrongly" in (tmp_path / "none.svg").read_text()
    assert nothing == (num_classes > confusion.MAX_MATRIX)


def test_orders(monkeypatch):
    logits = paddle.to_tensor([[2.0, 1.0], [1.0, 9.0], [float("nan"), 0.0], [5.0, 5.0]])
    labels = paddle.to_tensor([0, 0, 1, 0])

    def evaluate_split(*_, each_batch):
        each_batch(logits[:3], labels[:3])
        each_batch(logits[3:], labels[3:])

    monkeypatch.setattr(predictions, "evaluate_split", evaluate_split)
    split = SimpleNamespace(paths=["0", "1", "2", "3"])
    _, results = predictions.evaluate_images(None, split, ["a", "b"])
    losses = [result["loss"] for result in results]
    assert losses[:2] + losses[3:] == pytest.approx([math.log(1 + math.exp(-1)), 8.000335, math.log(2)])
    assert losses[2] is None and [result["predicted"] for result in results[:2]] == [0, 1]

    def order(name, seed=1):
        return "".join(result["path"] for result in predictions.ordered(results, name, seed))

    assert (order("worst"), order("best")) == ("2130", "0312")
    drawn = {order("random", seed) for seed in range(9)}
    assert len(drawn) > 3 and all(sorted(each) == list("0123") for each in drawn)


def test_order_split_and_fewer_images_than_asked_for(tmp_path):
    few = few_digits(tmp_path, count=2)
    best, report = result(tmp_path, "--order", "best", *few)
    results = report["results"]
    assert len(results) == report["num_images"] == 20
    order = sorted(range(20), key=lambda i: results[i]["loss"])
    for tile, index in zip(tiles(best, 20), order):
        assert (tile == enlarged(ROOT / results[index]["path"])).all()
    last = TOP + 20 // COLUMNS * ROW
    assert (best[last : last + TILE, MARGIN + 20 % COLUMNS * (TILE + GAP) :] == 255).all()
    drawn, report = result(tmp_path, "--order", "random", "--split", "train", "--count", 3, *few)
    assert "/train/" in report["results"][0]["path"] and drawn.shape[0] == TOP + ROW + MARGIN
    assert (tiles(drawn, 1)[0] != SHADE).any()


def test_sheet_needs_no_matplotlib_and_confusion_names_it(tmp_path, monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    result(tmp_path, *few_digits(tmp_path, count=1))
    capsys.readouterr()
    assert started("--confusion", tmp_path / "x.png") == 1
    message = "error: the plot needs matplotlib, which is not installed: pip install matplotlib\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sheet", "x.gif"], "--sheet x.gif must end in .png, .jpg, .jpeg or .pdf"),
        (["--confusion", "x.gif"], "--confusion x.gif must end in .png, .pdf, .svg, .jpg or .jpeg"),
        (["--confusion", ROOT / "LICENSE/x.png"], f"{ROOT}/LICENSE/x.png: cannot be written: "),
        (["--json", ROOT / "lit_data"], f"{ROOT}/lit_data: is a folder"),
        (["--sheet", ROOT / "q.png", "--confusion", ROOT / "q.png"], f"{ROOT}/q.png is given for two outputs"),
        (["--sheet", ROOT / "q.png", "--confusion", f"{ROOT}/log/../q.png"], f"{ROOT}/log/../q.png is given for two"),
        (["--data-path", "/absent"], "data folder /absent not found"),
        (["--pretrained", "/absent.pdparams"], "weights /absent.pdparams not found"),
        (["--engine", "onnxruntime", "--output", "/absent"], "/absent/lit_data/export/lit_data.onnx not found for"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    assert started("--sheet", tmp_path / "x.png", *words) == 1
    out, line = capsys.readouterr()
    assert out == "" and line.count("\n") == 1 and line.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_unknown_order_is_a_usage_error(capsys):
    assert started("--order", "first") == 2
    assert "invalid choice: 'first'" in capsys.readouterr().err
