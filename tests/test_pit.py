"""What is specific to PiT; test_models.py compares it with the official code."""

import json
import signal

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import ROOT, few_digits, tool
from resuming import at_step, send

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.models.pit import PoolingTransformer
from t2t_vit.models.zoo import create_model
from t2t_vit.training.parameters import parameter_groups
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model

SMALL = dict(image_size=20, patch_size=4, stride=2, base_dims=(4, 4), depth=(1, 2), heads=(2, 4), num_classes=5)


def test_initialisation_is_pytorchs_default():
    paddle.seed(1)
    model = create_model("pit_ti", num_classes=1000)
    spread = {"patch_embed.conv": 0.0208, "pools.0.conv": 0.192, "pools.0.fc": 64**-0.5 / 3**0.5, "head": 0.0361}
    layers = dict(model.named_sublayers())
    for name, std in spread.items():
        bound = std * 3**0.5
        for values in (layers[name].weight.numpy(), layers[name].bias.numpy()):
            assert values.std() == pytest.approx(std, rel=0.15) and np.abs(values).max() <= 1.01 * bound, name
    qkv = layers["transformers.2.blocks.3.attn.qkv"]
    assert qkv.bias is not None and np.abs(qkv.weight.numpy()).max() == pytest.approx(256**-0.5, rel=0.01)
    assert (layers["norm"].weight.numpy() == 1).all() and not layers["norm"].bias.numpy().any()
    for values in (model.pos_embed.numpy(), model.cls_token.numpy()):
        assert values.std() == pytest.approx(0.02, rel=0.2)


def test_epsilon_is_that_of_pit():
    norms = [layer for layer in create_model("pit_ti").sublayers() if isinstance(layer, paddle.nn.LayerNorm)]
    assert len(norms) == 25 and {norm._epsilon for norm in norms} == {1e-6}


def test_drop_path_rises_over_all_stages_and_stays_below_the_rate():
    model = create_model("pit_ti", drop_path_rate=0.12)
    rates = [block.drop_path.rate for transformer in model.transformers for block in transformer.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(12)])


def test_positions_and_pooling_follow_the_image():
    model = create_model("pit_ti", image_size=(160, 251), num_classes=3)
    assert model.pos_embed.shape == [1, 64, 19, 30]  # (160 - 16) / 8 + 1, (251 - 16) / 8 + 1 rounded down
    maps = []
    for transformer in model.transformers:
        transformer.register_forward_pre_hook(lambda layer, inputs: maps.append(tuple(inputs[0].shape[2:])))
    model.eval()
    assert model(paddle.randn([2, 3, 160, 251])).shape == [2, 3]
    assert maps == [(19, 30), (10, 15), (5, 8)]  # halves, rounded up


def test_a_pixel_reaches_its_own_patches_and_no_others():
    # By value: a mix-up of rows and columns would pass every square test, and every test of shapes.
    model = PoolingTransformer(**{**SMALL, "image_size": (12, 20), "depth": (0, 1)})
    seen = {}
    model.pools[0].register_forward_pre_hook(lambda layer, inputs: seen.update(map=inputs[0].numpy()[0]))
    model.eval()
    image = np.zeros((1, 3, 12, 20), "float32")
    model(paddle.to_tensor(image))
    before = seen["map"]
    image[0, :, 3, 17] = 1.0
    model(paddle.to_tensor(image))
    changed = np.argwhere((seen["map"] != before).any(axis=0))
    assert changed.tolist() == [[0, 7], [0, 8], [1, 7], [1, 8]]  # rows 0-3 and 2-5, columns 14-17 and 16-19


def test_distilled_model_gives_both_heads_in_training_and_their_mean_in_evaluation():
    paddle.seed(0)
    model = PoolingTransformer(distilled=True, **SMALL)
    x = paddle.randn([2, 3, 20, 20])
    class_logits, distilled_logits = model(x)
    assert (class_logits.numpy() != distilled_logits.numpy()).all()
    model.eval()
    assert np.allclose(model(x).numpy(), (class_logits.numpy() + distilled_logits.numpy()) / 2, atol=1e-6)
    tokens = model.forward_features(x)
    assert np.allclose(model.head(tokens[:, 0]).numpy(), class_logits.numpy(), atol=1e-6)
    assert np.allclose(model.head_dist(tokens[:, 1]).numpy(), distilled_logits.numpy(), atol=1e-6)


