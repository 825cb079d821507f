"""Command lines: negative numbers, words after --, KEY VALUE pairs, and closed outputs."""

import subprocess
import sys

import pytest
from conftest import ROOT

import predict
from t2t_vit import cli
from t2t_vit.config import load_config
from t2t_vit.pictures.options import predictions_parser


def parsed(*words):
    return cli.parse_words(words, predict.parser())


@pytest.mark.parametrize("closed, lines", [("1>&-", 1), ("2>&-", 0), ("1>&- 2>&-", 0)])
def test_outputs_may_be_closed(closed, lines):
    command = f"'{sys.executable}' '{ROOT}/tools/predict.py' --config none.yaml {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", lines), done.stderr


@pytest.mark.parametrize("number", ["-1", "-0.5", "-.5", "-1e-3", "-1.E+5", "-2.5e10", "-inf"])
def test_negative_number_is_a_value(number):
    assert parsed("TRAIN.BASE_LR", number, "--top-k", "3").opts == ["TRAIN.BASE_LR", number]


def test_words_after_a_double_dash_are_not_options():
    args = parsed("a.png", "--top-k", "3", "--", "-dash.png", "--json", "--")
    assert args.opts == ["a.png", "-dash.png", "--json", "--"] and args.top_k == 3 and args.json is None


@pytest.mark.parametrize("words", [["-e"], ["TRAIN.BASE_LR", "-x1e-3"], ["-1e"]])
def test_other_words_with_a_dash_are_unknown_options(words, capsys):
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_picture_is_not_the_folder_of_the_runs(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse_words(["--output", "x.png"], predictions_parser())
    assert end.value.code == 2
    message = "error: argument --output: is the folder of the runs, not a file; visualize.py writes --sheet x.png\n"
    assert capsys.readouterr().err.endswith(message)
    (tmp_path / "runs.png").mkdir()
    assert cli.parse_words(["--output", str(tmp_path / "runs.png")], predictions_parser()).output


def test_key_and_value_with_an_equals_sign_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.check_pairs(predict.parser(), parsed("TRAIN.EPOCHS=3"))
    assert "write TRAIN.EPOCHS 3: KEY and VALUE are separated by a space" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, found",
    [
        ("imagenet1k", "imagenet1k"),
        ("configs/imagenet1k_classes.tsv", "imagenet1k"),  # of earlier versions
        ("list.txt", "{here}/list.txt"),
        ("", ""),
    ],
)
def test_class_list_on_the_command_line(given, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config("configs/lit_data.yaml", cli.overrides(parsed("DATA.CLASSES", given)))
    expected = found.format(here=tmp_path)
    assert expected == cfg.DATA.CLASSES
