"""Export: the files compute the same as the model, and errors leave no files."""

import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, tool
from test_fold import small_model

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config, with_keys
from t2t_vit.data.classes import ClassList
from t2t_vit.deploy import export as exporter
from t2t_vit.deploy.compare import Samples
from t2t_vit.deploy.engines import open_predictor
from t2t_vit.deploy.export import export_model
from t2t_vit.deploy.metadata import Metadata

for library in ("onnx", "paddle2onnx", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(library, reason="an optional library of the engines")

SHIPPED = ROOT / "output/pretrained/lit_data/best.pdparams"
CFG = load_config("configs/lit_data.yaml")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that exports a small model of a kind, once: (model, path, comparison)."""
    folder, cache = tmp_path_factory.mktemp("exported"), {}

    def get(kind, form, precision="fp32", batch_size=1):
        key = (kind, form, precision, batch_size)
        if key not in cache:
            model = small_model(kind)
            cfg = with_keys(CFG, {"DATA.CHANNELS": model.in_chans, "DATA.MEAN": CFG.DATA.MEAN[: model.in_chans],
                                  "DATA.STD": CFG.DATA.STD[: model.in_chans], "NAME": f"m{len(cache)}"})  # fmt: skip
            cache[key] = (model, *export_model(model, cfg, folder, form, precision, batch_size))
        return cache[key]

    return get


def outputs(model, path, form, count):
    """(logits of the file, logits of the model) of some images."""
    images = np.random.default_rng(1).normal(size=(count, model.in_chans, *model.image_size)).astype("float32")
    predictor = open_predictor(exporter.ENGINE_OF[form], path, threads=1)
    with paddle.no_grad():
        return predictor(images), model(paddle.to_tensor(images)).numpy()


@pytest.mark.parametrize("kind, form", [
    *((kind, "onnx") for kind in ("performer", "transformer", "convolution", "grey", "oblong", "pit", "distilled pit")),
    *((kind, form) for kind in ("patch", "se", "ghost", "dense") for form in ("onnx", "openvino")),
    ("performer", "paddle"), ("performer", "openvino"), ("distilled pit", "paddle"), ("distilled pit", "openvino"),
])  # fmt: skip
def test_every_kind_exports(exported, kind, form):
    model, path, comparison = exported(kind, form)
    assert comparison.difference < 1e-5 and comparison.agreement == 1
    found, expected = outputs(model, path, form, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("form", exporter.FORMATS)
@pytest.mark.parametrize("batch_size", [0, 4])
def test_any_number_of_images_is_accepted(exported, form, batch_size):
    model, path, _ = exported("pit", form, batch_size=batch_size)
    for count in (1, 6):
        found, expected = outputs(model, path, form, count)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_onnx_graph_is_simple_and_named(exported):
    import onnx

    _, path, _ = exported("performer", "onnx")
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    assert not {"Constant", "Dropout", "Gather", "Pad"} & set(kinds)
    assert kinds.count("Identity") <= 1  # which names the output
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "logits"]
    assert "blocks.0.mlp.fc1.weight" in {tensor.name for tensor in graph.initializer}


def test_bf16_and_int8_have_their_precision(exported):
    import onnx
    import openvino

    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for form, precision in (("openvino", "bf16"), ("openvino", "int8"), ("onnx", "int8")):
        model, path, comparison = exported("performer", form, precision)
        found, expected = outputs(model, path, form, 8)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert (1e-3 if precision == "int8" or has_bf16 else 1e-5) < error < 0.2, (form, precision)
        assert open_predictor(exporter.ENGINE_OF[form], path).metadata.precision == precision
        assert path.name.endswith(f"-{precision}{path.suffix}")
    graph = onnx.load(path).graph
    eights = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2}
    assert any(name.startswith("blocks.0.mlp.fc1") for name in eights)
    assert not any(name.startswith(("heads.", "stages.0.w", "stages.0.kqv")) for name in eights)


def test_int8_of_openvino_keeps_the_statistics_of_windows_in_float(exported):
    import openvino

    model, path, _ = exported("performer", "openvino", "int8")
    constants = [node for node in openvino.Core().read_model(path).get_ops() if node.get_type_name() == "Constant"]
    eights = [node for node in constants if node.get_element_type().to_string() == "i8"]
    assert sum(len(node.get_output_shape(0)) == 4 for node in eights) == 3  # colours of both stages, embedding
    assert sum(len(node.get_output_shape(0)) == 2 for node in eights) > 6 * len(model.backbone())
    names = {node.friendly_name for node in constants if node.get_element_type().to_string() == "f32"}
    assert {f"stages.{i}.kqv.{name}.weight" for i in (0, 1) for name in ("differences", "means")} <= names


@pytest.mark.parametrize("kind, count", [("ghost", 12), ("dense", 18)])
def test_int8_quantises_six_matrices_of_each_block(exported, kind, count):
    import onnx

    _, path, comparison = exported(kind, "onnx", "int8")
    weights = [t for t in onnx.load(path).graph.initializer if t.name.startswith("blocks.") and len(t.dims) == 2]
    eights = [t.name for t in weights if t.data_type == onnx.TensorProto.INT8]
    assert len(eights) == count, eights
    assert 1e-3 < comparison.difference < 0.5


@pytest.mark.parametrize("form", exporter.FORMATS)
def test_metadata_is_kept(tmp_path, form):
    model = small_model("oblong")
    classes = ClassList(tuple("abcde"), ("甲", 'b"', "c d", "d\te", "e"), "list")
    cfg = with_keys(CFG, {"DATA.NAME": "2012"})
    metadata = Metadata.of(cfg, classes, "bf16", weights="0123")
    path, _ = export_model(model, CFG, tmp_path / f"x{exporter.file_name('', form, 'fp32')}", form, metadata=metadata)
    found = open_predictor(exporter.ENGINE_OF[form], path).metadata
    assert found.classes == ["甲", 'b"', "c d", "d\te", "e"] and found.folders == list("abcde")
    assert found.data == "2012"
    assert (found.mean, found.std) == (CFG.DATA.MEAN, CFG.DATA.STD)
    assert (found.precision, found.weights, found.image_size, found.batch_size) == ("fp32", "0123", [24, 40], 1)
    assert (found.crop_pct, found.crop_mode, found.interpolation) == (1.0, "center", "bicubic")


def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch):
    model, other = small_model("pit"), small_model("pit")
    other.head.bias.set_value(other.head.bias + 0.01)
    monkeypatch.setattr(exporter, "fold", lambda _, fold=exporter.fold: fold(other))
    (tmp_path / "x.onnx").write_text("an earlier one")
    with pytest.raises(UserError, match="differ by .* nothing was written"):
        export_model(model, CFG, tmp_path / "x.onnx", "onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.onnx", "an earlier one")]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_too_little_agreement_is_refused(tmp_path, monkeypatch, precision):
    model, other = small_model("pit"), small_model("pit")
    other.head.weight.set_value(-other.head.weight)
    monkeypatch.setattr(exporter, "fold", lambda _, fold=exporter.fold: fold(other))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match=f"the model's class for .* of 20 images, but {precision} requires"):
        export_model(model, CFG, tmp_path, "openvino", precision, samples=Samples(pixels, calibration=pixels[:4]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form, precision", [("onnx", "fp32"), ("onnx", "int8"), ("openvino", "bf16")])
def test_logits_that_are_not_finite_are_refused(tmp_path, monkeypatch, form, precision):
    model, other = small_model("pit"), small_model("pit")
    broken = model if precision == "int8" else other  # which the quantizer would not accept
    broken.head.bias.set_value(broken.head.bias * float("nan"))
    monkeypatch.setattr(exporter, "fold", lambda _, fold=exporter.fold: fold(other))
    with pytest.raises(UserError, match="logits that are not finite; nothing was written"):
        export_model(model, CFG, tmp_path, form, precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_failed_write_keeps_the_earlier_files(tmp_path, monkeypatch, form):
    parts = exporter.parts_of(tmp_path / exporter.file_name("x", form, "fp32"), form)
    for part in parts:
        part.write_text("an earlier one")

    def die(source, _):
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr(exporter.os, "replace", die)
    with pytest.raises(OSError, match="cannot be written"):
        export_model(small_model("pit"), CFG, parts[0], form)
    assert {part: part.read_text() for part in tmp_path.iterdir()} == dict.fromkeys(parts, "an earlier one")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "x.onnx"
    link.symlink_to("store/y.onnx")
    path, _ = export_model(small_model("pit"), CFG, link, "onnx")
    assert link.is_symlink() and path == link.resolve() and open_predictor("onnxruntime", link)


def test_a_link_in_the_folder_is_followed_with_all_parts(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "lit_data.xml"
    link.symlink_to("store/y.xml")
    export_model(small_model("pit"), CFG, tmp_path, "openvino")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["y.bin", "y.xml"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["lit_data.xml"] and link.is_symlink()


# --- The command ---


def test_sigterm_leaves_nothing(tmp_path):
    words = ["--format", "onnx", "--file", tmp_path / "x.onnx", "--pretrained", SHIPPED]
    command = [sys.executable, ROOT / "tools/export.py", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.01)
        process.terminate()
        assert process.communicate()[1] == "error: interrupted\n" and process.returncode == 1
    assert not list(tmp_path.iterdir())


def test_command_writes_and_compares(tmp_path):
    done = tool("export", "--format", "onnx", "--file", tmp_path / "digits.onnx", "--images", 50)
    lines = done.stdout.splitlines()
    assert "fp32, batches of 1" in lines[-3] and "digits.onnx" in lines[-3]
    assert "compared on 50 images of lit_data/val" in lines[-2] and "top-1 agreement 1.0000" in lines[-2]
    assert done.stderr == "" and sorted(path.name for path in tmp_path.iterdir()) == ["digits.onnx", "predict_onnx.py"]
    metadata = open_predictor("onnxruntime", tmp_path / "digits.onnx").metadata
    assert (metadata.model, metadata.data, metadata.classes[3]) == ("t2t_vit_7", "lit_data", "three")


def test_command_calibrates_on_training_images(tmp_path, monkeypatch):
    # In a process of its own: with pytest imported, NNCF sends no telemetry, which also writes into the home folder.
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--format", "openvino", "--precision", "int8", "--config", "configs/lit_data_pit.yaml", "--file"]
    done = tool("export", *words, tmp_path / "x.xml", "--calibration", 20, "--images", 100, fresh=True)
    lines = done.stdout.splitlines()
    assert (len(lines), done.stderr) == (3, "")
    assert ": int8, " in lines[1] and lines[2].startswith("compared on 100 images")
    assert not (tmp_path / "intel").exists()
    (tmp_path / "empty").mkdir()
    line = error_line("export", *words, tmp_path / "y.xml", "--data-path", tmp_path / "empty")
    assert "empty" in line and not (tmp_path / "y.xml").exists()


@pytest.mark.parametrize(
    "words, part",
    [
        (["--format", "onnx", "--precision", "bf16"], "does not support --precision bf16: onnxruntime"),
        (["--format", "paddle", "--precision", "int8"], "does not support --precision int8"),
        (["--format", "onnx", "--file", "x.xml", "--pretrained", "absent"], "must end in .onnx"),
        (["--format", "onnx", "--pretrained", "absent.pdparams"], "absent.pdparams"),
        (["--format", "onnx", "--images", "0"], "--images is 0 but must be"),
        (["--format", "onnx", "--calibration", "-1"], "--calibration is -1 but must be"),
        (["--format", "onnx", "--pretrained", "X.ONNX"], "X.ONNX is an exported model"),
    ],
)
def test_mistakes_are_one_line(words, part, tmp_path):
    assert part in error_line("export", *words, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_choices_of_the_command_are_those_of_the_exporter():
    import export as command

    options = {action.dest: action.choices for action in command.parser()._actions}
    assert (options["format"], options["precision"]) == (exporter.FORMATS, exporter.PRECISIONS)


def test_default_place_of_an_export(tmp_path):
    tool("export", "--format", "paddle", "--output", tmp_path, "--pretrained", SHIPPED,
         "--images", 20, "--batch-size", 5)  # fmt: skip
    folder = tmp_path / "lit_data/export"
    assert {path.suffix for path in folder.iterdir()} == {exporter._PROGRAM, ".pdiparams", ".yml"}
    assert "batch_size: 5" in (folder / "lit_data.yml").read_text()
    assert "- three" in (folder / "lit_data.yml").read_text().splitlines()


def test_calibration_pictures_fill_batches(tmp_path):
    model = small_model("pit")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    path, comparison = export_model(model, CFG, tmp_path, "onnx", "int8", 12, samples=Samples(pixels, pixels))
    assert comparison.count == 5 and open_predictor("onnxruntime", path).metadata.batch_size == 12
