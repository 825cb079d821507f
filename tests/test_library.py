"""What people build on: every kind of model in Paddle's own tools, parameter groups, preprocessing, hub, embeddings."""

import os
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, tool
from paddle import nn
from PIL import Image

import t2t_vit
from t2t_vit.common.errors import UserError
from t2t_vit.config import default_config, load_config, with_keys
from t2t_vit.data.batch import Normalize
from t2t_vit.data.classes import ClassList
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import EvalLoader
from t2t_vit.deploy.engines import Predictor
from t2t_vit.deploy.metadata import Metadata
from t2t_vit.deploy.open_model import open_weights
from t2t_vit.deploy.predict import find_images, predict_batch
from t2t_vit.models.zoo import create_model, family_of, list_models
from t2t_vit.training.optimizer import Optimizer
from t2t_vit.weights import checkpoint

CLASSES = 5


def first_of_each_kind():
    """The first variant of each code path: those of a path differ only in numbers."""
    kinds = {}
    for name in list_models():
        family = family_of(name)
        words = [(key, value) for key, value in family.variants[name].items() if isinstance(value, (str, bool))]
        kinds.setdefault((family.name, *sorted(words)), name)
    return list(kinds.values())


SIZES = {"T2T": dict(image_size=32, token_dim=8), "PIT": dict(image_size=32, depth=(1, 1, 1))}


def small_model(name, **overrides):
    """A variant with its own width, heads and tokens, but few blocks and a small image."""
    paddle.seed(0)
    family = family_of(name)
    sizes = {"num_classes": CLASSES, **SIZES[family.name]}
    if family.name == "T2T":
        sizes |= {"stages": (1, 1)} if "stages" in family.variants[name] else {"depth": 2}
    return create_model(name, **{**sizes, **overrides})


@pytest.fixture(params=first_of_each_kind())
def model(request):
    return small_model(request.param)


def images(count=2):
    paddle.seed(1)
    return paddle.randn([count, 3, 32, 32])


# --- Every kind of model in Paddle's own tools ---


class Pairs(paddle.io.Dataset):
    """Four pictures with labels."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return images(4)[index].numpy(), np.int64(index)


@pytest.mark.parametrize("name", first_of_each_kind())
def test_it_is_compiled_saved_and_loaded(name, tmp_path):
    model = small_model(name)
    model.eval()
    expected = model(images())
    spec = paddle.static.InputSpec([None, 3, 32, 32], "float32")
    compiled = paddle.jit.to_static(model, input_spec=[spec], full_graph=True)
    np.testing.assert_allclose(compiled(images()), expected, atol=2e-5)
    paddle.jit.save(compiled, str(tmp_path / "model"))
    loaded = paddle.jit.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded(images()[:1]), expected[:1], atol=2e-5)


def test_it_is_fitted_by_paddle_model(model):
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    fitted = paddle.Model(model)

    def loss(*outputs_and_label):  # a distilled model has two outputs in training
        *outputs, label = outputs_and_label
        return sum(nn.functional.cross_entropy(output, label) for output in outputs)

    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    fitted.prepare(optimizer, loss)
    fitted.fit(Pairs(), batch_size=2, epochs=1, num_iters=1, verbose=0)
    frozen = {name for name, parameter in model.named_parameters() if parameter.stop_gradient}
    changed = {name for name, value in model.state_dict().items() if (value.numpy() != before[name]).any()}
    assert changed == set(before) - frozen


def test_paddle_wraps_it(model):  # what paddle.summary and paddle.flops count is in test_layers.py
    model.eval()
    assert (paddle.DataParallel(model)(images()) == model(images())).all()


# --- Parameter groups ---


@pytest.mark.parametrize("name", ["t2t_vit_7", "pit_ti_distilled"])
def test_an_optimizer_with_groups_steps_like_that_of_the_training(name):
    keys = {"TRAIN.LAYER_DECAY": 0.7, "TRAIN.WEIGHT_DECAY": 0.5, "TRAIN.CLIP_NORM": 0.0, "TRAIN.EPSILON": 1e-8}
    train = with_keys(load_config("configs/t2t_vit_7.yaml"), keys).TRAIN
    models = [small_model(name) for _ in range(2)]
    groups = t2t_vit.param_groups(models[0], train.WEIGHT_DECAY, train.LAYER_DECAY)
    theirs = paddle.optimizer.AdamW(0.01, *train.BETAS, epsilon=train.EPSILON, parameters=groups)
    ours = Optimizer(models[1], train)
    for model in models:
        paddle.seed(3)
        outputs = model(images())
        sum(each.square().sum() for each in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    theirs.step()
    ours.step(0.01, train.WARMUP_EPOCHS, paddle.amp.GradScaler(enable=False))
    after = [{name: value.numpy() for name, value in model.state_dict().items()} for model in models]
    for parameter, value in after[0].items():
        np.testing.assert_allclose(value, after[1][parameter], atol=1e-6, err_msg=parameter)


def test_groups_hold_each_trained_parameter_once():
    model = create_model("t2t_vit_7", image_size=32, depth=2)
    model.head.bias.stop_gradient = True
    groups = t2t_vit.param_groups(model, weight_decay=0.1, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(each)]: group for group in groups for each in group["params"]}
    assert set(found) == {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    assert sum(len(group["params"]) for group in groups) == len(found)
    expected = {"head.weight": (0.1, 1.0), "norm.weight": (0.0, 1.0), "cls_token": (0.0, 0.125),
                "blocks.1.mlp.fc1.weight": (0.1, 0.5), "blocks.0.mlp.fc1.bias": (0.0, 0.25)}  # fmt: skip
    assert {name: (found[name]["weight_decay"], found[name]["learning_rate"]) for name in expected} == expected


def test_any_layer_can_be_grouped():
    layers = nn.Sequential(create_model("pit_ti", image_size=32, num_classes=0), nn.Linear(256, 2))
    named = dict(layers.named_parameters())
    groups = t2t_vit.param_groups(layers, 0.1)
    found = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    assert len(found) == len(named) and {group["learning_rate"] for group in groups} == {1.0}
    expected = {"1.weight": 0.1, "1.bias": 0.0, "0.pos_embed": 0.0, "0.patch_embed.conv.weight": 0.1}
    assert {name: found[id(named[name])] for name in expected} == expected


@pytest.mark.parametrize("words, message", [
    ((-0.1,), "weight_decay is -0.1 but must be 0 or more"),
    ((0.1, 0.0), "layer_decay is 0.0 but must be above 0 and at most 1"),
    ((0.1, 1.5), "layer_decay is 1.5 but must be above 0 and at most 1"),
    ((float("nan"),), "weight_decay is nan but must be"),
    ((0.1, 0.5), "layer_decay 0.5 needs a model of create_model; Linear has no layer_index"),
])  # fmt: skip
def test_impossible_groups_are_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        t2t_vit.param_groups(nn.Linear(2, 2), *words)


# --- Preprocessing ---

RUN = ROOT / "output/pretrained/lit_data"


@pytest.fixture
def rotated(tmp_path):
    """A picture of a phone: not square, in colour, with an EXIF orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    return tmp_path / "phone.png"


