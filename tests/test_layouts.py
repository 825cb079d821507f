"""Real-world folder layouts: names of splits and classes, folders that programs add, links."""

import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, error_line, tool
from test_data import folder_config, make_folders
from test_own_folder import TINY, divided

from t2t_vit.common.errors import UserError
from t2t_vit.data.classes import class_order
from t2t_vit.data.dataset import load_data
from t2t_vit.training.resume import check_setting, setting


def names(root, **keys):
    """{split: set of paths relative to the data folder}, as found without DATA.VAL_FRACTION."""
    return divided(root, "0.0", **keys)


# --- Splits ---


@pytest.mark.parametrize(
    "train, val",
    [("Training", "Testing"), ("Train", "VAL"), ("training", "validation"), ("training_set", "test_set"),
     ("train", "valid"), ("seg_train/seg_train", "seg_test/seg_test"), ("train", "Test/Test")],
)  # fmt: skip
def test_usual_names_of_splits(tmp_path, train, val):
    make_folders(tmp_path, {f"{train}/ant": 1, f"{train}/bee": 2, f"{val}/ant": 1, f"{val}/bee": 1})
    expected = {"train": {f"{train}/ant/0.png", f"{train}/bee/0.png", f"{train}/bee/1.png"},
                "val": {f"{val}/ant/0.png", f"{val}/bee/0.png"}}  # fmt: skip
    assert names(tmp_path) == divided(tmp_path) == expected
    for split, folder in (("train", train), ("val", val)):  # the folder of a split, the outer or the inner one
        for given in {folder, folder.split("/")[0]}:
            found = load_data(folder_config(tmp_path / given), [split])[1][split]
            assert {os.path.relpath(path, tmp_path) for path in found.paths} == expected[split]
    with pytest.raises(UserError, match="is not a val folder; give the folder above it"):
        load_data(folder_config(tmp_path / train.split("/")[0]), ["val"])


def test_valid_comes_before_test(tmp_path):
    make_folders(tmp_path, {f"{split}/{name}": 1 for split in ("train", "valid", "test") for name in ("ant", "bee")})
    assert names(tmp_path)["val"] == {"valid/ant/0.png", "valid/bee/0.png"}


@pytest.mark.parametrize("flat", ["test", "test/test"])
def test_pictures_without_classes_are_no_validation_split(tmp_path, flat):
    make_folders(tmp_path, {"train/ant": 4, "train/bee": 4, flat: 3})
    with pytest.raises(
        UserError, match="has no val/ folder; DATA.VAL_FRACTION 0.2 holds out a part of train/ for validation"
    ):
        names(tmp_path)
    for root in (tmp_path, tmp_path / "train"):
        parts = divided(root)
        assert len(parts["train"] | parts["val"]) == 8 and parts["val"] and "test" not in str(parts)
    make_folders(tmp_path, {"val/bee": 1})
    assert names(tmp_path)["val"] == {"val/bee/0.png"}


def test_a_flat_validation_folder_is_named(tmp_path):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "val": 3, "test/ant": 1})
    with pytest.raises(UserError, match="val has no class folders"):
        names(tmp_path)


def test_the_folder_above_the_data_set_is_named(tmp_path):
    make_folders(tmp_path, {"set/train/ant": 1, "set/train/bee": 1, "set/val/bee": 1})
    with pytest.raises(UserError, match=rf"has a single class, set; .*; did you mean --data-path {tmp_path}/set\?$"):
        divided(tmp_path)


def test_a_path_that_is_not_a_folder_is_named(tmp_path):
    make_folders(tmp_path, {"set/train/ant": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder; give it with --data-path"):
        names(tmp_path / "file")


# --- Classes ---


def test_numbers_are_ordered_as_numbers():
    assert class_order(["10", "2", "1", "0"]) == ["0", "1", "2", "10"]
    assert class_order(["002", "10", "1"]) == ["1", "002", "10"]
    assert class_order(["10", "2", "x"]) == ["10", "2", "x"]
    assert class_order(["\u00b2", "10"]) == ["10", "\u00b2"]


def test_numbered_folders_are_the_classes_of_their_numbers(tmp_path):
    make_folders(tmp_path, {f"{split}/{i}": 1 for split in ("train", "val") for i in range(12)})
    classes, splits = load_data(folder_config(tmp_path, 12))
    assert classes.folders == tuple(map(str, range(12)))
    for split in splits.values():  # images keep the order of earlier versions, for runs that continue
        assert list(split.paths) == sorted(split.paths)
        assert [int(path.split("/")[-2]) for path in split.paths] == split.labels.tolist()


def test_a_run_continues_only_with_its_own_order_of_classes(tmp_path):
    for i in range(11):
        (tmp_path / f"set/{i}").mkdir(parents=True)
        for picture in sorted((ROOT / f"lit_data/val/{i % 10}").iterdir())[:3]:
            shutil.copy(picture, tmp_path / f"set/{i}")
    old = sorted(map(str, range(11)))  # from a version that sorted folders as text
    (tmp_path / "set/classes.txt").write_text("".join(f"{name}\n" for name in old))
    words = ["--config", "configs/finetune.yaml", "--data-path", tmp_path / "set", "--output", tmp_path, *TINY]
    tool("train", *words)
    (tmp_path / "set/classes.txt").unlink()
    own = tmp_path / "finetune/classes.txt"
    line = error_line("val", *words, "--pretrained", own.with_name("best.pdparams"))
    assert "class 2 is 2 in " in line and "the same classes in another order; set DATA.CLASSES to" in line
    line = error_line("train", *words, "NAME", "tuned", "--pretrained", own.with_name("best.pdparams"))
    assert "the same classes in another order; set DATA.CLASSES to" in line
    line = error_line("train", *words)
    assert f"class 2 is 2 in {tmp_path}/set but 10 in {own}; DATA.CLASSES {own} keeps the classes of the run" in line
    assert "all done: 1 epoch;" in tool("train", *words, "DATA.CLASSES", own).stdout


@pytest.mark.parametrize(
    "name", [b"a\tb", b"a\nb", b"\xc3\xa8x\xb9\xb7", b"a\x1b[31m", "a\u2028b".encode(), b"\xc2\x85"]
)
def test_class_names_that_no_list_can_hold_are_named_at_the_start(tmp_path, name):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "val/ant": 1})
    os.mkdir(os.fsencode(tmp_path / "train") + b"/" + name)
    with pytest.raises(UserError, match="rename it, because no class list can hold") as caught:
        names(tmp_path)
    assert str(caught.value).isprintable() and repr(os.fsdecode(name)) in str(caught.value)


