"""Curves: reading every kind of run, and what is drawn."""

import json
import math
import re
import shutil
import sys

import pytest
from conftest import ROOT, error_line, tool

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.pictures import curves
from t2t_vit.pictures.options import curves_parser
from t2t_vit.runs.run_logs import read_run, read_runs

T2T_PADDLE = """\
----- Imagenet2012 image train list len = 1281000
----- Imagenet2012 image val list len = 50000
Epoch [0/200], Step [100/2500], Loss: 6.9000, read_time: 0.1000, train_time: 0.3000, lr: 0.0003
Epoch [0/200], Step [300/2500], Loss: 6.5000,acc: 0.0100, read_time: 0.3000, train_time: 0.3000, lr: 0.0004
Epoch [0/200], avg_Loss: 6.4000, avg_acc: 0.0200
/usr/lib/PIL/TiffImagePlugin.py:792: UserWarning: Corrupt EXIF data.  Expecting to read 4 bytes but only got 0.
Epoch [1/200], Step [100/2500], Loss: 1.2000
Epoch [1/200], avg_Loss: 1.1000, avg_acc: 0.7078
ImageNet val acc is:0.7165
avg_acc: 0.7165 model saved!
Epoch [2/200], avg_Loss: nan, avg_acc: 0.7080
train ended!

==============================================

ImageNet final val acc is:0.7156
"""
RUN = "output/pretrained/lit_data"
PADDLE_PIT = """\
2022-01-07 23:12:56,594 
AMP: False
DATA:
  BATCH_SIZE: 256
  BATCH_SIZE_EVAL: 8
2022-01-07 23:12:56,594 ----- world_size = 4, local_rank = 0
2022-01-07 23:12:57,927 Now training epoch 75. LR=0.000854
2022-01-07 23:14:13,593 Epoch[075/310], Step[0000/1250], Loss: 3.4553(3.4553), Acc: 0.2637(0.2637)
2022-01-07 23:38:30,453 Epoch[075/310], Step[1249/1250], Loss: 3.5174(3.5300), Acc: 0.3662(0.3850)
2022-01-07 23:38:31,792 ----- Epoch[075/310], Train Loss: 4.2387, Train Acc: 0.2810, time: 1600.00
2022-01-07 23:38:31,793 Now training epoch 76. LR=0.000851
2022-01-07 23:39:31,793 Epoch[076/310], Step[0000/1250], Loss: 3.4553(3.4553), Acc: 0.2637(0.2637)
2022-01-07 23:39:40,284 Val Step[0000/1563], Loss: 0.6749 (0.6749), Acc@1: 0.9062 (0.9062), Acc@5: 0.9688 (0.9688)
2022-01-07 23:40:23,171 ----- Epoch[076/310], Validation Loss: 1.7120, Validation Acc@1: 0.6269, Validation Acc@5: \
0.8487, time: 111.38
2022-01-07 23:40:23,171 ----- Epoch[076/310], Train Loss: 4.2407, Train Acc: 0.2819, time: 1280.00, Best Val(epoch74) \
Acc@1: 0.6270
2022-01-07 23:40:23,333 ----- Save BEST model: /root/output/train-20220107-23-12-01/Best_PiT.pdparams
"""  # noqa: W291
SUMMARY = "epoch,train_loss,eval_loss,eval_top1,eval_top5\r\n0,6.9,6.7,1.25,4.0\r\n1,6.5,nan,3.5,9.0\r\n"


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def jsonl(path, *rows):
    return written(path, "".join(json.dumps(row) + "\n" for row in rows))


# --- What is read ---


def test_run_folder_with_its_times(tmp_path):
    rows = [{"epoch": 1, "lr": 0.1, "train_loss": None, "other": "x"}, {"epoch": 2, "lr": 0.2, "val_top1": 0.5}]
    jsonl(tmp_path / "mine/metrics.jsonl", *rows)
    jsonl(tmp_path / "mine/times.jsonl", {"epoch": 2, "images_per_second": 3.5, "seconds": 1})
    run = read_run(tmp_path / "mine")
    assert run.name == "mine" and run.source == tmp_path / "mine/metrics.jsonl"
    expected = {1: {"lr": 0.1, "train_loss": None}, 2: {"lr": 0.2, "val_top1": 0.5, "images_per_second": 3.5}}
    assert run.rows == expected == read_run(tmp_path / "mine/metrics.jsonl").rows
    assert run.series("val_top1") == ([2], [0.5])
    assert math.isnan(run.series("train_loss")[1][0])
    assert run.series("val_loss") == ([], [])
    assert read_run(shutil.copy(tmp_path / "mine/metrics.jsonl", tmp_path / "table")).rows[2] == {
        "lr": 0.2, "val_top1": 0.5,
    }  # fmt: skip


