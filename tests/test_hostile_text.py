"""Odd configs, class lists, exported models and logs: one line, and none that a name forges."""

import json
import time

import numpy as np
import pytest
from conftest import ROOT, error_line, tool
from test_hostile_files import damaged

from t2t_vit.common.errors import UserError, one_line, printable
from t2t_vit.common.plain_yaml import load_yaml
from t2t_vit.common.unpickle import Refused, Unpickler
from t2t_vit.config import load_config
from t2t_vit.data.classes import read_classes
from t2t_vit.deploy.export import _PROGRAM
from t2t_vit.weights import torch_file

DIGIT = ROOT / "lit_data/val/3/0045.png"


# --- YAML ---


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("text", [
    ALIASES, "a: &a [*a]", "a: " + "9" * 5000, "a: 0x" + "f" * 5000, "a: " + "[" * 100_000, "- " * 50_000,
    "? " * 50_000, "a: 2012-99-99", "a: !!int ''", "a: !!float x", "a: !!bool x", "a: !!map [1]", "a: !!timestamp x",
    "{a: 1, a: 2}",
    "[a]: 1", "a: !!python/object/apply:os.system [ls]", "a: \x00", "a: !!binary x", "a: " + "x" * 20_000, "{a: 1,",
    "a: " + "1:" * 100_000 + "1", "a: " + "1:" * 100_000 + "1.5",
    "\t",
])  # fmt: skip
def test_odd_yaml_is_a_value_error(text):
    for fast in (False, True):
        with pytest.raises(ValueError, match="."):
            load_yaml(text, fast)


