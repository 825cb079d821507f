"""Several processes on the CPU with gloo give the same results as one process."""

import json
import re

import numpy as np
import pytest
import test_amp
from conftest import ROOT, tool
from launching import PLAIN, launched, nothing_is_left_running, start, start_nodes, train  # noqa: F401
from programs import in_ranks
from test_data_faults import WORDS, copy_of_digits, images, some_images

from t2t_vit.weights import checkpoint


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory):
    """(options of a run of ten steps of 64 images, folder of that run in one process)."""
    folder = tmp_path_factory.mktemp("ten")
    images = sorted((ROOT / "lit_data/train").glob("*/*.png"))[:: 1437 // 640][:640]
    lines = [f"{path.relative_to(ROOT / 'lit_data/train')} {path.parent.name}\n" for path in images]
    (folder / "train.txt").write_text("".join(lines))
    words = [*PLAIN, "DATA.TRAIN_LIST", folder / "train.txt", "DATA.CLASSES", "lit_data/classes.txt"]
    train(folder / "one", "--batch-size", 64, *words)
    return words, folder / "one/lit_data"


@pytest.fixture(scope="module")
def distilling(ten_steps):
    """Options of a run of ten steps."""
    words = ten_steps[0][ten_steps[0].index("AUG.SCALE") :]  # without the sizes of a T2T-ViT
    return [*words, "--config", "configs/lit_data_pit.yaml", "NAME", "lit_data", "MODEL.NAME", "pit_ti_distilled",
            "MODEL.PIT.BASE_DIMS", "[8, 8]", "MODEL.PIT.DEPTH", "[1, 1]", "DISTILL.TYPE", "hard",
            "DISTILL.TEACHER", "output/pretrained/lit_data/config.yaml",
            # The keys' bias has a gradient of nothing but rounding, which Adam would scale up.
            "TRAIN.EPSILON", 1e-4]  # fmt: skip


@pytest.fixture(scope="module")
def fine_tuning(ten_steps, tmp_path_factory):
    """Options of a run of ten steps with unbalanced classes."""
    lines = (ROOT / "lit_data/train.txt").read_text().splitlines(keepends=True)
    few = [line for digit in "56789" for line in [line for line in lines if line[0] == digit][:12]]
    listed = tmp_path_factory.mktemp("tuning") / "train.txt"
    listed.write_text("".join(few + [line for line in lines if line[0] in "01234"][: 640 - len(few)]))
    return [*ten_steps[0], "TRAIN.OPTIMIZER", "sgd", "TRAIN.BASE_LR", 0.05, "TRAIN.LAYER_DECAY", 0.7,
            "TRAIN.CLIP_NORM", 1.0, "DATA.TRAIN_LIST", listed, "TRAIN.CLASS_WEIGHTS", "auto",
            "TRAIN.FREEZE", "['tokens_to_token.*', 'blocks.0.attn.*', 'cls_token']"]  # fmt: skip


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory):
    """(options of a run that replaces unreadable images, these images)."""
    data = copy_of_digits(tmp_path_factory.mktemp("unreadable") / "data")
    broken = images(data, 3)[:5]
    for path in broken:
        path.write_text("no picture")
    return ["--data-path", data, *WORDS, 2, "DATA.ON_ERROR", "skip", *some_images(data)], broken


@pytest.fixture(scope="module")
def in_two_folder(ten_steps, distilling, fine_tuning, unreadable, tmp_path_factory):
    """The folder of programs/in_ranks.py, which also trains in it: a launch is most of the time of a short run."""
    folder = tmp_path_factory.mktemp("ranks")
    commands = [
        ["--output", folder / "distilled", "--batch-size", 32, *distilling],
        ["--output", folder / "tuned", "--batch-size", 32, *fine_tuning],
        # Also with recomputed activations: DataParallel's hooks allow a parameter only once.
        ["--output", folder / "accumulated", "--batch-size", 16, *ten_steps[0], "TRAIN.ACCUM_STEPS", 2,
         "TRAIN.RECOMPUTE", True],
        ["--output", folder / "unreadable", "--batch-size", 32, *unreadable[0]],
    ]  # fmt: skip
    process = start(folder, ROOT / "tests/programs/in_ranks.py", folder, json.dumps(commands, default=str))
    assert process.wait(200) == 0, (folder / "launcher.txt").read_text()
    return folder


@pytest.fixture(scope="module")
def in_two(in_two_folder):
    """[(results, weights) of rank 0, of rank 1] of programs/in_ranks.py."""
    files = [in_two_folder / f"rank{rank}" for rank in (0, 1)]
    return [(json.loads(file.with_suffix(".json").read_text()), np.load(f"{file}.npz")) for file in files]


