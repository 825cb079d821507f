"""Test-time augmentation: the views of an image, and their mean."""

import json

import numpy as np
import paddle
import pytest
from conftest import ROOT, few_digits, tool
from PIL import Image
from test_evaluation import figures

from t2t_vit.config import load_config
from t2t_vit.data import reading
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image, to_array
from t2t_vit.data.loader import EvalLoader
from t2t_vit.data.transforms import EvalTransform, num_views
from t2t_vit.training.class_counts import confused_pairs
from t2t_vit.training.evaluator import evaluate
from t2t_vit.weights.build import build_trained_model

CONFIG = ROOT / "configs/lit_data.yaml"


def lit_config(*pairs):
    return load_config(CONFIG, pairs)


def photo():
    with Image.open(ROOT / "docs/figures/attention.jpg") as image:
        return image.convert("RGB").crop((0, 0, 333, 250))


@pytest.mark.parametrize("tta, count", [("", 1), ("flip", 2), ("five", 5), ("ten", 10)])
def test_views_are_crops_of_the_resized_image_and_their_mirror_images(tta, count):
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("VAL.TTA", tta), ("DATA.IMAGE_SIZE", "64")])
    transform, image = EvalTransform(cfg), photo()
    views = transform.views(image)
    resized = to_array(image.resize((94, 71), Image.Resampling.BICUBIC))  # 64 / 0.9 = 71.1; 71 * 333 / 250 = 94.6
    assert (transform(image) == resized[4:68, 15:79]).all()  # 3.5 and 15, rounded to even as by torchvision
    corners = [resized[:64, :64], resized[:64, -64:], resized[-64:, :64], resized[-64:, -64:]]
    crops = [transform(image), *corners][: 1 if tta in ("", "flip") else 5]
    expected = crops + [crop[:, ::-1] for crop in crops] * (tta in ("flip", "ten"))
    assert num_views(cfg) == len(expected) == count
    assert (views == (np.stack(expected) if tta else expected[0])).all()
    assert views.shape == ((count,) if tta else ()) + (64, 64, 3)


def test_a_squashed_image_can_be_mirrored():
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("VAL.TTA", "flip"), ("VAL.CROP_MODE", "squash")])
    whole, mirrored = EvalTransform(cfg).views(photo())
    assert (whole == to_array(photo().resize((224, 224), Image.Resampling.BICUBIC))).all()
    assert (mirrored == whole[:, ::-1]).all()


def mean_logits(tta, paths):
    """Logits of the shipped model, the mean over views that are computed one by one."""
    cfg = lit_config(("VAL.TTA", tta), ("VAL.CROP_PCT", "0.8"), ("MODEL.NUM_CLASSES", "10"))
    model, _ = build_trained_model(cfg, None)
    views = np.stack([EvalTransform(cfg).views(load_image(path, cfg.DATA.CHANNELS)) for path in paths])
    views = views.reshape(len(paths), -1, 16, 16, cfg.DATA.CHANNELS).astype(np.float32) / 255
    views = (views - np.float32(cfg.DATA.MEAN)) / np.float32(cfg.DATA.STD)
    with paddle.no_grad():
        each = [model(paddle.to_tensor(views[:, i].transpose(0, 3, 1, 2))).numpy() for i in range(views.shape[1])]
    return np.mean(each, axis=0, dtype=np.float64)


@pytest.mark.parametrize("tta", ["flip", "ten"])
def test_val_and_predict_average_the_logits(tmp_path, tta):
    words = [*few_digits(tmp_path, 2), "VAL.TTA", tta, "VAL.CROP_PCT", 0.8]
    paths = [ROOT / "lit_data/val" / line.split()[0] for line in (tmp_path / "val.txt").read_text().splitlines()]
    logits, labels = mean_logits(tta, paths), np.repeat(np.arange(10), 2)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found, log = figures(*words)
    assert found["loss"] == pytest.approx(-log_p[range(20), labels].mean(), rel=1e-5)
    assert found["top1"] == (logits.argmax(1) == labels).mean() and found["num_images"] == 20
    assert found["tta"] == tta and f", VAL.TTA {tta}" in log
    tool("predict", *paths, "--config", CONFIG, "--json", tmp_path / "p.json", *words[-4:])
    predictions = list(json.loads((tmp_path / "p.json").read_text()).values())
    assert [entry["class_id"] for entry in predictions] == logits.argmax(1).tolist()
    assert [entry["probability"] for entry in predictions] == pytest.approx(np.exp(log_p.max(1)), abs=2e-6)


def test_without_views_nothing_changes():
    """Pixels, logits and scores are bit for bit those of one forward pass over the centre crops."""
    cfg = lit_config(("VAL.BATCH_SIZE", "90"), ("MODEL.NUM_CLASSES", "10"))
    split = load_data(cfg, ["val"])[1]["val"]
    model, _ = build_trained_model(cfg, None)
    images, _ = next(iter(EvalLoader(split, cfg)))
    pixels = np.stack([EvalTransform(cfg)(load_image(path, cfg.DATA.CHANNELS)) for path in split.paths[:90]])
    assert images.shape == [90, 16, 16, 3] and (images.numpy() == pixels).all()
    seen, passes = [], []

    def forward(batch):
        passes.append(model(batch))
        return passes[-1]

    evaluate(forward, EvalLoader(split, cfg), cfg, None, lambda logits, _: seen.append(logits.numpy()))
    assert len(seen) == 4 and all((logits == each.numpy()).all() for logits, each in zip(seen, passes))


def test_views_count_in_shared_memory():
    one, ten = (reading._read_ahead(lit_config(("VAL.TTA", tta))) for tta in ("", "ten"))
    cfg = lit_config()
    assert ten - one == 9 * cfg.VAL.BATCH_SIZE * (cfg.TRAIN.ACCUM_STEPS + 1) * 16 * 16 * 3


def test_pairs_of_classes_are_counted_from_the_matrix():
    assert confused_pairs(np.array([[3, 1, 0], [2, 0, 0], [0, 0, 4]])) == [(1, 0, 2, 1.0), (0, 1, 1, 0.25)]
