"""Commands never overwrite their inputs or the published runs."""

import os
import shutil

import pytest
from conftest import ROOT, error_line, tool

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_outputs

DIGIT = ROOT / "lit_data/val/3/0045.png"
SHIPPED = ROOT / "output/pretrained/lit_data"


@pytest.fixture
def photo(tmp_path):
    return shutil.copy(DIGIT, tmp_path / "photo.png")


def test_output_that_is_an_input_by_any_name_is_refused(photo, tmp_path):
    os.link(photo, tmp_path / "hard.png")
    os.symlink(photo, tmp_path / "soft.png")
    os.symlink(tmp_path, tmp_path / "folder")
    for name in ("photo.png", "hard.png", "soft.png", "folder/photo.png"):
        with pytest.raises(UserError, match=f"{name} is read by this command and would be overwritten"):
            check_outputs([None, tmp_path / name], [photo])
    with pytest.raises(UserError, match="soft.png is read by this command"):
        check_outputs([tmp_path / "soft.png"], pictures=[str(photo)])
    check_outputs([tmp_path / "other.png"], [photo, tmp_path / "absent.png"], [photo])
    with pytest.raises(UserError, match="is given for two outputs"):
        check_outputs([tmp_path / "x.png", tmp_path / "folder/x.png"])


def test_pipes_are_outputs_too():
    check_outputs(["/dev/stdout", "/dev/null"])
    with pytest.MonkeyPatch.context() as patch:  # of a user who may not make files in /dev
        patch.setattr(os, "access", lambda path, mode: str(path) != "/dev")
        check_outputs(["/dev/null"])


def test_nothing_is_written_to_the_published_runs(tmp_path):
    os.symlink(SHIPPED, tmp_path / "link")
    for path in (SHIPPED / "x.json", ROOT / "log/pretrained/new/x.log", tmp_path / "link/best.pdparams"):
        with pytest.raises(UserError, match="/pretrained, which no command changes; choose another path"):
            check_outputs([path])
    assert "no command changes" in error_line("unpack", DIGIT, "--output", ROOT / "output/pretrained/x")


@pytest.mark.parametrize(
    "line",
    [
        "predict {photo} --json {photo}",
        "predict {photo} --json-ids {folder}/w.pdparams",
        "check_data --json {photo}",
        "benchmark model --json {photo}",
        "visualize predictions --json {photo}",
    ],
)
def test_json_output_must_end_in_json(photo, tmp_path, line):
    words = line.format(photo=photo, folder=tmp_path).split()
    assert " must end in .json" in tool(*words, status=2).stderr
    assert photo.read_bytes() == DIGIT.read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        "predict {photo} plain --json plain",
        "visualize attention {photo} --sheet {photo}",
        "visualize augment --data-path {data} --sheet {data}/train/3/photo.png",
        "visualize predictions --data-path {data} --sheet {data}/val/3/photo.png",
        "convert {weights} --output {weights}",
        "val --pretrained {run}/best.pdparams --report {run}/classes.txt",
        "val --output {folder} --engine inference --report {folder}/lit_data/export/lit_data.json",
        "predict {photo} --output {folder} --engine inference --json {folder}/lit_data/export/lit_data.json",
        "export --config {run}/config.yaml --format openvino --file {run}/x.xml MODEL.PRETRAINED {run}/x.bin",
    ],
)
def test_commands_never_overwrite_their_inputs(photo, tmp_path, line):
    run = shutil.copytree(SHIPPED, tmp_path / "run")
    shutil.copy(run / "best.pdparams", run / "x.bin")
    shutil.copy(DIGIT, tmp_path / "plain")
    for split in ("train", "val"):
        for digit in range(10):
            folder = tmp_path / f"data/{split}/{digit}"
            folder.mkdir(parents=True)
            shutil.copy(DIGIT, folder / "photo.png")
    exported = tmp_path / "lit_data/export/lit_data.json"
    exported.parent.mkdir(parents=True)
    exported.write_text("{}")
    places = dict(photo=photo, data=tmp_path / "data", weights=run / "best.pdparams", run=run, folder=tmp_path)
    words = line.format(**places).split()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "would be overwritten; give the output another name" in error_line(*words, cwd=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_no_file_of_the_repository_is_replaced(tmp_path):
    os.symlink(ROOT / "LICENSE", tmp_path / "link.txt")
    for path in (ROOT / "LICENSE", ROOT / "README_cn.md", ROOT / "requirements.txt", ROOT / "docs/zoo.md", DIGIT):
        with pytest.raises(UserError, match=f"{path.name} comes with the repository, and no command changes it"):
            check_outputs([path])
    with pytest.raises(UserError, match="link.txt comes with the repository"):
        check_outputs([tmp_path / "link.txt"])
    check_outputs([ROOT / "report.md", ROOT / "predictions.json", ROOT / "docs/new.md", tmp_path / "README.md"])


@pytest.mark.parametrize("place", ["/dev/null", "pipe"])
def test_weights_are_not_converted_to_a_pipe_or_device(tmp_path, place):
    os.mkfifo(tmp_path / "pipe")
    line = error_line("convert", SHIPPED / "best.pdparams", "--output", place, cwd=tmp_path)
    assert line == f"error: --output {place} is not a file; a pipe or device cannot hold weights"


def test_converted_weights_need_a_matching_suffix(tmp_path):
    line = error_line("convert", SHIPPED / "best.pdparams", "--output", tmp_path / "photo.jpg", "--to", "torch")
    assert line == f"error: --output {tmp_path}/photo.jpg must end in .pth or .pt or .bin or .tar, as --to is torch"