def test_evaluation_counts_every_image_once(in_two):
    result, expected = in_two[0][0]["scores"], in_ranks.scores()
    assert expected["360"]["top1"] < 0.7 < expected["360"]["top5"] < 1  # a third of the labels are wrong on purpose
    for size in map(str, in_ranks.SIZES):
        for key in ("num_images", "top1", "top5"):
            assert result[size][key] == expected[size][key], (size, key)
        assert result[size]["loss"] == pytest.approx(expected[size]["loss"], rel=1e-6), size


def test_two_processes_validate_like_one(tmp_path):
    labels = tmp_path / "real.json"
    labels.write_text(json.dumps([[number % 10, 3] if number % 3 else [] for number in range(360)]))
    words = ["--real-labels", labels, "--report"]
    printed = launched(tmp_path, "val", "--batch-size", 50, *words, tmp_path / "two.json")
    scores = [line for line in printed.splitlines() if line.startswith(("images: ", "ReaL"))]
    alone = tool("val", *words, tmp_path / "one.json").stdout.splitlines()
    assert scores == [line for line in alone if line.startswith(("images: ", "ReaL"))]
    assert scores[0].startswith("images: 360,") and scores[1].endswith(" of 240 images with labels")
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    calibration = [report.pop("calibration") for report in (two, one)]
    assert calibration[0]["ece"] == pytest.approx(calibration[1]["ece"], rel=1e-6)
    assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-6)
    assert two == one and len(one["classes"]) == 10 and one["confusions"]
    assert all((tmp_path / f"workerlog.{rank}").is_file() for rank in (0, 1))


def losses(folder):
    return [float(loss) for loss in re.findall(r"Step .* Loss: (\S+),", folder.with_suffix(".log").read_text())]


def assert_close(folder, other):
    """Losses of each step (as printed, and their exact mean) and weights after them."""
    assert len(losses(folder)) == 10
    assert losses(folder) == pytest.approx(losses(other), abs=1.01e-4)
    rows = [json.loads((path / "metrics.jsonl").read_text()) for path in (folder, other)]
    for key in ("train_loss", "train_acc", "grad_norm", "val_loss", "val_ema_loss"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=1e-5), key
    states = [checkpoint.read(path / "latest.pdparams") for path in (folder, other)]
    for part in ("model", "ema"):
        for name, value in states[1][part].items():
            assert np.abs(states[0][part][name] - value).max() <= 1e-5, name


def test_two_processes_distil_a_pit_like_one(distilling, in_two_folder, tmp_path):
    train(tmp_path, "--batch-size", 64, *distilling)
    assert_close(in_two_folder / "distilled/lit_data", tmp_path / "lit_data")


def test_two_processes_fine_tune_unbalanced_classes_like_one(fine_tuning, in_two_folder, tmp_path):
    train(tmp_path, "--batch-size", 64, *fine_tuning)
    assert_close(in_two_folder / "tuned/lit_data", tmp_path / "lit_data")


def test_accumulated_steps_train_like_whole_ones(ten_steps, in_two_folder, tmp_path):
    words, one = ten_steps
    train(tmp_path, "--batch-size", 16, *words, "TRAIN.ACCUM_STEPS", 4)
    assert_close(tmp_path / "lit_data", one)
    assert_close(in_two_folder / "accumulated/lit_data", one)


def test_main_log_lists_the_images_of_all_processes(unreadable, in_two_folder):
    log = (in_two_folder / "unreadable/lit_data.log").read_text()
    assert [log.count(f"replaced: image {path} cannot be read") for path in unreadable[1]] == [1] * 5


def test_two_processes_train_in_16_bits_like_one(in_two, monkeypatch):
    test_amp.stand_in(monkeypatch)
    initial = test_amp.arrays(test_amp.make_step(test_amp.config("O2", in_ranks.DTYPE)).weights("raw"))
    one, first, second = in_ranks.amp_weights(8), in_two[0][1], in_two[1][1]
    for name, value in one.items():
        moved = np.abs(value - initial[name]).max()
        assert np.abs(first[name] - value).max() <= 0.1 * moved, name  # 16-bit gradients, whose sums cancel
        assert (first[name] == second[name]).all(), name
    assert np.abs(one["norm.weight"] - initial["norm.weight"]).max() > 1e-4


def test_two_nodes_train_like_one_process(ten_steps, tmp_path):
    words, one = ten_steps
    for node in start_nodes(tmp_path, "--batch-size", 32, *words):
        assert node.wait(200) == 0
    assert_close(tmp_path / "node0/lit_data", one)
    assert not (tmp_path / "node1").exists()  # only the main process writes
    assert list((tmp_path / "launch1").glob("workerlog.*"))


def test_all_processes_skip_a_step_that_diverges_in_one(in_two):
    first, second = (results["diverging"] for results, _ in in_two)
    assert first == second
    assert [ok for ok, _ in first] == [True, False, True]
    weights = [value for _, value in first]
    assert weights[0] == weights[1] != weights[2]
