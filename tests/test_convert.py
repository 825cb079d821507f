"""tools/convert.py."""

import hashlib
import json
import re
import shutil
import sys

import numpy as np
import official
import paddle
import peers
import pytest
from conftest import ROOT, error_line, tool

import convert
from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint
from t2t_vit.weights.load import load_pretrained

T2T, PIT = "T2T_paddle/t2t_vit_7", "PaddleViT/pit_ti_224"


@pytest.fixture(autouse=True)
def logger_as_before():
    """Restore the logger after a command in this process has changed it."""
    before = list(log.handlers), log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


def run(*words):
    """The command in this process."""
    convert.main(convert.parser().parse_args([*map(str, words)]))


def test_an_official_file_is_converted_and_described(tmp_path):
    peers.need_torch()
    source, output = tmp_path / "71.7_T2T_ViT_7.pth.tar", tmp_path / "t2t_vit_7.pdparams"
    peers.save_torch(
        source, {"state_dict": peers.official_tensors(T2T, 1), "state_dict_ema": peers.official_tensors(T2T)}
    )
    lines = tool("convert", source, "--output", output).stdout.splitlines()
    assert lines[0] == "--model t2t_vit_7, which the file fits"
    assert lines[1] == f"{source}: T2T-ViT, official names, entry state_dict_ema, PyTorch file, PyTorch's layout"
    assert lines[2] == "t2t_vit_7: 111 of 111 tensors loaded"
    assert lines[-1].endswith(f"SHA-256 {hashlib.sha256(output.read_bytes()).hexdigest()}")
    model = official.set_weights(create_model("t2t_vit_7"))
    written = paddle.load(str(output))
    assert written.keys() == model.state_dict().keys()
    assert all(np.array_equal(value, model.state_dict()[name].numpy()) for name, value in written.items())
    noise = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype("float32")
    with paddle.no_grad():
        logits = model(paddle.to_tensor(noise)).numpy()[0]
    figures = re.search(
        r"\(1, 3, 224, 224\)\): mean (\S+), standard deviation (\S+), largest (\S+) \(class (\d+)\)", lines[3]
    )
    expected = [logits.mean(), logits.std(), logits.max(), logits.argmax()]
    assert np.allclose([float(figure) for figure in figures.groups()], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["t2t_vit_7", "pit_ti_distilled"])
def test_to_pytorch_and_back_is_bit_identical(tmp_path, name):
    torch = peers.need_torch()
    ours, theirs, again = (tmp_path / file for file in ("a.pdparams", "b.pth", "c.pdparams"))
    model = official.set_weights(create_model(name, num_classes=9, image_size=64))
    checkpoint.save(ours, model.state_dict())
    run(ours, "--model", name, "--to", "torch", "--output", theirs)
    run(theirs, "--output", again)
    assert again.read_bytes() == ours.read_bytes()
    tree = torch.load(theirs, weights_only=True)
    if name == "t2t_vit_7":
        assert set(tree) == {"state_dict", "state_dict_ema"}
        tree = tree["state_dict"]
    for key, value in model.state_dict().items():  # as the official code's load_state_dict compares them
        value = value.numpy()
        is_linear = key in official.linear_weights(model)
        assert np.array_equal(tree[key].numpy(), value.T if is_linear else value), key


def test_a_run_is_converted_by_the_config_beside_its_weights(tmp_path, capsys):
    peers.need_torch()
    source = ROOT / "output/pretrained/lit_data/best.pdparams"
    run(source, "--to", "torch", "--output", tmp_path / "lit.pth")
    assert "t2t_vit_7: 100 of 100 tensors loaded" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"lit.pth .* fits no variant: give its --config"):
        run(tmp_path / "lit.pth", "--output", tmp_path / "lit.pdparams")
    run(tmp_path / "lit.pth", "--config", ROOT / "configs/lit_data.yaml", "--output", tmp_path / "lit.pdparams")
    found, expected = (checkpoint.read(path) for path in (tmp_path / "lit.pdparams", source))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_name_of_a_run_may_be_given_too(tmp_path):
    source = ROOT / "output/pretrained/lit_data/best.pdparams"
    run(source, "--model", "t2t_vit_7", "--output", tmp_path / "lit.pdparams")
    assert (tmp_path / "lit.pdparams").read_bytes() == source.read_bytes()