def test_later_lines_win_and_a_torn_one_is_ignored(tmp_path):
    path = jsonl(tmp_path / "metrics.jsonl", *({"epoch": epoch, "lr": lr} for epoch, lr in ((1, 1), (2, 2), (1, 3))))
    path.write_text(path.read_text() + '{"epoch": 3, "lr"')
    assert read_run(path).rows == {1: {"lr": 3}, 2: {"lr": 2}}


def test_log_of_this_repository_agrees_with_its_metrics():
    log, run = read_run(ROOT / "log/pretrained/lit_data.log"), read_run(ROOT / "output/pretrained/lit_data")
    assert log.name == "lit_data" and sorted(log.rows) == sorted(run.rows) == list(range(1, 41))
    for epoch, row in log.rows.items():
        assert sorted(set(run.rows[epoch]) - set(row)) == ["val_ema_loss", "val_ema_top5", "val_loss", "val_top5"]
        for key, number in row.items():
            if key == "images_per_second":  # in the log, of the last steps of the epoch
                assert number == pytest.approx(run.rows[epoch][key], rel=0.5)
            else:
                assert number == pytest.approx(run.rows[epoch][key], abs=1.001 * (5e-7 if key == "lr" else 5e-5))


def test_log_of_t2t_paddle(tmp_path):
    run = read_run(written(tmp_path / "trainer-0.log", T2T_PADDLE))
    assert run.name == "trainer-0"
    assert run.rows == {
        1: {"train_loss": 6.4, "train_acc": 0.02, "lr": 0.0004},
        2: {"train_loss": 1.1, "train_acc": 0.7078, "val_top1": 0.7165},
        3: {"train_loss": None, "train_acc": 0.708, "val_top1": 0.7156},
    }  # fmt: skip


def test_starts_of_t2t_paddle_follow_each_other(tmp_path):
    """Each start counts from 0: the first has 3 epochs and part of a fourth, the second one epoch, the third two."""
    step = "Epoch [{}/200], Step [100/2500], Loss: 1.0000, read_time: 0.1, train_time: 0.1, lr: 0.0001\n"
    end = "Epoch [{}/200], avg_Loss: {}, avg_acc: 0.5\n"
    again = step.format(0) + end.format(0, 0.9) + "ImageNet val acc is:0.7100\n"
    again += step.format(0) + end.format(0, 0.8) + step.format(1) + end.format(1, 0.7)
    log = T2T_PADDLE + "Epoch [3/200], Step [100/2500], Loss: 1.0000, lr: 0.9\n" + again
    rows = read_run(written(tmp_path / "trainer-0.log", log)).rows
    assert [row["train_loss"] for row in rows.values()] == [6.4, 1.1, None, 0.9, 0.8, 0.7] and list(rows) == [
        *range(1, 7)
    ]
    assert [row.get("val_top1") for row in rows.values()] == [None, 0.7165, 0.7156, 0.71, None, None]
    assert rows[4]["lr"] == rows[6]["lr"] == 0.0001


def test_log_of_paddle_pit(tmp_path):
    expected = {
        75: {"lr": 0.000854, "train_loss": 4.2387, "train_acc": 0.281},
        76: {
            "lr": 0.000851, "train_loss": 4.2407, "train_acc": 0.2819,
            "val_loss": 1.712, "val_top1": 0.6269, "val_top5": 0.8487,
        },
    }  # fmt: skip
    assert read_run(written(tmp_path / "log_75-76.txt", PADDLE_PIT)).rows == expected
    headless = PADDLE_PIT[PADDLE_PIT.index("2022-01-07 23:12:57") :]
    assert read_run(written(tmp_path / "tail.txt", headless)).rows == expected


def test_last_row_of_a_repeated_epoch_counts(tmp_path):
    """Parts of a resumed run, joined; the second repeats the validated epoch 76 without validating it."""
    line = "2022-01-07 23:38:31,792 ----- Epoch[0{}/310], Train Loss: {}, Train Acc: 0.5, time: 10.00\n"
    again = line.format(75, 4.0) + line.format(76, 3.0)
    assert read_run(written(tmp_path / "log.txt", PADDLE_PIT + again)).rows == {
        75: {"train_loss": 4.0, "train_acc": 0.5},
        76: {"train_loss": 3.0, "train_acc": 0.5},
    }


