"""Weights of every known program, also for another number of classes or another image size."""

import argparse
import copy
import logging
import os
import pickle
import sys

import numpy as np
import official
import paddle
import peers
import pytest
from conftest import ROOT

from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.config import load_config
from t2t_vit.models.position import resize_map, sinusoid_table
from t2t_vit.models.zoo import create_model
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint, torch_file
from t2t_vit.weights.build import build_trained_model
from t2t_vit.weights.identify import closest, identify
from t2t_vit.weights.load import load_pretrained

T2T, PIT = "T2T_paddle/t2t_vit_7", "PaddleViT/pit_ti_224"


def need_torch():
    return pytest.importorskip("torch", reason="PyTorch, which reads PyTorch files, is not installed")


@pytest.fixture
def lines():
    """What is logged during the test."""

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    found, handler = [], Keep()
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield found
    log.setLevel(level)
    log.removeHandler(handler)


def is_official(model, seed=0):
    """True if every tensor of `model` has its official value."""
    expected = official.set_weights(copy.deepcopy(model), seed).state_dict()
    return all(np.array_equal(value.numpy(), expected[name].numpy()) for name, value in model.state_dict().items())


# --- Each program's file ---


@pytest.mark.parametrize("peer, name", [
    ("T2T_paddle/t2t_vit_7", "t2t_vit_7"),
    ("PaddleViT/t2t_vit_7", "t2t_vit_7"),
    ("PaddleViT/t2t_vit_t_14", "t2t_vit_t_14"),
    ("PaddleViT/pit_ti_224", "pit_ti"),
    ("PaddleViT/pit_ti_distilled_224", "pit_ti_distilled"),
    ("paddle_pit/pit_ti", "pit_ti"),
])  # fmt: skip
def test_paddle_peers_compute_the_official_logits(tmp_path, peer, name):
    path = tmp_path / "theirs.pdparams"
    peers.save_paddle(path, peers.peer_tensors(peer))
    cfg = load_config(ROOT / f"configs/{name}.yaml", [("MODEL.PRETRAINED", str(path)), ("OUTPUT", str(tmp_path))])
    model, found = build_trained_model(cfg, None)
    assert found == path
    with paddle.no_grad():
        logits = model(paddle.to_tensor(official.images(2, 224))).numpy()
    golden = official.ARRAYS[f"{name}/logits"]
    assert np.abs(logits - golden).max() <= 1e-5 * np.abs(golden).max()


def test_averages_of_paddlevit_are_preferred(tmp_path):
    path = tmp_path / "training.pdparams"
    tree = {"model": peers.peer_tensors("PaddleViT/t2t_vit_7", seed=1), "epoch": 3,
            "model_ema": peers.peer_tensors("PaddleViT/t2t_vit_7"), "optimizer": {"lr": 0.1}}  # fmt: skip
    peers.save_paddle(path, tree)
    model = create_model("t2t_vit_7")
    load_pretrained(model, path)
    assert is_official(model)
    del tree["model_ema"]
    peers.save_paddle(path, tree)
    load_pretrained(model, path)
    assert is_official(model, seed=1)


def _with_module(tensors):
    return {f"module.{name}": value for name, value in tensors.items()}


@pytest.mark.parametrize("tree, options", [
    (lambda good, bad: good, {}),
    (lambda good, bad: {"state_dict": bad, "state_dict_ema": good, "epoch": 309, "arch": "t2t_vit_7",
                        "args": argparse.Namespace(lr=5e-4, data=["x"]), "optimizer": {"state": {}}}, {}),
    (lambda good, bad: {"state_dict": _with_module(good)}, {}),
    (lambda good, bad: {"net": _with_module(good), "acc": 98.3}, {}),
    (lambda good, bad: {"state_dict_ema": good}, {"_use_new_zipfile_serialization": False}),
], ids=["raw", "ema", "module", "transfer", "old_format"])  # fmt: skip
def test_official_t2t_files(tmp_path, tree, options):
    need_torch()
    path = tmp_path / "81.5_T2T_ViT_14.pth.tar"
    peers.save_torch(path, tree(peers.official_tensors(T2T), peers.official_tensors(T2T, seed=1)), **options)
    model = create_model("t2t_vit_7")
    load_pretrained(model, path)
    assert is_official(model)


