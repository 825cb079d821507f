"""A mistake with a command is one line that names it, with nothing half-written."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT, error_line, tool
from test_commands import DIGIT, QUICK, SHIPPED

from t2t_vit import cli


def broken_copy(tmp_path, change):
    path = tmp_path / "w.pdparams"
    shutil.copy(SHIPPED, path)
    change(path)
    return path


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config", "absent.yaml"], "config absent.yaml not found"),
        (["TRAIN.EPOCH", "3"], "command line: unknown key TRAIN.EPOCH; did you mean TRAIN.EPOCHS"),
        (["TRAIN.EPOCHS", "many"], "TRAIN.EPOCHS must be of type int, not 'many'"),
        (["--batch-size", "0"], "BATCH_SIZE is 0 but must be 1 or more"),
        (["--data-path", "/absent"], "data folder /absent not found"),
        (["--device", "gpu"], "DEVICE is gpu but no GPU is available"),
        (["MODEL.NAME", "t2t_vit_8"], "unknown model 't2t_vit_8'; did you mean t2t_vit_7"),
        (["MODEL.T2T.NUM_HEADS", "5"], "128 is not divisible by 5 heads"),
        (["MODEL.NUM_CLASSES", "12"], "MODEL.NUM_CLASSES is 12 but .*classes.txt has 10 classes|MODEL.NUM_CLASSES 10"),
        (["--pretrained", "/absent.pdparams"], "absent.pdparams not found"),
    ],
)
@pytest.mark.parametrize("name", ["train", "val"])
def test_mistakes_are_one_line(name, words, message, tmp_path):
    weights = ["--pretrained", SHIPPED] if name == "val" else []
    assert re.search(message, error_line(name, "--output", tmp_path, *weights, *words))
    assert not list(tmp_path.iterdir())


def test_wrong_weights_are_one_line(tmp_path):
    truncated = broken_copy(tmp_path, lambda path: path.write_bytes(path.read_bytes()[:100000]))
    for name in ("val", "predict", "train"):
        line = error_line(name, "--config", "configs/lit_data.yaml", "--pretrained", truncated, "--output", tmp_path)
        assert "w.pdparams is damaged" in line
    line = error_line("val", "--pretrained", SHIPPED, "MODEL.T2T.DEPTH", 7)
    assert "does not fit the model" in line
    line = error_line("train", "--resume", SHIPPED, "--output", tmp_path)
    assert "is not a training state" in line


def test_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    line = error_line("train", "--output", tmp_path / "file/x", *QUICK)
    assert str(tmp_path / "file") in line
    line = error_line("predict", "--json", tmp_path / "file/x.json")
    assert str(tmp_path / "file") in line


def test_broken_training_image_is_one_line(tmp_path):
    for split in ("train", "val"):
        shutil.copytree(ROOT / "lit_data/val", tmp_path / "data" / split)
    (tmp_path / "data/train/3").joinpath("zero.png").write_bytes(b"")
    for workers in (0, 2):
        line = error_line("train", "--data-path", tmp_path / "data", "--output", tmp_path, *QUICK, "DATA.NUM_WORKERS",
                          workers)  # fmt: skip
        image = f"{tmp_path}/data/train/3/zero.png"
        assert line == f"error: image {image} cannot be read: not an image; nothing has been saved yet"
        assert (tmp_path / "lit_data.log").read_text().endswith(line + "\n")


def test_no_image_at_a_path_is_one_line(tmp_path):
    assert error_line("predict", tmp_path).endswith(f"in {tmp_path}")
    assert error_line("predict", "IMG_1.JPG") == "error: image IMG_1.JPG not found"
    done = tool("predict", "--pretrained", SHIPPED, DIGIT, "absent.png", status=1)
    assert str(DIGIT) in done.stdout
    assert done.stderr.splitlines() == ["error: image absent.png not found", "error: 1 of 2 images could not be read"]


def test_predict_takes_any_file_name(tmp_path):
    target, name = tmp_path / "out.json", os.fsdecode(b"\xff 3.png")
    shutil.copy(DIGIT, tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    tool("predict", tmp_path, "--json", target)
    assert list(json.loads(target.read_text())) == [f"{tmp_path}/{name}"]


def test_usage_errors_exit_with_2_and_debug_shows_the_traceback():
    assert "has no value" in tool("val", "SEED", status=2).stderr
    assert "unrecognized" in tool("val", "--no-such-flag", status=2).stderr
    assert "is empty" in tool("val", "--pretrained", "", status=2).stderr
    assert "Traceback" in tool("val", "--debug", "--data-path", "/absent", status=1).stderr


@pytest.mark.parametrize("words", ["train", "val", "predict", "export", "demo", "serve", "check_data",
                                   "benchmark train", "benchmark data", "benchmark serve", "visualize augment",
                                   "visualize attention"])  # fmt: skip
def test_help_shows_the_commands_own_options_first_and_examples_that_work(words):
    start = time.perf_counter()
    text = tool(*words.split(), "--help").stdout
    assert time.perf_counter() - start < 5
    own, common = text.split("options of all commands:")
    common, _, examples = common.partition("examples:")
    assert "\n  --config" not in own
    for flag in ("--config", "--data-path", "--batch-size", "--output", "--device", "--pretrained", "--debug"):
        assert flag in common
    assert "KEY VALUE" in own and "Exit status" in examples
    lines = re.findall(
        r"^  python tools/(\w+)\.py (.*)$|^  python tools/(?:demo|serve).py$", examples, flags=re.MULTILINE
    )
    assert len(lines) in (2, 3)
    for name, line in filter(any, lines):
        module, parts = importlib.import_module(name), line.split()
        if name in ("benchmark", "visualize"):
            kind, *parts = parts
            parser = module.benchmark_parser(kind) if name == "benchmark" else module.PICTURES[kind][1]()
        else:
            parser = module.parser()
        args = cli.parse_words(parts, parser)
        assert not args.config or "finetune/" in args.config or (ROOT / args.config).is_file()


def test_missing_packages_are_one_line():
    command = [sys.executable, "-S", str(ROOT / "tools/train.py")]  # -S: no site-packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*yacs, .* not installed in \S+; `source scripts/env.sh` .*\n", done.stderr)
