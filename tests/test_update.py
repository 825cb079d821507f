"""Cost of an update on a GPU: number of operations, and memory."""

import re
from pathlib import Path

import paddle
import pytest
from conftest import ROOT

from t2t_vit.bench.operations import update_operations
from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint


@pytest.mark.parametrize(
    "keys, most",
    [
        ({}, 42),
        ({"CLIP_NORM": 1.0, "OPTIMIZER": "sgd"}, 42),
        ({"CLIP_NORM": 1.0, "LAYER_DECAY": 0.75, "BACKBONE_LR": 5e-4}, 82),
    ],
)
def test_an_update_of_t2t_vit_7_is_a_few_operations(keys, most):
    pairs = [("MODEL.T2T.DEPTH", "7"), ("CPU.MICRO_BATCH", "0"), ("TRAIN.BATCH_SIZE", "2")]  # as many tensors
    cfg = load_config(ROOT / "configs/lit_data.yaml", [*pairs, *((f"TRAIN.{key}", str(keys[key])) for key in keys)])
    batches = TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg).epoch_steps(0)
    step = TrainStep(cfg)
    step.train()
    step(next(batches), 1e-3, 0, 0)  # makes the optimizer's state
    results = []
    found = update_operations(step, lambda: results.append(step(next(batches), 1e-3, 0, 1)))
    assert results[0].ok.item()
    trained = len(step.optimizer.rates.decays)
    assert trained == 108 and 10 < sum(found.values()) <= most, found


def test_weights_outside_the_flat_tensor_are_moved_back():
    """On a CPU, `set_value` writes to the tensor's own memory; training must continue even if it does not."""
    cfg = load_config(ROOT / "configs/lit_data.yaml", [("MODEL.T2T.DEPTH", "1"), ("TRAIN.BATCH_SIZE", "2")])
    batches = TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg).epoch_steps(0)
    step = TrainStep(cfg)
    step.train()
    step(next(batches), 1e-3, 0, 0)
    state = step.state()
    arrays = {part: {name: value.numpy().copy() for name, value in state[part].items()} for part in
              ("model", "ema", "optimizer")}  # fmt: skip
    for model in step.models().values():
        for tensor in model.state_dict().values():
            paddle.zeros_like(tensor)._share_buffer_to(tensor)
    step.load_state({**arrays, "scaler": {}}, "memory")
    step(next(batches), 1e-3, 0, 1)
    for which, part in (("raw", "model"), ("ema", "ema")):
        for name in step.optimizer.rates.decays:
            assert (step.weights(which)[name].numpy() != arrays[part][name]).any(), (which, name)


def test_a_state_that_is_saved_takes_little_memory():
    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # MB

    step = TrainStep(
        load_config(ROOT / "configs/lit_data.yaml", [("MODEL.T2T.DEPTH", "2"), ("TRAIN.EMA_DECAY", "0.9")])
    )
    before = resident()
    arrays = checkpoint._to_numpy(step.state())
    assert sum(array.nbytes for array in arrays["model"].values()) < 4e6 and len(arrays["model"]) > 40
    assert resident() - before < 60  # 8 MB, but 200 where each array keeps all weights
