"""tools/check_data.py: what it finds and suggests, and that no file stops it."""

import json
import os
import shlex
import shutil
import struct
import zlib

import pytest
from conftest import ROOT, error_line, tool
from PIL import Image

from t2t_vit.config import CLASS_LISTS, load_config
from t2t_vit.data.dataset import load_data

DIGIT = ROOT / "lit_data/val/3/0045.png"


def make(root, spec, size=(40, 30), mode="RGB"):
    """spec {"train/cat": 2}: folders with that many pictures."""
    for folder, count in spec.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new(mode, size, 9 * i).save(root / folder / f"{i}.jpg")
    return root


def check(*words, status=0):
    """(finished process, report) of the command."""
    report = words[words.index("--data-path") + 1].parent / "report.json"
    done = tool("check_data", *words, "--jobs", 2, "--json", report, status=status)
    return done, json.loads(report.read_text())


def settings_of(done):
    """{key: value} of the suggested command, which must be the last line and one that training takes."""
    line = done.stdout.splitlines()[-1]
    words = shlex.split(line)
    config, pairs = words[words.index("--config") + 1], words[words.index("--config") + 2 :]
    overrides = dict(zip(pairs[::2], pairs[1::2]))
    overrides["DATA.PATH"] = os.path.abspath(overrides.pop("--data-path"))
    if not load_config(ROOT / config).MODEL.NAME:
        assert overrides.pop("--pretrained") == "WEIGHTS"
    return overrides, load_config(ROOT / config, overrides.items())


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """(finished process, report, root) of a data set with every fault that a file can have."""
    root = make(
        tmp_path_factory.mktemp("spoilt") / "set", {"train/ant": 3, "train/bee": 2, "test/ant": 1, "test/bee": 1}
    )
    ant, bee = root / "train/ant", root / "train/bee"
    (ant / "link.jpg").symlink_to(root / "nowhere.jpg")
    (ant / "empty.png").write_bytes(b"")
    (ant / "text.jpg").write_text("no picture")
    (bee / "cut.jpg").write_bytes((bee / "0.jpg").read_bytes()[:-60])
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (bee / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    (bee / "folder.jpg").mkdir()
    (bee / "notes.txt").write_text("")
    (bee / ".hidden.jpg").write_text("")
    shutil.copy(DIGIT, ant / "really_a_png.jpg")
    Image.new("CMYK", (64, 64)).save(ant / "cmyk.jpg")
    Image.new("P", (64, 64)).save(ant / "palette.png", transparency=0)
    return *check("--data-path", root, status=1), root


def test_unreadable_files_are_listed_with_their_reasons(spoilt):
    done, report, root = spoilt
    reasons = report["splits"]["train"]["unreadable"]
    expected = {
        "ant/empty.png": "cannot be read: not an image",
        "ant/link.jpg": "ant/link.jpg ",
        "ant/text.jpg": "cannot be read: not an image",
        "bee/bomb.png": "could be decompression bomb",
        "bee/cut.jpg": "cannot be read: ",
    }
    assert list(reasons) == [f"{root}/train/{name}" for name in expected]
    for reason, part in zip(reasons.values(), expected.values()):
        assert part in reason and f"  {reason}\n" in done.stdout
    assert "fault: 5 of 13 images of train cannot be read\n" in done.stdout
    assert "note: repair or remove the unreadable images of train: too many to skip\n" in done.stdout
    assert done.stderr == "error: 1 fault would stop or harm training, see above\n"
    assert "DATA.ON_ERROR" not in done.stdout


def test_readable_files_are_described(spoilt):
    done, report, root = spoilt
    train = report["splits"]["train"]
    assert train["files"] == 13 and report["splits"]["val"]["files"] == 2
    assert train["modes"] == {"RGB": 5, "L": 1, "CMYK": 1, "P": 1}
    assert train["sides"] == {"30": 5, "8": 1, "64": 2}
    assert train["classes"] == {"ant": 9, "bee": 4}
    lines = done.stdout.splitlines()
    assert lines[0] == f"train: 13 images in 2 classes, 5 unreadable ({root}/train)"
    assert "  shorter side in pixels: 8 to 64, median 30" in lines
    assert "  images per class: 4 to 9, median 9" in lines


def test_training_accepts_the_suggested_command(spoilt):
    done, report, root = spoilt
    overrides, cfg = settings_of(done)
    assert done.stdout.endswith(report["command"] + "\n")
    assert overrides["MODEL.NUM_CLASSES"] == "2" and overrides["NAME"] == overrides["DATA.NAME"] == "set"
    classes, splits = load_data(cfg)
    assert classes.folders == ("ant", "bee") and len(splits["train"]) == 13


def test_shipped_data_has_no_fault():
    done = tool("check_data", "--jobs", 2)
    assert done.stderr == ""
    assert "train: 1,437 images in 10 classes, 0 unreadable" in done.stdout
    assert "val: 360 images in 10 classes, 0 unreadable" in done.stdout
    assert "fault" not in done.stdout and "note" not in done.stdout
    assert done.stdout.splitlines()[-1] == "python tools/train.py --config configs/lit_data.yaml"


def test_few_unreadable_training_images_may_be_skipped_but_none_of_validation(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 100, "train/bee": 99, "val/ant": 1, "val/bee": 1})
    (root / "train/bee/bad.jpg").write_bytes(b"")
    done, report = check("--data-path", root, status=1)
    assert settings_of(done)[1].DATA.ON_ERROR == "skip"
    (root / "val/bee/bad.jpg").write_bytes(b"")
    done, report = check("--data-path", root, status=1)
    assert "fault: 1 of 3 images of val cannot be read\n" in done.stdout
    assert "note: repair or remove the unreadable images of val: validation counts every image\n" in done.stdout


