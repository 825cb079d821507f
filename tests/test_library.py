"""What people build on: every kind of model in Paddle's own tools, parameter groups, paddle.hub."""

import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle import nn

import t2t_vit
from t2t_vit.config import load_config, with_keys
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


def compiled(model):
    spec = paddle.static.InputSpec([None, 3, 32, 32], "float32")
    return paddle.jit.to_static(model, input_spec=[spec], full_graph=True)


def test_it_is_saved_and_loaded(model, tmp_path):
    model.eval()
    expected = model(images())
    paddle.jit.save(compiled(model), str(tmp_path / "model"))
    loaded = paddle.jit.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded(images()[:1]), expected[:1], atol=2e-5)


@pytest.mark.parametrize("name", ["t2t_vit_7", "pit_ti_distilled"])  # what is saved of the others is compiled, too
def test_it_is_compiled(name):
    model = small_model(name)
    model.eval()
    expected = model(images())
    np.testing.assert_allclose(compiled(model)(images()), expected, atol=2e-5)


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
