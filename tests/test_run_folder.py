"""A run writes only to a run folder or a new folder."""

import os

import pytest
from conftest import ROOT, error_line

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.runs.place import check_move, check_place
from t2t_vit.runs.run_folder import RunFolder
from t2t_vit.weights import checkpoint

SUMMARY = "x, 2026-01-01 00:00:00: PaddlePaddle 3.3.1 on cpu, float32, 1 process, Python 3.11.7\n"
CONFIG = load_config(ROOT / "configs/lit_data.yaml").dump()


def place(folder, *pairs):
    """A `RunFolder` of lit_data in `folder` that passed `check_place`."""
    pairs = [("OUTPUT", str(folder)), ("LOG", str(folder)), *pairs]
    cfg = load_config(ROOT / "configs/lit_data.yaml", pairs)
    run = RunFolder(cfg)
    check_place(run, cfg)
    return run


def started(folder, epochs=0):
    """Names in `folder` after a run has started there and trained some epochs."""
    run = place(folder)
    run.lock()
    run.start(load_config(ROOT / "configs/lit_data.yaml"), _Classes)
    for epoch in range(epochs):
        run.append_rows({"epoch": epoch + 1}, {"epoch": epoch + 1})
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


class _Classes:
    to_text = staticmethod(lambda: "0\n")


def fill(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("_", ".", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_training_never_moves_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "lit_data").symlink_to(ROOT / "lit_data")
    before = sorted(os.listdir(ROOT / "lit_data"))
    line = error_line("train", "--output", tmp_path)
    assert (
        line
        == f"error: the run folder {tmp_path}/lit_data would contain the data; give this run another NAME or --output"
    )
    line = error_line("train", "--output", tmp_path, "NAME", "x", "OUTPUT", ROOT.parent, "NAME", ROOT.name)
    assert "would contain the repository" in line
    line = error_line("train", "--output", ROOT / "output/pretrained")
    assert "output/pretrained, which no command changes" in line
    assert "NAME is 'pretrained' but must be another name" in error_line("train", "NAME", "pretrained")
    assert sorted(os.listdir(ROOT / "lit_data")) == before and os.listdir(tmp_path) == ["lit_data"]


@pytest.mark.parametrize("files", [{"photo_jpg": ""}, {"best_pdparams": ""}, {"config_yaml": "NAME: app\n"}])
def test_folder_of_other_files_is_refused(tmp_path, files):
    fill(tmp_path / "lit_data", **files)
    with pytest.raises(UserError, match="lit_data is not a run folder, it contains"):
        place(tmp_path)


@pytest.mark.parametrize("name", ["lit_data", "lit_data.log", "lit_data.visualdl"])
def test_file_in_place_of_a_run_folder_is_refused(tmp_path, name):
    message = f"{name} (was not written by a run|is not a folder); give this run another NAME"
    (tmp_path / name).write_text("my diary\n")
    with pytest.raises(UserError, match=message):
        place(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match=message):
        place(tmp_path)


def test_output_that_is_a_file_is_named(tmp_path):
    fill(tmp_path, out_txt="", run_log="")
    with pytest.raises(UserError, match="out.txt is not a folder .--output, OUTPUT"):
        place(tmp_path / "out.txt")
    with pytest.raises(UserError, match="run.log is not a folder .--output, LOG"):
        place(tmp_path, ("LOG", str(tmp_path / "run.log")))


def test_run_starts_in_an_empty_folder_and_beside_an_export(tmp_path):
    assert started(tmp_path) == ["lit_data"]
    fill(tmp_path / "other/lit_data/export", lit_onnx="x")
    assert started(tmp_path / "other") == ["lit_data"]
    assert (tmp_path / "other/lit_data/export/lit.onnx").is_file()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/lit_data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    assert started(tmp_path / "linked") == ["lit_data"]
    assert (tmp_path / "disk/config.yaml").is_file()


@pytest.mark.parametrize("name", ["latest.pdparams", "latest.1.pdparams", "best.pdparams", "metrics.jsonl"])
def test_run_with_results_is_moved_aside_whole(tmp_path, name):
    started(tmp_path)
    for path in (tmp_path / "lit_data" / name, tmp_path / "lit_data.log"):
        path.write_text(SUMMARY)
    assert started(tmp_path, epochs=1) == ["lit_data", "lit_data.1", "lit_data.1.log"]
    assert (tmp_path / "lit_data.1" / name).read_text() == (tmp_path / "lit_data.1.log").read_text() == SUMMARY
    assert started(tmp_path) == ["lit_data", "lit_data.1", "lit_data.1.log", "lit_data.2"]


def test_run_without_results_is_continued(tmp_path):
    for _ in range(3):
        assert started(tmp_path) == ["lit_data"]
    (tmp_path / "lit_data.log").write_text(SUMMARY)
    assert started(tmp_path) == ["lit_data", "lit_data.log"]
    assert (tmp_path / "lit_data.log").read_text() == SUMMARY


def test_log_of_a_removed_run_is_moved_aside(tmp_path):
    (tmp_path / "lit_data.log").write_text("warning: slow\n" + SUMMARY)
    assert started(tmp_path) == ["lit_data", "lit_data.1.log"]


def test_run_that_would_move_its_own_input_is_refused(tmp_path):
    fill(tmp_path / "lit_data", config_yaml=CONFIG, best_pdparams="")
    words = ["--resume", "none", "--pretrained", tmp_path / "lit_data/best.pdparams"]
    line = error_line("train", "--config", ROOT / "configs/lit_data.yaml", "--output", tmp_path, *words)
    assert line.endswith("best.pdparams is in the run folder that would be moved aside; give another NAME")
    backup = tmp_path / "lit_data/backup/latest.pdparams"
    run = place(tmp_path)
    with pytest.raises(UserError, match="latest.pdparams is in the run folder that would be moved aside"):
        check_move(run, [backup])


def test_earlier_state_survives_a_death_before_the_next_save(tmp_path):
    cfg, run = load_config(ROOT / "configs/lit_data.yaml"), place(tmp_path, ("TRAIN.KEEP", "3"))
    started(tmp_path)
    for epoch in (1, 2, 3):
        run.save_state({"epoch": epoch})
    for _ in range(2):  # the same command again after the death
        run.continue_from(run.folder / "latest.1.pdparams", {}, cfg, _Classes)
        assert [checkpoint.read(path)["epoch"] for path in run.states()] == [2, 2, 1]
    run.save_state({"epoch": 4})
    assert [checkpoint.read(path)["epoch"] for path in run.states()] == [4, 2, 2]
    assert not list(run.folder.glob("*.old"))