@pytest.mark.parametrize("first", [None, 0, 1], ids=["official", "old_timm", "new_timm"])
def test_pit_files_of_official_code_and_timm(tmp_path, first):
    need_torch()
    tensors = peers.official_tensors("PaddleViT/pit_ti_distilled_224")
    if first is not None:
        for name in [name for name in tensors if name.startswith("pools.")]:
            _, pool, rest = name.split(".", 2)
            tensors[f"transformers.{int(pool) + first}.pool.{rest}"] = tensors.pop(name)
    assert len(tensors) == 162
    peers.save_torch(tmp_path / "pit.pth", tensors)
    model = create_model("pit_ti_distilled")
    load_pretrained(model, tmp_path / "pit.pth")
    assert is_official(model)


def test_safetensors(tmp_path):
    torch = need_torch()
    save = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    tensors = {name: torch.from_numpy(value) for name, value in peers.official_tensors(PIT).items()}
    for dtype, error in ((torch.float32, 0), (torch.float16, 1e-3)):
        save({name: value.to(dtype) for name, value in tensors.items()}, path, metadata={"format": "pt"})
        model = create_model("pit_ti")
        load_pretrained(model, path)
        expected = official.set_weights(create_model("pit_ti")).state_dict()
        for name, value in model.state_dict().items():
            assert np.allclose(value.numpy(), expected[name].numpy(), rtol=error, atol=error * 1e-3), name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="safetensors is damaged or not a safetensors weights file"):
        load_pretrained(model, path)
    save({name: value.to(torch.bfloat16) for name, value in tensors.items()}, path)  # a type that NumPy has not
    load_pretrained(model, path)
    assert np.array_equal(model.head.weight.numpy().T, tensors["head.weight"].bfloat16().float().numpy())


def test_half_precision_pytorch_files_become_float32(tmp_path):
    torch = need_torch()
    tensors = {name: torch.from_numpy(value).bfloat16() for name, value in peers.official_tensors(PIT).items()}
    torch.save(tensors, tmp_path / "x.bin")
    model = create_model("pit_ti")
    load_pretrained(model, tmp_path / "x.bin")
    assert model.head.weight.dtype == paddle.float32
    assert np.array_equal(model.head.weight.numpy().T, tensors["head.weight"].float().numpy())


def test_the_shapes_decide_the_layout_not_the_kind_of_file(tmp_path):
    path = tmp_path / "untransposed.pdparams"
    peers.save_paddle(path, peers.official_tensors(PIT))
    model = create_model("pit_ti")
    load_pretrained(model, path)
    assert is_official(model)
    mixed = {**peers.official_tensors(PIT), "transformers.0.blocks.0.attn.qkv.weight":
             peers.peer_tensors(PIT)["transformers.0.blocks.0.attn.qkv.weight"]}  # fmt: skip
    peers.save_paddle(path, mixed)
    with pytest.raises(UserError, match=r"mixes two layouts: .* but transformers.0.blocks.0.attn.qkv.weight is not"):
        load_pretrained(model, path)


def test_auxiliary_head_of_token_labeling_is_left_out_and_logged(tmp_path, lines):
    path = tmp_path / "w.pdparams"
    peers.save_paddle(path, {**peers.peer_tensors(T2T), "aux_head.weight": np.ones([256, 1000], "float32"),
                             "aux_head.bias": np.ones([1000], "float32")})  # fmt: skip
    model = create_model("t2t_vit_7")
    load_pretrained(model, path)
    assert is_official(model)
    assert [
        line
        for line in lines
        if line.endswith("left out aux_head.weight, aux_head.bias, which the models here do not have")
    ]