def fed_to_the_model(picture, cfg):
    """What predict.py gives the engine for a picture, float32 (C, S, S)."""
    fed, names = [], ("a", "b")

    def run(images):
        fed.append(images)
        return np.zeros((len(images), 2), np.float32)

    metadata = Metadata.of(cfg, ClassList(names, names, ""), "fp32", batch_size=0)
    predict_batch(Predictor(run, metadata), [str(picture)], cfg, top_k=1)
    return fed[0][0]


SOURCES = [
    "t2t_vit_7",
    "pit_ti",
    "t2t_vit_14_384",
    "t2t_vit_7.t2t_paddle",
    "configs/cifar10.yaml",
    RUN / "best.pdparams",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_picture_is_prepared_as_for_predict(source, rotated):
    prepare = t2t_vit.preprocess(source)
    expected, data = fed_to_the_model(rotated, prepare.cfg), prepare.cfg.DATA
    assert expected.shape == (data.CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE)
    with Image.open(rotated) as opened:
        for found in (prepare(rotated), prepare(str(rotated)), prepare(opened)):
            assert found.dtype == np.float32 and (found == expected).all()
        assert opened.getexif()[0x0112] == 6  # the caller's image does not change


def test_the_source_sets_the_transform():
    found = {str(source): t2t_vit.preprocess(source).cfg for source in SOURCES}
    assert [cfg.DATA.IMAGE_SIZE for cfg in found.values()] == [224, 224, 384, 224, 32, 16]
    assert [cfg.VAL.CROP_PCT for cfg in found.values()] == [0.9, 0.875, 0.9, 0.9, 1.0, 1.0]
    assert [cfg.VAL.CROP_MODE for cfg in found.values()].index("squash") == 3
    cfg = load_config("configs/finetune.yaml")  # leaves size, mean and channels to the weights
    assert t2t_vit.preprocess(cfg).cfg.DATA.MEAN == default_config().DATA.MEAN


def test_weights_of_others_get_the_transform_of_their_variant(tmp_path):
    weights = create_model("pit_ti", image_size=104, num_classes=3).state_dict()
    checkpoint.save(tmp_path / "theirs.pdparams", weights)
    cfg = t2t_vit.preprocess(tmp_path / "theirs.pdparams").cfg
    assert (cfg.MODEL.NAME, cfg.DATA.IMAGE_SIZE, cfg.VAL.CROP_PCT) == ("pit_ti", 104, 0.875)
    patches = create_model("t2t_vit_7", tokens_type="patch", image_size=64, num_classes=3).state_dict()
    checkpoint.save(tmp_path / "patches.pdparams", patches)
    cfg = t2t_vit.preprocess(tmp_path / "patches.pdparams").cfg
    assert (cfg.MODEL.NAME, cfg.MODEL.T2T.TOKENS_TYPE, cfg.DATA.IMAGE_SIZE) == ("t2t_vit_7", "patch", 64)
    with pytest.raises(UserError, match="t2t_vit_15.*did you mean .*t2t_vit_14"):
        t2t_vit.preprocess("t2t_vit_15")


def test_mistakes_of_preprocess_are_one_line():
    kinds = "preprocess needs a name, a file, a URL or the result of load_config, not "
    for source, kind in ((nn.Linear(2, 2), "Linear"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"^{kinds}{kind}$"):
            t2t_vit.preprocess(source)
    with pytest.raises(UserError, match="lit_data.onnx is an exported model: give the weights that it was exported"):
        t2t_vit.preprocess("lit_data.onnx")
    with pytest.raises(TypeError, match="^a path or a PIL image is needed, not ndarray$"):
        t2t_vit.preprocess("t2t_vit_7")(np.zeros((8, 8, 3), np.uint8))


def test_pictures_are_prepared_as_for_val():
    cfg = load_config("configs/lit_data.yaml", [("DATA.NUM_WORKERS", "0"), ("VAL.BATCH_SIZE", "8")])
    split, prepare = load_data(cfg, ["val"])[1]["val"], t2t_vit.preprocess(cfg)
    batch, _ = next(iter(EvalLoader(split, cfg)))
    expected = Normalize(cfg)(batch).numpy()
    assert all((prepare(path) == image).all() for path, image in zip(split.paths, expected))


def test_paddle_vision_takes_the_transform():
    prepare = t2t_vit.preprocess(RUN / "best.pdparams")
    folder = paddle.vision.datasets.DatasetFolder(str(ROOT / "lit_data/val"), transform=prepare)
    batch, labels = next(iter(paddle.io.DataLoader(folder, batch_size=4)))
    assert (batch.numpy()[1] == prepare(folder.samples[1][0])).all() and labels.shape == [4]


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "1", "I;16", "CMYK"])
def test_images_of_pillow_are_converted_like_files(mode, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    image = Image.fromarray(pixels) if mode == "RGBA" else Image.fromarray(pixels[..., :3])
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    prepare = t2t_vit.preprocess("configs/cifar10.yaml")
    assert (prepare(image) == prepare(file)).all()


def test_an_image_of_pillow_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "cut.png").write_bytes((ROOT / "lit_data/val/3/0045.png").read_bytes()[:90])
    prepare = t2t_vit.preprocess("configs/lit_data.yaml")
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(UserError, match="image .*cut.png cannot be read: "):
        prepare(cut)


