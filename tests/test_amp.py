"""AMP O2 without a GPU: Paddle's own conversion of the weights to 16 bits, real backward passes, updates and resumes.

A CPU has no 16-bit matrix products, so a sum over all weights replaces the forward pass of the model.
"""

import types

import numpy as np
import paddle
import pytest
from conftest import ROOT

from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.parallel import processes
from t2t_vit.training import precision
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint


class Place:
    """A fake GPU place with the methods that Paddle's loss scaler calls."""

    _expected_place = types.SimpleNamespace(is_gpu_place=lambda: True)


@pytest.fixture(params=["float16", "bfloat16"])
def dtype(request, monkeypatch):
    stand_in(monkeypatch)
    return request.param


def stand_in(monkeypatch):
    """Make TRAIN.AMP O2 work on a CPU as on a GPU."""
    from paddle.amp import grad_scaler
    from paddle.amp.auto_cast import amp_initialize

    def decorate(model, level, dtype):
        assert level == "O2"
        return amp_initialize([model], dtype, None)[0]

    monkeypatch.setattr(precision, "_why_not", lambda dtype: "")
    monkeypatch.setattr(paddle.amp, "decorate", decorate)
    monkeypatch.setattr(grad_scaler, "_dygraph_tracer", Place)


def config(amp, dtype, **keys):
    pairs = [("MODEL.T2T.DEPTH", "2"), ("TRAIN.BATCH_SIZE", "4"), ("TRAIN.EMA_DECAY", "0.9"), ("CPU.MICRO_BATCH", "0")]
    pairs += [
        ("TRAIN.AMP", amp),
        ("TRAIN.AMP_DTYPE", dtype),
        ("TRAIN.FREEZE", "['blocks.1.norm1.*', 'blocks.1.attn.*']"),
    ]
    return load_config(ROOT / "configs/lit_data.yaml", [*pairs, *((f"TRAIN.{key}", str(keys[key])) for key in keys)])


def make_step(cfg):
    paddle.seed(processes.rank())  # as graphics cards of two kinds would draw other weights
    step = TrainStep(cfg)
    step.train()
    weights = [parameter for parameter in step.live_model.parameters() if not parameter.stop_gradient]
    rng = np.random.default_rng(1)
    factors = [paddle.to_tensor(0.01 * rng.standard_normal(weight.shape).astype("f4")) for weight in weights]

    def forward(images):
        total = sum((weight.astype("float32") * factor).sum() for weight, factor in zip(weights, factors))
        return images.mean(axis=[1, 2, 3]).unsqueeze(1) * total * paddle.arange(10, dtype="float32")

    step.live_model.forward = forward
    return step


def batches(cfg):
    return TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg).epoch_steps(0)


def arrays(tensors):
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def assert_same(tensors, others, but=0.0):
    for name, value in arrays(tensors).items():
        assert np.abs(value - others[name].numpy()).max() <= but, name


def assert_live(step):
    """The model that computes has the float32 model's weights, rounded where it has 16 bits."""
    raw = step.models()["raw"].state_dict()
    for name, tensor in step.live_model.state_dict().items():
        assert (tensor.astype("float32").numpy() == raw[name].astype(tensor.dtype).astype("float32").numpy()).all(), (
            name
        )


@pytest.mark.parametrize(
    ("device", "amp", "dtype", "reason"),
    [
        ("cpu", "O1", "float16", "the device is cpu"), ("gpu:1", "O2", "bfloat16", "gpu:1 has no bfloat16"),
        ("gpu:1", "O1", "float16", None), ("cpu", "", "float16", None),
    ],
)  # fmt: skip
def test_a_device_without_the_type_trains_in_float32_with_a_warning(monkeypatch, warned, device, amp, dtype, reason):
    monkeypatch.setattr(paddle.amp.grad_scaler, "_dygraph_tracer", Place)
    monkeypatch.setattr(paddle.device, "get_device", lambda: device)
    monkeypatch.setattr(paddle.amp, "is_float16_supported", lambda device: True)
    monkeypatch.setattr(paddle.amp, "is_bfloat16_supported", lambda device: False)
    mixed = precision.MixedPrecision(config(amp, dtype).TRAIN)
    assert str(mixed) == ("float32" if reason or not amp else f"{amp} {dtype}")
    warning = f"warning: TRAIN.AMP {amp} {dtype} has no effect here ({reason}): training in float32"
    assert warned.messages == ([warning] if reason else [])
    assert bool(mixed.scaler.state_dict()) == (str(mixed) == "O1 float16")  # whether it scales