# --- Classes ---


@pytest.mark.parametrize("large, is_noted", [(20, True), (19, False)])
def test_classes_of_very_different_sizes_are_a_note(tmp_path, large, is_noted):
    root = make(tmp_path / "set", {"train/ant": large, "train/bee": 2, "val/ant": 1, "val/bee": 12})
    line = "note: the classes of train have 2 to 20 images; TRAIN.SAMPLER balanced or TRAIN.CLASS_WEIGHTS auto evens"
    assert (line in check("--data-path", root)[0].stdout) == is_noted


def test_data_that_training_refuses_is_explained(tmp_path):
    root = make(tmp_path / "own data", {"train/ant": 2, "train/bee": 1, "train/fly": 0, "val/ant": 1, "val/bee": 1})
    done, report = check("--config", "configs/t2t_vit_7.yaml", "--data-path", root, status=1)
    listed = CLASS_LISTS["imagenet1k"]
    assert f"fault: {root}/train has 3 classes not in {listed}: ant, bee, fly\n" in done.stdout
    assert report["splits"]["train"]["classes"] == {"ant": 2, "bee": 1, "fly": 0}
    assert 'DATA.CLASSES "" MODEL.NUM_CLASSES 3' in done.stdout.splitlines()[-1]
    cfg = settings_of(done)[1]
    assert cfg.MODEL.NAME == "t2t_vit_7" and load_data(cfg)[0].folders == ("ant", "bee", "fly")
    # Its own command has no fault; the empty class is a note.
    words = shlex.split(done.stdout.splitlines()[-1])[2:]
    done = tool("check_data", *words)
    assert "note: 1 of 3 classes have no image in train: fly\n" in done.stdout
    assert done.stdout.splitlines()[-1] == f"python tools/train.py {shlex.join(words)}".replace("''", '""')


def test_wrong_number_of_classes_is_a_fault_only_with_a_config(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 1, "train/bee": 1, "val/ant": 1})
    assert check("--data-path", root)[1]["faults"] == []
    fault = f"MODEL.NUM_CLASSES is 10 but {root}/train has 2 classes"
    assert check("--config", "configs/lit_data.yaml", "--data-path", root, status=1)[1]["faults"] == [fault]
    report = check("--data-path", root, "MODEL.NUM_CLASSES", 10, "DATA.CLASSES", "", status=1)[1]
    assert report["faults"] == [fault] and report["settings"]["MODEL.NUM_CLASSES"] == 2


def test_validation_class_without_training_images_is_a_fault(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 1, "train/bee": 1, "train/fly": 0, "val/fly": 1, "val/wasp": 1})
    report = check("--data-path", root, status=1)[1]
    assert report["faults"] == ["2 of val's classes without an image in train: fly, wasp"]