@pytest.mark.parametrize("name, also", [
    ("t2t_vit_7", []), ("t2t_vit_14", ["t2t_vit_14_resnext"]), ("t2t_vit_14_384", []), ("t2t_vit_t_14", []),
    ("pit_xs", []), ("pit_s_distilled", []),
])  # fmt: skip
def test_variants_are_recognised_by_their_shapes(name, also):
    found = identify({key: value.shape for key, value in create_model(name, num_classes=7).state_dict().items()})
    assert found[name] == {"num_classes": 7, "in_chans": 3, "image_size": 384 if "384" in name else 224}
    assert closest(found) == [name, *also]


# --- Files that do not fit, or that are no weights ---


@pytest.mark.parametrize("file, name", [("pit_ti_distilled", "pit_ti"), ("pit_ti", "pit_ti_distilled"),
                                        ("pit_ti", "t2t_vit_7")])  # fmt: skip
def test_the_right_model_is_named(tmp_path, file, name):
    checkpoint.save(tmp_path / "w.pdparams", create_model(file).state_dict())
    with pytest.raises(UserError, match=f"contains weights of {file}, not of {name}: change the model"):
        load_pretrained(create_model(name), tmp_path / "w.pdparams", head="fit")


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_code_in_a_file_is_not_run(tmp_path, kind):
    path, proof = tmp_path / "w.pth", tmp_path / "proof"
    tree = {"state_dict": {}, "x": _Malicious(proof)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(tree, protocol=2))
    else:
        need_torch().save(tree, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"w.pth refused: it contains \w+\.system, but weights are only arrays"):
        load_pretrained(create_model("pit_ti"), path)
    assert not proof.exists()


def test_damaged_and_empty_pytorch_files_are_named(tmp_path):
    torch = need_torch()
    path = tmp_path / "w.pth"
    peers.save_torch(path, peers.official_tensors(PIT))
    path.write_bytes(path.read_bytes()[:100000])
    with pytest.raises(UserError, match=r"w.pth is damaged or not a PyTorch weights file \("):
        load_pretrained(create_model("pit_ti"), path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="w.pth contains no weights: no tensors, only epoch"):
        load_pretrained(create_model("pit_ti"), path)


def test_pytorch_files_are_read_without_pytorch(tmp_path, monkeypatch):
    need_torch()
    for name, options in (("zip.pth", {}), ("legacy.pth", {"_use_new_zipfile_serialization": False})):
        peers.save_torch(tmp_path / name, peers.official_tensors(PIT), **options)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("zip.pth", "legacy.pth"):
        model = create_model("pit_ti")
        load_pretrained(model, tmp_path / name)
        assert is_official(model)


def test_old_format_is_always_little_endian(tmp_path):
    torch = need_torch()
    path = tmp_path / "w.pth"
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    torch.save({"head.weight": tensor}, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    flag = content.index(b"\x88", content.index(b"little_endian"))  # pickle's True
    content[flag] = 0x89
    path.write_bytes(content)
    assert torch.equal(torch.load(path)["head.weight"], tensor)
    assert (torch_file.read(path)["head.weight"] == tensor.numpy()).all()


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    # Paddle's softmax on a CPU turns NaN into plausible probabilities.
    tensors = peers.peer_tensors(PIT)
    tensors["norm.bias"][3] = np.nan
    peers.save_paddle(tmp_path / "w.pdparams", tensors)
    with pytest.raises(UserError, match="w.pdparams cannot be used: norm.bias contains NaN or infinity"):
        load_pretrained(create_model("pit_ti"), tmp_path / "w.pdparams")


def test_flipped_bits_and_empty_files_are_refused(tmp_path):
    need_torch()
    path = tmp_path / "w.pth"
    peers.save_torch(path, peers.official_tensors(PIT))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="w.pth is damaged .*Bad CRC-32 for file"):
        load_pretrained(create_model("pit_ti"), path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="w.pth is empty"):
        load_pretrained(create_model("pit_ti"), path)


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
    assert is_official(model)


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
    torch = need_torch()
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
