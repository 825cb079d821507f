"""`benchmark.py --baseline pytorch`: the same models in PyTorch."""

import numpy as np
import official
import paddle
import pytest
from conftest import ROOT, error_line

from t2t_vit.bench.baseline import Baseline, torch_arguments
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import summary
from t2t_vit.bench.sweep import print_rows, with_ratios
from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model
from t2t_vit.weights.formats import linear_weights, transposed

TINY = {"DATA.IMAGE_SIZE": 64, "MODEL.NUM_CLASSES": 10}
T2T = {**TINY, "MODEL.T2T.DEPTH": 2, "MODEL.T2T.TOKEN_DIM": 16}
PIT = {**TINY, "MODEL.PIT.DEPTH": "[1, 1, 1]"}


def config(name, keys):
    return load_config(ROOT / f"configs/{name}.yaml", [(key, str(value)) for key, value in keys.items()])


@pytest.mark.parametrize(
    "name, keys",
    [
        ("t2t_vit_7", T2T),
        ("t2t_vit_t_14", {**T2T, "MODEL.QK_SCALE": 0.3}),
        ("t2t_vit_14_384", T2T),
        ("pit_ti", PIT),
        ("pit_ti_distilled", PIT),
    ],
)
def test_logits_and_gradients_are_ours(name, keys):
    torch = pytest.importorskip("torch")
    from t2t_vit.bench import torch_baseline  # imports PyTorch, which is optional

    cfg = config(name, keys)
    ours = official.set_weights(build_model(cfg))
    family, arguments = torch_arguments(cfg)
    theirs = torch_baseline.MODELS[family](**arguments).eval()
    arrays = {key: checkpoint.to_array(tensor) for key, tensor in ours.state_dict().items()}
    official_arrays = transposed(arrays, linear_weights(ours))
    theirs.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in official_arrays.items()})
    images = official.images(3, 64)
    logits = ours(paddle.to_tensor(images)).numpy()
    found = theirs(torch.from_numpy(images))
    assert np.abs(found.detach().numpy() - logits).max() < 1e-5 * np.abs(logits).max()
    _, gradients, *_ = official.gradients(ours, images, np.array([1, 2, 3]))
    torch.nn.functional.cross_entropy(found, torch.tensor([1, 2, 3])).backward()
    trained = {key: parameter.grad for key, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert set(trained) == set(gradients)
    for key, gradient in gradients.items():
        assert np.abs(trained[key].numpy() - gradient).max() < 1e-4 * np.abs(gradient).max(), key


def test_a_pytorch_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libmissing.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with Process("x", None) as process, pytest.raises(UserError, match="torch_baseline cannot be .*libmissing.so.1"):
        process.run("t2t_vit.bench.torch_baseline:build")


def test_steps_are_timed_in_a_process_without_paddle():
    pytest.importorskip("torch")
    cfg = config("t2t_vit_7", {**T2T, "TRAIN.BATCH_SIZE": 2})
    subject, *_ = Baseline("pytorch", is_training=True).subjects(cfg)
    with Process("x", None) as process:
        assert process.run(f"{subject.module}:build", *subject.args) > 0
        parts = process.run(f"{subject.module}:time_round")
        assert process.run(eval, "{'paddle', 'torch'} & set(__import__('sys').modules)") == {"torch"}
    seconds = parts.pop("seconds")
    assert list(parts) == ["forward and backward", "update"] and sum(parts.values()) == pytest.approx(seconds, rel=0.1)


def test_blocks_without_a_baseline_have_no_row():
    pytest.importorskip("torch")
    baseline = Baseline("pytorch", is_training=False)
    assert baseline.subjects(config("t2t_vit_14_se", {})) == [] and baseline.subjects(config("t2t_vit_14_wide", {}))
    assert Baseline("", is_training=False).subjects(config("t2t_vit_7", {})) == []


def test_the_ratio_is_that_of_each_round(warned):
    warned.set_level("INFO", "t2t")
    rows = [
        {"engine": engine, "precision": "fp32", "threads": 1, "milliseconds": {"rounds": rounds}}
        for engine, rounds in (("paddle", [10, 20, 10]), ("pytorch", [20, 20, 30]))
    ]
    assert [row["ratio"]["median"] for row in with_ratios(rows)] == [2, 1]
    print_rows([{**row, "limit_gflops": summary([1.0])} for row in rows], ("engine", "ms for 1", "of PyTorch"), True)
    assert warned.messages[-4:] == [
        "| engine | of PyTorch |",
        "| --- | --- |",
        "| paddle | 2.00 |",
        "| pytorch | 1.00 |",
    ]
    plain = [{key: row[key] for key in ("engine", "precision", "threads", "milliseconds")} for row in rows]
    assert with_ratios(plain[:1]) == plain[:1]


def test_a_missing_pytorch_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    line = error_line("benchmark", "train", "--baseline", "pytorch")
    assert line == "error: --baseline pytorch needs PyTorch: pip install torch (the CPU build is enough)"
