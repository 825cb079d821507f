"""`benchmark.py data`: figures are consistent, it measures what training does, and errors are one line."""

import json
import os
import re
import statistics

import numpy as np
import pytest
from conftest import ROOT, error_line, tool
from PIL import Image

import benchmark
from t2t_vit.bench import one_core
from t2t_vit.bench.samples import repeated
from t2t_vit.config import load_config, with_keys
from t2t_vit.data.crop_reader import simplejpeg
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import EvalDataset

ROUNDS = 3
TASKS = ["crop and flip", "full recipe", "full, to pixels", "evaluation"]
NUMBER = r"\d+\.\d"
SPREAD = rf"{NUMBER} \({NUMBER} \.\. {NUMBER}\)"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of 6 training and 2 validation JPEG pictures of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noise = Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8))
                noise.resize((300, 240), Image.Resampling.BICUBIC).save(folder / split / name / f"{number}.jpg")
    return folder


def keys(folder):
    return ["DATA.PATH", str(folder), "DATA.CLASSES", "", "MODEL.NUM_CLASSES", 2, "DATA.IMAGE_SIZE", 64,
            "VAL.BATCH_SIZE", 4, "TRAIN.BATCH_SIZE", 4]  # fmt: skip


@pytest.fixture
def cfg(pictures):
    words = keys(pictures)
    return load_config(ROOT / "configs/t2t_vit_7.yaml", list(zip(words[::2], words[1::2])))


@pytest.fixture
def split(cfg):
    return load_data(cfg, ["train"])[1]["train"]


@pytest.fixture(scope="module")
def measured(pictures, tmp_path_factory):
    """(printed lines, report) of a small benchmark."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    done = tool("benchmark", "data", "--config", "configs/t2t_vit_7.yaml", "--images", 10, "--rounds", ROUNDS,
                "DATA.NUM_WORKERS", 1, "--json", file, *keys(pictures))  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines(), json.loads(file.read_text())


# --- Figures ---


def check_summary(figures):
    rounds = figures["rounds"]
    assert len(rounds) == ROUNDS and min(rounds) > 0
    assert figures["median"] == statistics.median(rounds)
    assert (figures["lowest"], figures["highest"]) == (min(rounds), max(rounds))
    return f"{figures['median']:.1f} ({figures['lowest']:.1f} .. {figures['highest']:.1f})"


def test_rates_and_ratios_are_printed_as_in_the_json(measured):
    lines, report = measured
    assert list(report["core"]) == TASKS
    for task, row in report["core"].items():
        assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["baseline"]["median"])
        (line,) = (line for line in lines if re.match(rf"  {task} +{SPREAD} +{SPREAD} +\d+\.\d\d$", line))
        expected = [task, check_summary(row["ours"]), check_summary(row["baseline"]), f"{row['ratio']:.2f}"]
        assert re.split(r"  +", line.strip()) == expected


def test_device_and_loaders(measured):
    lines, report = measured
    assert f"on the device (normalise, erase, mix): {check_summary(report['device'])} images/s" in lines
    assert f"all loader processes (1): {check_summary(report['loaders'])} images/s" in lines
    assert lines[-1] == "Both in batches of 4."


def test_machine_and_pictures_are_printed(measured, pictures):
    lines, report = measured
    assert report["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert report["machine"]["cpu"] in lines[0] and f"numpy {np.__version__}" in lines[1]
    assert f"pictures: 10 images from 6 files of {pictures}/train" in lines
    assert f"config: t2t_vit_7 at 64x64 pixels, reader {'turbo' if simplejpeg else 'pillow'}" in lines


# --- What is timed ---


def test_baseline_does_the_same_work(cfg, split):
    ours, baseline = one_core.our_tasks(cfg, split), one_core.baseline_tasks(cfg, split)
    assert list(ours) == list(baseline) == TASKS
    mean, std = np.array(cfg.DATA.MEAN), np.array(cfg.DATA.STD)
    tensor = baseline["evaluation"]((0, 1, 0)).numpy().transpose(1, 2, 0) * std + mean
    assert np.abs(255 * tensor - EvalDataset(split, cfg)[1][0]).max() < 2
    for task in ("crop and flip", "full recipe"):
        assert baseline[task]((0, 0, 0)).shape == [3, 64, 64]
        ours[task]((0, 0, 0))
    pixels = baseline["full, to pixels"]((0, 0, 0))
    assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
    plain = one_core.baseline_tasks(with_keys(cfg, {"AUG.ERASE_PROB": 1.0, "AUG.AUTO_AUGMENT": ""}), split)
    images = [plain["full recipe"]((0, 0, 0)).numpy() for _ in range(12)]
    assert any(np.abs(image).max() > 2.7 for image in images)  # noise outside the range of pixels; rare in small boxes


def test_rounds_read_the_images_of_the_next_epoch():
    samples = []
    run = one_core.timed(lambda sample: (samples.append(sample), sum(range(50_000))), 2)
    assert run() > 0 and run() > 0
    assert samples[1:] == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]


def test_images_are_spread_or_repeated(split):
    assert repeated(split, 3).paths[:] == split.paths[::2] and repeated(split, 3).labels.tolist() == [0, 0, 1]
    assert repeated(split, 12).paths[:] == [path for path in split.paths for _ in range(2)]
    assert repeated(split, 12).labels.tolist() == 6 * [0] + 6 * [1]


# --- Mistakes ---


@pytest.mark.parametrize(
    "words, message",
    [
        (["data", "--data-path", "/absent"], "error: data folder /absent not found; give it with --data-path DIR"),
        (["data", "--json", "LICENSE/x.json"], "error: LICENSE/x.json: cannot be written: "),
        (["data", "AUG.AUTO_AUGMENT", "rand-x9"], "error: AUG.AUTO_AUGMENT is 'rand-x9' but must be"),
    ],
)
def test_mistakes_are_one_line(words, message):
    assert error_line("benchmark", *words).startswith(message)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "the following arguments are required: BENCHMARK"),
        (["date"], "invalid choice: 'date'"),
        (["data", "--markdown"], "unrecognized arguments: --markdown"),
        (["data", "--images", "0"], "argument --images: '0' must be a number, 1 or more"),
        (["model", "--rounds", "3"], "unrecognized arguments: --rounds"),
        (["model", "--image-sizes", "32,0"], "argument --image-sizes: '0' must be a number, 1 to 4096"),
        (["infer", "--threads", "1,x"], "argument --threads: 'x' must be a number, 1 to 1024"),
        (["infer", "--engines", "tensorrt"], "argument --engines: 'tensorrt' is not one of paddle, inference, "),
    ],
)
def test_wrong_options_are_usage_errors(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(words)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_number_of_classes_may_come_from_the_data():
    words = ["MODEL.NUM_CLASSES", "0", "AUG.MIXUP", "0.8", "DATA.NUM_WORKERS", "0", "--images", "8", "--rounds", "1"]
    assert "images/s" in tool("benchmark", "data", *words).stdout


def test_folder_without_images_and_broken_image(tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
    words = ["benchmark", "data", "--config", "configs/t2t_vit_7.yaml", *keys(tmp_path)]
    assert f"the class folders of {tmp_path}/train contain no images" in error_line(*words)
    (tmp_path / "train/a/x.jpg").write_bytes(b"")
    assert error_line(*words) == f"error: image {tmp_path}/train/a/x.jpg cannot be read: not an image"