# --- paddle.hub ---

HUB = """
import sys
import paddle
repository, weights, *names = sys.argv[1:]
assert paddle.hub.list(repository, source="local") == sorted(names), paddle.hub.list(repository, source="local")
for name in names:
    assert f"Build a {name}." in paddle.hub.help(repository, name, source="local")
model = paddle.hub.load(repository, "pit_ti", source="local", pretrained=weights, image_size=32, depth=(1, 1, 1))
assert model.head.weight.shape == [256, 5], model.head
features = paddle.hub.load(repository, "t2t_vit_7", source="local", num_classes=0, image_size=32, depth=1)
assert features(paddle.rand([1, 3, 32, 32])).shape == [1, 256]
assert not {repository, f"{repository}/tools"} & set(sys.path)
"""


@pytest.mark.parametrize("variable", ["", "PADDLE_2_PYTHON"])
def test_hub_lists_and_loads_from_another_folder(variable, tmp_path):
    python = os.environ.get(variable) if variable else sys.executable
    if not python:
        pytest.skip("$PADDLE_2_PYTHON names no Python with PaddlePaddle 2.6.2")
    checkpoint.save(tmp_path / "weights.pdparams", small_model("pit_ti").state_dict())
    words = [str(ROOT), str(tmp_path / "weights.pdparams"), *list_models()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", HUB, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- Embeddings ---


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