def test_weights_average_and_state_match_float32(dtype):
    """With LAYER_DECAY, accumulated passes and frozen tensors: those of the same gradients in float32."""
    keys = dict(LAYER_DECAY=0.5, ACCUM_STEPS=2, OPTIMIZER="adamw")
    cfg = config("O2", dtype, **keys)
    step, plain = make_step(cfg), make_step(config("", dtype, **keys))
    initial = arrays(step.models()["raw"].state_dict())
    types = {tensor.dtype for tensor in step.live_model.state_dict().values()}
    assert types == ({paddle.float16, paddle.float32} if dtype == "float16" else {paddle.bfloat16})
    for number, batch in zip(range(3), batches(cfg)):
        for each in (step, plain):
            assert each(batch, 1e-2, 3, number).ok.item()
        assert_live(step)
    for which, model in step.models().items():
        assert all(tensor.dtype == paddle.float32 for tensor in model.state_dict().values())
        assert_same(model.state_dict(), plain.models()[which].state_dict(), but=2e-3)
        for name in step.optimizer.rates.decays:
            assert (model.state_dict()[name].numpy() != initial[name]).any(), (which, name)
    state, state_of_plain = step.state(), plain.state()
    for part in ("model", "ema", "optimizer"):
        assert set(state[part]) == set(state_of_plain[part])
        assert all(value.dtype == paddle.float32 for value in state[part].values())


def test_resume_reaches_every_copy_of_the_weights(dtype):
    cfg = config("O2", dtype, OPTIMIZER="sgd", CLIP_NORM=1.0)
    first, steps = make_step(cfg), batches(cfg)
    for number in range(2):
        first(next(steps), 1e-2, 0, number)
    state = first.state()
    parts = {part: arrays(state[part]) for part in ("model", "ema", "optimizer")}
    second = make_step(cfg)
    second.load_state({**parts, "scaler": state["scaler"]}, "memory")
    assert_live(second)
    batch = next(steps)
    for step in (first, second):
        step(batch, 1e-2, 0, 2)
    for which in ("raw", "ema"):
        assert_same(first.weights(which), second.weights(which))
    assert_same(first.state()["optimizer"], second.state()["optimizer"])
    assert_live(second)


def test_pretrained_weights_reach_every_copy(dtype, tmp_path):
    path = tmp_path / "start.pdparams"
    other = make_step(config("", dtype))
    for tensor in other.model.state_dict().values():
        tensor.set_value(paddle.full_like(tensor, 0.1))
    paddle.save(other.model.state_dict(), str(path))
    step = make_step(config("O2", dtype))
    step.start_from(path)
    for which in ("raw", "ema"):
        assert_same(step.weights(which), other.model.state_dict())
    assert_live(step)


def overflowing(criterion):
    """A criterion whose gradients are beyond float32."""
    return lambda logits, targets: criterion(logits, targets) * 1e30 * 1e8


def loss_scale(step):
    """The scale in the state of a step; None in bfloat16, which has none."""
    scaler = step.state()["scaler"]
    return float(scaler["scale"][0]) if scaler else None


def test_overflow_skips_the_step_and_halves_the_loss_scale_and_states_keep_it(dtype, tmp_path):
    cfg = config("O2", dtype)
    step, steps = make_step(cfg), batches(cfg)
    scales = [65536.0, 32768.0, 16384.0] if dtype == "float16" else [None] * 3
    assert step(next(steps), 1e-2, 0, 0).ok.item() and loss_scale(step) == scales[0]
    before = {which: arrays(step.weights(which)) for which in ("raw", "ema")}
    criterion = step.criterion
    step.criterion = overflowing(criterion)
    assert not step(next(steps), 1e-2, 0, 1).ok.item() and loss_scale(step) == scales[1]
    for which in ("raw", "ema"):
        assert all((value == before[which][name]).all() for name, value in arrays(step.weights(which)).items())
    step.criterion = criterion
    assert step(next(steps), 1e-2, 0, 2).ok.item()

    checkpoint.save(tmp_path / "state.pdparams", step.state())
    other = make_step(cfg)
    other.load_state(checkpoint.read(tmp_path / "state.pdparams"), "memory")
    assert other.state()["scaler"] == step.state()["scaler"] and loss_scale(other) == scales[1]
    batch = next(steps)
    for each in (step, other):
        assert each(batch, 1e-2, 0, 3).ok.item()
    assert_same(step.weights("raw"), other.weights("raw"))
    other.criterion = overflowing(other.criterion)
    assert not other(next(steps), 1e-2, 0, 4).ok.item() and loss_scale(other) == scales[2]
