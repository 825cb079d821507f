"""`benchmark.py growth` and the engines of `infer`: figures and plot."""

import contextlib
import itertools
import json

import pytest
from conftest import ROOT, error_line, tool

from t2t_vit.bench import growth
from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import _with_latency, offered
from t2t_vit.bench.options import benchmark_parser
from t2t_vit.bench.sweep import row_of, settings
from t2t_vit.common.figures import figure_to
from t2t_vit.config import load_config

TINY = ["MODEL.T2T.DEPTH", 1]


@pytest.fixture
def sweeps(monkeypatch):
    """Settings of each sweep of `growth`, whose rows are not measured: the time grows as tokens ** 1 or 1.5."""
    found = []

    def measure(report, name, args, cfgs, passes, subjects_of):
        parts = [subject.labels["part"] for subject in subjects_of(cfgs[0], None, "")]
        found.append((args.image_sizes, args.batch_sizes, args.threads, parts))
        rows = []
        for cfg, threads, part in itertools.product(settings(args, cfgs), args.threads, parts):
            seconds = count(cfg)["tokens"] ** (1.5 if part == "token module" else 1)
            rounds = [{"seconds": factor * seconds} for factor in (3, 1, 2)]
            rows.append(row_of(cfg, {"threads": threads, "part": part}, rounds, [1.0], passes))
        report[name] = rows
        return rows

    monkeypatch.setattr(growth, "measure", measure)
    return found


def test_growth_measures_three_sweeps_and_draws_them(sweeps, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["--image-sizes", "64,128", "--batch-sizes", "1,4", "--threads", "1,2"]
    args = benchmark_parser("growth").parse_args([*words, "--plot", str(tmp_path / "growth.svg")])
    cfgs = [
        load_config(ROOT / f"configs/{name}.yaml", [("MODEL.T2T.DEPTH", 1)]) for name in ("t2t_vit_7", "t2t_vit_t_14")
    ]
    report: dict = {}
    growth.benchmark_growth(args, cfgs, report)
    both = ["model", "token module"]
    assert sweeps == [([64, 128], [1], [2], both), (None, [1, 4], [2], both[:1]), (None, [4], [1, 2], both[:1])]
    assert [len(rows) for rows in report.values()] == [8, 4, 4]
    whole, module = report["growth_image_size"][:2]
    assert whole["tokens"] == 16**2 and 0 < module["gmacs"] < whole["gmacs"]
    drawn = (tmp_path / "growth.svg").read_text()
    for name in ("t2t_vit_7", "t2t_vit_t_14"):
        for part, power in (("model", "1.00"), ("token module", "1.50")):
            assert f"{name}, {part}: tokens$^{{{power}}}$" in drawn
    assert "ms for one image" in drawn and "batch size" in drawn and "threads" in drawn


def test_the_legend_of_growth_is_clear_of_the_lines(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []

    @contextlib.contextmanager
    def figure_kept(*words):
        with figure_to(*words) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(growth, "figure_to", figure_kept)
    growth.draw_growth(json.loads((ROOT / "docs/figures/growth.json").read_text()), tmp_path / "growth.png")
    (legend,) = drawn[0].legends
    assert len(drawn[0].axes) == 3 and not any(axes.get_legend() for axes in drawn[0].axes)
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in drawn[0].axes)


def test_pairs_of_engine_and_precision():
    pairs, missing = offered(["paddle", "inference"], ["fp32", "bf16"])
    assert pairs == [("paddle", "fp32"), ("inference", "fp32")]
    assert missing == ["paddle bf16", "inference bf16"]


def test_the_time_of_one_image_is_a_column_beside_larger_batches():
    place = {"model": "a", "image_size": 16, "threads": 1, "engine": "paddle", "precision": "fp32"}
    rows = [{**place, "batch_size": size, "milliseconds": {"median": size}} for size in (1, 4, 8)]
    assert _with_latency(rows) == [{**row, "milliseconds_of_one": 1} for row in rows[1:]]
    assert _with_latency(rows[:1]) == rows[:1] and _with_latency(rows[1:]) == rows[1:]


def test_engines_are_timed_on_exported_files(tmp_path):
    for package in ("onnx", "paddle2onnx", "onnxruntime"):
        pytest.importorskip(package)
    engines = ["paddle", "onnxruntime"]
    words = ["--engines", ",".join(engines), "--precisions", "fp32,bf16", "--rounds", 1, "--threads", 1, *TINY]
    done = tool("benchmark", "infer", *words, "--batch-size", 4, "--json", tmp_path / "infer.json", "--markdown")
    rows = json.loads((tmp_path / "infer.json").read_text())["infer"]
    assert [row["engine"] for row in rows] == engines
    for row in rows:
        rate = row["images_per_second"]["median"]
        assert rate == pytest.approx(4000 / row["milliseconds"]["median"])
        assert f"| lit_data | 16 | 4 | 1 | {row['engine']} | fp32 | {rate:.1f} (" in done.stdout
    assert done.stdout.endswith("not supported: paddle bf16, onnxruntime bf16\n")


@pytest.mark.parametrize(
    "words, message",
    [
        (["growth", "pit_ti"], "error: MODEL.NAME pit_ti: growth needs a T2T module, which a PiT does not have"),
        (
            ["growth", "--threads", 1, "--plot", "x.txt"],
            "error: --plot x.txt must end in .png, .pdf, .svg, .jpg or .jpeg",
        ),
        (["growth", "--plot", "LICENSE/x.png"], "error: LICENSE/x.png: cannot be written: "),
        (
            ["infer", "--precisions", "int8"],
            "error: paddle int8 is not supported: choose other --engines or --precisions",
        ),
    ],
)
def test_mistakes_are_one_line(words, message):
    assert error_line("benchmark", *words).startswith(message)
