"""Weights of every known program, and files that do not fit or are no weights."""

import argparse
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
from t2t_vit.config import load_config
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint, torch_file
from t2t_vit.weights.build import build_trained_model
from t2t_vit.weights.identify import closest, identify
from t2t_vit.weights.load import load_pretrained

T2T, PIT = "T2T_paddle/t2t_vit_7", "PaddleViT/pit_ti_224"


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
    assert official.is_set(model)
    del tree["model_ema"]
    peers.save_paddle(path, tree)
    load_pretrained(model, path)
    assert official.is_set(model, seed=1)


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
    peers.need_torch()
    path = tmp_path / "81.5_T2T_ViT_14.pth.tar"
    peers.save_torch(path, tree(peers.official_tensors(T2T), peers.official_tensors(T2T, seed=1)), **options)
    model = create_model("t2t_vit_7")
    load_pretrained(model, path)
    assert official.is_set(model)


@pytest.mark.parametrize("first", [None, 0, 1], ids=["official", "old_timm", "new_timm"])
def test_pit_files_of_official_code_and_timm(tmp_path, first):
    peers.need_torch()
    tensors = peers.official_tensors("PaddleViT/pit_ti_distilled_224")
    if first is not None:
        for name in [name for name in tensors if name.startswith("pools.")]:
            _, pool, rest = name.split(".", 2)
            tensors[f"transformers.{int(pool) + first}.pool.{rest}"] = tensors.pop(name)
    assert len(tensors) == 162
    peers.save_torch(tmp_path / "pit.pth", tensors)
    model = create_model("pit_ti_distilled")
    load_pretrained(model, tmp_path / "pit.pth")
    assert official.is_set(model)


def test_safetensors(tmp_path):
    torch = peers.need_torch()
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
    torch = peers.need_torch()
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
    assert official.is_set(model)
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
    assert official.is_set(model)
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
        peers.need_torch().save(tree, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"w.pth refused: it contains \w+\.system, but weights are only arrays"):
        load_pretrained(create_model("pit_ti"), path)
    assert not proof.exists()


def test_damaged_and_empty_pytorch_files_are_named(tmp_path):
    torch = peers.need_torch()
    path = tmp_path / "w.pth"
    peers.save_torch(path, peers.official_tensors(PIT))
    path.write_bytes(path.read_bytes()[:100000])
    with pytest.raises(UserError, match=r"w.pth is damaged or not a PyTorch weights file \("):
        load_pretrained(create_model("pit_ti"), path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="w.pth contains no weights: no tensors, only epoch"):
        load_pretrained(create_model("pit_ti"), path)


def test_pytorch_files_are_read_without_pytorch(tmp_path, monkeypatch):
    peers.need_torch()
    for name, options in (("zip.pth", {}), ("legacy.pth", {"_use_new_zipfile_serialization": False})):
        peers.save_torch(tmp_path / name, peers.official_tensors(PIT), **options)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("zip.pth", "legacy.pth"):
        model = create_model("pit_ti")
        load_pretrained(model, tmp_path / name)
        assert official.is_set(model)


def test_old_format_is_always_little_endian(tmp_path):
    torch = peers.need_torch()
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
    peers.need_torch()
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
