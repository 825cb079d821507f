"""predict.py --embeddings writes the features of pictures."""

import shutil

import numpy as np
import paddle
from conftest import ROOT, error_line, tool

import t2t_vit
from t2t_vit.config import load_config
from t2t_vit.deploy.open_model import open_weights
from t2t_vit.deploy.predict import find_images
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint

RUN = ROOT / "output/pretrained/lit_data"


def embeddings(file):
    with np.load(file) as stored:
        return stored["embeddings"], list(stored["files"])


def test_embeddings_are_the_pooled_features_of_each_picture(tmp_path):
    file, pictures = tmp_path / "features.npz", [f"lit_data/val/{digit}" for digit in (0, 1)]
    done = tool("predict", "--embeddings", file, *pictures, "--pretrained", RUN / "best.pdparams", "VAL.BATCH_SIZE", 7)
    found, files = embeddings(file)
    assert done.stdout.splitlines()[-1] == f"{file}: {len(files)} x {found.shape[1]} features"
    assert found.dtype == np.float32 and sorted(files) == sorted(map(str, find_images(pictures)))
    opened = open_weights(load_config(RUN / "config.yaml"), RUN / "best.pdparams")
    prepare = t2t_vit.preprocess(RUN / "best.pdparams")
    batch = paddle.to_tensor(np.stack([prepare(ROOT / name) for name in files[:3]]))
    with paddle.no_grad():
        expected = opened.model.forward_head(opened.model.forward_features(batch), pre_logits=True)
    np.testing.assert_allclose(found[:3], expected, atol=1e-5)


def test_embeddings_need_no_head(tmp_path):
    checkpoint.save(tmp_path / "backbone.pdparams", create_model("pit_ti", num_classes=0, image_size=32).state_dict())
    words = ("--embeddings", tmp_path / "x.npz", "--pretrained", tmp_path / "backbone.pdparams")
    tool("predict", *words, "--config", "configs/finetune.yaml", "lit_data/val/3/0045.png")
    assert embeddings(tmp_path / "x.npz")[0].shape == (1, 256)


def test_unreadable_pictures_are_listed_and_left_out(tmp_path):
    shutil.copy(ROOT / "lit_data/val/3/0045.png", tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    done = tool("predict", "--embeddings", tmp_path / "x.npz", tmp_path / "good.png", tmp_path / "bad.png", status=1)
    assert f"error: image {tmp_path}/bad.png cannot be read" in done.stderr
    assert embeddings(tmp_path / "x.npz")[1] == [f"{tmp_path}/good.png"]
    tool("predict", "--embeddings", tmp_path / "y.npz", tmp_path / "bad.png", status=1)
    assert not (tmp_path / "y.npz").exists()


def test_mistakes_with_embeddings_are_one_line(tmp_path):
    (tmp_path / "model.onnx").write_text("")
    file = tmp_path / "x.npz"
    line = error_line("predict", "--embeddings", file, "--pretrained", tmp_path / "model.onnx")
    assert line.endswith(
        "model.onnx is an exported model: give the weights that it was exported from with --pretrained"
    )
    assert "--engine onnxruntime runs an exported model" in error_line(
        "predict", "--embeddings", file, "--engine", "onnxruntime"
    )
    line = error_line("predict", "absent.jpg", "--embeddings", file, "VAL.TTA", "flip")
    assert line.endswith('--embeddings computes the features of one view, but VAL.TTA is flip: set VAL.TTA ""')
    assert "leave out --json" in error_line("predict", "--embeddings", file, "--json", tmp_path / "x.json")
    assert "must end in .npz" in tool("predict", "--embeddings", "lit_data/val/3/0045.png", status=2).stderr
    assert not file.exists()
