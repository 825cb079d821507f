"""Evaluation: the report, other test sets of ImageNet, ReaL labels and test-time augmentation."""

import json
import re
import shutil
import tracemalloc

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, few_digits, tool
from PIL import Image

from t2t_vit.common.errors import UserError
from t2t_vit.config import CLASS_LISTS, load_config
from t2t_vit.data import reading
from t2t_vit.data.classes import ClassList, read_classes
from t2t_vit.data.dataset import Split, load_data
from t2t_vit.data.images import load_image, to_array
from t2t_vit.data.loader import EvalLoader
from t2t_vit.data.paths import Paths
from t2t_vit.data.transforms import EvalTransform, num_views
from t2t_vit.deploy.report import report_of, to_json
from t2t_vit.models.zoo import create_model
from t2t_vit.training.class_counts import BINS, ClassCounts, confused_pairs
from t2t_vit.training.evaluator import evaluate
from t2t_vit.training.real_labels import RealAccuracy, read_real_labels
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_trained_model

CONFIG = ROOT / "configs/lit_data.yaml"
WNIDS = read_classes(CLASS_LISTS["imagenet1k"]).folders


def lit_config(*pairs):
    return load_config(CONFIG, pairs)


def split_of(labels, names=None):
    """A split whose images need not exist."""
    names = names or [f"{number}.png" for number in range(len(labels))]
    return Split("val", "val", Paths.of(names), np.array(labels, np.int32))


# --- Report ---


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


# --- Test-time augmentation ---


def photo():
    with Image.open(ROOT / "docs/figures/attention.jpg") as image:
        return image.convert("RGB").crop((0, 0, 333, 250))


@pytest.mark.parametrize("tta, count", [("", 1), ("flip", 2), ("five", 5), ("ten", 10)])
def test_views_are_crops_of_the_resized_image_and_their_mirror_images(tta, count):
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("VAL.TTA", tta), ("DATA.IMAGE_SIZE", "64")])
    transform, image = EvalTransform(cfg), photo()
    views = transform.views(image)
    resized = to_array(image.resize((94, 71), Image.Resampling.BICUBIC))  # 64 / 0.9 = 71.1; 71 * 333 / 250 = 94.6
    assert (transform(image) == resized[4:68, 15:79]).all()  # 3.5 and 15, rounded to even as by torchvision
    corners = [resized[:64, :64], resized[:64, -64:], resized[-64:, :64], resized[-64:, -64:]]
    crops = [transform(image), *corners][: 1 if tta in ("", "flip") else 5]
    expected = crops + [crop[:, ::-1] for crop in crops] * (tta in ("flip", "ten"))
    assert num_views(cfg) == len(expected) == count
    assert (views == (np.stack(expected) if tta else expected[0])).all()
    assert views.shape == ((count,) if tta else ()) + (64, 64, 3)


def test_a_squashed_image_can_be_mirrored():
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("VAL.TTA", "flip"), ("VAL.CROP_MODE", "squash")])
    whole, mirrored = EvalTransform(cfg).views(photo())
    assert (whole == to_array(photo().resize((224, 224), Image.Resampling.BICUBIC))).all()
    assert (mirrored == whole[:, ::-1]).all()


def mean_logits(tta, paths):
    """Logits of the shipped model, the mean over views that are computed one by one."""
    cfg = lit_config(("VAL.TTA", tta), ("VAL.CROP_PCT", "0.8"), ("MODEL.NUM_CLASSES", "10"))
    model, _ = build_trained_model(cfg, None)
    views = np.stack([EvalTransform(cfg).views(load_image(path, cfg.DATA.CHANNELS)) for path in paths])
    views = views.reshape(len(paths), -1, 16, 16, cfg.DATA.CHANNELS).astype(np.float32) / 255
    views = (views - np.float32(cfg.DATA.MEAN)) / np.float32(cfg.DATA.STD)
    with paddle.no_grad():
        each = [model(paddle.to_tensor(views[:, i].transpose(0, 3, 1, 2))).numpy() for i in range(views.shape[1])]
    return np.mean(each, axis=0, dtype=np.float64)


@pytest.mark.parametrize("tta", ["flip", "ten"])
def test_val_and_predict_average_the_logits(tmp_path, tta):
    words = [*few_digits(tmp_path, 2), "VAL.TTA", tta, "VAL.CROP_PCT", 0.8]
    paths = [ROOT / "lit_data/val" / line.split()[0] for line in (tmp_path / "val.txt").read_text().splitlines()]
    logits, labels = mean_logits(tta, paths), np.repeat(np.arange(10), 2)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found, log = figures(*words)
    assert found["loss"] == pytest.approx(-log_p[range(20), labels].mean(), rel=1e-5)
    assert found["top1"] == (logits.argmax(1) == labels).mean() and found["num_images"] == 20
    assert found["tta"] == tta and f", VAL.TTA {tta}" in log
    tool("predict", *paths, "--config", CONFIG, "--json", tmp_path / "p.json", *words[-4:])
    predictions = list(json.loads((tmp_path / "p.json").read_text()).values())
    assert [entry["class_id"] for entry in predictions] == logits.argmax(1).tolist()
    assert [entry["probability"] for entry in predictions] == pytest.approx(np.exp(log_p.max(1)), abs=2e-6)


def test_without_views_nothing_changes():
    """Pixels, logits and scores are bit for bit those of one forward pass over the centre crops."""
    cfg = lit_config(("VAL.BATCH_SIZE", "90"), ("MODEL.NUM_CLASSES", "10"))
    split = load_data(cfg, ["val"])[1]["val"]
    model, _ = build_trained_model(cfg, None)
    images, _ = next(iter(EvalLoader(split, cfg)))
    pixels = np.stack([EvalTransform(cfg)(load_image(path, cfg.DATA.CHANNELS)) for path in split.paths[:90]])
    assert images.shape == [90, 16, 16, 3] and (images.numpy() == pixels).all()
    seen, passes = [], []

    def forward(batch):
        passes.append(model(batch))
        return passes[-1]

    evaluate(forward, EvalLoader(split, cfg), cfg, None, lambda logits, _: seen.append(logits.numpy()))
    assert len(seen) == 4 and all((logits == each.numpy()).all() for logits, each in zip(seen, passes))


def test_views_count_in_shared_memory():
    one, ten = (reading._read_ahead(lit_config(("VAL.TTA", tta))) for tta in ("", "ten"))
    cfg = lit_config()
    assert ten - one == 9 * cfg.VAL.BATCH_SIZE * (cfg.TRAIN.ACCUM_STEPS + 1) * 16 * 16 * 3


def test_pairs_of_classes_are_counted_from_the_matrix():
    assert confused_pairs(np.array([[3, 1, 0], [2, 0, 0], [0, 0, 4]])) == [(1, 0, 2, 1.0), (0, 1, 1, 0.25)]