def test_class_list_beside_the_data_is_used_and_checked(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 1, "train/bee": 1, "val/ant": 1})
    (root / "classes.txt").write_text("bee\nant\nwasp\n")
    done, report = check("--data-path", root)
    assert report["settings"]["MODEL.NUM_CLASSES"] == 3
    assert "1 of 3 classes have no image in train: wasp" in report["notes"]
    (root / "classes.txt").write_text("bee\nwasp\n")
    report = check("--data-path", root, status=1)[1]
    assert f"{root}/train has 1 class not in {root}/classes.txt: ant" in report["faults"]
    (root / "classes.txt").write_text("bee\nbee\n")
    report = check("--data-path", root, status=1)[1]
    assert report["faults"] == [f"class list {root}/classes.txt names bee more than once"]


def test_part_of_imagenet_keeps_its_ids(imagenet_sample, tmp_path):
    shutil.copytree(imagenet_sample / "train", tmp_path / "set/train")
    (tmp_path / "set/val").symlink_to(tmp_path / "set/train")
    done, report = check("--data-path", tmp_path / "set")
    assert report["settings"] == {
        "TRAIN.BATCH_SIZE": 4,
        "TRAIN.GLOBAL_BATCH": 4,
    }  # of 16 images
    assert "984 of 1000 classes have no image in train: n01440764" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(
        f"--config configs/t2t_vit_7.yaml --data-path {tmp_path}/set TRAIN.BATCH_SIZE 4 TRAIN.GLOBAL_BATCH 4"
    )


# --- Layouts ---


def test_list_files_with_relative_and_absolute_paths(tmp_path):
    root = make(tmp_path / "set", {"pictures": 4, "val/x": 2})
    (root / "train list.txt").write_text(f"pictures/0.jpg 0\n{root}/pictures/1.jpg 2\npictures/gone.jpg 2\n")
    (root / "v.txt").write_text("x/0.jpg 0\nx/1.jpg 3\n")
    done, report = check("--data-path", root, "DATA.TRAIN_LIST", "train list.txt", "DATA.VAL_LIST", "v.txt", status=1)
    assert report["splits"]["train"]["classes"] == {"0": 1, "2": 2}
    assert list(report["splits"]["train"]["unreadable"]) == [f"{root}/pictures/gone.jpg"]
    assert "1 of val's classes without an image in train: 3" in report["faults"]
    assert report["settings"]["MODEL.NUM_CLASSES"] == 4
    assert "DATA.TRAIN_LIST 'train list.txt'" in report["command"]


def test_other_split_is_checked_despite_a_bad_list_file(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 2, "train/bee": 1, "val/ant": 2})
    for text, fault in (
        (None, "not found"),
        ("ant/0.jpg\n", "line 1: expected 'relative/path label'"),
        ("ant/7.jpg 0\n", "names ant/7.jpg, which is in none of"),
        ("ant/0.jpg 99999999999\n", "line 1: label 99999999999 is out of range, it is too large"),
    ):
        if text:
            (root / "v.txt").write_text(text)
        report = check("--data-path", root, "DATA.VAL_LIST", "v.txt", status=1)[1]
        assert fault in report["faults"][0]
        assert report["splits"]["train"]["files"] == 3


def test_labels_of_a_list_file_against_the_class_list(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 2, "train/bee": 1, "val/x": 3})
    (root / "v.txt").write_text("x/0.jpg ant\nx/1.jpg 1\n")
    (root / "classes.txt").write_text("ant\nbee\n")
    report = check("--data-path", root, "DATA.VAL_LIST", "v.txt")[1]
    assert report["splits"]["val"]["classes"] == {"ant": 1, "bee": 1}
    (root / "v.txt").write_text("x/0.jpg ant\nx/1.jpg 1\nx/2.jpg 2\n")
    report = check("--data-path", root, "DATA.VAL_LIST", "v.txt", status=1)[1]
    absent, misfit = report["faults"]
    assert absent == "1 of val's classes without an image in train: 2"
    assert misfit.endswith("v.txt, line 3: label 2 is out of range, the last of 2 classes is 1 (MODEL.NUM_CLASSES)")


def test_folder_of_class_folders_or_one_split_can_be_validated(tmp_path):
    root = make(tmp_path / "pictures", {"ant": 2, "bee": 1})
    done, report = check("--data-path", root)
    assert report["splits"].keys() == {"val"} and report["splits"]["val"]["classes"] == {"ant": 2, "bee": 1}
    assert "note: there is no training split: this data can only be used for validation\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("python tools/val.py ")
    make(tmp_path / "set", {"train/ant": 1, "train/bee": 1, "validation/bee": 1})
    done, report = check("--data-path", tmp_path / "set/validation")
    assert report["splits"].keys() == {"val"} and report["settings"]["MODEL.NUM_CLASSES"] == 2


