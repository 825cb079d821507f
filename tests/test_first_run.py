"""The first minutes: a run of one epoch, weights that bring their model."""

import re
import shutil

import numpy as np
import peers
import pytest
from conftest import ROOT, error_line, few_digits, tool

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.layout import with_data_name
from t2t_vit.models.zoo import create_model
from t2t_vit.training.schedule import learning_rate
from t2t_vit.weights import checkpoint
from t2t_vit.weights.model_config import with_model_of

SEVEN = ROOT / "output/pretrained/cifar10_seven/best.pdparams"
SMALL = ["MODEL.T2T.DEPTH", 1, "MODEL.T2T.EMBED_DIM", 32, "MODEL.T2T.TOKEN_DIM", 8]


def schedule(name, *pairs, notes=None):
    """(EPOCHS, WARMUP_EPOCHS, COOLDOWN_EPOCHS) of a config with TRAIN keys set on the command line."""
    train = load_config(name, [(f"TRAIN.{key}", str(value)) for key, value in pairs], notes).TRAIN
    return train.EPOCHS, train.WARMUP_EPOCHS, train.COOLDOWN_EPOCHS


@pytest.mark.parametrize("name", ["cifar10", "cifar10_augment", "finetune"])
def test_small_recipes_learn_from_the_first_step(name):
    train = load_config(ROOT / f"configs/{name}.yaml").TRAIN
    assert learning_rate(0, train) >= train.BASE_LR / 5


# --- Short runs ---


def test_one_epoch_is_one_epoch_in_all(tmp_path):
    words = ["--output", tmp_path, *few_digits(tmp_path), *SMALL, "TRAIN.EPOCHS", 1]
    done = tool("train", *words, fresh=False)
    assert "Epoch [1/1], avg_Loss" in done.stdout and "Epoch [2/" not in done.stdout
    note = "short run, TRAIN.EPOCHS 1: TRAIN.WARMUP_EPOCHS 0 instead of 3, TRAIN.COOLDOWN_EPOCHS 0 instead of 2"
    assert note in (tmp_path / "lit_data.log").read_text().splitlines()
    assert schedule(tmp_path / "lit_data/config.yaml") == (1, 0, 0)
    assert "--resume none starts a new run" in tool("train", *words, fresh=False).stdout


@pytest.mark.parametrize(
    "name, pairs, expected",
    [
        ("configs/t2t_vit_7.yaml", [], (300, 10, 10)),
        ("configs/pit_ti.yaml", [], (300, 5, 0)),
        ("configs/paddle_pit_pit_ti.yaml", [], (300, 20, 10)),
        ("configs/lit_data.yaml", [], (38, 3, 2)),
        ("configs/t2t_vit_7.yaml", [("EPOCHS", 100)], (100, 10, 10)),
        ("configs/t2t_vit_7.yaml", [("EPOCHS", 20)], (20, 6, 2)),
        ("configs/t2t_vit_7.yaml", [("EPOCHS", 2)], (2, 0, 0)),
        ("configs/t2t_vit_7.yaml", [("EPOCHS", 2), ("COOLDOWN_EPOCHS", 10), ("WARMUP_EPOCHS", 1)], (2, 1, 10)),
    ],
)
def test_warmup_and_cooldown_fit_the_epochs_unless_they_are_given(name, pairs, expected):
    notes = []
    assert schedule(name, *pairs, notes=notes) == expected
    assert bool(notes) == (expected[:2] in ((20, 6), (2, 0)))


def test_files_are_fitted_like_the_command_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("TRAIN: {EPOCHS: 5}")
    assert schedule(path) == (5, 1, 0)
    path.write_text("TRAIN: {EPOCHS: 5, WARMUP_EPOCHS: 4, COOLDOWN_EPOCHS: 3}")
    assert schedule(path) == (5, 4, 3) and schedule(path, ("EPOCHS", 6)) == (6, 2, 0)
    with pytest.raises(UserError, match="TRAIN.EPOCHS is -1 but must be 1 or more"):
        schedule(path, ("EPOCHS", -1))


