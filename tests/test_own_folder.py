"""A folder of class folders without train/ and val/: DATA.VAL_FRACTION splits it, MODEL.NUM_CLASSES 0 counts it."""

import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, error_line, tool
from test_data import make_folders, settings

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.holdout import held_out
from t2t_vit.data.paths import Paths

# A small step of the fine-tuning recipe for a user's own pictures.
TINY = ["MODEL.NAME", "t2t_vit_7", "MODEL.T2T.DEPTH", "1", "DATA.IMAGE_SIZE", "16", "DATA.NUM_WORKERS", "0",
        "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.BATCH_SIZE", "4"]  # fmt: skip


def own_config(root, share="0.2", **keys):
    return settings(DATA__PATH=str(root), MODEL__NUM_CLASSES="0", DATA__VAL_FRACTION=share, **keys)


def divided(root, *args, **keys):
    """{split: set of paths relative to the data folder}"""
    splits = load_data(own_config(root, *args, **keys))[1]
    return {name: {os.path.relpath(path, root) for path in split.paths} for name, split in splits.items()}


def grow(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# --- The division ---


def test_fraction_of_each_class_is_held_out(tmp_path):
    grow(tmp_path, [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(1000)])
    classes, splits = load_data(own_config(tmp_path))
    assert classes.folders == ("ant", "bee")
    counts = {name: np.bincount(split.labels) for name, split in splits.items()}
    assert (counts["train"] + counts["val"] == 1000).all()
    assert (abs(counts["val"] - 200) < 4 * 12.7).all()  # 4 standard deviations of 1000 draws
    for split in splits.values():
        folders = [os.path.basename(os.path.dirname(path)) for path in split.paths]
        assert folders == [classes.folders[label] for label in split.labels]
    parts = divided(tmp_path)
    assert not parts["train"] & parts["val"] and len(parts["train"] | parts["val"]) == 2000


def test_split_of_these_names_never_changes(tmp_path):
    # By hand: blake2b("42:ant/0.png"), 8 bytes, little-endian, over 2^64 is below 0.5 for these.
    grow(tmp_path, [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(6)])
    assert divided(tmp_path, "0.5")["val"] == {
        "ant/1.png",
        "ant/2.png",
        "ant/5.png",
        "bee/3.png",
        "bee/4.png",
        "bee/5.png",
    }


def test_pictures_added_later_do_not_move_others(tmp_path):
    grow(tmp_path, [f"{name}/{i}.png" for name in ("ant", "bee", "more/deep") for i in range(50)])
    before = divided(tmp_path)
    grow(tmp_path, [f"{name}/x{i}.png" for name in ("ant", "bee", "fly") for i in range(50)])
    after = divided(tmp_path)
    for name in ("train", "val"):
        assert before[name] < after[name]
    shutil.copytree(tmp_path, tmp_path / "elsewhere/pictures")
    moved = divided(tmp_path / "elsewhere/pictures")
    assert moved == after  # independent of the folder
    assert divided(tmp_path / "elsewhere/pictures", SEED="43") != after


def test_every_class_is_in_both_splits():
    for seed in range(200):
        names = (f"{name}/{i}.png" for name, count in (("ant", 2), ("bee", 3), ("fly", 9)) for i in range(count))
        paths = Paths.of(names, "/d")
        class_of = np.repeat([0, 1, 2], [2, 3, 9])
        for share in (1e-6, 0.2, 0.999):
            validates = held_out(paths, class_of, ["ant", "bee", "fly"], share, seed)
            counts = np.bincount(class_of[validates], minlength=3)
            assert (counts >= 1).all() and (counts < [2, 3, 9]).all()
            assert share == 0.2 or (counts == (1 if share < 0.2 else [1, 2, 8])).all()


def test_class_that_is_too_small_is_named(tmp_path):
    make_folders(tmp_path, {"ant": 2, "bee": 1, "fly": 0})
    with pytest.raises(UserError, match=r"fewer than 2 images, .* bee \(1\), fly \(0\); add images"):
        load_data(own_config(tmp_path))


def test_chosen_paths_are_those():
    paths = Paths.of(f"/d/{name}/{'x' * i}.png" for name in ("ant", "bee") for i in range(7))
    chosen = np.arange(14) % 3 == 1
    assert list(paths.where(chosen)) == [path for path, is_chosen in zip(paths, chosen) if is_chosen]
    assert list(paths.where(chosen)[-1:]) == ["/d/bee/xxxxxx.png"] and list(paths.where(chosen & False)) == []


# --- Which folders it applies to ---


def test_training_folder_without_validation_is_divided_and_a_validation_folder_is_used(tmp_path):
    make_folders(tmp_path, {"train/ant": 9, "train/bee": 9})
    parts = divided(tmp_path)
    assert len(parts["train"] | parts["val"]) == 18 and len(parts["val"]) >= 2
    assert divided(tmp_path / "train") == {k: {name[6:] for name in names} for k, names in parts.items()}
    make_folders(tmp_path, {"test/ant": 2, "test/bee": 1})
    parts = divided(tmp_path)
    assert len(parts["train"]) == 18 and parts["val"] == {"test/ant/0.png", "test/ant/1.png", "test/bee/0.png"}
    assert len(load_data(own_config(tmp_path / "test"), ["val"])[1]["val"]) == 3


def test_list_files_are_left_alone(tmp_path):
    make_folders(tmp_path, {"ant": 4, "bee": 4})
    (tmp_path / "t.txt").write_text("ant/0.png 0\nbee/0.png 1\n")
    cfg = own_config(tmp_path, "0.0", DATA__TRAIN_LIST="t.txt", DATA__VAL_LIST="t.txt")
    with pytest.raises(UserError, match="MODEL.NUM_CLASSES is 0 but list files name no classes"):
        load_data(cfg)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    splits = load_data(cfg)[1]
    assert list(splits["train"].paths) == list(splits["val"].paths) == [f"{tmp_path}/{n}/0.png" for n in ("ant", "bee")]


def test_training_list_alone_has_no_validation_split(tmp_path):
    # Otherwise the whole folder, with the images of the list, would be used for validation.
    make_folders(tmp_path, {"ant": 4, "bee": 4})
    (tmp_path / "t.txt").write_text("ant/0.png 0\nbee/0.png 1\n")
    with pytest.raises(UserError, match="DATA.VAL_FRACTION is 0.2 but must be 0.0 if DATA.TRAIN_LIST"):
        own_config(tmp_path, DATA__TRAIN_LIST="t.txt")
    with pytest.raises(UserError, match="has no val/ folder$"):
        load_data(settings(DATA__PATH=str(tmp_path), MODEL__NUM_CLASSES="2", DATA__TRAIN_LIST="t.txt"))


def test_fixes_are_suggested(tmp_path):
    make_folders(tmp_path / "a", {"ant": 2, "bee": 2})
    with pytest.raises(
        UserError, match=r"a has no train/ folder; DATA.VAL_FRACTION 0.2 holds out a part of each class"
    ):
        load_data(own_config(tmp_path / "a", "0.0"))
    make_folders(tmp_path / "b", {"train/ant": 2, "train/bee": 2})
    with pytest.raises(
        UserError, match=r"b has no val/ folder; DATA.VAL_FRACTION 0.2 holds out a part of train/ for validation"
    ):
        load_data(own_config(tmp_path / "b", "0.0"))
    make_folders(tmp_path / "c", {"val/ant": 2, "val/bee": 2})
    with pytest.raises(UserError, match=r"c has no train/ folder$"):
        load_data(own_config(tmp_path / "c"))
    make_folders(tmp_path / "e", {"": 2})
    with pytest.raises(UserError, match="e has no folders with pictures; make a folder for each class"):
        load_data(own_config(tmp_path / "e"))
    make_folders(tmp_path / "d", {"ant": 2})
    with pytest.raises(UserError, match="d has a single class, ant; training needs two or more"):
        load_data(own_config(tmp_path / "d"))


# --- Commands ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(pictures, run folder, output) of a training with configs/finetune.yaml."""
    place = tmp_path_factory.mktemp("own")
    for number in (3, 5, 8):
        (place / f"pictures/{number}").mkdir(parents=True)
        for picture in sorted((ROOT / f"lit_data/train/{number}").glob("*.png"))[:12]:
            shutil.copy(picture, place / f"pictures/{number}")
    words = ["--config", "configs/finetune.yaml", "--data-path", place / "pictures", "--output", place, *TINY]
    return place / "pictures", place / "finetune", tool("train", *words).stdout, words


def test_training_needs_only_the_path(run):
    pictures, folder, output, words = run
    parts = divided(pictures)
    number = len(parts["val"])
    assert f"data pictures: {36 - number} images to train, {number} images to validate;" in output
    assert load_config(folder / "config.yaml").MODEL.NUM_CLASSES == 3
    assert (folder / "classes.txt").read_text().splitlines()[1:] == ["0\t3\t3", "1\t5\t5", "2\t8\t8"]
    again = tool("train", *words).stdout
    assert "resumed " in again and "all done: 1 epoch;" in again


def test_a_head_for_other_classes_of_the_same_number_is_new(run, tmp_path):
    pictures, folder, _, words = run
    for number in (3, 5, 8):
        shutil.copytree(pictures / str(number), tmp_path / f"own/{9 - number}")  # 1, 4, 6
    best = folder / "best.pdparams"
    log = tool("train", *words, "--data-path", tmp_path / "own", "--output", tmp_path, "--pretrained", best).stdout
    assert (
        "best.pdparams: loaded without the head, which is newly initialised: the file has other classes, the model 3"
        in log
    )
    log = tool("train", *words, "--output", tmp_path / "same", "--pretrained", best).stdout
    assert "without the head" not in log


def test_run_folder_alone_is_enough_to_validate_and_predict(run, tmp_path):
    pictures, folder, output, words = run
    best = next(line.split()[-1] for line in output.splitlines() if line.startswith("pictures val acc is:")).split(":")[
        1
    ]
    number = len(divided(pictures)["val"])
    out = tool("val", "--pretrained", folder / "best.pdparams").stdout
    assert f"on {number} images of " in out and out.splitlines()[-1] == f"pictures final val acc is:{best}"
    assert f"on {36 - number} images of " in tool("val", "--config", folder / "config.yaml", "--split", "train").stdout
    shutil.copytree(folder, tmp_path / "run")  # predict needs no pictures of the training
    out = tool("predict", "--pretrained", tmp_path / "run/best.pdparams", "DATA.PATH", "/absent").stdout.splitlines()
    assert {line.split()[2] for line in out[1:-1]} == {"3", "5", "8"}


def test_number_of_classes_comes_from_the_weights_without_data(run, tmp_path):
    weights = tmp_path / "weights.pdparams"  # with no class list beside it
    shutil.copy(run[1] / "best.pdparams", weights)
    words = ["--config", "configs/finetune.yaml", "--pretrained", weights, *TINY]
    out = tool("predict", *words).stdout.splitlines()
    assert sorted(line.split()[1] for line in out[1:-1]) == ["0", "1", "2"]
    for words in ([], ["MODEL.NUM_CLASSES", "3"]):
        line = _two_classes(run, tmp_path, *words)
        assert "two has 2 classes but" in line and "best.pdparams was trained for 3" in line


def _two_classes(run, tmp_path, *words):
    """Error of the weights for three classes with data of two."""
    for number in (3, 5):
        if not (tmp_path / f"two/{number}").exists():
            shutil.copytree(run[0] / str(number), tmp_path / f"two/{number}")
    return error_line("val", "--config", "configs/finetune.yaml", "--pretrained", run[1] / "best.pdparams",
                      "--data-path", tmp_path / "two", *TINY, *words)  # fmt: skip
