"""Weights inside wrappers of other programs are found, or refused in one line that describes the file."""

import argparse
import copy
import logging

import numpy as np
import official
import paddle
import peers
import pytest
from conftest import error_line

import convert
from t2t_vit.common.errors import UserError
from t2t_vit.config import default_config, with_keys
from t2t_vit.models.zoo import create_model
from t2t_vit.training import resume
from t2t_vit.weights import checkpoint
from t2t_vit.weights.formats import read_weights
from t2t_vit.weights.load import load_pretrained

PIT = "PaddleViT/pit_ti_224"


@pytest.fixture(scope="module")
def tensors():
    return peers.official_tensors(PIT)


def load(path):
    """The model with the weights of a file, which must be the official ones."""
    model = create_model("pit_ti")
    load_pretrained(model, path)
    expected = official.set_weights(copy.deepcopy(model)).state_dict()
    assert all(np.array_equal(value.numpy(), expected[name].numpy()) for name, value in model.state_dict().items())


def under(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("wrap", [
    lambda good: under("_orig_mod.", good),
    lambda good: {"model": under("module._orig_mod.", good)},
    lambda good: {"state_dict": under("model._forward_module.", good) | {"criterion.weight": np.ones(3)}, "epoch": 1},
    lambda good: {"model_state_dict": good, "epoch": 1},
    lambda good: {"weights of mine": under("module.model.", good), "optimizer": {"momentum": np.ones(3)}},
    lambda good: {"net": good, "acc": np.float64(71.3), "scores": [np.float32(1), (2, None)]},
    lambda good: good | {"total_ops": np.ones(1), "head.total_params": np.ones(1)},
    lambda good: under("module.", good) | {"n_averaged": np.ones(1)},
    lambda good: {name if name.startswith("head") else f"backbone.{name}": value for name, value in good.items()},
    lambda good: {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in good.items()},
])  # fmt: skip
def test_all_wrappers_are_removed(tmp_path, tensors, wrap):
    peers.need_torch()
    peers.save_torch(tmp_path / "w.pth", wrap(tensors))
    load(tmp_path / "w.pth")


def test_tensors_that_are_left_out_are_logged(tmp_path, tensors, caplog, monkeypatch):
    log = logging.getLogger("t2t")
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "t2t")
    peers.save_paddle(tmp_path / "w.pdparams", under("model.", tensors) | {"loss.a": np.ones(1), "loss.b": np.ones(1)})
    load(tmp_path / "w.pdparams")
    assert "loss.a, loss.b left out" in caplog.text


@pytest.mark.parametrize("tree, message", [
    (lambda good: {"student": good, "teacher": good}, "contains several models, student, teacher: keep one"),
    (lambda good: under("a.", good) | under("b.", good), "contains several models, a., b.: keep one"),
    (lambda good: under("_orig_mod.", good) | good, "contains .* twice: keep one"),
    (lambda good: {"linear_0.w_0_moment1_0": np.ones(2), "LR_Scheduler": {"last_lr": 0.1}}, "is an optimizer state"),
])  # fmt: skip
def test_ambiguous_files_are_refused(tmp_path, tensors, tree, message):
    peers.save_paddle(tmp_path / "w.pdparams", tree(tensors))
    with pytest.raises(UserError, match=f"w.pdparams .*{message}"):
        read_weights(tmp_path / "w.pdparams")


def test_models_with_numbers_for_names_are_refused(tmp_path, tensors):
    peers.need_torch()
    peers.save_torch(tmp_path / "w.pth", {0: tensors, 1: tensors})
    with pytest.raises(UserError, match="w.pth contains several models, 0, 1: keep one"):
        read_weights(tmp_path / "w.pth")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "w.pdparams").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert error_line("predict", "--pretrained", tmp_path / "w.pdparams").endswith(
        "w.pdparams is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
    )


def test_the_name_in_a_file_decides_between_equal_shapes(tmp_path, capsys):
    torch = peers.need_torch()
    model = create_model("t2t_vit_14_resnext", num_classes=2, image_size=32)
    other = create_model("t2t_vit_14", num_classes=2, image_size=32)
    source, output = tmp_path / "w.pth", tmp_path / "out.pdparams"
    state = {name: torch.from_numpy(value.numpy()) for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "arch": "my_own"}, source)
    load_pretrained(other, source)
    name = "T2t_vit_14_resnext"
    for said in ({"arch": name}, {"args": {"model": name}}, {"args": argparse.Namespace(model=name, lr=[1])}):
        torch.save({"state_dict": state, **said}, source)
        assert read_weights(source).variant == "t2t_vit_14_resnext"
    load_pretrained(model, source)
    with pytest.raises(UserError, match="is labelled t2t_vit_14_resnext, but .*: set MODEL.NAME t2t_vit_14_res"):
        load_pretrained(other, source)
    convert.main(convert.parser().parse_args([str(source), "--output", str(output)]))
    assert "--model t2t_vit_14_resnext, which the file names" in capsys.readouterr().out


def test_a_state_of_another_program_is_not_resumed(tmp_path, tensors):
    peers.need_torch()
    peers.save_torch(tmp_path / "last.pth.tar", {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {}}})
    with pytest.raises(
        UserError, match="last.pth.tar is a PyTorch file, .* --pretrained .*last.pth.tar starts from its weights"
    ):
        resume.find_state(str(tmp_path / "last.pth.tar"), None)
    checkpoint.save(tmp_path / "w.pdparams", {"a": paddle.ones([2])})
    with pytest.raises(UserError, match="is not a training state .* start from weights with --pretrained"):
        resume.find_state(str(tmp_path / "w.pdparams"), None)


def test_the_config_of_a_run_names_the_model_of_its_weights(tmp_path):
    path = tmp_path / "best.pdparams"
    checkpoint.save(path, {"a": paddle.ones([2])})
    cfg = default_config()
    for name, pairs, variant in (
        ("t2t_vit_14_resnext", {}, "t2t_vit_14_resnext"), ("t2t_vit_14", {"MODEL.T2T.NUM_HEADS": 12}, ""),
        ("pit_s", {"MODEL.PIT.HEADS": [1, 2, 4]}, ""), ("my_own", {}, ""),
    ):  # fmt: skip
        (tmp_path / "config.yaml").write_text(with_keys(cfg, {"MODEL.NAME": name, **pairs}).dump())
        assert read_weights(path).variant == variant
    (tmp_path / "config.yaml").write_text(with_keys(cfg, {"MODEL.NAME": "t2t_vit_14"}).dump())
    checkpoint.save(tmp_path / "resnext.pdparams", {"a": paddle.ones([2])})  # not a name that a run gives
    assert read_weights(path).variant == "t2t_vit_14" and read_weights(tmp_path / "resnext.pdparams").variant == ""
    for text in ("MODEL: 3", "- 1", "{", "a: " + "[" * 9999):
        (tmp_path / "config.yaml").write_text(text)
        assert read_weights(path).variant == ""