@pytest.mark.parametrize("better", ["raw", "ema"])
def test_best_weights_are_the_better_of_raw_and_average(tmp_path, better):
    """A good model with a broken head learns, or a good model is broken by training; the average stays behind."""
    weights = checkpoint.read(ROOT / "output/pretrained/lit_data/best.pdparams")
    rate = 0.05
    if better == "raw":
        weights["head.weight"], weights["head.bias"] = (
            np.roll(weights[f"head.{part}"], 1, -1) for part in ("weight", "bias")
        )
        rate = 0.01
    checkpoint.save(tmp_path / "start.pdparams", weights)
    words = [
        "--output",
        tmp_path,
        "--pretrained",
        tmp_path / "start.pdparams",
        *few_digits(tmp_path),
        "TRAIN.EPOCHS",
        1,
    ]
    words += [
        "TRAIN.BASE_LR",
        rate,
        "TRAIN.FREEZE",
        '["*", "!head*"]',
        "TRAIN.EMA_DECAY",
        0.9999,
        "TRAIN.BATCH_SIZE",
        5,
    ]
    words += ["TRAIN.OPTIMIZER", "adamw"] if better == "raw" else ["TRAIN.WEIGHT_DECAY", 0.99, "TRAIN.FREEZE", "[]"]
    log = tool("train", *words, fresh=False).stdout
    raw, ema = (float(re.search(rf"lit_data val acc is:(\S+){end}\n", log)[1]) for end in ("", r" \(EMA\)"))
    assert (raw > ema + 0.3) if better == "raw" else (ema > raw + 0.3)
    mark = " (EMA)" if better == "ema" else ""
    assert f"best so far, saved as best.pdparams{mark}\n" in log
    assert f"done: best lit_data val acc {max(raw, ema):.4f} at epoch 1{mark} in " in log
    assert f'"best": "{better}"' in (tmp_path / "lit_data/metrics.jsonl").read_text()
    best, state = (checkpoint.read(tmp_path / f"lit_data/{name}.pdparams") for name in ("best", "latest"))
    own = state["model" if better == "raw" else "ema"]
    assert all((best[name] == value).all() for name, value in own.items())


