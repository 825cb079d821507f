"""A new model family is one module and one entry in the zoo; then every command supports it."""

import math
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, few_digits, tool
from PIL import Image

sys.path.insert(0, str(ROOT / "tests/programs"))
import toy_family  # noqa: E402

from t2t_vit.bench.counts import macs, products  # noqa: E402
from t2t_vit.config import load_config  # noqa: E402
from t2t_vit.deploy.engines import open_predictor  # noqa: E402
from t2t_vit.models.zoo import FAMILIES, create_model, list_models  # noqa: E402
from t2t_vit.weights.build import build_model  # noqa: E402
from t2t_vit.weights.identify import closest, identify  # noqa: E402
from t2t_vit.weights.load import load_pretrained  # noqa: E402

CONFIG = """
MODEL: {NAME: toy_small, NUM_CLASSES: 10, DROP_PATH_RATE: 0.0}
DATA: {NAME: lit_data, PATH: lit_data, CLASSES: "", IMAGE_SIZE: 32, NUM_WORKERS: 0}
AUG: {AUTO_AUGMENT: "", COLOR_JITTER: 0.0, ERASE_PROB: 0.0, MIXUP: 0.0, CUTMIX: 0.0, HFLIP: 0.0}
TRAIN: {BATCH_SIZE: 50, EPOCHS: 2, WARMUP_EPOCHS: 0, COOLDOWN_EPOCHS: 0, BASE_LR: 2.0e-3}
VAL: {CROP_PCT: 1.0}
"""


@pytest.fixture(scope="module", autouse=True)
def _toy_in_the_zoo():
    FAMILIES.append(toy_family.FAMILY)
    yield
    FAMILIES.remove(toy_family.FAMILY)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config file of the toy."""
    path = tmp_path_factory.mktemp("toy") / "toy.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run(config):
    """The folder of a short training run of the toy."""
    words = few_digits(config.parent)
    output = config.parent / "output"
    done = tool("train", "--config", config, "--output", output, "LOG", output, "NAME", "toy", *words, fresh=False)
    assert "Epoch [2/2]" in done.stdout
    return output / "toy"


def trained_model(run):
    model = build_model(load_config(run / "config.yaml"))
    load_pretrained(model, run / "best.pdparams")
    model.eval()
    return model


def test_its_models_are_built_by_name_and_recognised_by_shapes():
    assert list_models()[-2:] == ["toy_small", "toy_large"]
    for name in ("toy_small", "toy_large"):
        model = create_model(name, num_classes=7, in_chans=1)
        found = identify({key: value.shape for key, value in model.state_dict().items()})
        assert found == {name: {"num_classes": 7, "in_chans": 1, "image_size": 32}} and closest(found) == [name]


@pytest.mark.parametrize("name", ["toy_small", "t2t_vit_7", "t2t_vit_t_14", "pit_ti", "pit_ti_distilled"])
def test_features_and_intermediate_tokens_of_every_family(name):
    paddle.seed(0)
    model, headless = (create_model(name, image_size=64 if name != "toy_small" else 32, num_classes=count)
                       for count in (3, 0))  # fmt: skip
    headless.set_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("head")})
    for each in (model, headless):
        each.eval()
    images = paddle.randn([2, 3, *model.image_size])
    with paddle.no_grad():
        logits, features, tokens = model(images), model.forward_features(images), model.forward_intermediates(images)
        assert (model(images) == logits).all(), "recording has changed the model"
        if name != "pit_ti_distilled":  # which averages its two tokens
            assert (headless(images) == features).all()
        T, backbone = model.cls_token.shape[1], model.backbone()
        assert [each.shape[:2] for each in tokens] == [[2, T + math.prod(place.grid)] for place in backbone]
        np.testing.assert_allclose(model.norm(tokens[-1])[:, 0], features, atol=1e-5)
    assert headless(images).shape == features.shape


def test_it_trains_and_validates(run, config):
    assert (run / "best.pdparams").is_file()
    done = tool("val", "--config", config, "--pretrained", run / "best.pdparams", fresh=False)
    assert "lit_data final val acc is:0." in done.stdout


@pytest.mark.parametrize("form, engine", [("paddle", "inference"), ("onnx", "onnxruntime")])
def test_the_exported_model_has_the_same_logits(run, form, engine, tmp_path):
    if form == "onnx":
        pytest.importorskip("paddle2onnx", reason="writes ONNX files")
        pytest.importorskip("onnxruntime", reason="runs ONNX files")
    file = tmp_path / {"paddle": "toy.json", "onnx": "toy.onnx"}[form]
    tool("export", "--format", form, "--config", run / "config.yaml", "--pretrained", run / "best.pdparams",
         "--file", file, "--images", 20, fresh=False)  # fmt: skip
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype("float32")
    with paddle.no_grad():
        expected = trained_model(run)(paddle.to_tensor(images))
    np.testing.assert_allclose(open_predictor(engine, file, device="cpu")(images), expected, atol=1e-4)


def test_its_attention_and_features_are_drawn(run, tmp_path):
    for picture in ("attention", "features"):
        tool("visualize", picture, ROOT / "lit_data/val/7", "--count", 2, "--config", run / "config.yaml",
             "--pretrained", run / "best.pdparams", "--sheet", tmp_path / f"{picture}.png", fresh=False)  # fmt: skip
        with Image.open(tmp_path / f"{picture}.png") as sheet:
            assert len(sheet.convert("RGB").getcolors(1 << 24)) > 500


def test_its_operations_are_counted(config):
    model = create_model("toy_small")
    N, T, C = 64, 1, 32  # 8 x 8 patches
    blocks = 2 * (T + N) * (3 * C * C + C * C + 2 * C * 2 * C)  # qkv, proj and the two of the MLP
    attention = 2 * 2 * (T + N) ** 2 * C
    rest = N * 3 * 25 * C + C * 10  # stem, head
    assert macs(products(model)) == blocks + attention + rest
    assert macs(product for product in products(model) if not product.is_attention) == blocks + rest
    done = tool("benchmark", "model", "--config", config, fresh=False)
    assert f"{sum(parameter.size for parameter in model.parameters()):,}" in done.stdout