def test_a_part_of_the_classes_to_validate_names_the_key(tmp_path):
    """As ImageNet-R: 2 of ImageNet's classes."""
    root = make(tmp_path / "imagenet-r", {"n01440764": 1, "n01443537": 1})
    words = ("--config", "configs/t2t_vit_7.yaml", "--data-path", root)
    line = "note: 998 of 1000 classes have no image in val: n01484850"
    hint = "; VAL.CLASSES_ONLY True leaves them out of the predictions\n"
    assert line in (out := check(*words)[0].stdout) and hint in out
    assert line in (out := check(*words, "VAL.CLASSES_ONLY", "True")[0].stdout) and hint not in out


def test_folder_of_class_folders_is_split(tmp_path):
    root = make(tmp_path / "my pictures", {"ant": 12, "bee": 8})
    done, report = check("--data-path", root)
    overrides, cfg = settings_of(done)
    assert (
        f"{root} has no validation folder: DATA.VAL_FRACTION 0.2 holds out a part of it for validation"
        in report["notes"]
    )
    assert done.stdout.splitlines()[-1].startswith("python tools/train.py ") and overrides["DATA.VAL_FRACTION"] == "0.2"
    splits = load_data(cfg)[1]
    for name in ("train", "val"):
        assert report["splits"][name]["files"] == len(splits[name])
        assert sum(report["splits"][name]["classes"].values()) == len(splits[name])
    # The config for it needs no other key and gives no fault.
    done, report = check("--config", "configs/finetune.yaml", "--data-path", root)
    assert report["faults"] == [] and settings_of(done)[1].MODEL.NUM_CLASSES == 0
    assert set(report["settings"]) == {"TRAIN.BATCH_SIZE"}  # 20 images are less than a step of 32
    make(root, {"fly": 1})
    report = check("--config", "configs/finetune.yaml", "--data-path", root, status=1)[1]
    assert (
        "fewer than 2 images, but DATA.VAL_FRACTION needs" in report["faults"][0] and "fly (1)" in report["faults"][0]
    )
    assert report["splits"]["train"]["files"] == 21


def test_training_folder_without_validation(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 6, "train/bee": 6})
    done, report = check("--data-path", root)
    overrides, cfg = settings_of(done)
    assert overrides["DATA.VAL_FRACTION"] == "0.2" and len(load_data(cfg)[1]["val"]) == report["splits"]["val"]["files"]
    line = f"{root}/train has no validation folder: DATA.VAL_FRACTION 0.2 holds out a part of it for validation"
    assert line in report["notes"]
    words = ["--config", "configs/lit_data.yaml", "--data-path", root, "MODEL.NUM_CLASSES", 2]
    assert check(*words, status=1)[1]["faults"] == [line]


def test_flat_splits_and_empty_folders(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 1, "train/bee": 1, "val": 3})
    done, report = check("--data-path", root, status=1)
    assert report["faults"] == [f"{root}/val has no class folders"]
    root = make(tmp_path / "empty", {"train/ant": 0, "train/bee": 0, "val/ant": 1})
    assert f"the class folders of {root}/train contain no images" in check("--data-path", root, status=1)[1]["faults"]
    root = make(tmp_path / "half", {"train/ant": 1, "train/bee": 1})
    (fault,) = check("--data-path", root, status=1)[1]["faults"]
    assert fault.startswith(f"data folder {root} has no val/ folder")


def test_nothing_to_check_is_one_line(tmp_path):
    line = error_line("check_data", "--data-path", tmp_path)
    assert line == f"error: data folder {tmp_path} has no val/ folder"
    assert "data folder /absent not found" in error_line("check_data", "--data-path", "/absent")
    assert "--jobs is 0 but must be 1 or more" in error_line("check_data", "--jobs", 0)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in error_line("check_data", "--json", tmp_path / "file/x.json")
    assert "unknown key DATA.PAHT" in error_line("check_data", "DATA.PAHT", "x")


def test_files_without_read_permission(tmp_path_factory):
    root = make(tmp_path_factory.mktemp("rights") / "set", {"train/ant": 2, "train/bee": 1, "val/ant": 1, "val/bee": 1})
    (root / "train/ant/1.jpg").chmod(0)
    if os.access(root / "train/ant/1.jpg", os.R_OK):
        pytest.skip("this user may read everything")
    done, report = check("--data-path", root, status=1)
    assert "Permission denied" in report["splits"]["train"]["unreadable"][f"{root}/train/ant/1.jpg"]