def test_composed_and_decomposed_accents_are_the_same_class(tmp_path):
    composed, split = "caf\u00e9", "cafe\u0301"
    make_folders(tmp_path, {f"train/{split}": 2, "train/bee": 1, f"val/{composed}": 1, "val/bee": 1})
    classes, splits = load_data(folder_config(tmp_path))
    assert classes.folders == ("bee", composed) and splits["train"].labels.tolist() == [0, 1, 1]
    assert splits["val"].labels.tolist() == [0, 1]
    (tmp_path / "classes.txt").write_text(f"{split}\nbee\n")
    assert load_data(folder_config(tmp_path))[1]["val"].labels.tolist() == [1, 0]
    make_folders(tmp_path, {f"train/{composed}": 3})
    assert np.bincount(load_data(folder_config(tmp_path))[1]["train"].labels).tolist() == [5, 1]


def test_a_run_from_before_photos_were_rotated_is_not_continued_with_other_pixels(tmp_path):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "val/ant": 1, "val/bee": 1})
    cfg = folder_config(tmp_path)
    now = setting(cfg, load_data(cfg)[1])
    then = {key: value for key, value in now.items() if key != "upright"}
    with pytest.raises(UserError, match=r"rotation of photos by EXIF .none with DATA.EXIF ignore. was False, is True"):
        check_setting(then, now, "state")
    check_setting(then, {**now, "upright": False}, "state")


def test_resuming_with_files_of_other_sizes_is_a_warning(tmp_path, warned):
    make_folders(tmp_path, {"train/ant": 1200, "train/bee": 1, "val/ant": 1, "val/bee": 1})
    cfg = folder_config(tmp_path)
    then = setting(cfg, load_data(cfg)[1])
    (tmp_path / "train/ant/3.png").write_bytes(b"x")  # the sizes of every second of the 1201 are compared
    check_setting(then, setting(cfg, load_data(cfg)[1]), "state")
    assert warned.text == ""
    for path in (tmp_path / "train/ant").iterdir():
        path.write_bytes(path.read_bytes() + b"x")
    now = setting(cfg, load_data(cfg)[1])
    check_setting(then, now, "state")
    assert "checksum of the training files' sizes was" in warned.text and "validation files" not in warned.text
    warned.clear()
    check_setting({key: value for key, value in then.items() if not key.endswith("_sizes")}, now, "state")
    assert warned.text == ""  # a state of an earlier version


# --- Files that are not images of the class ---


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN"])
def test_folders_of_file_systems_and_programs_are_ignored(tmp_path, name):
    make_folders(tmp_path, {"ant": 3, f"ant/{name}/0.png": 1, "bee": 3, name: 1})
    for file in ("ant/._0.png", "ant/.DS_Store", "bee/Thumbs.db"):
        (tmp_path / file).write_text("")
    parts = divided(tmp_path)
    assert parts["train"] | parts["val"] == {f"{folder}/{i}.png" for folder in ("ant", "bee") for i in range(3)}


def test_links_upwards_and_to_themselves_are_not_followed(tmp_path):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "train/bee/more": 1, "val/bee": 1})
    (tmp_path / "train/ant/up").symlink_to("..")  # all images would be ants
    (tmp_path / "train/ant/top").symlink_to(tmp_path)
    (tmp_path / "train/ant/itself").symlink_to("itself")
    (tmp_path / "train/bee/more/up").symlink_to("..")
    (tmp_path / "train/itself").symlink_to("itself")
    assert load_data(folder_config(tmp_path))[1]["train"].labels.tolist() == [0, 1, 1]
    (tmp_path / "elsewhere").mkdir()  # where a class folder is a link
    shutil.move(tmp_path / "train/bee", tmp_path / "elsewhere/bee")
    (tmp_path / "elsewhere/bee/back").symlink_to(tmp_path / "train")
    (tmp_path / "train/bee").symlink_to(tmp_path / "elsewhere/bee")
    assert load_data(folder_config(tmp_path))[1]["train"].labels.tolist() == [0, 1, 1]
