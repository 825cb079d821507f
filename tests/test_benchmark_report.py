"""--json FILE of benchmark.py: an interrupted benchmark continues; other figures are refused."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import error_line, tool

from t2t_vit.bench import command, sweep
from t2t_vit.bench.sweep import row_of

WORDS = ["train", "--rounds", 1, "--threads", 1, "--batch-sizes", "2,3,4", "--markdown", "MODEL.T2T.DEPTH", 1]


@pytest.fixture
def measured(monkeypatch):
    """Batch sizes that were measured. Nothing is timed; a batch size that is in `measured.stops` is a Ctrl-C."""

    class Sizes(list):
        stops = set()

    sizes = Sizes()

    def measure_in_turn(_, cfg, passes, subjects):
        if cfg.TRAIN.BATCH_SIZE in sizes.stops:
            raise KeyboardInterrupt
        sizes.append(cfg.TRAIN.BATCH_SIZE)
        rounds = [{"seconds": 0.1 * len(sizes), "input": 0.1, "forward and backward": 0.1, "update": 0.1}]
        return [row_of(cfg, {"threads": 1, **subjects[0].labels, "peak_mb": 1.0}, rounds, [1.0], passes)]

    monkeypatch.setattr(sweep, "measure_in_turn", measure_in_turn)
    return sizes


def test_an_interrupted_benchmark_continues(measured, tmp_path):
    file, whole = tmp_path / "train.json", tmp_path / "whole.json"
    measured.stops = {4}
    assert error_line("benchmark", *WORDS, "--json", file) == "error: interrupted"
    assert measured == [2, 3] and len(json.loads(file.read_text())["train"]) == 2
    measured.stops = set()
    done = tool("benchmark", *WORDS, "--json", file, cwd=tmp_path, fresh=False)
    assert measured == [2, 3, 4] and "train.json has 2 of 3 measurements: continuing" in done.stdout.splitlines()
    measured.clear()
    tool("benchmark", *WORDS, "--json", whole, fresh=False)
    assert measured == [2, 3, 4] and json.loads(whole.read_text()) == json.loads(file.read_text())
    table = [line for line in done.stdout.splitlines() if line.startswith("| lit_data")]
    assert [line.split(" | ")[2] for line in table] == ["2", "3", "4"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rounds", 2], "train.json has figures with options rounds 1 instead of 2; give --json another file, "),
        (["--batch-sizes", "2"], "train.json has figures with options batch_sizes [2, 3, 4] instead of [2]; "),
        (["MODEL.T2T.DEPTH", 2], "train.json has figures with options opts ['MODEL.T2T.DEPTH', '1'] instead of "),
    ],
)  # fmt: skip
def test_figures_of_other_options_are_refused(measured, tmp_path, words, message):
    file = tmp_path / "train.json"
    tool("benchmark", *WORDS, "--json", file, fresh=False)
    before = file.read_bytes()
    assert error_line("benchmark", *WORDS, *words, "--json", file, cwd=tmp_path).startswith(f"error: {message}")
    assert measured == [2, 3, 4] and file.read_bytes() == before


def test_figures_of_another_machine_are_refused(measured, tmp_path, monkeypatch):
    file = tmp_path / "train.json"
    tool("benchmark", *WORDS, "--json", file, fresh=False)
    machine = {**command.describe_machine(), "cpu": "Abacus 2000"}
    monkeypatch.setattr(command, "describe_machine", lambda: machine)
    line = error_line("benchmark", *WORDS, "--json", file, cwd=tmp_path)
    assert (
        line.startswith("error: train.json has figures with machine cpu ") and "instead of 'Abacus 2000'; give " in line
    )
    assert len(measured) == 3


@pytest.mark.usefixtures("measured")
def test_figures_of_another_benchmark_are_not_replaced(tmp_path):
    file = tmp_path / "train.json"
    tool("benchmark", *WORDS, "--json", file, fresh=False)
    before = file.read_bytes()
    line = error_line("benchmark", "model", "t2t_vit_7", "--json", file, cwd=tmp_path)
    assert line.startswith("error: train.json has figures with options benchmark 'train' instead of 'model'; ")
    assert file.read_bytes() == before


@pytest.mark.usefixtures("measured")
def test_figures_of_other_variables_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "train.json"
    tool("benchmark", *WORDS, "--json", file, fresh=False)
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "0")
    line = error_line("benchmark", *WORDS, "--json", file, cwd=tmp_path)
    assert "figures with options MKL_DEBUG_CPU_TYPE" in line


UNFINISHED = '{"machine": {}, "options": {}, "finished": {"train": %s}, "train": %s}'


@pytest.mark.parametrize("text", [
    "{", "[]", "{}", '{"machine": [], "options": 1}', "\0\xff", "[" * 100_000,
    UNFINISHED % ("null", "[]"), UNFINISHED % ('["a"]', "[]"), UNFINISHED % ("[[]]", "[1]"),
])  # fmt: skip
def test_other_files_are_not_replaced(measured, tmp_path, text):
    file = tmp_path / "train.json"
    file.write_text(text, encoding="latin-1")
    line = error_line("benchmark", *WORDS, "--json", file, cwd=tmp_path)
    assert line.startswith("error: train.json ") and line.endswith("; give --json another file")
    assert not measured and file.read_text(encoding="latin-1") == text


def test_a_pipe_gets_the_figures_once(measured, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit((tmp_path / "pipe").read_text)
        tool("benchmark", *WORDS, "--json", tmp_path / "pipe", fresh=False)
        assert len(json.loads(text.result(60))["train"]) == len(measured) == 3
