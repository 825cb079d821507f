"""The commands as a user runs them: their output and files."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT, SAMPLE_DATA, few_digits, tool
from PIL import Image

# One short epoch of a model that takes a second.
QUICK = ["MODEL.T2T.EMBED_DIM", 32, "MODEL.T2T.DEPTH", 1, "MODEL.T2T.TOKEN_DIM", 8, "TRAIN.BATCH_SIZE", 64]
QUICK += [
    "CPU.MICRO_BATCH",
    0,
    "TRAIN.EPOCHS",
    2,
    "TRAIN.WARMUP_EPOCHS",
    0,
    "TRAIN.COOLDOWN_EPOCHS",
    0,
    "TRAIN.EMA_DECAY",
    0.9,
]
TRAIN_LINE = re.compile(
    r"Epoch \[\d+/\d+\], Step \[\d+/\d+\], Loss: \d+\.\d{4}, acc: \d\.\d{4}, read_time: \d+\.\d{4}, "
    r"train_time: \d+\.\d{4}, lr: \d\.\d{6}"
)
PROGRESS = r"\d\d:\d\d:\d\d, images/s: \d+\.\d, ETA: \d+:\d\d:\d\d"
SHIPPED = ROOT / "output/pretrained/lit_data/best.pdparams"
DIGIT = ROOT / "lit_data/val/3/0045.png"


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """(finished process, output folder) of a short training."""
    output = tmp_path_factory.mktemp("run")
    return tool("train", "--output", output, *QUICK, fresh=True), output


def test_training_prints_the_promised_lines_and_fills_its_folder(quick_run):
    done, output = quick_run
    lines = done.stdout.splitlines()
    assert sum(bool(TRAIN_LINE.fullmatch(line)) for line in lines) == 2 * 3  # steps 10, 20 and the last, 22
    assert sum(bool(re.fullmatch(PROGRESS, line)) for line in lines) == 1  # at most once a minute
    epoch = rf"Epoch \[\d/2\], avg_Loss: \S+, avg_acc: \S+, {PROGRESS}"
    assert sum(bool(re.fullmatch(epoch, line)) for line in lines) == 2
    assert not [line for line in lines if len(line.replace(str(output), "output")) > 110]
    assert sum(bool(re.fullmatch(r"lit_data val acc is:0\.\d{4}", line)) for line in lines) == 2
    assert re.search(
        r"\d+ decayed in \d+ tensors, [\d,]+ undecayed in \d+ tensors, \S+ frozen in 3 tensors", done.stdout
    )
    assert re.fullmatch(r"latest: raw 0\.\d{4}, ema 0\.\d{4} in \S+latest.pdparams", lines[-2])
    assert re.fullmatch(r"done: best lit_data val acc 0\.\d{4} at epoch \d( \(EMA\))? in \S+best.pdparams", lines[-1])
    assert done.stderr == ""
    folder = output / "lit_data"
    assert sorted(p.name for p in folder.iterdir()) == [
        "best.pdparams", "classes.txt", "config.yaml", "latest.1.pdparams", "latest.pdparams", "metrics.jsonl",
        "times.jsonl",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert (output / "lit_data.log").read_text() == done.stdout


def test_val_agrees_with_training(quick_run):
    done, output = quick_run
    best = max(re.findall(r"val acc is:(\S+)", done.stdout))
    # config.yaml beside the weights is found.
    lines = tool("val", "--pretrained", output / "lit_data/best.pdparams").stdout.splitlines()
    assert lines[-1] == f"lit_data final val acc is:{best}"
    assert re.fullmatch(r"Step \[\d+/\d+\], acc: 0\.\d{4}, read_time: \d+\.\d{4}", lines[-3])
    other = tool("val", "--pretrained", output / "lit_data/best.pdparams", "--batch-size", 7, "DATA.NUM_WORKERS", 1)
    assert other.stdout.splitlines()[-1] == lines[-1]


def test_training_starts_from_pretrained_weights(quick_run, tmp_path):
    _, output = quick_run
    weights = output / "lit_data/best.pdparams"
    done = tool("train", "--pretrained", weights, "--output", output, "NAME", "again", "TRAIN.EPOCHS", 1,
                "TRAIN.BASE_LR", 1e-9, "TRAIN.MIN_LR", 0.0, "TRAIN.WARMUP_LR", 0.0,
                *few_digits(tmp_path)[:2])  # fmt: skip
    best = max(re.findall(r"val acc is:(\S+)", (output / "lit_data.log").read_text()))
    assert f"lit_data val acc is:{best}" in done.stdout
    # The config still names the weights that it started from, but the run has better ones by now.
    assert f"PRETRAINED: {weights}" in (output / "again/config.yaml").read_text()
    assert f"with {output}/again/best.pdparams on" in tool("val", "--config", output / "again/config.yaml").stdout


# --- The published model ---


def test_shipped_model_agrees_with_its_log():
    done = tool("val")
    final = re.fullmatch(r"lit_data final val acc is:(0\.\d{4})", done.stdout.splitlines()[-1]).group(1)
    log = (ROOT / "log/pretrained/lit_data.log").read_text()
    assert f"lit_data val acc is:{final} (EMA)\nbest so far, saved as best.pdparams (EMA)\n" in log
    assert f"best lit_data val acc {final}" in log
    assert float(final) >= 0.97
    rows = [json.loads(line) for line in (ROOT / "output/pretrained/lit_data/metrics.jsonl").read_text().splitlines()]
    assert f"{max(row['val_ema_top1'] for row in rows):.4f}" == final
    assert rows[0]["val_top1"] > 0.2  # the first epoch already learns


def test_val_on_a_split_folder_and_on_the_training_images(tmp_path):
    last = tool("val").stdout.splitlines()[-1]
    assert tool("val", "--data-path", ROOT / "lit_data/val").stdout.splitlines()[-1] == last
    assert "images: 50," in tool("val", "--split", "train", *few_digits(tmp_path, 5)).stdout


def test_predict_without_arguments_names_a_shipped_digit():
    lines = tool("predict", cwd="/").stdout.splitlines()
    assert lines[0].endswith("lit_data/val/3/0045.png")
    assert len(lines) == 7 and lines[-1] == "class_id is: 3"
    assert re.fullmatch(r"  0\.\d{4} +3  three", lines[1])


def test_predict_files_folders_globs_and_json(tmp_path):
    target = tmp_path / "out.json"
    done = tool("predict", ROOT / "lit_data/val/7", DIGIT, f"{ROOT}/lit_data/val/1/*0.png", "--json", target,
                "--top-k", 2, "VAL.BATCH_SIZE", 16)  # fmt: skip
    results = json.loads(target.read_text())
    sevens = len(list((ROOT / "lit_data/val/7").iterdir()))
    ones = len(list((ROOT / "lit_data/val/1").glob("*0.png")))
    assert len(results) == len(done.stdout.splitlines()) == sevens + ones + 1
    right = sum(str(entry["class_id"]) == path.split("/")[-2] for path, entry in results.items())
    assert right >= 0.9 * len(results)
    entry = results[str(DIGIT)]
    assert entry["name"] == "three" and len(entry["top"]) == 2
    assert entry["top"][0]["probability"] >= entry["top"][1]["probability"]
    assert re.search(rf"{DIGIT} \(class: 3\) three, prob: ", done.stdout)


def test_predict_continues_after_unreadable_images(tmp_path):
    for name in ("a.png", "c.png"):
        shutil.copy(DIGIT, tmp_path / name)
    (tmp_path / "b.jpg").write_text("text")
    target = tmp_path / "out.json"
    done = tool("predict", tmp_path, "--json", target, status=1)
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.splitlines()[1:] == [  # after the line that says which weights these are
        f"error: image {tmp_path}/b.jpg cannot be read: not an image",
        "error: 1 of 3 images could not be read",
    ]
    results = json.loads(target.read_text())
    assert "error" in results[f"{tmp_path}/b.jpg"] and results[f"{tmp_path}/c.png"]["class_id"] == 3


def test_weights_of_other_classes_give_a_warning(tmp_path):
    for folder in (ROOT / "lit_data/val").iterdir():
        shutil.copytree(folder, tmp_path / "val" / f"c{folder.name}")
    done = tool("val", "--data-path", tmp_path, "--pretrained", SHIPPED)
    assert re.fullmatch(
        rf"warning: class 0 is c0 in {tmp_path}/val but 0 in \S+/classes.txt; DATA.CLASSES FILE .*\n", done.stderr
    )


def test_renamed_run_uses_its_own_weights(tmp_path):
    shutil.copytree(SHIPPED.parent, tmp_path / "renamed")
    done = tool("val", "--config", tmp_path / "renamed/config.yaml")
    assert f"with {tmp_path}/renamed/best.pdparams on" in done.stdout


def test_closed_pipe_is_not_an_error():
    command = f"{sys.executable} {ROOT}/tools/predict.py --pretrained {SHIPPED} {ROOT}/lit_data/val | head -1"
    assert subprocess.run(command, shell=True, capture_output=True, text=True).stderr == ""


def test_prediction_does_not_depend_on_the_batch(tmp_path):
    folder = ROOT / "lit_data/val/5"
    for size in (1, 50):
        tool("predict", folder, "--batch-size", size, "--json", tmp_path / f"{size}.json")
    a, b = (json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 50))
    assert {path: entry["class_id"] for path, entry in a.items()} == {p: entry["class_id"] for p, entry in b.items()}


# --- Real pictures ---


def test_t2t_vit_learns_real_pictures(imagenet_sample, tmp_path):
    """A block at 64x64 memorises 16 ImageNet pictures; val and predict then know them by their ImageNet ids."""
    # At 64 pixels the official crop would show another part of a picture than the one that was learnt.
    model = ["--config", "configs/t2t_vit_7.yaml", "DATA.IMAGE_SIZE", 64, "VAL.CROP_PCT", 1.0]
    model += ["MODEL.T2T.DEPTH", 1]
    words = [*model, "--data-path", imagenet_sample, "DATA.TRAIN_LIST", "train.txt", "DATA.VAL_LIST", "val.txt",
             "DATA.NUM_WORKERS", 0, "--output", tmp_path]  # fmt: skip
    recipe = ["--batch-size", 16, "TRAIN.GLOBAL_BATCH", 0, "TRAIN.EPOCHS", 30, "TRAIN.WARMUP_EPOCHS", 2]
    recipe += ["TRAIN.BASE_LR", 4e-3, "TRAIN.WARMUP_LR", 1e-4, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.LABEL_SMOOTHING", 0.0]
    recipe += ["MODEL.DROP_PATH_RATE", 0.0, "VAL.EVERY", 30]
    recipe += ["AUG.HFLIP", 0.0, "AUG.SCALE", "[0.9, 1.0]", "AUG.RATIO", "[1.0, 1.0]"]
    recipe += ["AUG.AUTO_AUGMENT", "", "AUG.COLOR_JITTER", 0.0, "AUG.ERASE_PROB", 0.0]
    recipe += ["AUG.MIXUP", 0.0, "AUG.CUTMIX", 0.0]
    done = tool("train", *words, *recipe)
    assert float(re.findall(r"avg_Loss: (\S+),", done.stdout)[-1]) < 0.1
    assert "984 of 1000 classes have no image" in done.stderr
    latest = tmp_path / "t2t_vit_7/latest.pdparams"
    done = tool("val", *words, "--split", "train", "--pretrained", latest)
    assert done.stdout.splitlines()[-1] == "ImageNet final val acc is:1.0000"
    target = tmp_path / "out.json"
    tool("predict", imagenet_sample / "train", "--pretrained", latest, "--json", target, *model)
    labels = dict(line.rsplit(None, 1) for line in (imagenet_sample / "train.txt").read_text().splitlines())
    results = json.loads(target.read_text())
    assert {os.path.relpath(path, imagenet_sample / "train"): str(entry["class_id"]) for path, entry in results.items()
            } == labels  # fmt: skip
    assert results[str(imagenet_sample / "train/n07579787/n07579787_1228.JPEG")]["name"] == "plate"


def test_convolution_model_trains_and_validates(tmp_path):
    words = ["--output", tmp_path, *QUICK, *few_digits(tmp_path), "TRAIN.EPOCHS", 1]
    words += ["MODEL.T2T.TOKENS_TYPE", "convolution"]
    assert "frozen in 1 tensor" in tool("train", *words).stdout  # pos_embed
    assert "lit_data final val acc is:" in tool("val", *words).stdout


def test_grey_model_trains_and_predicts(tmp_path):
    Image.open(DIGIT).convert("RGB").save(tmp_path / "x.png")
    grey = ["DATA.CHANNELS", 1, "DATA.MEAN", "[0.3]", "DATA.STD", "[0.35]"]
    tool("train", "--output", tmp_path, *QUICK, *grey, *few_digits(tmp_path), "TRAIN.EPOCHS", 1)
    assert "class_id is:" in tool("predict", "--output", tmp_path, *QUICK, *grey, tmp_path / "x.png").stdout


def test_published_cifar10_model_has_the_claimed_accuracy(tmp_path):
    archive = SAMPLE_DATA / "cifar10.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no CIFAR-10 pictures at {archive}; T2T_TEST_DATA names another folder")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, members=(m for m in tar if m.name.startswith("test/")), filter="data")
    config = ROOT / "configs/cifar10.yaml"
    done = tool("val", "--config", config, "--data-path", tmp_path)
    final = re.fullmatch(r"CIFAR-10 final val acc is:(0\.\d{4})", done.stdout.splitlines()[-1]).group(1)
    rows = [json.loads(line) for line in (ROOT / "output/pretrained/cifar10/metrics.jsonl").read_text().splitlines()]
    assert final == f"{max(row['val_top1'] for row in rows):.4f}"
    for text in (config.read_text(), (ROOT / "docs/benchmarks.md").read_text()):
        text = text.replace(" %", "%")
        assert f"{100 * float(final):.2f}%" in text and f"{100 * rows[-1]['val_top1']:.2f}%" in text
