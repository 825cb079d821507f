"""What tools/check_data.py says about unusual folders and pictures."""

import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, tool
from PIL import Image
from test_check_data import check, make


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """(finished process, report, root) of a data set of odd folders and pictures."""
    root = tmp_path_factory.mktemp("odd") / "set"
    make(root, {"train/ant": 3, "train/cafe\u0301": 2, "valid/ant": 1, "valid/caf\u00e9": 1, "test": 2}, (24, 24))
    make(root, {"train/ant/@eaDir/0.jpg": 1, "train/caf\u00e9/__MACOSX": 2, "train/lost+found": 1, "valid/.hidden": 1})
    turned = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    for number, orientation in enumerate((1, 3, 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned.save(root / f"train/ant/exif{number}.jpg", exif=exif, quality=90 + number)
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64).save(root / "train/ant/deep.png")
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(root / "train/ant/dim.png")
    Image.fromarray(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)).save(root / "valid/ant/float.tif")
    name = os.fsencode(root / "train/ant") + b"/\x1b[31m\xff\n.jpg"
    with open(name, "wb") as file:
        file.write(b"no picture")
    shutil.copy(root / "train/ant/exif0.jpg", root / "valid/ant")
    shutil.copy(root / "train/ant/exif0.jpg", root / "train/caf\u00e9/twice.jpg")
    return *check("--data-path", root, status=1), root


def test_rotated_and_deep_pictures_are_counted(odd):
    done, report, root = odd
    assert report["splits"]["train"]["rotated"] == 2 and report["splits"]["val"]["rotated"] == 0
    assert "  rotated or mirrored by EXIF (DATA.EXIF): images 2\n" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("  more than 8 bits")]
    assert lines == [f"  more than 8 bits, by Pillow mode: {mode}" for mode in ("I;16 2", "F 1")]


def test_composed_and_decomposed_names_are_one_class(odd):
    done, report, root = odd
    assert report["splits"]["train"]["classes"] == {"ant": 9, "caf\u00e9": 3}
    assert report["splits"]["val"]["classes"] == {"ant": 3, "caf\u00e9": 1}
    assert [fault for fault in report["faults"] if "class" in fault] == []


def test_duplicate_content_is_a_note(odd):
    done, report, root = odd
    notes = "\n".join(report["notes"])
    assert "images of train are copies of another image: " in notes
    assert "images of val are copies of images of train, which makes the accuracy too high: " in notes
    assert f"{root}/train/ant/exif0.jpg and {root}/valid/ant/exif0.jpg" in notes or "0.jpg and" in notes


def test_control_characters_in_names_are_escaped(odd):
    done, report, root = odd
    assert all(line.isprintable() for line in done.stdout.splitlines())
    (line,) = (line for line in done.stdout.splitlines() if "31m" in line)
    assert "cannot be read: not an image" in line


def test_duplicates_are_counted(tmp_path):
    for split, number in (("train", 3), ("val", 2)):
        shutil.copytree(ROOT / f"lit_data/val/{number}", tmp_path / f"set/{split}/{number}")
        (tmp_path / f"set/{split}/{5 - number}").mkdir()
    first, second = sorted((tmp_path / "set/train/3").iterdir())[:2]
    shutil.copy(first, first.with_name("z.png"))
    shutil.copy(first, tmp_path / "set/val/3")
    shutil.copy(second, tmp_path / "set/val/3")
    lines = tool("check_data", "--jobs", 1, "--data-path", tmp_path / "set", status=1).stdout.splitlines()
    assert f"note: 1 images of train are copies of another image: {first} and {first.with_name('z.png')}" in lines
    line = "note: 2 images of val are copies of images of train, which makes the accuracy too high: "
    assert f"{line}{first} and {tmp_path}/set/val/3/{first.name}" in lines


def test_tiff_that_exif_rotates_is_counted(tmp_path):
    root = make(tmp_path / "set", {"train/ant": 1, "train/bee": 1, "val/ant": 1, "val/bee": 1})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(root / "train/ant/x.tif", exif=exif)
    assert check("--data-path", root)[1]["splits"]["train"]["rotated"] == 1


# --- List files ---


@pytest.fixture
def lists(tmp_path):
    """(root, words of the command) of a data set with a class list of two classes and two list files."""
    root = make(tmp_path / "set", {"train/x": 3, "val/x": 3})
    (root / "classes.txt").write_text("ant\nbee\n")
    (root / "t.txt").write_text("x/0.jpg 0\nx/1.jpg 1\nx/2.jpg 7\n")
    (root / "v.txt").write_text("x/0.jpg 0\nx/1.jpg bee\n")
    words = ["--config", "configs/lit_data.yaml", "--data-path", root]
    return root, [*words, "DATA.TRAIN_LIST", "t.txt", "DATA.VAL_LIST", "v.txt", "MODEL.NUM_CLASSES", 2]


def test_label_out_of_range_leaves_both_splits_checked(lists):
    root, words = lists
    (root / "train/x/1.jpg").write_bytes(b"")
    done, report = check(*words, status=1)
    assert report["faults"] == [
        f"{root}/t.txt, line 3: label 7 is out of range, the last of 2 classes is 1 (MODEL.NUM_CLASSES)",
        "1 of 3 images of train cannot be read",
    ]
    assert report["splits"]["train"]["classes"] == {"ant": 1, "bee": 1, "7": 1}
    assert "there is no training split" not in done.stdout
    assert report["command"].startswith("python tools/train.py ")
    assert "MODEL.NUM_CLASSES" not in report["settings"]  # the class list has two


def test_training_list_that_cannot_be_read_is_a_training_split(lists):
    root, words = lists
    (root / "t.txt").write_text("x/0.jpg\n")
    done, report = check(*words, status=1)
    assert report["splits"].keys() == {"val"} and "line 1: expected 'relative/path label'" in report["faults"][0]
    assert "there is no training split" not in done.stdout
    assert report["command"].startswith("python tools/train.py ")
