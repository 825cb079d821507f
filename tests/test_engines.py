"""val.py and predict.py with inference engines: same results, Paddle only if needed, errors in one line."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, error_line, few_digits, tool

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.classes import ClassList
from t2t_vit.deploy import open_model
from t2t_vit.deploy.engines import ENGINES, Predictor, open_predictor, require
from t2t_vit.deploy.metadata import Metadata
from t2t_vit.deploy.predict import likeliest

for library in ("onnx", "paddle2onnx", "onnxruntime", "openvino"):
    pytest.importorskip(library, reason="an optional library of the engines")

SHIPPED = ROOT / "output/pretrained/lit_data/best.pdparams"
FILES = {"inference": "lit_data.json", "onnxruntime": "lit_data.onnx", "openvino": "lit_data.xml"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Output folder with the shipped digits' run, exported in all formats."""
    output = tmp_path_factory.mktemp("output")
    for name in ("best.pdparams", "classes.txt"):
        (output / "lit_data").mkdir(exist_ok=True)
        shutil.copy(SHIPPED.with_name(name), output / "lit_data" / name)
    for form in ("paddle", "onnx", "openvino"):
        tool("export", "--output", output, "--format", form, "--images", 30)
    return output


@pytest.fixture(scope="module")
def alone(run_folder, tmp_path_factory):
    """A folder with nothing but the exported files."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for part in (run_folder / "lit_data/export").iterdir():
        shutil.copy(part, folder)
    return folder


def results_of(folder, *words):
    """Predictions of some shipped digits."""
    target = folder / "results.json"
    tool("predict", ROOT / "lit_data/val/3", ROOT / "lit_data/val/8", "--json", target, *words)
    return json.loads(target.read_text())


@pytest.mark.parametrize("engine", FILES)
def test_engines_predict_the_same_as_the_model(run_folder, tmp_path, engine):
    expected = results_of(tmp_path)
    found = results_of(tmp_path, "--engine", engine, "--output", run_folder)
    assert list(found) == list(expected)
    for path, result in found.items():
        assert [entry["class_id"] for entry in result["top"][:2]] == [e["class_id"] for e in expected[path]["top"][:2]]
        assert result["name"] == expected[path]["name"]
        assert abs(result["probability"] - expected[path]["probability"]) <= 2e-6


@pytest.mark.parametrize("engine", FILES)
def test_val_prints_the_same_lines(run_folder, tmp_path, engine):
    words = [*few_digits(tmp_path, 5), "--report"]
    expected = tool("val", *words, tmp_path / "weights.json").stdout.splitlines()
    exported = ["--engine", engine, "--output", run_folder]
    found = tool("val", *words, tmp_path / "exported.json", *exported).stdout.splitlines()
    assert found[-3:-1] == expected[-3:-1]
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("weights", "exported")]
    assert reports[0]["classes"] == reports[1]["classes"] and reports[0]["confusions"] == reports[1]["confusions"]
    assert f"t2t_vit_7 with {run_folder}/lit_data/export/{FILES[engine]} on 50 images of " in found[0]


def without_paddle(folder, *words):
    """Run predict.py without PaddlePaddle installed."""
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['paddle'] = None\n")
    command = [sys.executable, ROOT / "tools/predict.py", *words]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_data_with_other_classes_names_the_file(alone, tmp_path):
    for folder in ("train/0", "train/1", "train/2", "val/1"):
        shutil.copytree(ROOT / "lit_data" / folder, tmp_path / folder)
    for name, *words in (["val", "--pretrained", alone / "lit_data.onnx"],
                         ["export", "--format", "onnx", "--file", tmp_path / "x.onnx"]):  # fmt: skip
        line = error_line(name, *words, "--data-path", tmp_path)
        assert "has 3 classes but" in line and "was trained for 10; give the data set of these classes" in line
    assert not (tmp_path / "x.onnx").exists()


def test_weights_need_paddle(tmp_path):
    done = without_paddle(tmp_path, "--pretrained", SHIPPED)
    assert done.returncode == 1 and done.stderr.startswith("error: PaddlePaddle not installed in ")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_predict_needs_no_paddle(alone, tmp_path, engine):
    done = without_paddle(tmp_path, "--pretrained", alone / FILES[engine])
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.splitlines()[1].endswith("3  three") and done.stdout.splitlines()[-1] == "class_id is: 3"


def test_a_plain_program_gets_the_shipped_digits_right(alone, tmp_path):
    program = [ROOT / "tests/programs/plain_inference.py", alone / FILES["inference"], ROOT / "lit_data/val"]
    done = subprocess.run([sys.executable, *program, "default"], capture_output=True, text=True, cwd=tmp_path,
                          env=ENVIRONMENT)  # fmt: skip
    assert done.stdout == "0.9917\n", done.stdout + done.stderr


def test_openvino_reads_onnx_too(alone):
    images = np.random.default_rng(0).normal(size=(3, 3, 16, 16))
    logits = [open_predictor(engine, alone / "lit_data.onnx")(images) for engine in ("openvino", "onnxruntime")]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_batches_are_computed_at_the_same_time_and_stay_in_order():
    together = threading.Barrier(2, timeout=10)

    def run(images):
        together.wait()  # fails unless two batches run
        return images[:, 0, 0, :1]

    metadata = Metadata.of(load_config("configs/lit_data.yaml"), ClassList(("0",), ("zero",), "x"), "fp32")
    images = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 16, 16), np.float32)
    assert Predictor(run, metadata, parallel=2)(images)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_commands_with_several_images_run_them_at_the_same_time(alone, tmp_path, monkeypatch):
    opened = []

    def record(*args, parallel=1, **options):
        opened.append(parallel)
        return open_predictor(*args, parallel=parallel, **options)

    monkeypatch.setattr(open_model, "open_predictor", record)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    model, digits = ["--pretrained", alone / "lit_data.xml"], ROOT / "lit_data/val/3"
    tool("predict", *model, digits / "0045.png")
    tool("predict", *model, digits)
    tool("val", *model, *few_digits(tmp_path, 2))
    assert opened == [1, 2, 2]


@pytest.mark.parametrize("capabilities", [["FP32", "BF16"], ["FP32"]])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_openvino_uses_bfloat16_if_file_and_cpu_allow_it(alone, monkeypatch, precision, capabilities):
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: capabilities)
    hints, compile_model = [], openvino.Core.compile_model

    def record(core, model, device, options):
        hints.append(options["INFERENCE_PRECISION_HINT"])
        return compile_model(core, model, device, options)

    monkeypatch.setattr(openvino.Core, "compile_model", record)
    read = Metadata.from_entries
    monkeypatch.setattr(Metadata, "from_entries", lambda *args: dataclasses.replace(read(*args), precision=precision))
    open_predictor("openvino", alone / "lit_data.xml")
    assert hints == ["bf16" if precision != "fp32" and "BF16" in capabilities else "f32"]


def test_a_stale_export_is_a_warning(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    words = ["predict", "--engine", "onnxruntime", "--output", tmp_path]
    assert tool(*words).stderr == f"note: t2t_vit_7 with {tmp_path}/lit_data/export/lit_data.onnx\n"
    with open(tmp_path / "lit_data/best.pdparams", "ab") as file:
        file.write(b" ")
    assert "lit_data.onnx was exported from other weights than" in tool(*words).stderr


def test_a_run_without_export_names_the_command(tmp_path):
    line = error_line("predict", "--engine", "openvino", "--output", tmp_path, "--config", "configs/lit_data.yaml")
    command = f"`python tools/export.py --config configs/lit_data.yaml --output {tmp_path} --format openvino`"
    assert command in line


@pytest.mark.parametrize(
    "words, part",
    [
        (["--engine", "onnxruntime", "--pretrained", SHIPPED], "reads a .onnx file, not"),
        (["--engine", "paddle", "--pretrained", "x.onnx"], "leave --engine out"),
        (["--engine", "onnxruntime", "--pretrained", "x.xml"], "engine onnxruntime reads .onnx, not"),
        (["--pretrained", "absent.onnx"], "absent.onnx not found"),
        (["--pretrained", "https://example.org/x.onnx"], "download it first"),
        (["--engine", "onnxruntime", "--device", "gpu"], "DEVICE is gpu"),
    ],
)
def test_mistakes_are_one_line(run_folder, words, part):
    assert part in error_line("predict", "--output", run_folder, *words)


def test_the_data_set_keeps_its_name(alone, tmp_path):
    (tmp_path / "x.yaml").write_text("DATA: {NAME: other}\nVAL: {BATCH_SIZE: 128}\n")
    words = [
        "val",
        "--config",
        tmp_path / "x.yaml",
        "--pretrained",
        alone / "lit_data.onnx",
        "--data-path",
        ROOT / "lit_data",
    ]
    words += ["DATA.CLASSES", ""]
    assert tool(*words).stdout.splitlines()[-1] == "lit_data final val acc is:0.9917"
    assert tool(*words, "DATA.NAME", "digits").stdout.splitlines()[-1] == "digits final val acc is:0.9917"


def test_settings_of_the_file_cannot_be_changed(alone):
    words = ["predict", "--pretrained", alone / "lit_data.onnx", "DATA.IMAGE_SIZE"]
    assert "DATA.IMAGE_SIZE is 32 but" in error_line(*words, 32)
    assert tool(*words, 16).stdout.endswith("class_id is: 3\n")


@pytest.mark.parametrize("engine", FILES)
def test_damaged_and_foreign_files_are_one_line(alone, tmp_path, engine):
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    path = tmp_path / FILES[engine]
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"\x89PNG\r\n\x1a\n" * 100):
        path.write_bytes(part)
        with pytest.raises(UserError, match=rf"{path.name}.*; export it again$"):
            open_predictor(engine, path)
    path.write_bytes(whole)
    if engine != "onnxruntime":
        weights = path.with_suffix(".bin" if engine == "openvino" else ".pdiparams")
        content = bytearray(weights.read_bytes())
        weights.write_bytes(content[:1000])
        with pytest.raises(UserError, match=r"(cannot be read by|is not the file that was) .*; export it again$"):
            open_predictor(engine, path)
        content[-1] ^= 1
        weights.write_bytes(content)  # as if from another export
        with pytest.raises(UserError, match=f"{weights.name} is not the file .* {tmp_path}/{path.name}; export it"):
            open_predictor(engine, path)
        weights.unlink()
        with pytest.raises(UserError, match=r"(cannot be read by|needs) .*; export it again$"):
            open_predictor(engine, path)


@pytest.mark.parametrize("engine", FILES)
def test_a_renamed_or_linked_file_finds_its_parts(alone, tmp_path, engine):
    link = tmp_path / f"link{FILES[engine][8:]}"
    link.symlink_to(alone / FILES[engine])
    assert open_predictor(engine, link).metadata.data == "lit_data"
    for part in alone.iterdir():
        shutil.copy(part, tmp_path / f"y{part.suffix}")
    assert open_predictor(engine, tmp_path / f"y{link.suffix}").metadata.data == "lit_data"


@pytest.mark.parametrize("engine", FILES)
def test_missing_class_is_an_error(alone, tmp_path, engine):
    import onnx

    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    for path, *parts in (
        (tmp_path / "lit_data.yml", "- '9'\n", "- nine\n"),
        (tmp_path / "lit_data.xml", ", &quot;9&quot;", ", &quot;nine&quot;"),
    ):
        text = path.read_text()
        for part in parts:
            text = text.replace(part, "")
        path.write_text(text)
    model = onnx.load(tmp_path / "lit_data.onnx")
    for entry in model.metadata_props:
        entry.value = entry.value.replace(', "9"', "").replace(', "nine"', "")
    onnx.save(model, tmp_path / "lit_data.onnx")
    with pytest.raises(UserError, match=rf"{FILES[engine]} gives logits of shape \(1, 10\), not \(1, 9\)"):
        open_predictor(engine, tmp_path / FILES[engine])(np.zeros((1, 3, 16, 16)))


def test_files_of_other_programs_are_refused(tmp_path):
    import onnx
    import openvino

    shape = [1, 3, 16, 16]
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "foreign", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), tmp_path / "x.onnx")
    openvino.save_model(openvino.convert_model(tmp_path / "x.onnx"), tmp_path / "x.xml")
    for engine, name in (("onnxruntime", "x.onnx"), ("openvino", "x.xml"), ("openvino", "x.onnx")):
        with pytest.raises(UserError, match="was not made by tools/export.py"):
            open_predictor(engine, tmp_path / name)


def test_input_of_another_size_is_refused(alone):
    predictor = open_predictor("onnxruntime", alone / "lit_data.onnx", threads=1)
    with pytest.raises(UserError, match="takes images of shape"):
        predictor(np.zeros((2, 3, 32, 32), np.float32))


@pytest.mark.parametrize("library", ["onnxruntime", "openvino", "paddle2onnx", "nncf"])
def test_missing_library_is_named(alone, tmp_path, library):
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('gone', name='{library}')")
    words = ["export.py", "--format", "onnx"]
    if library == "nncf":
        words = ["export.py", "--format", "openvino", "--precision", "int8"]
    elif library != "paddle2onnx":
        words = ["predict.py", "--pretrained", alone / FILES[library]]
    done = subprocess.run([sys.executable, ROOT / "tools" / words[0], *words[1:]], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"is not installed: pip install {library}" in done.stderr


def test_missing_library_whose_error_has_no_name(tmp_path, monkeypatch):
    (tmp_path / "odd_engine.py").write_text("raise ModuleNotFoundError('gone')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="engine odd needs odd_engine, which is not installed"):
        require("odd_engine.sub", "engine odd")


def test_choices_of_the_commands_are_the_engines():
    import predict

    options = {action.dest: action.choices for action in predict.parser()._actions}
    assert options["engine"] == ENGINES


def test_outputs_that_are_not_finite_are_no_answer():
    for wrong in (np.nan, np.inf):
        with pytest.raises(UserError, match="outputs are not finite numbers: its weights are damaged"):
            likeliest(np.array([[0, wrong, 1]], "float32"), ["a", "b", "c"], 1)


def test_libraries_send_no_telemetry(tmp_path):
    program = "from t2t_vit.deploy.engines import require\nfor name in ('onnxruntime', 'openvino'): require(name, '')"
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "tools")}
    subprocess.run([sys.executable, "-c", program], env={**ENVIRONMENT, **places}, check=True)
    assert not list(tmp_path.iterdir())  # each would write an id of this machine
