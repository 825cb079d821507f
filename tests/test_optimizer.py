"""SGD and AdamW, layer-wise learning rates, and frozen parameters."""

import math

import numpy as np
import paddle
import pytest
from conftest import ROOT, few_digits, tool

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.models.layers import Block
from t2t_vit.models.zoo import create_model
from t2t_vit.training.optimizer import Optimizer
from t2t_vit.training.parameters import freeze, parameter_groups
from t2t_vit.training.schedule import LayerRates, learning_rate
from t2t_vit.training.train_step import TrainStep

SMALL_PIT = [
    ("MODEL.NAME", "pit_ti_distilled"), ("MODEL.T2T.EMBED_DIM", "0"), ("MODEL.T2T.DEPTH", "0"),
    ("MODEL.T2T.NUM_HEADS", "0"), ("MODEL.T2T.MLP_RATIO", "0.0"), ("MODEL.T2T.TOKEN_DIM", "0"),
    ("MODEL.T2T.SPLITS", "[]"),
    ("MODEL.PIT.PATCH_SIZE", "4"), ("MODEL.PIT.STRIDE", "4"), ("MODEL.PIT.BASE_DIMS", "[8, 8, 8]"),
    ("MODEL.PIT.DEPTH", "[1, 1, 1]"), ("MODEL.PIT.HEADS", "[1, 2, 4]"),
]  # fmt: skip


def lit_config(**keys):
    small = [("MODEL.T2T.DEPTH", "2"), ("TRAIN.EMA_DECAY", "0.5"), ("TRAIN.BATCH_SIZE", "8")]
    small.append(("TRAIN.WARMUP_LR", "1e-6"))  # below the rates of the backbone
    return load_config(ROOT / "configs/lit_data.yaml", [*small, *((f"TRAIN.{key}", str(keys[key])) for key in keys)])


def pit_config(**keys):
    pairs = [*SMALL_PIT, ("TRAIN.BATCH_SIZE", "8"), *((f"TRAIN.{key}", str(keys[key])) for key in keys)]
    return load_config(ROOT / "configs/lit_data.yaml", pairs)


def make_step(cfg):
    paddle.seed(0)
    step = TrainStep(cfg)
    step.train()
    return step


def batches(cfg):
    return TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg).epoch_steps(0)