def test_an_epoch_interrupted_when_repeated_keeps_its_numbers(tmp_path):
    """T2T_paddle's form: an epoch's steps, then its loss and validation."""
    begun = "Epoch [{0}/9], Step [1/2], Loss: 1.0000, lr: 0.{1}\n"
    ended = begun + "Epoch [{0}/9], avg_Loss: {0}.{1}, avg_acc: 0.5\nImageNet val acc is:0.{1}\n"
    log = "".join(ended.format(epoch, 1) for epoch in (1, 2, 3)) + begun.format(3, 7)
    rows = read_run(written(tmp_path / "a.log", log)).rows
    assert {epoch: (row["train_loss"], row["val_top1"], row["lr"]) for epoch, row in rows.items()} == {
        1: (1.1, 0.1, 0.1), 2: (2.1, 0.1, 0.1), 3: (3.1, 0.1, 0.1),
    }  # fmt: skip
    rows = read_run(written(tmp_path / "b.log", log + begun.format(2, 7))).rows
    assert [row["lr"] for row in rows.values()] == [0.1, 0.1, 0.1]
    rows = read_run(written(tmp_path / "c.log", log + ended.format(2, 7))).rows
    assert {epoch: row["val_top1"] for epoch, row in rows.items()} == {1: 0.1, 2: 0.7, 3: 0.1}


def test_parts_of_a_run_are_merged_in_any_order(tmp_path):
    """A glob puts log_10-11.txt before log_3-4.txt."""
    line = "2022-01-01 00:10:00,000 ----- Epoch[{0:03}/011], Train Loss: {0}.5, Train Acc: 0.1, time: 600.00\n"
    joined = "".join(line.format(epoch) for epoch in (1, 2, 10, 11, 3, 4, 5, 6, 7, 8, 9))
    rows = read_run(written(tmp_path / "pit.txt", joined)).rows
    assert {epoch: row["train_loss"] for epoch, row in rows.items()} == {epoch: epoch + 0.5 for epoch in range(1, 12)}


def test_summary_of_timm(tmp_path):
    run = read_run(written(tmp_path / "20210101-t2t_vit_7/summary.csv", SUMMARY))
    assert run.name == "20210101-t2t_vit_7"
    assert run.rows == {
        1: {"train_loss": 6.9, "val_loss": 6.7, "val_top1": 0.0125, "val_top5": 0.04},
        2: {"train_loss": 6.5, "val_loss": None, "val_top1": 0.035, "val_top5": 0.09},
    }
    resumed = SUMMARY + SUMMARY.splitlines()[0] + ",lr\r\n2,6.0,5.5,8.0,20.0,0.1\r\n"
    written(tmp_path / "20210101-t2t_vit_7/summary.csv", resumed)
    again = read_run(tmp_path / "20210101-t2t_vit_7")  # timm's run folder
    assert list(again.rows.values())[:2] == list(run.rows.values())
    assert again.rows[3] == {"train_loss": 6.0, "val_loss": 5.5, "val_top1": 0.08, "val_top5": 0.2, "lr": 0.1}


def test_runs_with_the_same_name_get_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/x", "b/x", "b/y"):
        jsonl(tmp_path / folder / "metrics.jsonl", {"epoch": 1, "lr": 1})
    runs = read_runs(["a/x", "b/x", "b/y", "b/y/metrics.jsonl"])
    assert [run.name for run in runs] == ["a/x/metrics.jsonl", "b/x/metrics.jsonl", "y"]


# --- What is drawn ---


@pytest.fixture
def figure():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    return Figure()


def drawn(figure, runs):
    """{panel: {(colour, style): points}}"""
    panels = curves.panels_of(runs)
    places = list(figure.subplots(1, 4, squeeze=False).flat)
    curves.draw(figure, places, runs, panels)
    visible = [axes for axes in places if axes.get_visible()]
    assert [axes.get_title() for axes in visible] == list(panels)
    return {
        axes.get_title(): {(line.get_color(), line.get_linestyle()): line.get_xydata().tolist() for line in axes.lines}
        for axes in visible
    }


def test_lines_are_the_numbers_of_each_run(figure, tmp_path):
    rows = [{"epoch": epoch, "train_loss": 3 - epoch, "val_top1": epoch / 10, "lr": 0.1} for epoch in (1, 2)]
    jsonl(tmp_path / "_first$/metrics.jsonl", *rows)
    jsonl(tmp_path / "other/metrics.jsonl", {"epoch": 5, "val_ema_top1": 0.75, "val_top1": 0.5})
    panels = drawn(figure, read_runs([tmp_path / "_first$", tmp_path / "other"]))
    assert list(panels) == ["loss", "top-1 (%)", "learning rate"]
    assert panels["loss"] == {("C0", ":"): [[1, 2], [2, 1]], ("C1", ":"): []}
    assert panels["top-1 (%)"] == {
        ("C0", "-"): [[1, 10], [2, 20]], ("C0", "--"): [], ("C1", "-"): [[5, 50]], ("C1", "--"): [[5, 75]],
    }  # fmt: skip
    assert panels["learning rate"][("C0", "-")] == [[1, 0.1], [2, 0.1]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r" _first\$", "other"]