@pytest.mark.parametrize("text", [
    ALIASES, "SEED: " + "9" * 5000, "SEED: 99999999999999999999999", "TRAIN:\n  BASE_LR: .nan",
    "TRAIN:\n  BASE_LR: -.inf",
    "DATA:\n  MEAN: [.nan, 1.0, 1.0]", "AUG:\n  SCALE: '" + "(" * 9000 + "'", "AUG:\n  SCALE: '" + "-" * 9000 + "1'",
    "1: 2", "null: 2", "- 1", "SEED: 2012-01-01", "SEED:\n  {}", "\xff", "",
])  # fmt: skip
def test_odd_configs_are_one_line(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as raised:
        load_config(tmp_path / "c.yaml")
    assert len(one_line(raised.value)) < 1000


def test_flipped_configs_are_read_or_refused(tmp_path):
    random, text = np.random.default_rng(0), (ROOT / "configs/lit_data.yaml").read_bytes()
    for _ in range(100):
        (tmp_path / "c.yaml").write_bytes(damaged(text, random))
        try:
            load_config(tmp_path / "c.yaml")
        except UserError as error:
            assert one_line(error).isprintable()


# --- Class lists, and what reaches the terminal ---


def test_many_classes_are_read_in_linear_time(tmp_path):
    names = [f"n{number:08d}" for number in range(200_000)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    start = time.monotonic()
    assert read_classes(tmp_path / "classes.txt").folders == tuple(names)
    assert time.monotonic() - start < 10
    (tmp_path / "classes.txt").write_text("\n".join([*names, *names]))
    with pytest.raises(UserError, match="names n00000000, .* and 199995 more more than once"):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize("text, expected", [
    ("cat\x1b[31m\x07", r"cat\x1b[31m\x07"), ("a\nclass_id is: 3\r", r"a\nclass_id is: 3\r"),
    ("a\u202eb\u2028\x9b", r"a\u202eb\u2028\x9b"), ("\udcff", r"\udcff"),
    ("猫\u3000 é\u00a0👩\u200d🚀", "猫\u3000 é\u00a0👩\u200d🚀"),
    (r"C:\x1b", r"C:\x1b"),
])  # fmt: skip
def test_control_characters_are_escaped_and_letters_are_not(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


def test_names_of_classes_files_and_keys_cannot_forge_lines(tmp_path):
    names = [f"\x1b[31mcat{number}\x07\u202e" for number in range(10)]
    for file in ("best.pdparams", "config.yaml"):
        (tmp_path / file).symlink_to(ROOT / "output/pretrained/lit_data" / file)
    (tmp_path / "classes.txt").write_text("\n".join(names))
    image = tmp_path / "x\nclass_id is: 7\x1b.png"
    image.write_bytes(DIGIT.read_bytes())
    done = tool("predict", image, tmp_path / "\x1bnone.png", "--pretrained", tmp_path / "best.pdparams", "--json",
                tmp_path / "out.json", status=1)  # fmt: skip
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    assert len(done.stdout.splitlines()) == 1 and len(done.stderr.splitlines()) == 2
    assert json.loads((tmp_path / "out.json").read_text())[str(image)]["name"] == names[3]
    line = error_line("predict", image, "--config", tmp_path / "best.pdparams", "A\x1b\nB", "1")
    assert line.isprintable()


def test_log_has_one_line_per_record(tmp_path, capsys):
    from t2t_vit.common import logger

    before = list(logger.log.handlers), logger.log.level, logger.log.propagate
    try:
        logger.setup_logging()
        logger.log.warning("class %s", "a\nb\x1b[0m")
        logger.log_to_file(tmp_path / "run.log")
        logger.log.info("class %s", "c\r\u202e")
        [handler.close() for handler in logger.log.handlers]
    finally:
        logger.log.handlers[:], logger.log.level, logger.log.propagate = before
    assert (tmp_path / "run.log").read_text() == "class a\\nb\\x1b[0m\nclass c\\r\\u202e\n"
    captured = capsys.readouterr()
    assert captured.err == "class a\\nb\\x1b[0m\n" and captured.out == "class c\\r\\u202e\n"


# --- Exported models ---


def metadata_entries():
    from t2t_vit.deploy.metadata import Metadata

    return Metadata(1, "pit_ti", "digits", [32, 32], 1, [0.5], [0.5], 0.9, "center", "bicubic", ["a", "b"], ["A", "B"],
                    "fp32", 0, "").to_entries()  # fmt: skip


@pytest.mark.parametrize("name, text", [
    ("version", "9" * 5000), ("version", "[" * 100_000), ("version", "[2]"), ("version", ""),
    ("version", '"' + "x" * 9999 + '"'),
    ("model", "7"), ("data", "null"), ("image_size", "[1e400, 32]"), ("image_size", "[32]"),
    ("image_size", "[true, true]"),
    ("image_size", "[9" + "9" * 400 + ", 1]"), ("channels", "1e9"), ("channels", "{}"), ("mean", "[NaN]"),
    ("mean", "[1" + "0" * 400 + "]"), ("mean", "[Infinity]"), ("std", "[0]"), ("std", '{"a": 1}'), ("crop_pct", "-1"),
    ("crop_mode", "[]"), ("interpolation", "{}"), ("folders", '["a"]'), ("classes", "[]"), ("classes", "[1, 2]"),
    ("precision", "[]"), ("batch_size", "true"), ("batch_size", "-1"), ("batch_size", "1.5"), ("weights", "0"),
    ("std", None), ("classes", None), ("version", 3), ("mean", ["x"]), ("mean", "\ud800"),
    ("mean", "[]"), ("std", "[]"), ("channels", "0"),
])  # fmt: skip
def test_odd_metadata_is_one_line(name, text):
    from t2t_vit.deploy.metadata import Metadata

    entries = metadata_entries()
    assert Metadata.from_entries(entries, "x.onnx").classes == ["A", "B"]
    if text is None:
        del entries[name]
    else:
        entries[name] = text
    with pytest.raises(UserError, match="x.onnx") as raised:
        Metadata.from_entries(entries, "x.onnx")
    assert len(one_line(raised.value)) < 300


def test_unknown_and_missing_new_entries_are_allowed():
    from t2t_vit.deploy.metadata import Metadata

    entries = metadata_entries()
    del entries["exif"], entries["grey_bits"]  # as in the first exported files
    metadata = Metadata.from_entries({**entries, "checksum_of_bin": "3f2a", "author": "me"}, "x.xml")
    assert (metadata.exif, metadata.grey_bits) == ("auto", 16)


def test_odd_files_beside_an_export_are_one_line(tmp_path):
    from t2t_vit.deploy.engines import open_predictor

    path = tmp_path / f"x{_PROGRAM}"
    path.write_text("")
    path.with_suffix(".pdiparams").write_text("")
    for text in (ALIASES, "a: " + "9" * 5000, "", "- 1", "version: 2", "version: 1\nmean: 2012-01-01"):
        path.with_suffix(".yml").write_text(text)
        with pytest.raises(UserError, match=path.name):
            open_predictor("inference", path)


def test_odd_graphs_are_one_line(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from t2t_vit.deploy.engines import open_predictor

    def save(outputs, entries):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
        graph = helper.make_graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], "g", [value], outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
        helper.set_model_props(model, entries)
        onnx.save(model, tmp_path / "x.onnx")

    scalar = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    for entries in ({}, {"version": "[" * 9999}, metadata_entries()):
        save([scalar], entries)
        for engine in ("onnxruntime", "openvino"):
            pytest.importorskip(engine)
            with pytest.raises(UserError, match="x.onnx"):
                open_predictor(engine, tmp_path / "x.onnx")(np.zeros((1, 1, 32, 32), np.float32))
    for text in ("<a", '<?xml version="1.0" encoding="none"?><net/>', "<net/>", "\xff\xfe"):
        (tmp_path / "x.xml").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="x.xml"):
            open_predictor("openvino", tmp_path / "x.xml")


# --- Logs ---


@pytest.mark.parametrize("name, text", [
    ("metrics.jsonl", '{"epoch": 1, "lr": ' + "[" * 9999),
    ("metrics.jsonl", '{"epoch": ' + "9" * 5000 + "}\n"), ("metrics.jsonl", '{"epoch": 1e400}'),
    ("metrics.jsonl", '{"epoch": ' + "9" * 400 + "}\n"), ("metrics.jsonl", "{}"),
    ("summary.csv", "epoch,lr\n1," + "9" * 200_000), ("summary.csv", "epoch,lr\n" + "9" * 5000 + ",1"),
    ("summary.csv", "epoch,lr\n,1"), ("summary.csv", "epoch,lr\n" + "9" * 400 + ",1"),
    ("run.log", "Epoch [" + "9" * 5000 + "/1], avg_Loss: 1"),
    ("run.log", "a" * 3_000_000),
    ("run.log", "Now training epoch " + "9" * 5000 + ". LR=1"), ("run.log", "\x1b]0;x\x07"),
])  # fmt: skip
def test_odd_logs_are_one_line(tmp_path, name, text):
    from t2t_vit.runs.run_logs import read_run

    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name) as raised:
        read_run(tmp_path / name)
    assert len(one_line(raised.value)) < 500


@pytest.mark.parametrize("maker", [b"ctorch\nSize\n", b"ccollections\nOrderedDict\n"])
def test_a_large_list_is_not_copied_by_a_few_bytes_each(maker):
    item = b"K\x01K\x01\x86" if b"Ordered" in maker else b"K\x01"  # a pair, a number
    data = b"\x80\x02]q\x01(" + 2000 * item + b"e" + b"(" + 1000 * (maker + b"h\x01\x85R") + b"t."
    with pytest.raises(Refused, match="more data than the file has"):
        Unpickler(data, torch_file.ALLOWED).load()