def test_a_config_beside_the_weights_of_another_program_is_ignored(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL:\n  NAME: t2t_vit_14_resnext\n")
    weights = create_model("t2t_vit_14", num_classes=5).state_dict()
    peers.save_paddle(tmp_path / "w.pdparams", {name: value.numpy() for name, value in weights.items()})
    with pytest.raises(UserError, match="fits t2t_vit_14 and t2t_vit_14_resnext: give --model"):
        run(tmp_path / "w.pdparams", "--output", tmp_path / "out.pdparams")


def test_a_config_of_another_model_beside_the_file_is_ignored(tmp_path, capsys):
    shutil.copy(ROOT / "output/pretrained/lit_data/config.yaml", tmp_path)
    checkpoint.save(tmp_path / "own.pdparams", create_model("pit_ti", num_classes=10).state_dict())
    peers.save_paddle(tmp_path / "theirs.pdparams", peers.peer_tensors(PIT))
    for name in ("own", "theirs"):
        run(tmp_path / f"{name}.pdparams", "--output", tmp_path / "out.pdparams")
        assert "--model pit_ti, which the file fits" in capsys.readouterr().out


def test_the_extra_head_is_left_out_or_kept(tmp_path, capsys):
    peers.need_torch()
    source, output = tmp_path / "tl.pth.tar", tmp_path / "tl.pdparams"
    head = np.random.default_rng(0).standard_normal((1000, 256)).astype("float32")
    peers.save_torch(
        source, {**peers.official_tensors(T2T), "aux_head.weight": head, "aux_head.bias": head[:, 0].copy()}
    )
    run(source, "--output", output)
    assert "extra head: aux_head.weight, aux_head.bias left out (--keep-aux-head keeps it)" in capsys.readouterr().out
    assert "aux_head.weight" not in checkpoint.read(output)
    run(source, "--output", output, "--keep-aux-head")
    assert "extra head: aux_head.weight, aux_head.bias kept" in capsys.readouterr().out
    assert np.array_equal(checkpoint.read(output)["aux_head.weight"], head.T)
    load_pretrained(create_model("t2t_vit_7"), output)
    run(output, "--output", tmp_path / "back.pth", "--to", "torch", "--keep-aux-head")
    back = peers.need_torch().load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert np.array_equal(back["aux_head.weight"].numpy(), head)


def test_what_fits_several_models_needs_a_name(tmp_path):
    source = tmp_path / "w.pdparams"
    checkpoint.save(source, create_model("t2t_vit_14", num_classes=5, image_size=32).state_dict())
    with pytest.raises(UserError, match="fits t2t_vit_14 and t2t_vit_14_384 and t2t_vit_14_resnext: give --model"):
        run(source, "--output", tmp_path / "out.pdparams")
    run(source, "--model", "t2t_vit_14_resnext", "--output", tmp_path / "out.pdparams")
    assert (tmp_path / "out.pdparams").read_bytes() == source.read_bytes()


def test_mistakes_are_one_line_and_write_nothing(tmp_path):
    source, output = tmp_path / "w.pdparams", tmp_path / "out.pdparams"
    peers.save_paddle(source, peers.peer_tensors(PIT))
    line = error_line("convert", source, "--output", source)
    assert line == f"error: {source} is read by this command and would be overwritten; give the output another name"
    for words, message in (
        (("--model", "pit_ti_distilled"), f"{source} contains weights of pit_ti, not of pit_ti_distilled"),
        (("--model", "pit_tiny"), "--model pit_tiny: unknown model 'pit_tiny'; did you mean pit_ti"),
    ):
        with pytest.raises(UserError, match=message):
            run(source, "--output", output, *words)
    tensors = peers.peer_tensors(PIT)
    tensors["surplus"] = tensors.pop("norm.bias")
    peers.save_paddle(source, tensors)
    with pytest.raises(UserError, match="does not fit the model: no norm.bias; surplus is unknown to the model"):
        run(source, "--output", output)
    assert not output.exists()


def test_without_pytorch_its_files_are_not_written(tmp_path, monkeypatch):
    peers.save_paddle(tmp_path / "w.pdparams", peers.peer_tensors(PIT))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        run(tmp_path / "w.pdparams", "--output", tmp_path / "w.pth", "--to", "torch")
    assert not (tmp_path / "w.pth").exists()


def test_a_published_name_says_which_model_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("T2T_CACHE", str(tmp_path))
    weights = create_model("t2t_vit_14", num_classes=5, image_size=32).state_dict()
    checkpoint.save(tmp_path / "t2t_vit_14.paddlevit", weights)  # fits t2t_vit_14_resnext too
    run("t2t_vit_14.paddlevit", "--output", tmp_path / "out.pdparams")
    assert (tmp_path / "out.pdparams").read_bytes() == (tmp_path / "t2t_vit_14.paddlevit").read_bytes()


# --- For a model hub ---


@pytest.mark.parametrize("name", ["t2t_vit_7", "pit_ti_distilled"])
def test_to_safetensors_and_back_is_bit_identical(tmp_path, name):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    ours, hub, again = (tmp_path / file for file in ("a.pdparams", "model.safetensors", "c.pdparams"))
    model = official.set_weights(create_model(name, num_classes=9, image_size=64))
    aux = np.random.default_rng(0).standard_normal((5, 9)).astype("float32")
    checkpoint.save(ours, {**model.state_dict(), "aux_head.weight": aux})
    run(ours, "--model", name, "--output", hub, "--keep-aux-head")
    run(hub, "--output", again, "--keep-aux-head")
    assert again.read_bytes() == ours.read_bytes()
    tree, linear = load_file(hub), official.linear_weights(model)
    assert np.array_equal(tree.pop("aux_head.weight"), aux.T)
    assert tree.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        value = value.numpy().T if key in linear else value.numpy()
        assert tree[key].dtype == value.dtype and np.array_equal(tree[key], value), key
    assert b'"format":"pt"' in hub.read_bytes()[:200]


def test_without_its_package_safetensors_are_not_written(tmp_path, monkeypatch):
    peers.save_paddle(tmp_path / "w.pdparams", peers.peer_tensors(PIT))
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(UserError, match="--to safetensors needs a package: pip install safetensors"):
        run(tmp_path / "w.pdparams", "--output", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="w.safetensors must end in .pdparams, as --to is paddle"):
        run(tmp_path / "w.pdparams", "--output", tmp_path / "w.safetensors", "--to", "paddle")
    assert not (tmp_path / "w.safetensors").exists()


def test_the_card_of_a_run_has_its_facts_and_its_code_loads_the_file(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    source, card = ROOT / "output/pretrained/lit_data/best.pdparams", tmp_path / "README.md"
    run(source, "--output", tmp_path / "model.safetensors", "--card", card)
    text = card.read_text()
    rows = list(map(json.loads, source.with_name("metrics.jsonl").read_text().splitlines()))
    top1, epoch = max((row["val_ema_top1"], -row["epoch"]) for row in rows)
    assert (top1, epoch) > max((row["val_top1"], -row["epoch"]) for row in rows)  # or as good first
    accuracy = f"| validation top-1 | {100 * top1:.2f} % of the averaged weights (EMA), epoch {-epoch} of 40 |"
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    for fact in ("pipeline_tag: image-classification", "trained on lit_data", "| classes | 10 |", "| epochs | 40 |",
                 accuracy, f"SHA-256 {digest} |",
                 "[0.485, 0.456, 0.406] is subtracted", "resized to 16 pixels"):  # fmt: skip
        assert fact in text, fact
    assert str(ROOT) not in text and str(tmp_path) not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    expected = checkpoint.read(source)
    assert all(np.array_equal(value.numpy(), expected[name]) for name, value in names["model"].state_dict().items())


@pytest.mark.parametrize("output, to, words", [
    ("w", "torch", "is for the official PyTorch code."), ("w.PDPARAMS", "paddle", "is for PaddlePaddle;"),
    ("w", "safetensors", "shapes of the tensors are those of the official PyTorch code."),
])  # fmt: skip
def test_the_card_says_how_the_file_is_written_and_the_accuracy_was_measured(tmp_path, output, to, words):
    pytest.importorskip("torch" if to == "torch" else "safetensors")
    for name in ("best.pdparams", "config.yaml", "metrics.jsonl", "classes.txt"):
        shutil.copy(ROOT / "output/pretrained/lit_data" / name, tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("VAL:\n", "VAL:\n  TTA: flip\n"))
    run(tmp_path / "best.pdparams", "--output", tmp_path / output, "--to", to, "--card", tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert words in text and re.search(r"validation top-1 .* of 40, VAL.TTA flip \|", text)


def test_a_card_is_refused_for_another_model_than_that_of_the_run(tmp_path):
    shutil.copy(ROOT / "output/pretrained/lit_data/config.yaml", tmp_path)
    peers.save_paddle(tmp_path / "other.pdparams", peers.peer_tensors(PIT))
    with pytest.raises(UserError, match="--card describes the model of .*config.yaml, which is not that of .*other"):
        run(tmp_path / "other.pdparams", "--output", tmp_path / "o.safetensors", "--card", tmp_path / "card.md")
    assert not (tmp_path / "o.safetensors").exists()


def test_a_card_is_not_made_up_or_written_over(tmp_path):
    peers.save_paddle(tmp_path / "w.pdparams", peers.peer_tensors(PIT))
    (tmp_path / "README.md").write_text("mine")
    run_of = ROOT / "output/pretrained/lit_data/best.pdparams"
    for source, message in ((tmp_path / "w.pdparams", "--card describes a run, but there is no .*/config.yaml: give"),
                            (run_of, "README.md exists already; remove it or choose another name")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            run(source, "--output", tmp_path / "out.safetensors", "--card", tmp_path / "README.md")
    assert not (tmp_path / "out.safetensors").exists() and (tmp_path / "README.md").read_text() == "mine"