def arrays(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


# --- Places and rates ---


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_dense", "pit_ti", "pit_xs_distilled"])
def test_every_parameter_has_a_layer(name):
    model = create_model(name, num_classes=3)
    layers = [model.layer_index(name) for name, _ in model.named_parameters()]
    depth = len([layer for layer in model.sublayers() if isinstance(layer, Block)])
    assert set(layers) == set(range(depth + 2))
    for parameter, _ in model.named_parameters():
        if parameter.startswith(("cls_token", "pos_embed", "patch_embed", "tokens_to_token")):
            assert model.layer_index(parameter) == 0
        elif parameter.startswith(("norm", "head")):
            assert model.layer_index(parameter) == depth + 1


def test_layers_by_hand():
    t2t, pit = create_model("t2t_vit_7"), create_model("pit_ti")  # 7 blocks; stages of 2, 6 and 4 blocks
    dense = create_model("t2t_vit_dense", stages=(3, 2))
    for name, place in {"blocks.0.attn.qkv.weight": 1, "blocks.6.norm2.bias": 7, "norm.weight": 8}.items():
        assert t2t.layer_index(name) == place
    places = {"blocks.2.dense_linear.bias": 3, "blocks.3.linear.weight": 4, "blocks.4.norm1.bias": 4, "norm.bias": 6}
    for name, place in places.items():
        assert dense.layer_index(name) == place
    places = {
        "transformers.0.blocks.1.norm1.weight": 2, "pools.0.conv.weight": 3, "transformers.1.blocks.0.norm1.bias": 3,
        "pools.1.fc.weight": 9, "transformers.2.blocks.3.mlp.fc1.weight": 12, "head.bias": 13,
    }  # fmt: skip
    for name, place in places.items():
        assert pit.layer_index(name) == place


def test_head_and_backbone_have_the_official_cosines():
    # transfer_learning.py: CosineAnnealingLR(eta_min=2e-4, T_max=60) over groups of lr 0.05 and 0.01 * 0.05.
    keys = dict(OPTIMIZER="sgd", BASE_LR=0.05, BACKBONE_LR=5e-4, MIN_LR=2e-4, EPOCHS=60, WARMUP_EPOCHS=0,
                COOLDOWN_EPOCHS=0)  # fmt: skip
    train = lit_config(**keys).TRAIN
    rates = LayerRates(create_model("t2t_vit_7"), train)
    for epoch in (0, 1, 17, 59):
        cosine = (1 + math.cos(math.pi * epoch / 60)) / 2
        head, backbone = 2e-4 + (0.05 - 2e-4) * cosine, 2e-4 + (5e-4 - 2e-4) * cosine
        factors = rates.factors(epoch)
        for name, expected in {"head.weight": head, "head.bias": head, "blocks.3.norm1.bias": backbone,
                               "cls_token": backbone, "norm.weight": backbone}.items():  # fmt: skip
            assert factors[name] * learning_rate(epoch, train) == pytest.approx(expected, rel=1e-12)
    assert "pos_embed" not in factors


def test_backbone_warms_up_and_cools_down_with_the_head():
    train = lit_config(BASE_LR=1e-2, BACKBONE_LR=1e-3, WARMUP_LR=0.0, MIN_LR=0.0, WARMUP_EPOCHS=4, EPOCHS=8,
                       COOLDOWN_EPOCHS=2).TRAIN  # fmt: skip
    rates = LayerRates(create_model("t2t_vit_7"), train)
    factors = [rates.factors(epoch)["cls_token"] for epoch in range(10)]
    assert factors == pytest.approx([1.0] + [0.1] * 7 + [1.0] * 2)  # 1.0 where both are zero


def test_layer_decay_counts_from_the_head():
    model = create_model("t2t_vit_7")
    factors = LayerRates(model, lit_config(LAYER_DECAY=0.5, BACKBONE_LR=1e-4, BASE_LR=1e-3).TRAIN).factors(30)
    backbone = factors["norm.weight"]  # not constant: it ends at the head's MIN_LR
    assert factors["head.weight"] == 1.0 and 0.1 < backbone < 1
    assert factors["blocks.6.mlp.fc1.weight"] == backbone / 2
    assert factors["tokens_to_token.project.weight"] == factors["cls_token"] == backbone / 2**8


def test_without_the_keys_all_rates_are_the_same():
    for model in (create_model("t2t_vit_7"), create_model("pit_s_distilled")):
        assert set(LayerRates(model, lit_config().TRAIN).factors(3).values()) == {1.0}


def test_both_heads_of_a_distilled_model_are_the_head():
    model = create_model("pit_s_distilled")
    factors = LayerRates(model, lit_config(BACKBONE_LR=1e-4, MIN_LR=1e-5).TRAIN).factors(3)
    assert {name for name, factor in factors.items() if factor == 1.0} == {
        "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}  # fmt: skip


def test_summary_states_the_rates():
    model, keys = create_model("t2t_vit_7"), dict(WARMUP_EPOCHS=0, EPOCHS=60, COOLDOWN_EPOCHS=0)
    train = lit_config(BACKBONE_LR=5e-4, LAYER_DECAY=0.75, BASE_LR=0.05, MIN_LR=2e-4, **keys).TRAIN
    assert LayerRates(model, train).summary([0, 59]) == (
        "0.05 in epoch 1, 0.000234125 in epoch 60; backbone 0.0005 in epoch 1, 0.000200206 in epoch 60; "
        "layer decay 0.75: 0.1 x in layer 0 to 1 x in layer 8"
    )
    plain = LayerRates(model, lit_config(BASE_LR=0.05, MIN_LR=2e-4, **keys).TRAIN)
    assert plain.summary([0, 59]) == "0.05 in epoch 1, 0.000234125 in epoch 60"


@pytest.mark.parametrize(
    "keys", [{}, {"BACKBONE_LR": 1e-4}, {"LAYER_DECAY": 0.5}, {"BACKBONE_LR": 1e-4, "LAYER_DECAY": 0.5}]
)
def test_parameters_are_updated_together_if_their_rates_are_the_same(keys):
    model = create_model("t2t_vit_7")
    optimizer, decayed = Optimizer(model, lit_config(**keys).TRAIN), parameter_groups(model)["decayed"]
    rates = [optimizer.rates.factors(epoch) for epoch in (0, 5, 20)]
    kinds = [
        {(name in decayed, *(rate[name] for rate in rates)) for name in names} for names in optimizer.weights.groups
    ]
    assert all(len(kind) == 1 for kind in kinds) and len(set.union(*kinds)) == len(kinds)


# --- Steps, against NumPy ---


def sgd(weights, grads, slots, lr, decay):
    """As torch.optim.SGD: weight decay is added to the gradient, and the learning rate is not part of the momentum."""
    slots["v"] = 0.8 * slots.get("v", 0.0) + grads + decay * weights
    return weights - lr * slots["v"]


def adamw(weights, grads, slots, lr, decay):
    slots["t"] = slots.get("t", 0) + 1
    slots["m"] = 0.9 * slots.get("m", 0.0) + 0.1 * grads
    slots["s"] = 0.95 * slots.get("s", 0.0) + 0.05 * grads**2
    m, s = slots["m"] / (1 - 0.9 ** slots["t"]), slots["s"] / (1 - 0.95 ** slots["t"])
    return (1 - lr * decay) * weights - lr * m / (np.sqrt(s) + 1e-3)


def place(name):
    """(whether of the head, layers above), of a T2T-ViT of two blocks."""
    kind = name.split(".")[0]
    above = {"head": 0, "norm": 0, "blocks": 2 - int(name.split(".")[1]) if kind == "blocks" else 0}.get(kind, 3)
    return kind == "head", above


@pytest.mark.parametrize("optimizer, update, peak", [("sgd", sgd, 0.1), ("adamw", adamw, 1e-3)])
def test_ten_steps_are_those_of_the_definition(optimizer, update, peak):
    """Clipping, two cosines, layer decay, weight decay on weights alone, frozen norm and class token."""
    cfg = lit_config(OPTIMIZER=optimizer, MOMENTUM=0.8, BETAS=[0.9, 0.95], EPSILON=1e-3, WEIGHT_DECAY=0.1,
                     BASE_LR=peak, BACKBONE_LR=peak / 4, MIN_LR=peak / 100, LAYER_DECAY=0.5, CLIP_NORM=2.0,
                     FREEZE=["norm.*", "cls_token"], WARMUP_EPOCHS=0, EPOCHS=10)  # fmt: skip
    step, grads = make_step(cfg), {}
    weights, inner_step = step.optimizer.weights, step.optimizer.inner.step

    def note():
        for group, names, (start, _) in zip(step.optimizer.parameters, weights.groups, weights.bounds):
            grads.update({name: weights.view(group.grad, name, start).numpy().astype("f8") for name in names})
        inner_step()

    step.optimizer.inner.step = note
    before = arrays(step.model)
    expected, slots = {name: value.astype("f8") for name, value in before.items()}, {name: {} for name in before}
    for epoch, batch in zip(range(10), batches(cfg)):
        assert step(batch, learning_rate(epoch, cfg.TRAIN), epoch, 0).ok.item()
        cosine = (1 + math.cos(math.pi * epoch / 10)) / 2
        for name in grads:
            in_head, above = place(name)
            lr = peak / 100 + (peak / (1 if in_head else 4) - peak / 100) * cosine
            decay = 0.1 if expected[name].ndim > 1 else 0.0
            expected[name] = update(expected[name], grads[name], slots[name], lr * 0.5**above, decay)
    frozen = {"norm.weight", "norm.bias", "cls_token", "pos_embed"} | {name for name in before if name.endswith(".w")}
    assert set(grads) == set(before) - frozen
    for name, value in arrays(step.model).items():
        assert np.abs(value - expected[name]).max() <= 1e-6, name
        if name in frozen or value.ndim > 1:  # a norm's 1.0 may be too coarse for what its gradient adds
            assert (value == before[name]).all() == (name in frozen), name
    assert np.abs(expected["head.weight"] - before["head.weight"]).max() > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_skipped_step_changes_nothing(optimizer):
    cfg = lit_config(OPTIMIZER=optimizer, BACKBONE_LR=1e-3, LAYER_DECAY=0.7, WEIGHT_DECAY=0.1, FREEZE=["blocks.0.*"])
    step, steps = make_step(cfg), batches(cfg)
    step(next(steps), 1e-2, 20, 0)  # so that there is momentum
    before, criterion = [arrays(model) for model in step.models().values()], step.criterion
    step.criterion = lambda logits, labels: criterion(logits, labels) * float("nan")
    assert not step(next(steps), 1e-2, 20, 1).ok.item()
    for model, weights in zip(step.models().values(), before):
        assert all((value == weights[name]).all() for name, value in arrays(model).items())
    step.criterion = criterion
    assert step(next(steps), 1e-2, 20, 2).ok.item()
    after = arrays(step.model)
    assert all(np.isfinite(value).all() for value in after.values())
    assert (after["head.weight"] != before[0]["head.weight"]).any()


# --- Freezing ---


def trained(cfg_or_model, patterns):
    model = cfg_or_model if isinstance(cfg_or_model, paddle.nn.Layer) else create_model("t2t_vit_7")
    freeze(model, patterns)
    return {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def test_the_last_pattern_that_matches_decides():
    everything = trained(create_model("t2t_vit_7"), [])
    assert trained(create_model("t2t_vit_7"), ["*", "!head*"]) == {"head.weight", "head.bias"}
    assert trained(create_model("t2t_vit_7"), ["!head*", "*.bias"]) == {
        n for n in everything if not n.endswith(".bias")
    }
    last = trained(create_model("t2t_vit_7"), ["blocks.*", "!blocks.6.*", "blocks.6.mlp.*"])
    assert {name for name in last if name.startswith("blocks.")} == {
        name for name in everything if name.startswith("blocks.6.") and ".mlp." not in name}  # fmt: skip
    # An exception does not unfreeze parameters that the model never trains.
    assert trained(create_model("t2t_vit_7"), ["*", "!*"]) == everything and "pos_embed" not in everything
    assert "pos_embed" in trained(create_model("pit_ti"), ["blocks.*", "!*"][1:])


@pytest.mark.parametrize(
    "patterns, message",
    [
        (["block.0.*"], r"TRAIN.FREEZE: block.0.\* matches no parameter; did you mean blocks.0.\*"),
        (["*", "!heads.*"], r"TRAIN.FREEZE: !heads.\* matches no parameter; did you mean head.\*"),
        (["blocks.0"], r"blocks.0 matches no parameter; did you mean blocks.0.\*"),
        (["@"], "TRAIN.FREEZE: @ matches no parameter; names are such as norm.bias, head.weight, head.bias"),
        (["*"], r"TRAIN.FREEZE \['\*'\] leaves nothing to train; add a pattern such as '!head\*'"),
    ],
)
def test_wrong_patterns_are_named(patterns, message):
    with pytest.raises(UserError, match=message):
        freeze(create_model("t2t_vit_7"), patterns)


@pytest.mark.parametrize("config", [lit_config, pit_config])
def test_linear_probe_learns_from_the_features_of_evaluation(config):
    cfg = config(FREEZE=["*", "!head*"], OPTIMIZER="sgd").clone()
    cfg.defrost()
    cfg.MODEL.DROP_RATE = cfg.MODEL.DROP_PATH_RATE = 0.5
    cfg.CPU.MICRO_BATCH = 0  # so that the hook sees the whole batch
    step = make_step(cfg)
    step.models()["raw"].train()  # as after a validation
    step.train()
    assert step.model.training and step.model.head.training
    seen = []
    step.model.norm.register_forward_post_hook(lambda layer, x, y: seen.append(y))
    before = arrays(step.model)
    batch = next(batches(cfg))
    assert step(batch, 0.1, 0, 0).ok.item()
    images, _ = step.train_input(batch[0])
    step.model.eval()
    step.model(images)
    assert (seen[0].numpy() == seen[1].numpy()).all()
    assert seen[0].stop_gradient  # nothing is kept for a backward pass through the backbone
    heads = {name for name in before if name.startswith("head")}
    after = arrays(step.model)
    assert {name for name in before if (after[name] != before[name]).any()} == heads
    assert {key.split("/")[0] for key in step.state()["optimizer"]} == heads
    if step.ema:
        average = arrays(step.models()["ema"])
        assert {name for name in before if (average[name] != before[name]).any()} == heads


def test_linear_probe_does_not_depend_on_dropout(tmp_path):
    # In the second epoch too, after a validation has changed the mode.
    words = [*few_digits(tmp_path), "MODEL.T2T.DEPTH", 1, "TRAIN.BATCH_SIZE", 25, "TRAIN.EPOCHS", 2,
             "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.FREEZE", "['*', '!head.*']"]  # fmt: skip
    rows = []
    for rate in (0.0, 0.5):
        output = tmp_path / str(rate)
        rates = ["MODEL.DROP_RATE", rate, "MODEL.DROP_PATH_RATE", rate]
        done = tool("train", "--output", output, *words, *rates)
        assert "1,280 decayed in 1 tensor, 10 undecayed in 1 tensor" in done.stdout
        rows.append((output / "lit_data/metrics.jsonl").read_text())
    assert rows[0] == rows[1] and rows[0].count("\n") == 2


def test_dropout_stays_on_in_trained_layers():
    model = make_step(lit_config(FREEZE=["tokens_to_token.*", "blocks.0.*", "blocks.1.norm*"])).model
    off = {name for name, layer in model.named_sublayers() if not layer.training}
    assert {"tokens_to_token", "tokens_to_token.attention1.dp", "blocks.0.drop_path", "blocks.1.norm1"} <= off
    assert not off & {"blocks", "blocks.1", "blocks.1.drop_path", "blocks.1.mlp", "pos_drop", "norm", "head"}


# --- State ---


def state_of(step):
    return {key: value.numpy() for key, value in step.optimizer.state().items()}


def test_momentum_moves_to_another_instance():
    cfg = lit_config(OPTIMIZER="sgd", FREEZE=["blocks.0.*"], LAYER_DECAY=0.7, WEIGHT_DECAY=0.01)
    steps, first = batches(cfg), make_step(cfg)
    first(next(steps), 0.1, 0, 0)
    state = first.state()
    assert set(state["optimizer"]) == {f"{name}/velocity_0" for name in first.optimizer.rates.decays}
    as_read = {
        **state,
        **{part: {k: v.numpy() for k, v in state[part].items()} for part in ("model", "ema", "optimizer")},
    }
    second = make_step(cfg)
    second.load_state(as_read, "memory")
    assert set(state_of(second)) == set(as_read["optimizer"])  # before its first step too
    batch = next(steps)
    for step in (first, second):
        step(batch, 0.1, 0, 1)
    assert all((value == arrays(second.model)[name]).all() for name, value in arrays(first.model).items())
    assert all((value == state_of(second)[key]).all() for key, value in state_of(first).items())


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(OPTIMIZER="sgd"), "x.pdparams has no SGD state for the 53 trained tensors of this model "
         ".TRAIN.OPTIMIZER, TRAIN.FREEZE.; to start from its weights only: --resume none MODEL.PRETRAINED x.pdparams"),
        (dict(FREEZE=["*", "!head*"]), "no AdamW state for the 2 trained tensors of this model"),
    ],
)  # fmt: skip
def test_state_of_another_optimizer_is_named(keys, message):
    step = make_step(lit_config())
    step(next(batches(lit_config())), 1e-3, 0, 0)
    other = make_step(lit_config(**keys))
    with pytest.raises(UserError, match=message):
        other.optimizer.load_state(state_of(step), "x.pdparams")
