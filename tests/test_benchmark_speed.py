"""What `benchmark.py train` and `infer` time, and that their figures are what they claim."""

import json
import time

import numpy as np
import pytest
from conftest import ROOT, error_line, tool

from t2t_vit.bench import rounds
from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import eager
from t2t_vit.bench.machine import MatmulLimit
from t2t_vit.bench.pictures import training_pictures
from t2t_vit.bench.process import Subject, closing
from t2t_vit.bench.rounds import Timed, interleave, summary
from t2t_vit.bench.sweep import Member, described
from t2t_vit.bench.train import PARTS, Training
from t2t_vit.config import default_config, load_config
from t2t_vit.training.train_step import TrainStep

TINY = ["MODEL.T2T.DEPTH", 1]
BUSY = 0.3  # seconds


@pytest.fixture
def cfg():
    return load_config(ROOT / "configs/lit_data.yaml", [("MODEL.T2T.DEPTH", 1), ("TRAIN.BATCH_SIZE", 8)])


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves: a list of its time in seconds."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 1.0)
    return now


def sleeping(*_):
    time.sleep(BUSY)


# --- Time ---


def test_a_round_is_as_many_calls_as_it_takes(clock):
    calls = []

    def work():
        calls.append(1)
        clock[0] += 0.3 if len(calls) > rounds.WARM_UP else 100.0  # a first call may compile

    timed = Timed(work)
    assert timed.calls == 4
    del calls[: -rounds.WARM_UP]
    assert timed.seconds() == pytest.approx(0.3)
    assert len(calls) == rounds.WARM_UP + 4


def test_those_that_are_compared_take_turns(monkeypatch):
    monkeypatch.setattr(rounds, "PAUSE", 0.0)
    order = []
    subjects = {name: lambda method, name=name: order.append((name, method)) or len(order) for name in "ab"}
    assert interleave(subjects, 2) == {"a": [1, 3], "b": [2, 4]}
    assert order == 2 * [("a", "round"), ("b", "round")]


def test_figures_follow_from_seconds_and_multiplications(cfg):
    gmacs = count(cfg)["gmacs"]
    each = [{"seconds": 0.5, "forward": 0.2}, {"seconds": 0.25, "forward": 0.1}, {"seconds": 0.4, "forward": 0.1}]
    row = described(Member(cfg, 2, {"engine": "x"}, None, ()), each, limit=[100.0, 50.0, 40.0], passes=3)
    assert row["images_per_second"] == summary([16.0, 32.0, 20.0])
    assert row["milliseconds"]["median"] == pytest.approx(400)
    assert row["parts"] == {"forward": pytest.approx(100)}
    assert row["share_of_limit"] == pytest.approx(2 * 3 * gmacs * 20 / 50)
    assert (row["model"], row["batch_size"], row["threads"], row["engine"]) == ("lit_data", 8, 2, "x")


def test_the_matmul_limit_counts_two_operations_each(monkeypatch):
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr("t2t_vit.bench.machine.SHAPES", ((64, 128, 256),))
    limit = MatmulLimit()
    monkeypatch.setattr(limit.timed, "seconds", lambda: 0.001)
    assert limit.round() == pytest.approx(2 * 64 * 128 * 256 / 0.001 / 1e9)


# --- What is timed ---


def test_the_steps_are_those_of_training(cfg, monkeypatch):
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.0)
    pictures, cfg = training_pictures(cfg, True, 8)
    training, plain = Training(cfg, pictures), TrainStep(cfg)
    plain.train()
    for name, tensor in plain.model.state_dict().items():  # both started from other weights
        tensor.set_value(training.step.model.state_dict()[name])
    assert training.batches[0].images.shape == [8, 16, 16, 3]
    assert plain(training.batches, 1e-3, 0, 1).loss.item() == pytest.approx(
        training.step(training.batches, 1e-3, 0, 1).loss.item(), rel=1e-6
    )


