"""`benchmark.py train` and `infer`: what they time, and that their figures are consistent."""

import json
import os
import time

import numpy as np
import pytest
from conftest import ROOT, error_line, tool

from t2t_vit.bench import subject
from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import eager, eval_images
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import WARM_UP, Timed, interleave, summary
from t2t_vit.bench.samples import training_samples
from t2t_vit.bench.sweep import row_of
from t2t_vit.bench.train import PARTS, TrainingSteps
from t2t_vit.common.errors import UserError
from t2t_vit.common.runtime import memory_mb
from t2t_vit.config import default_config, load_config
from t2t_vit.training.train_step import TrainStep

TINY = ["MODEL.T2T.DEPTH", 1]
BUSY = 0.3  # seconds


@pytest.fixture
def cfg():
    return load_config(ROOT / "configs/lit_data.yaml", [("MODEL.T2T.DEPTH", 1), ("TRAIN.BATCH_SIZE", 8)])


def sleeping(*_):
    time.sleep(BUSY)


# --- Time ---


def test_a_round_repeats_the_call_until_it_is_long_enough():
    calls = []

    def work():
        calls.append(1)
        time.sleep(0.03 if len(calls) > WARM_UP else 0.3)  # a first call may compile

    timed = Timed(work)
    assert 5 <= timed.calls <= 10  # of 0.2 s
    calls.clear()
    calls += WARM_UP * [1]
    assert timed.seconds() == pytest.approx(0.03, rel=0.5)
    assert len(calls) == WARM_UP + timed.calls


def test_functions_alternate():
    order = []
    functions = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert interleave(functions, 2, pause=0) == {"a": [1, 3], "b": [2, 4]}
    assert order == ["a", "b", "a", "b"]


def test_figures_follow_from_seconds_and_multiplications(cfg):
    gmacs = count(cfg)["gmacs"]
    each = [dict(zip(("seconds", "forward"), numbers)) for numbers in ((0.5, 0.2), (0.25, 0.1), (0.4, 0.1))]
    row = row_of(cfg, {"threads": 2, "engine": "x"}, each, [100.0, 50.0, 40.0], passes=3)
    assert row["images_per_second"] == summary([16.0, 32.0, 20.0])
    assert row["milliseconds"]["median"] == pytest.approx(400)
    assert row["parts"] == {"forward": pytest.approx(100)}
    assert row["share_of_limit"] == pytest.approx(2 * 3 * gmacs * 20 / 50)
    assert (row["model"], row["batch_size"], row["threads"], row["engine"]) == ("lit_data", 8, 2, "x")


def test_the_matmul_limit_counts_two_operations_each(monkeypatch):
    monkeypatch.setattr(subject, "SIDE", 64)
    subject.build(lambda: sleeping)  # its MB are those of this process, which has run other tests
    monkeypatch.setattr(subject._product, "seconds", lambda: 0.001)
    found = subject.time_round()
    assert found == {"seconds": pytest.approx(BUSY, rel=0.5), "gflops": pytest.approx(2 * 64**3 / 0.001 / 1e9)}


# --- What is timed ---


def test_the_steps_are_those_of_training(cfg):
    samples, cfg = training_samples(cfg, True, 8)
    training, plain = TrainingSteps(cfg, samples), TrainStep(cfg)
    plain.train()
    for name, tensor in plain.model.state_dict().items():  # both started from other weights
        tensor.set_value(training.step.model.state_dict()[name])
    assert training.batches[0].images.shape == [8, 16, 16, 3]
    assert plain(training.batches, 1e-3, 0, 1).loss.item() == pytest.approx(
        training.step(training.batches, 1e-3, 0, 1).loss.item(), rel=1e-6
    )


def test_parts_of_a_step_add_up_to_the_step(cfg, monkeypatch):
    monkeypatch.setattr(subject, "SIDE", 64)
    samples, cfg = training_samples(cfg, True, 8)
    training = TrainingSteps(cfg, samples)
    subject.build(lambda: training)
    found = subject.time_round()
    assert sum(found[part] for part in PARTS) == pytest.approx(found["seconds"], rel=0.2)
    monkeypatch.setattr(subject._timed, "calls", 1)
    part = training.step._backward_part
    monkeypatch.setattr(training.step, "_backward_part", lambda *args: (sleeping(), part(*args))[1])
    slower = subject.time_round()
    assert slower["forward and backward"] > BUSY > slower["update"] and slower["seconds"] > BUSY
    update = training.step.optimizer.inner.step
    monkeypatch.setattr(training.step.optimizer.inner, "step", lambda: (sleeping(), update()))
    assert subject.time_round()["update"] > BUSY


def test_inference_runs_the_model_or_its_token_module(cfg):
    samples, cfg = training_samples(cfg, True, 8)
    for token_module, shape in ((False, [8, 10]), (True, [8, 16, 128])):
        output = eager(cfg, samples, token_module)()
        assert output.shape == shape and output.stop_gradient
    assert eval_images(cfg, samples).shape == [8, 3, 16, 16]


def _resident_megabytes(megabytes):
    held = np.ones(megabytes * 2**17)
    now, peak = memory_mb()
    return now, peak, held.size


def test_memory_of_a_process_is_without_that_of_its_parent():
    held = np.ones(100 * 2**17)  # 100 MB here
    parent = memory_mb()[1]
    with Process("x", None) as process:
        before = process.run(memory_mb)[1]
        now, peak, _ = process.run(_resident_megabytes, 40)
    assert before < parent - 90 and held[0]
    assert peak >= now > before + 30


def test_images_come_from_the_config_or_the_digits():
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("DATA.PATH", "absent"), ("MODEL.NUM_CLASSES", 3)])
    samples, same = training_samples(cfg, False, 2000)
    assert len(samples) == 2000 and same == cfg
    assert set(np.unique(samples.labels)) == {0, 1, 2}


def test_a_process_that_dies_is_one_line():
    with (
        Process("x", default_config()) as process,
        pytest.raises(UserError, match="the process for x ended; if the machine ran out"),
    ):
        process.run(os._exit, 1)


# --- Commands ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    file = tmp_path_factory.mktemp("train") / "train.json"
    done = tool("benchmark", "train", "--rounds", 3, "--batch-sizes", "4,8", "--json", file, *TINY)
    return done.stdout.splitlines(), json.loads(file.read_text())


def test_training_steps_are_printed_for_each_batch_size(trained):
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
        (["train", "MODEL.T2T.NUM_HEADS", "7"], "error: MODEL.NAME t2t_vit_7: the width 128 is not divisible by 7 "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words, message):
    assert error_line("benchmark", *words).startswith(message)
