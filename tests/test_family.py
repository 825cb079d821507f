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


SMALL = {
    "toy_small": {},
    "t2t_vit_7": dict(image_size=(64, 48), depth=3),
    "t2t_vit_t_14": dict(image_size=64, depth=2),
    "pit_ti": dict(image_size=(64, 80), depth=(1, 1, 2)),
    "pit_ti_distilled": dict(image_size=64, depth=(1, 2, 1)),
}


@pytest.fixture(params=SMALL)
def model(request):
    """A small model of each family in eval mode, with 3 classes."""
    paddle.seed(0)
    model = create_model(request.param, num_classes=3, **SMALL[request.param])
    model.eval()
    return model


def images_for(model):
    return paddle.randn([2, 3, *model.image_size])


@paddle.no_grad()
def test_features_and_head_are_the_parts_of_the_model(model):
    images = images_for(model)
    logits, tokens = model(images), model.forward_features(images)
    N = math.prod(model.backbone()[-1].grid)
    assert tokens.shape == [2, model.num_class_tokens + N, model.num_features]
    np.testing.assert_allclose(model.forward_head(tokens), logits, atol=1e-5)
    np.testing.assert_allclose(tokens.mean(axis=-1), paddle.zeros(tokens.shape[:2]), atol=1e-5)  # all are normalised
    pooled = model.forward_head(tokens, pre_logits=True)
    np.testing.assert_allclose(pooled, tokens[:, : model.num_class_tokens].mean(axis=1), atol=1e-6)
    model.reset_classifier(0)
    np.testing.assert_allclose(model(images), pooled, atol=1e-5)
    model.train()
    assert model(images).shape == pooled.shape  # a distilled model, too, has one vector per image


def test_the_last_block_computes_only_the_class_tokens(model):
    counts = []
    model.backbone()[-1].block.mlp.register_forward_post_hook(lambda layer, inputs, y: counts.append(y.shape[1]))
    model(images_for(model))
    model.forward_features(images_for(model))
    T = model.num_class_tokens
    assert counts == [T, T + math.prod(model.backbone()[-1].grid)]


@paddle.no_grad()
def test_intermediates_are_maps_of_the_chosen_blocks(model):
    images, backbone = images_for(model), model.backbone()
    maps, blocks = model.forward_intermediates(images), len(backbone)
    assert [tuple(each.shape[2:]) for each in maps] == [place.grid for place in backbone]
    last = maps[-1].flatten(2).transpose([0, 2, 1])  # (B, N, C)
    np.testing.assert_allclose(model.norm(last), model.forward_features(images)[:, model.num_class_tokens :], atol=1e-5)
    for indices, chosen in (
        ([0], maps[:1]),
        ([-1, 0, 0], [maps[0], maps[-1]]),
        (1, maps[-1:]),
        (np.int64(1), maps[-1:]),
        (blocks, maps),
    ):
        found = model.forward_intermediates(images, indices)
        assert len(found) == len(chosen) and all((a == b).all() for a, b in zip(found, chosen)), indices
    for wrong in (0, blocks + 1, [blocks], [-blocks - 1]):
        with pytest.raises(ValueError, match=f"has (blocks 0 to {blocks - 1}|{blocks} blocks)"):
            model.forward_intermediates(images, wrong)
    with pytest.raises(ValueError, match="indices is True: give the numbers of blocks"):
        model.forward_intermediates(images, True)


def test_a_pixel_changes_the_map_where_it_is():
    model = create_model("t2t_vit_7", image_size=(64, 96), depth=1, tokens_type="convolution")
    model.blocks[0].attn.proj.weight.set_value(paddle.zeros_like(model.blocks[0].attn.proj.weight))
    model.eval()
    image = paddle.zeros([1, 3, 64, 96])
    (before,) = model.forward_intermediates(image)
    image[:, :, 20, 72] = 1.0
    (after,) = model.forward_intermediates(image)
    assert np.argwhere((before != after).numpy().any(axis=1)[0]).tolist() == [
        [1, 4],
        [1, 5],
        [2, 4],
        [2, 5],
    ]  # token (r, c) sees rows 16 r - 14 to 16 r + 16, columns likewise


def test_a_new_classifier_is_initialised_like_the_first(model):
    heads = [name for name in model.state_dict() if name.startswith("head")]
    order, width = list(model.state_dict()), model.num_features
    model.reset_classifier(500)
    assert list(model.state_dict()) == order and model(images_for(model)).shape == [2, 500]
    for name in heads:
        values = model.state_dict()[name].numpy()
        if type(model).__name__ != "PoolingTransformer":
            assert values.std() == pytest.approx(0.02 if "weight" in name else 0.0, rel=0.1)
        else:  # uniform
            assert np.abs(values).max() == pytest.approx(width**-0.5, rel=0.05)
    assert not any(layer.training for layer in model.sublayers())
    model.to(dtype="bfloat16")
    model.reset_classifier(2)
    assert {model.state_dict()[name].dtype for name in heads} == {paddle.bfloat16}


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
