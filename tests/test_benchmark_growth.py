"""`benchmark.py growth` and the engines of `infer`: their figures and the picture."""

import json

import pytest
from conftest import error_line, tool
from PIL import Image

from t2t_vit.bench.growth import fit_exponents
from t2t_vit.bench.infer import offered

TINY = ["MODEL.T2T.DEPTH", 1]


def test_exponents_are_of_the_token_modules_fastest_rounds():
    sizes = [100, 200, 400, 800]
    rows = [
        {"model": model, "part": part, "tokens": size, "gmacs": size**2,
         "milliseconds": {"lowest": 5 * size**power, "median": size**3}}
        for model, part, power in (("a", "token module", 1.0), ("a", "model", 9.0), ("b", "token module", 2.0))
        for size in sizes
    ]  # fmt: skip
    found = fit_exponents(rows)
    assert {model: round(both["time"], 6) for model, both in found.items()} == {"a": 1.0, "b": 2.0}
    assert found["a"]["macs"] == pytest.approx(2)


def test_growth_prints_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    done = tool("benchmark", "growth", "--config", "configs/lit_data.yaml", *TINY, "--rounds", 1, "--threads", 1,
                "--image-sizes", "16,32", "--batch-sizes", 1, "--plot", tmp_path / "growth.png",
                "--json", tmp_path / "growth.json")  # fmt: skip
    report = json.loads((tmp_path / "growth.json").read_text())
    sizes = [(row["image_size"], row["tokens"], row["part"], row["batch_size"]) for row in report["growth_image_size"]]
    assert sizes == [(16, 256, "model", 1), (16, 256, "token module", 1), (32, 1024, "model", 1),
                     (32, 1024, "token module", 1)]  # fmt: skip
    whole, module = report["growth_image_size"][:2]
    assert 0 < module["gmacs"] < whole["gmacs"]
    assert [row["batch_size"] for row in report["growth_batch_size"]] == [1]
    assert [row["threads"] for row in report["growth_threads"]] == [1]
    found = report["exponents"]["lit_data"]
    assert found["macs"] == pytest.approx(1, abs=0.01)
    assert f"to the power of {found['time']:.2f}, its multiplications to that of {found['macs']:.2f}" in done.stdout
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.json", "growth.png"]


def test_pairs_of_engine_and_precision():
    pairs, missing = offered(["paddle", "inference"], ["fp32", "bf16"])
    assert pairs == [("paddle", "fp32"), ("inference", "fp32")]
    assert missing == ["paddle bf16", "inference bf16"]


def test_engines_are_timed_on_exported_files(tmp_path):
    for package in ("onnx", "paddle2onnx", "onnxruntime"):
        pytest.importorskip(package)
    words = ["--engines", "inference,onnxruntime", "--precisions", "fp32,bf16", "--rounds", 1, "--threads", 1, *TINY]
    done = tool("benchmark", "infer", *words, "--batch-size", 4, "--json", tmp_path / "infer.json", "--markdown")
    rows = json.loads((tmp_path / "infer.json").read_text())["infer"]
    assert [row["engine"] for row in rows] == ["inference", "onnxruntime"]
    for row in rows:
        rate = row["images_per_second"]["median"]
        assert rate == pytest.approx(4000 / row["milliseconds"]["median"])
        assert f"| lit_data | 16 | 4 | 1 | {row['engine']} | fp32 | {rate:.1f} (" in done.stdout
    assert done.stdout.endswith("not offered: inference bf16, onnxruntime bf16\n")


@pytest.mark.parametrize(
    "words, message",
    [
        (["growth", "pit_ti"], "error: MODEL.NAME pit_ti: growth needs a T2T module, and a PiT has none"),
        (
            ["growth", "--threads", 1, "--plot", "x.txt"],
            "error: --plot x.txt must end in .png, .pdf, .svg, .jpg or .jpeg",
        ),
        (["growth", "--plot", "LICENSE/x.png"], "error: LICENSE/x.png: cannot be written: "),
        (
            ["infer", "--precisions", "int8"],
            "error: paddle int8 does not exist: choose other --engines or --precisions",
        ),
    ],
)
def test_mistakes_are_one_line(words, message):
    assert error_line("benchmark", *words).startswith(message)
