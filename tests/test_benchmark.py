"""The benchmark: its figures hang together, what it times is what training does, and mistakes are one line."""

import json
import os
import re
import statistics
import time

import numpy as np
import pytest
from conftest import ROOT, error_line, tool
from PIL import Image

import benchmark
from t2t_vit.bench import data, one_core, process, rounds
from t2t_vit.bench import pictures as measured_pictures
from t2t_vit.config import load_config, with_keys
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import simplejpeg
from t2t_vit.data.loader import EvalDataset, TrainDataset

ROUNDS = 3
TASKS = ["decode", "crop and flip", "full recipe", "full, to pixels", "evaluation"]
STAGES = ["read file", "decode", "draw", "crop and resize", "flip", "augment", "collate"]
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


@pytest.fixture(scope="module")
def measured(pictures, tmp_path_factory):
    """(printed lines, report) of a small benchmark."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    done = tool("benchmark", "data", "--config", "configs/t2t_vit_7.yaml", "--images", 10, "--rounds", ROUNDS,
                "--workers", 1, "--json", file, *keys(pictures))  # fmt: skip
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
    core = report["core"]
    assert [task for task in core if task != "core_share"] == TASKS
    assert 0 < core["core_share"] <= 1.05
    for task in TASKS:
        row = core[task]
        assert row["ratio"] == pytest.approx(row["ours"]["median"] / row["baseline"]["median"])
        (line,) = (line for line in lines if re.match(rf"  {task} +{SPREAD} +{SPREAD} +\d+\.\d\d$", line))
        expected = [task, check_summary(row["ours"]), check_summary(row["baseline"]), f"{row['ratio']:.2f}"]
        assert re.split(r"  +", line.strip()) == expected
    assert core["decode"]["ours"]["median"] > core["crop and flip"]["ours"]["median"] / 2


def test_stages_make_up_the_recipe(measured):
    lines, report = measured
    stages = report["stages"]
    assert sorted(stages) == sorted(STAGES)
    assert sum(row["share"] for row in stages.values()) == pytest.approx(1)
    whole = sum(row["milliseconds"] for row in stages.values())
    for stage, row in stages.items():
        assert row["milliseconds"] > 0
        assert row["share"] == pytest.approx(row["milliseconds"] / whole)
        assert f"  {stage:<20}{row['milliseconds']:<12.3f}{row['share']:.1%}" in lines
    assert 0.3 < whole * report["core"]["full recipe"]["ours"]["median"] / 1000 < 3


def test_device_and_loaders(measured):
    lines, report = measured
    device, loaders = report["device"], report["loaders"]
    assert device["images_per_second"] == pytest.approx(1000 * 4 / device["milliseconds"]["median"])
    assert any(f"{check_summary(device['milliseconds'])} ms for a batch of 4," in line for line in lines)
    assert loaders["workers"] == 1 and "images/s in all       loader processes: 1" in lines
    for name in ("train", "eval"):
        assert loaders["images_per_round"][name] == 4 * 4
        assert f"  {f'{name}, batches of 4':<26}{check_summary(loaders[name])}" in lines


def test_machine_and_pictures_are_told(measured, pictures):
    lines, report = measured
    assert report["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert report["machine"]["cpu"] in lines[0]
    assert f"numpy {np.__version__}" in lines[1] and "Pillow" not in lines[1]
    reader = "turbo" if simplejpeg else "pillow"
    assert lines[2] == (f"pictures: 10 images from 8 files of {pictures}/train, median 300x240 pixels, reader {reader}")
    assert report["pictures"]["images"] == 10 and report["pictures"]["files"] == 8


def test_number_of_workers(cfg):
    for words, number in (
        (["--workers", "3", "DATA.NUM_WORKERS", "2"], 3),
        (["--workers", "0"], 0),
        (["DATA.NUM_WORKERS", str(cfg.DATA.NUM_WORKERS)], cfg.DATA.NUM_WORKERS),
        ([], len(os.sched_getaffinity(0))),
    ):
        assert data.worker_count(benchmark.parser().parse_intermixed_args(words), cfg) == number


# --- What is timed ---


def test_stages_are_those_of_the_dataset(cfg):
    for reader in ("turbo", "pillow"):
        changed = with_keys(cfg, {"DATA.READER": reader})
        dataset, watch = TrainDataset(load_data(changed)[1]["train"], changed), rounds.Stopwatch()
        with one_core.timed_decoding(watch):
            for sample in [(epoch, index, 0) for epoch in range(4) for index in range(len(dataset))]:
                ours, real = one_core.staged(dataset, sample, watch), dataset[sample]
                assert (ours[0] == real[0]).all() and (ours[2] == real[2]).all()
                assert (ours[1], *ours[3:]) == (real[1], *real[3:])


@pytest.mark.skipif(not simplejpeg, reason="simplejpeg is not installed")
def test_decoding_moves_to_its_own_stage(cfg, monkeypatch):
    decode_jpeg, busy = simplejpeg.decode_jpeg, 0.05  # seconds

    def slow(*args, **options):
        start = time.process_time()
        while time.process_time() < start + busy:
            pass
        return decode_jpeg(*args, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", slow)
    dataset, watch = TrainDataset(load_data(cfg)[1]["train"], cfg), rounds.Stopwatch()
    with one_core.timed_decoding(watch):
        one_core.staged(dataset, (0, 0, 0), watch)
    assert simplejpeg.decode_jpeg is slow
    assert watch.seconds["decode"] > busy > 4 * watch.seconds["crop and resize"] > 0


def test_baseline_does_the_same_work(cfg):
    split = load_data(cfg)[1]["train"]
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
    assert any(np.abs(image).max() > 2.7 for image in images)  # noise, outside of what pixels give; rare in small boxes


def test_functions_take_turns():
    calls = []
    functions = {name: lambda sample, name=name: calls.append((name, sample)) for name in "ab"}
    rates = one_core.rates_by_turns(functions, 2, 2)
    timed = calls[2:]
    assert [(name, sample[:2]) for name, sample in timed] == [
        (name, (epoch, index)) for epoch in range(2) for name in "ab" for index in range(2)
    ]
    assert {name: len(values) for name, values in rates.items()} == {"a": 2, "b": 2}


def cores_and_threads():
    return len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]


def test_one_core_means_one():
    before = os.sched_getaffinity(0)
    assert process.on_one_core(cores_and_threads) == (1, "1")
    assert os.sched_getaffinity(0) == before


def test_pictures_are_spread_or_repeated(cfg):
    splits = load_data(cfg)[1]
    spread = measured_pictures.choose_pictures(splits, 3)
    assert spread.paths[:] == splits["train"].paths[::2] and spread.labels.tolist() == [0, 0, 1]
    both = [*splits["train"].paths, *splits["val"].paths]
    assert measured_pictures.choose_pictures(splits, 20).paths[:] == (3 * both)[:20]
    assert measured_pictures.choose_pictures(splits, 20).labels.tolist()[:8] == [0, 0, 0, 1, 1, 1, 0, 1]


def test_the_first_round_of_a_loader_is_not_counted():
    batches = (np.zeros(5) for _ in range(100))
    assert len(data.delivery(batches, 4, 3)["rounds"]) == 3
    assert len(list(batches)) == 100 - 4 * 4


# --- Mistakes ---


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "error: no benchmark given; the first word must be data or "),
        (["date"], "error: there is no benchmark 'date'; the first word must be data or "),
        (["data", "--images", "0"], "error: --images is 0 but must be 1 or more"),
        (["data", "--rounds", "0"], "error: --rounds is 0 but must be 1 or more"),
        (["data", "--workers", "-1"], "error: --workers is -1 but must be 0 or more"),
        (["data", "--data-path", "/absent"], "error: data folder /absent not found; give it with --data-path DIR"),
        (["data", "--json", "LICENSE/x.json"], "error: LICENSE/x.json: cannot be written: "),
        (["data", "AUG.AUTO_AUGMENT", "rand-x9"], "error: AUG.AUTO_AUGMENT is 'rand-x9' but must be"),
    ],
)
def test_mistakes_are_one_line(words, message):
    assert error_line("benchmark", *words).startswith(message)


def test_number_of_classes_may_be_that_of_the_data():
    words = ["MODEL.NUM_CLASSES", "0", "AUG.MIXUP", "0.8", "--images", "8", "--rounds", "1", "--workers", "0"]
    assert "images/s" in tool("benchmark", "data", *words).stdout


def test_folder_without_images_and_broken_image(tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
    words = ["benchmark", "data", "--config", "configs/t2t_vit_7.yaml", *keys(tmp_path)]
    assert f"the class folders of {tmp_path}/train hold no images" in error_line(*words)
    for split in ("train", "val"):
        (tmp_path / split / "a/x.jpg").write_bytes(b"")
    assert error_line(*words) == f"error: image {tmp_path}/train/a/x.jpg cannot be read: not an image"