@pytest.mark.parametrize("distilled", [False, True])
def test_every_parameter_gets_a_gradient(distilled):
    paddle.seed(0)
    model = PoolingTransformer(distilled=distilled, drop_path_rate=0.1, **SMALL)
    logits = model(paddle.randn([4, 3, 20, 20]))
    F.cross_entropy(sum(logits) if distilled else logits, paddle.to_tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max().item() > 0, name
    groups = parameter_groups(model)
    assert not groups["frozen"] and {"pos_embed", "cls_token"} <= set(groups["undecayed"])
    assert {"patch_embed.conv.weight", "pools.0.conv.weight", "pools.0.fc.weight"} <= set(groups["decayed"])


def test_layers_are_counted_through_the_stages():
    model = create_model("pit_ti_distilled")
    places = {
        "pos_embed": 0, "cls_token": 0, "patch_embed.conv.bias": 0, "transformers.0.blocks.0.norm1.weight": 1,
        "transformers.0.blocks.1.mlp.fc2.bias": 2, "pools.0.conv.weight": 3,
        "transformers.1.blocks.0.attn.qkv.weight": 3,
        "pools.1.fc.bias": 9, "transformers.2.blocks.3.norm2.bias": 12, "norm.weight": 13, "head.bias": 13,
        "head_dist.weight": 13,
    }  # fmt: skip
    assert {name: model.layer_index(name) for name in places} == places
    assert {model.layer_index(name) for name, _ in model.named_parameters()} == set(range(14))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(image_size=3), "3x3 pixels is smaller than a patch of 4"),
        (dict(heads=(2, 3)), "width 8 of a stage does not divide 12, the width of the next stage"),
        (dict(depth=(1, 2, 3)), "one number per stage"),
    ],
)
def test_inconsistent_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        PoolingTransformer(**{**SMALL, **wrong})


def test_keys_of_the_other_family_are_refused():
    cfg = load_config("configs/pit_ti.yaml", [("MODEL.T2T.DEPTH", "3")])
    with pytest.raises(UserError, match="MODEL.T2T.DEPTH is 3, but MODEL.NAME pit_ti is a PIT"):
        build_model(cfg)
    with pytest.raises(UserError, match=r"MODEL.PIT.DEPTH is \[1, 0\] but must be"):
        load_config("configs/pit_ti.yaml", [("MODEL.PIT.DEPTH", "[1, 0]")])


def test_commands_support_a_pit(tmp_path):
    few = ["TRAIN.EPOCHS", "2", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.COOLDOWN_EPOCHS", "0", *few_digits(tmp_path)]
    few += ["TRAIN.BATCH_SIZE", "50"]

    def words(folder, *more):
        pit = ("--config", "configs/lit_data_pit.yaml", "MODEL.DROP_PATH_RATE", "0.1")
        return (*pit, "--output", tmp_path / folder, *few, *more)

    tool("train", *words("whole"))
    with at_step(1, 2, send(signal.SIGTERM)):
        assert "stopped by SIGTERM" in tool("train", *words("cut")).stdout
    tool("train", *words("cut"))
    states = [checkpoint.read(tmp_path / folder / "lit_data_pit/latest.pdparams") for folder in ("whole", "cut")]
    for part in ("model", "ema", "optimizer"):
        assert all((states[0][part][name] == value).all() for name, value in states[1][part].items()), part
    best = tmp_path / "whole/lit_data_pit/best.pdparams"
    assert "lit_data final val acc is:" in tool("val", "--pretrained", best).stdout
    predicted = tool("predict", "--pretrained", best, "lit_data/val/0", "--json", tmp_path / "found.json").stdout
    pictures = len(list((ROOT / "lit_data/val/0").iterdir()))
    assert len(predicted.splitlines()) == len(json.loads((tmp_path / "found.json").read_text())) == pictures
