"""Weights for another number of classes or another image size."""

import numpy as np
import official
import paddle
import peers
import pytest
from conftest import ROOT

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.models.position import resize_map, sinusoid_table
from t2t_vit.models.zoo import create_model
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint
from t2t_vit.weights.load import load_pretrained

T2T, PIT = "T2T_paddle/t2t_vit_7", "PaddleViT/pit_ti_224"


# --- Another number of classes ---


def test_training_keeps_a_new_head_and_logs_it(tmp_path, lines):
    path = tmp_path / "w.pdparams"
    peers.save_paddle(path, peers.peer_tensors("PaddleViT/pit_ti_distilled_224"))
    cfg = load_config(ROOT / "configs/pit_ti_distilled.yaml", [("MODEL.NUM_CLASSES", "7"), ("DISTILL.TYPE", "")])
    step = TrainStep(cfg)
    heads = {name: value.numpy() for name, value in step.model.state_dict().items() if name.startswith("head")}
    assert len(heads) == 4
    step.start_from(path)
    expected = official.set_weights(create_model("pit_ti_distilled")).state_dict()
    for model in step.models().values():
        for name, value in model.state_dict().items():
            assert np.array_equal(value.numpy(), heads[name] if name in heads else expected[name].numpy()), name
    assert (
        f"{path}: loaded without the head, which is newly initialised: the file has 1000 classes, the model 7" in lines
    )
    with pytest.raises(UserError, match="it was trained for 1000 classes: set MODEL.NUM_CLASSES 1000?"):
        load_pretrained(create_model("pit_ti_distilled", num_classes=7), path)


def test_a_head_that_fits_is_loaded_in_training_too(tmp_path):
    path = tmp_path / "w.pdparams"
    peers.save_paddle(path, peers.peer_tensors(PIT))
    model = create_model("pit_ti")
    load_pretrained(model, path, head="fit")
    assert official.is_set(model)


def test_a_head_of_as_many_classes_is_not_said_to_be_left_out(tmp_path, lines):
    path = tmp_path / "w.pdparams"
    checkpoint.save(path, create_model("t2t_vit_7", num_classes=7, image_size=32, depth=1).state_dict())
    model = create_model("t2t_vit_7", num_classes=7, image_size=32, depth=1, embed_dim=128)
    with pytest.raises(UserError, match="w.pdparams"):
        load_pretrained(model, path, head="fit")
    assert not [line for line in lines if "without the head" in line]


# --- Another image size ---


def cubic_matrix(old, new):
    """(new, old) float64: cubic convolution (Keys, 1981) with a = -0.75, half-pixel centres, edges repeated."""

    def kernel(t, a=-0.75):
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    matrix = np.zeros([new, old])
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for column in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[row, min(max(column, 0), old - 1)] += kernel(centre - column)
    return matrix


def resized(table, grid):
    """(1, C, h, w) -> (1, C, *grid) in float64."""
    rows, columns = (cubic_matrix(old, new) for old, new in zip(table.shape[2:], grid))
    return np.einsum("ih,bchw,jw->bcij", rows, table.astype("float64"), columns)


@pytest.mark.parametrize("grid", [(24, 24), (12, 17), (7, 7)])
def test_bicubic_agrees_with_a_reference(grid):
    table = np.random.default_rng(0).standard_normal((1, 5, 14, 14)).astype("float32")
    ours = resize_map(paddle.to_tensor(table), grid).numpy()
    assert np.abs(ours - resized(table, grid)).max() < 1e-5
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.interpolate(torch.from_numpy(table), size=grid, mode="bicubic").numpy()
    assert np.abs(ours - theirs).max() < 1e-5


def t2t_file(path, table):
    peers.save_paddle(path, {**peers.peer_tensors(T2T), "pos_embed": table})
    return path


@pytest.mark.parametrize("mode", ["bicubic", "sinusoid"])
@pytest.mark.parametrize("size, grid", [(384, (24, 24)), ((192, 320), (12, 20))])
def test_trained_t2t_positions_are_resized(tmp_path, lines, mode, size, grid):
    table = np.random.default_rng(0).standard_normal((1, 197, 256)).astype("float32")
    path = t2t_file(tmp_path / "w.pdparams", table)
    model = create_model("t2t_vit_7", image_size=size)
    load_pretrained(model, path, pos_resize=mode)
    found = model.pos_embed.numpy()
    assert np.array_equal(found[:, 0], table[:, 0])
    as_map = table[:, 1:].reshape(1, 14, 14, 256).transpose(0, 3, 1, 2)
    expected = resized(as_map, grid).transpose(0, 2, 3, 1).reshape(1, -1, 256)
    assert np.abs(found[:, 1:] - expected).max() < 1e-5
    assert f"{path}: position embedding resized bicubically from 14x14 to {grid[0]}x{grid[1]}" in lines


def test_the_sinusoid_is_recomputed(tmp_path):
    path = t2t_file(tmp_path / "w.pdparams", sinusoid_table(197, 256).numpy())
    for mode, anew in (("sinusoid", True), ("bicubic", False)):
        model = create_model("t2t_vit_7", image_size=384)
        load_pretrained(model, path, pos_resize=mode)
        assert np.array_equal(model.pos_embed.numpy(), sinusoid_table(577, 256).numpy()) == anew


def test_the_same_size_leaves_positions_as_they_are(tmp_path):
    table = np.random.default_rng(0).standard_normal((1, 197, 256)).astype("float32")
    model = create_model("t2t_vit_7")
    load_pretrained(model, t2t_file(tmp_path / "w.pdparams", table))
    assert np.array_equal(model.pos_embed.numpy(), table)


def test_positions_that_are_not_a_square_are_refused(tmp_path):
    path = t2t_file(tmp_path / "w.pdparams", np.zeros([1, 200, 256], "float32"))
    with pytest.raises(UserError, match="position embedding has 199 positions, which do not form a square grid"):
        load_pretrained(create_model("t2t_vit_7"), path)


def test_pit_maps_are_resized(tmp_path):
    path = tmp_path / "w.pdparams"
    tensors = peers.peer_tensors(PIT)
    peers.save_paddle(path, tensors)
    model = create_model("pit_ti", image_size=(160, 224))
    load_pretrained(model, path)
    assert np.abs(model.pos_embed.numpy() - resized(tensors["pos_embed"], (19, 27))).max() < 1e-5