def test_command_draws_and_prints_the_best(tmp_path):
    pytest.importorskip("matplotlib")
    log, sheet = written(tmp_path / "log.txt", PADDLE_PIT), tmp_path / "x.png"
    done = tool("visualize", "curves", ROOT / "output/pretrained/lit_data", log, "--sheet", sheet, fresh=False)
    metrics = (ROOT / "output/pretrained/lit_data/metrics.jsonl").read_text().splitlines()
    top1 = [json.loads(line)["val_ema_top1"] for line in metrics]
    best = f"best EMA top-1 {max(top1):.4f} in epoch {1 + top1.index(max(top1))}"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("lit_data: epochs 1 to 40, best val top-1 ") and lines[0].endswith(best)
    assert lines[1] == "log: epochs 75 to 76, best val top-1 0.6269 in epoch 76"
    assert lines[2:] == [f"{sheet} written"] and done.stderr == ""
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix, start", [(".pdf", b"%PDF"), (".SVG", b"<?xml")])
def test_other_forms_of_picture(tmp_path, suffix, start):
    pytest.importorskip("matplotlib")
    sheet = tmp_path / f"x{suffix}"
    curves.draw_curves(
        curves_parser().parse_args([str(ROOT / "output/pretrained/lit_data_pit"), "--sheet", str(sheet)])
    )
    assert sheet.read_bytes().startswith(start)


# --- Mistakes ---


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "metrics.jsonl",
            '{"epoch": 1}\n{"epoch": 2\n{"epoch": 3}\n',
            "metrics.jsonl, line 2: not a line of a run",
        ),
        ("metrics.jsonl", '{"epoch": 1}\n{"epo\n', "metrics.jsonl, line 2: not a line of a run"),
        ("metrics.jsonl", '{"lr": 1}\n', "metrics.jsonl, line 1: not a line of a run"),
        ("metrics.jsonl", '{"epoch": 1}\n[1]\n', "metrics.jsonl, line 2: not a line of a run"),
        ("x", '{"epoch": 1, "lr": "a"}\n', "x, line 1: not a line of a run"),
        *(
            ("x", f'{{"epoch": 1}}\n{{"epoch": {epoch}}}', "x, line 2: not a line of a run")
            for epoch in (-3, 0, '"2"', 2.7, "true", 10**300)
        ),
        ("summary.csv", SUMMARY + "-2,1,1,1,1\n", "summary.csv, line 4: an epoch must be a whole number from 1 to "),
        ("x.log", f"Epoch [{10**300}/1], avg_Loss: 1\n", "x.log has no epoch"),
        ("metrics.jsonl", '{"epoch": 1', "metrics.jsonl has no epoch; RUN may be "),
        ("summary.csv", SUMMARY + "2,a,1,1,1\n", "summary.csv, line 4: could not convert string to float: 'a'"),
        ("log_eval.txt", "Val Step[0000/1563], Loss: 0.6749 (0.6749)\nval acc is:0.5\n", "log_eval.txt has no "),
        ("empty.log", "", "empty.log has no epoch"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, text, message):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/{message}")):
        read_run(written(tmp_path / name, text))


def test_bad_times_are_named(tmp_path):
    jsonl(tmp_path / "metrics.jsonl", {"epoch": 1, "lr": 1})
    written(tmp_path / "times.jsonl", "{\n{}\n")
    with pytest.raises(UserError, match=r"times.jsonl, line 1: not a line"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "words, message",
    [
        (["output/absent"], "output/absent: no such file or run folder"),
        (
            [RUN, "--sheet", "x.gif"],
            "--sheet x.gif must end in .png, .pdf, .svg, .jpg or .jpeg",
        ),
        ([RUN, "--sheet", "LICENSE/x.png"], "LICENSE/x.png: cannot be written: "),
        ([f"{RUN}/best.pdparams"], f"{RUN}/best.pdparams has no epoch"),
        (["lit_data"], "lit_data has no metrics.jsonl, which a run writes after its first epoch"),
    ],
)
def test_mistakes_are_one_line(words, message, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(ROOT)
    with pytest.raises((UserError, OSError)) as error:
        curves.draw_curves(curves_parser().parse_args(words))
    assert one_line(error.value).startswith(message)
    assert not (ROOT / "curves.png").exists()


def test_nothing_to_draw_is_an_error(tmp_path):
    pytest.importorskip("matplotlib")
    path = jsonl(tmp_path / "metrics.jsonl", {"epoch": 1})
    line = error_line("visualize", "curves", path, "--sheet", tmp_path / "x.png")
    assert line == f"error: {path} has nothing to draw: no loss, accuracy, learning rate or images per second"
    assert not (tmp_path / "x.png").exists()


def test_missing_matplotlib_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        curves.draw_curves(curves_parser().parse_args(["absent"]))


def test_missing_run_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        curves_parser().parse_args([])
    assert "the following arguments are required: RUN" in capsys.readouterr().err