def test_parts_of_a_step_make_up_the_step(cfg, monkeypatch):
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.0)
    pictures, cfg = training_pictures(cfg, True, 8)
    training = Training(cfg, pictures)
    found = training.round()
    assert sum(found[part] for part in PARTS) == pytest.approx(found["seconds"], rel=0.05)
    part = training.step._backward_part
    monkeypatch.setattr(training.step, "_backward_part", lambda *args: (sleeping(), part(*args))[1])
    slower = training.round()
    assert slower["forward and backward"] > BUSY > slower["update"] and slower["seconds"] > BUSY
    update = training.step.optimizer.inner.step
    monkeypatch.setattr(training.step.optimizer.inner, "step", lambda: (sleeping(), update()))
    assert training.round()["update"] > BUSY


def test_inference_is_of_the_model_or_its_token_module(cfg, monkeypatch):
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.0)
    outputs = []
    monkeypatch.setattr("t2t_vit.bench.infer.finished", outputs.append)
    pictures, cfg = training_pictures(cfg, True, 8)
    for token_module, shape in ((False, [8, 10]), (True, [8, 16, 128])):
        subject = eager(cfg, pictures, token_module)
        outputs.clear()
        assert subject.round()["seconds"] > 0
        (output,) = outputs
        assert output.shape == shape and output.stop_gradient


def test_pictures_are_the_configs_or_the_shipped_digits():
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("DATA.PATH", "absent"), ("MODEL.NUM_CLASSES", 3)])
    pictures, same = training_pictures(cfg, False, 2000)
    assert len(pictures) == 2000 and same == cfg
    assert set(np.unique(pictures.labels)) == {0, 1, 2}


class Dying:
    def __init__(self):
        import os

        os._exit(1)


def test_a_process_that_dies_is_one_line():
    from t2t_vit.common.errors import UserError

    with closing({}), pytest.raises(UserError, match="the process for x ended; if the memory ran out"):
        Subject(Dying, title="x", cfg=default_config(), threads=1)


# --- Commands ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    file = tmp_path_factory.mktemp("train") / "train.json"
    done = tool("benchmark", "train", "--rounds", 3, "--batch-sizes", "4,8", "--json", file, *TINY)
    return done.stdout.splitlines(), json.loads(file.read_text())


def test_training_steps_are_told_for_each_batch_size(trained):
    lines, report = trained
    assert lines[0].startswith(f"machine: {report['machine']['cpu']}, ")
    assert [row["batch_size"] for row in report["train"]] == [4, 8]
    for row, line in zip(report["train"], lines[-2:]):
        rate = row["images_per_second"]
        assert len(rate["rounds"]) == 3 and rate["lowest"] <= rate["median"] <= rate["highest"]
        assert rate["median"] == pytest.approx(1000 * row["batch_size"] / row["milliseconds"]["median"])
        assert line.split()[:4] == ["lit_data", "16", str(row["batch_size"]), str(row["threads"])]
        assert f"{rate['median']:.1f} ({rate['lowest']:.1f} .. {rate['highest']:.1f})" in line
        assert line.split()[-2:] == [f"{row['peak_mb']:.0f}", f"{row['share_of_limit']:.0%}"]
        assert list(row["parts"]) == list(PARTS) and row["peak_mb"] > 1
        assert sum(row["parts"].values()) == pytest.approx(row["milliseconds"]["median"], rel=0.5)
    assert any(line.startswith("matmul limit, float32, ") and line.endswith(" GFLOP/s") for line in lines)


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "--data-path", "/absent"], "error: data folder /absent not found"),
        (["infer", "--threads", "0"], "error: --threads is 0 but must be 1 to 1024"),
        (["train", "MODEL.T2T.NUM_HEADS", "7"], "error: MODEL.NAME t2t_vit_7: the width 128 is not divisible by 7 "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words, message):
    assert error_line("benchmark", *words).startswith(message)
