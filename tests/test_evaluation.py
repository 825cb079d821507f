"""Evaluation on other test sets of ImageNet, and with ReaL labels."""

import json
import shutil

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, few_digits, tool
from PIL import Image

from t2t_vit.common.errors import UserError
from t2t_vit.config import CLASS_LISTS, load_config
from t2t_vit.data.classes import read_classes
from t2t_vit.data.dataset import Split, load_data
from t2t_vit.data.loader import EvalLoader
from t2t_vit.data.paths import Paths
from t2t_vit.models.zoo import create_model
from t2t_vit.training.evaluator import evaluate
from t2t_vit.training.real_labels import RealAccuracy, read_real_labels
from t2t_vit.weights import checkpoint

CONFIG = ROOT / "configs/lit_data.yaml"
WNIDS = read_classes(CLASS_LISTS["imagenet1k"]).folders


def lit_config(*pairs):
    return load_config(CONFIG, pairs)


def split_of(labels, names=None):
    """A split whose images need not exist."""
    names = names or [f"{number}.png" for number in range(len(labels))]
    return Split("val", "val", Paths.of(names), np.array(labels, np.int32))


# --- Other test sets of ImageNet ---


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Options of val.py with ImageNet weights whose answers are known: 923 for every image, then 6, 2, 10, 7, 1."""
    path = tmp_path_factory.mktemp("weights") / "w.pdparams"
    model = create_model("t2t_vit_7", image_size=32, depth=1)
    model.head.weight.set_value(paddle.zeros_like(model.head.weight))
    bias = np.zeros(1000, np.float32)
    bias[[923, 6, 2, 10, 7, 1]] = [9, 8, 7, 6, 5, 4]
    model.head.bias.set_value(bias)
    checkpoint.save(path, model.state_dict())
    keys = ["MODEL.T2T.DEPTH", 1, "DATA.IMAGE_SIZE", 32, "DATA.NUM_WORKERS", 0]
    return ["--config", "configs/t2t_vit_7.yaml", "--pretrained", path, *keys]


def make(root, spec):
    """Class folders with that many pictures each: {"10": 2}."""
    for folder, count in spec.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 30), 9 * number).save(root / folder / f"{number}.jpeg")
    return root


def figures(*words):
    """(what --json prints, stderr of the command)."""
    done = tool("val", "--json", *words)
    return json.loads(done.stdout), done.stderr


def test_folders_named_after_the_numbers_of_imagenet_v2(biased, tmp_path):
    """Sorted as text, 10 would come before 2."""
    root = make(tmp_path / "v2", {"2": 1, "6": 3, "10": 2, "923": 4})
    found, log = figures(*biased, "--data-path", root)
    assert (found["top1"], found["top5"], found["num_images"]) == (0.4, 1.0, 10)
    assert f"the class folders of {root} are numbers of classes in " in log
    assert "996 of 1000 classes have no image" in log and "VAL.CLASSES_ONLY True leaves them out" in log
    checked = tool("check_data", "--config", "configs/t2t_vit_7.yaml", "--data-path", root).stdout
    assert "note: 996 of 1000 classes have no image in val: n01440764, " in checked
    assert checked.splitlines()[-1] == f"python tools/val.py --config configs/t2t_vit_7.yaml --data-path {root}"
    make(root, {"1000": 1})
    assert "class folders that are not in" in error_line("val", *biased, "--data-path", root)
    shutil.rmtree(root / "1000")
    make(root, {"n01440764": 1})
    assert "class folders that are not in" in error_line("val", *biased, "--data-path", root)


def test_numbers_of_ones_own_classes_are_not_those_of_imagenet(tmp_path):
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("DATA.PATH", str(ROOT / "lit_data"))])
    with pytest.raises(UserError, match="class folders that are not in .*imagenet1k_classes.tsv: 0, 1"):
        load_data(cfg)
    names = tmp_path / "classes.txt"
    names.write_text("7\n6\n")  # the class list wins over the numbers
    make(tmp_path / "set", {"6": 1, "7": 2})
    pairs = [("DATA.PATH", str(tmp_path / "set")), ("DATA.CLASSES", str(names)), ("MODEL.NUM_CLASSES", "2")]
    split = load_data(lit_config(*pairs), ["val"], model_file="w")[1]["val"]
    assert split.labels.tolist() == [1, 0, 0]


def test_a_part_of_the_classes_is_evaluated_over_the_part(biased, tmp_path):
    """As for ImageNet-A and -R: the answer 923 of the whole model is not among the classes of the folder."""
    root = make(tmp_path / "imagenet-r", {WNIDS[6]: 3, WNIDS[2]: 1, WNIDS[0]: 1})
    found, log = figures(*biased, "--data-path", root)
    assert (found["top1"], found["top5"]) == (0, 0.8) and "997 of 1000 classes have no image" in log
    report = tmp_path / "report.json"
    found, log = figures(*biased, "--data-path", root, "--report", report, "VAL.CLASSES_ONLY", True)
    assert (found["top1"], found["top5"], found["classes_only"]) == (0.6, 1.0, True)
    loss = [np.log(np.exp([8, 7, 0]).sum()) - bias for bias in (8, 8, 8, 7, 0)]
    assert found["loss"] == pytest.approx(np.mean(loss), rel=1e-5)
    assert "predicting only the 3 of 1000 classes in it" in log and "have no image" not in log
    assert [row["class_id"] for row in json.loads(report.read_text())["classes"]] == [0, 2, 6]


def test_other_classes_have_no_logits():
    split = load_data(lit_config(), ["val"])[1]["val"]
    part = Split("val", "part", split.paths.where(split.labels > 6), split.labels[split.labels > 6])
    assert EvalLoader(part, lit_config()).only is None
    cfg = lit_config(("VAL.CLASSES_ONLY", "True"), ("MODEL.NUM_CLASSES", "10"))
    loader, seen = EvalLoader(part, cfg), []
    assert loader.only.tolist() == [7, 8, 9]
    always = paddle.arange(10, 0, -1).astype("float32")  # class 0 is the first
    evaluate(lambda x: always.tile([len(x), 1]), loader, cfg, None, lambda *pair: seen.append(pair[0]), loader.only)
    logits = paddle.concat(seen).numpy()
    assert np.isneginf(logits[:, :7]).all() and (logits[:, 7:] == [3, 2, 1]).all()


def test_training_validates_like_val(tmp_path):
    """The same views and classes: what metrics.jsonl has is what val.py prints for the run."""
    words = few_digits(tmp_path, 2)
    (tmp_path / "val.txt").write_text("".join((tmp_path / "val.txt").read_text().splitlines(keepends=True)[14:]))
    tiny = ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.EMA_DECAY", 0.0]
    keys = ["VAL.TTA", "flip", "VAL.CLASSES_ONLY", True, "MODEL.T2T.DEPTH", 1]
    tool("train", "--output", tmp_path, "--batch-size", 10, *words, *tiny, *keys, fresh=False)
    row = json.loads((tmp_path / "lit_data/metrics.jsonl").read_text())
    found, _ = figures("--pretrained", tmp_path / "lit_data/best.pdparams")
    assert (found["tta"], found["classes_only"], found["num_images"]) == ("flip", True, 6)
    assert found["loss"] == pytest.approx(row["val_loss"], rel=1e-6) and found["top1"] == row["val_top1"]
    assert (
        found["loss"]
        < 2
        < figures("--pretrained", tmp_path / "lit_data/best.pdparams", *keys[:2], "VAL.CLASSES_ONLY", False)[0]["loss"]
    )


# --- ReaL ---


def test_real_labels_are_found_by_number_or_by_order(tmp_path):
    path = tmp_path / "real.json"
    path.write_text("[[1], [], [2, 3]]")
    official = ["n1/ILSVRC2012_val_00000003.JPEG", "n0/ILSVRC2012_val_00000001_n0.JPEG"]  # a part, by class
    assert read_real_labels(path, split_of([0, 0], official), 4) == [[2, 3], [1]]
    assert read_real_labels(path, split_of([0, 0, 0], ["x/c.png", "y/a.png", "y/b.png"]), 4) == [[2, 3], [1], []]


@pytest.mark.parametrize(
    "text, names, message",
    [
        ("{}", ["a.png"], "is not a list of labels from 0 to 3"),
        ("[]", ["a.png"], "is not a list of labels"),
        ("[[1], 2]", ["a.png", "b.png"], "entry 1: 2 where a list of labels from 0 to 3 for each image"),
        ("[[1], [4]]", ["a.png", "b.png"], r"entry 1: \[4\] where"),
        ("[[true]]", ["a.png"], r"entry 0: \[True\] where"),
        ("[[1], [2]]", ["a.png"], "has the labels of 2 images, but val has 1 with other names, such as a.png"),
        ("[[1], [2]]", ["x/a.png", "y/a.png"], "with other names, such as a.png"),
        ("[[1]]", ["ILSVRC2012_val_00000002.JPEG"], "has the labels of 1 images, but val has ILSVRC2012_val_00000002"),
        ("[[1]]", ["ILSVRC2012_val_00000000.JPEG"], "has the labels of 1 images"),
        ("[" * 100_000, ["a.png"], "is not JSON"),
    ],
)
def test_real_labels_that_do_not_fit_are_named(tmp_path, text, names, message):
    path = tmp_path / "real.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_real_labels(path, split_of([0] * len(names), names), 4)
    assert str(path) in str(error.value)


def test_real_accuracy_of_the_command(biased, tmp_path):
    """923 is right if it is among the labels; an image without labels is left out."""
    root, labels = tmp_path / "val", [[923], [5, 923], [4], [], [], [923, 0]]
    for number, wnid in enumerate([WNIDS[5], WNIDS[0], WNIDS[5], WNIDS[923], WNIDS[0]], start=1):
        (root / wnid).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(root / wnid / f"ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps(labels))
    words = ["--data-path", root, "--real-labels", tmp_path / "real.json"]
    found, log = figures(*biased, *words, "--batch-size", 2)
    assert (found["real_top1"], found["real_images"], found["top1"]) == (2 / 3, 3, 1 / 5)
    assert "ReaL acc: 0.6667 of 3 images with labels\n" in log
    (tmp_path / "real.json").write_text("[[], [], [], [], []]")
    assert figures(*biased, *words)[0]["real_top1"] is None


def test_processes_count_their_own_images():
    labels = [[0], [1], [], [0, 1], [2]]
    logits = paddle.to_tensor([[1.0, 0.0, 0.0]] * 3)
    counted = []
    for rank in range(2):
        real = RealAccuracy(labels, range(rank, 5, 2))
        real.add(logits[: 3 - rank], None)
        counted.append((real.hits, real.images))
    assert counted == [(1, 2), (1, 2)]
