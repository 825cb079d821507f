"""TensorFloat-32 is off except in training with TRAIN.TF32; tested with fake switches of a GPU build."""

import functools
import os

import paddle
import pytest
from test_fold import small_model

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config, with_keys
from t2t_vit.models import tf32
from t2t_vit.parallel import processes
from t2t_vit.training.evaluator import evaluate
from t2t_vit.training.train_step import TrainStep

KEYS = {"MODEL.NUM_CLASSES": 10, "MODEL.T2T.DEPTH": 1, "DEVICE": "cpu", "CPU.MICRO_BATCH": 0}
CFG = with_keys(load_config("configs/lit_data.yaml"), KEYS)


@pytest.fixture
def switches(monkeypatch):
    """The two switches of a GPU build, both on as Paddle has them."""
    state = {"cublas": True, "cudnn": True}
    for name in state:
        turn, ask = functools.partial(_turn, state, name), functools.partial(state.get, name)
        monkeypatch.setattr(tf32.core, f"set_{name}_switch", turn, raising=False)
        monkeypatch.setattr(tf32.core, f"get_{name}_switch", ask, raising=False)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return state


def _turn(state, name, on):
    state[name] = on


@pytest.mark.parametrize(("wanted", "override"), [(False, "0"), (True, None)])
def test_every_command_starts_without_it(switches, wanted, override):
    processes.setup(with_keys(CFG, {"TRAIN.TF32": wanted}))
    assert switches == {"cublas": False, "cudnn": False}
    assert os.environ.pop("NVIDIA_TF32_OVERRIDE", None) == override


@pytest.mark.parametrize("wanted", [False, True])
def test_training_uses_it_only_with_the_key_and_validation_never(switches, wanted):
    step = TrainStep(with_keys(CFG, {"TRAIN.TF32": wanted}))
    step.train()
    assert switches == {"cublas": wanted, "cudnn": wanted}
    seen = []

    def model(images):
        seen.append(dict(switches))
        return paddle.zeros([images.shape[0], 10])

    model.training, model.eval = False, lambda: None
    batch = paddle.zeros([2, 16, 16, 3], "uint8"), paddle.zeros([2], "int64")
    assert evaluate(model, [batch], CFG).num_images == 2
    assert seen == [{"cublas": False, "cudnn": False}] and switches == {"cublas": wanted, "cudnn": wanted}


def test_performer_exponents_never_use_it(switches, monkeypatch):
    matmul, seen = paddle.matmul, []
    model = small_model("performer")
    weights = {id(layer.w) for layer in model.tokens_to_token.token_layers}

    def recorded(x, y, *words, **options):
        seen.append((id(y) in weights, switches["cublas"]))
        return matmul(x, y, *words, **options)

    monkeypatch.setattr(paddle, "matmul", recorded)
    model(paddle.zeros([1, 3, 32, 32]))
    assert {allowed for is_exponent, allowed in seen if is_exponent} == {False}
    assert {allowed for is_exponent, allowed in seen if not is_exponent} == {True}


def test_compiled_graph_cannot_use_it():
    with pytest.raises(UserError, match="TRAIN.TF32 .* must be False if TRAIN.TO_STATIC"):
        load_config("configs/lit_data.yaml", [("TRAIN.TF32", "True"), ("TRAIN.TO_STATIC", "True")])