# --- Weights bring their model ---


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of class folders of digits."""
    folder = tmp_path_factory.mktemp("own") / "pets"
    for number in (3, 5, 8):
        (folder / str(number)).mkdir(parents=True)
        for picture in sorted((ROOT / f"lit_data/train/{number}").glob("*.png"))[:12]:
            shutil.copy(picture, folder / str(number))
    return folder


def test_finetuning_takes_the_model_from_beside_the_weights(pets, tmp_path):
    words = ["--config", "configs/finetune.yaml", "--data-path", pets, "--output", tmp_path, "--batch-size", 8]
    words += ["TRAIN.EPOCHS", 1]
    line = error_line("train", *words)
    assert line == (
        "error: MODEL.NAME is empty and no weights choose the model: set MODEL.NAME, or add --pretrained FILE to "
        "train, val, predict, export or visualize"
    )
    assert not list(tmp_path.iterdir())
    log = tool("train", *words, "--pretrained", SEVEN, "TRAIN.EPOCHS", 1, fresh=False).stdout
    assert "model t2t_vit_7 for 3 channels of 32x32 pixels, as in output/pretrained/cifar10_seven/config.yaml" in log
    assert "pets val acc is:" in log
    own, theirs = (load_config(path) for path in (tmp_path / "finetune/config.yaml", SEVEN.with_name("config.yaml")))
    assert own.MODEL.T2T == theirs.MODEL.T2T and own.MODEL.NUM_CLASSES == 3
    for key in ("IMAGE_SIZE", "CHANNELS", "MEAN", "STD"):
        assert own.DATA[key] == theirs.DATA[key]
    # The run itself knows its model: to continue, and to be used.
    assert "--resume none starts a new run" in tool("train", *words, fresh=False).stdout
    best = tmp_path / "finetune/best.pdparams"
    for words in (["--pretrained", best], ["--config", "configs/finetune.yaml", "--output", tmp_path]):
        out = tool("val", *words, "--data-path", pets).stdout
        assert out.splitlines()[-1].startswith("pets final val acc is:")


def test_files_of_other_programs_are_recognised_by_their_shapes(tmp_path):
    finetune = load_config(ROOT / "configs/finetune.yaml")
    path = tmp_path / "theirs.pdparams"
    peers.save_paddle(path, peers.peer_tensors("PaddleViT/pit_ti_224"))
    (tmp_path / "config.yaml").write_text("MODEL: {TYPE: PiT, NAME: other}")  # of another program
    cfg = with_model_of(finetune, path)
    assert (cfg.MODEL.NAME, cfg.DATA.IMAGE_SIZE, cfg.DATA.CHANNELS) == ("pit_ti", 224, 3)
    assert cfg.DATA.MEAN == [0.485, 0.456, 0.406] and cfg.DATA.STD == [0.229, 0.224, 0.225]
    state = create_model("t2t_vit_14", image_size=64, num_classes=5).state_dict()
    peers.save_paddle(path, {name: value.numpy() for name, value in state.items()})
    cfg = with_model_of(finetune, path)
    assert (cfg.MODEL.NAME, cfg.DATA.IMAGE_SIZE) == ("t2t_vit_14", 64)  # t2t_vit_14_resnext has the same shapes
    for channels, mean in ((1, [0.449]), (2, None)):
        weights = create_model("t2t_vit_7", num_classes=5, in_chans=channels, image_size=64).state_dict()
        peers.save_paddle(path, {name: value.numpy() for name, value in weights.items()})
        if mean:
            assert mean == with_model_of(finetune, path).DATA.MEAN
        else:
            with pytest.raises(UserError, match="theirs.pdparams has 2 input channels"):
                with_model_of(finetune, path)
    (tmp_path / "alone").mkdir()
    shutil.copy(SEVEN, tmp_path / "alone/best.pdparams")  # without the config of its run
    with pytest.raises(UserError, match="alone/best.pdparams .* fits no variant: set MODEL.NAME"):
        with_model_of(finetune, tmp_path / "alone/best.pdparams")


def test_what_the_command_line_sets_wins_over_the_weights():
    pairs = [("DATA.IMAGE_SIZE", "64"), ("DATA.MEAN", "[0.5, 0.5, 0.5]"), ("MODEL.NAME", "t2t_vit_10")]
    cfg = with_model_of(load_config(ROOT / "configs/finetune.yaml", pairs), SEVEN)
    assert (cfg.DATA.IMAGE_SIZE, cfg.DATA.MEAN) == (64, [0.5, 0.5, 0.5])
    assert (cfg.MODEL.NAME, cfg.MODEL.T2T.DEPTH) == ("t2t_vit_10", 0)
    cfg = with_model_of(load_config(ROOT / "configs/finetune.yaml", [("MODEL.NAME", "t2t_vit_7")]), SEVEN)
    assert cfg.MODEL.T2T.EMBED_DIM == 96
    recipe = load_config(ROOT / "configs/t2t_vit_14.yaml")
    assert with_model_of(recipe, SEVEN) is recipe  # a config that names its model keeps it


@pytest.mark.parametrize("folder", ["pets", "pets/train", "pets/train/train"])
def test_data_is_named_after_its_folder(folder):
    own = load_config(ROOT / "configs/finetune.yaml", [("DATA.PATH", f"/some/{folder}")])
    assert with_data_name(own).DATA.NAME == "pets"
    cfg = load_config(ROOT / "configs/lit_data.yaml", [("DATA.PATH", f"/some/{folder}")])
    assert with_data_name(cfg).DATA.NAME == "lit_data"
