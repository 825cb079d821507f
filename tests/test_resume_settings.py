"""Resuming with other settings, in another folder, or from a file that is not a state."""

import re
import shutil

import pytest
from conftest import ROOT
from resuming import rows, run, run_after_deaths, the_only_error

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config, with_keys
from t2t_vit.config_values import accumulation
from t2t_vit.data.dataset import load_data
from t2t_vit.training.resume import _code_version, check_setting, setting, with_model_of_state
from t2t_vit.weights import checkpoint

SAME = ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Folder of the run folder of a run of one epoch."""
    output = tmp_path_factory.mktemp("short")
    run(output, *SAME)
    return output


@pytest.fixture
def copied(short_run, tmp_path):
    """A copy of `short_run`."""
    return shutil.copytree(short_run, tmp_path / "copy")


# --- Other settings ---


def test_other_settings_are_refused_by_name_unless_forced(copied, tmp_path):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    others = ["SEED", 7, "TRAIN.BATCH_SIZE", 4, "MODEL.DROP_RATE", 0.0]
    line = the_only_error(run(copied, *SAME, *others, status=1))
    for difference in ("SEED was 42, is 7", "TRAIN.BATCH_SIZE was 8, is 4", "MODEL.DROP_RATE was 0.1, is 0.0"):
        assert difference in line
    assert "--force continues" in line and "--resume none" in line
    lists = ["DATA.VAL_LIST", tmp_path / "val.txt"]
    (tmp_path / "val.txt").write_text("".join((ROOT / "lit_data/val.txt").read_text().splitlines(True)[:60]))
    assert "number of val images was 100, is 60" in the_only_error(run(copied, *SAME, *lists, status=1))
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    done = run(copied, *SAME, "MODEL.PRETRAINED", "absent.pdparams")
    assert "absent.pdparams (--pretrained) has no effect, because the run continues from its state" in done.stderr
    assert "absent" not in (copied / "lit_data/config.yaml").read_text()
    # Settings that affect only location and speed may change, and so may the split of a step.
    run(copied, *SAME, "TRAIN.LOG_EVERY", 2, "TRAIN.KEEP", 4, "TRAIN.BATCH_SIZE", 16, "TRAIN.ACCUM_STEPS", 1)
    done = run(copied, *SAME, "TRAIN.EPOCHS", 2, "--force")
    assert "warning: continuing with other settings (--force): TRAIN.EPOCHS was 1, is 2" in done.stderr
    assert "Epoch [2/2], avg_Loss" in done.stdout and "Epoch [1/2]" not in done.stdout
    assert "EPOCHS: 2" in (copied / "lit_data/config.yaml").read_text()


def setting_of(processes, *pairs):
    """`setting` of a run on the digits in a number of processes."""
    cfg = load_config(ROOT / "configs/lit_data.yaml", [("TRAIN.BATCH_SIZE", "32"), *pairs])
    cfg = with_keys(cfg, {"TRAIN.ACCUM_STEPS": accumulation(cfg, processes)})
    return {**setting(cfg, load_data(cfg)[1]), "processes": processes}


def test_global_batch_keeps_the_step_on_another_number_of_processes(warned):
    total = ("TRAIN.GLOBAL_BATCH", "64")
    check_setting(setting_of(2, total), setting_of(1, total), "latest.pdparams")  # is not refused
    assert "TRAIN.ACCUM_STEPS was 1 and is now 2: the run is no longer bit-exact" in warned.text
    assert "a step had" not in warned.text


def test_another_global_batch_names_the_one_that_keeps_the_steps():
    with pytest.raises(UserError, match="TRAIN.GLOBAL_BATCH 32 keeps its images per step"):
        check_setting(setting_of(1), setting_of(1, ("TRAIN.GLOBAL_BATCH", "64")), "latest.pdparams")
    check_setting(setting_of(1), setting_of(1, ("TRAIN.GLOBAL_BATCH", "32")), "latest.pdparams")


@pytest.mark.parametrize("pair", [("TRAIN.SAMPLER", "balanced"), ("TRAIN.CLASS_WEIGHTS", "auto")])
def test_other_classes_weights_are_refused(pair):
    key, value = pair
    with pytest.raises(UserError, match=f"{key} was '', is '{value}'"):
        check_setting(setting_of(1), setting_of(1, pair), "latest.pdparams")


def test_short_run_of_an_earlier_version_is_refused_with_the_keys_that_continue_it():
    own = [("TRAIN.WARMUP_EPOCHS", "1"), ("TRAIN.COOLDOWN_EPOCHS", "10")]
    then, now = (setting_of(1, ("TRAIN.EPOCHS", "2"), *pairs) for pairs in (own, own[:1]))
    message = "TRAIN.COOLDOWN_EPOCHS was 10, is 0; TRAIN.COOLDOWN_EPOCHS 10 keeps the run's, --force"
    with pytest.raises(UserError, match=message):
        check_setting(then, now, "latest.pdparams")
    check_setting(then, then, "latest.pdparams")


def test_longer_run_is_refused_in_a_short_line():
    then, now = setting_of(1, ("TRAIN.EPOCHS", "2")), setting_of(1, ("TRAIN.EPOCHS", "3"))
    message = (
        "latest.pdparams is of a run with TRAIN.EPOCHS 2, not 3: --force continues it with the new number and its "
        "learning rates, --resume none starts a new run"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        check_setting(then, now, "latest.pdparams")
    with pytest.raises(UserError, match="other settings: SEED was 42, is 7; TRAIN.EPOCHS was 2, is 3; TRAIN.WARMUP"):
        check_setting(then, setting_of(1, ("TRAIN.EPOCHS", "3"), ("SEED", "7")), "latest.pdparams")


def test_another_choice_of_the_best_weights_is_a_warning(warned):
    check_setting(setting_of(1, ("VAL.BEST", "ema")), setting_of(1), "latest.pdparams")
    assert "VAL.BEST was ema and is now better: from here on, best.pdparams is chosen differently" in warned.text


@pytest.mark.parametrize("pair", [("MODEL.QK_SCALE", "0.1"), ("MODEL.T2T.DEPTH", "3")])
def test_settings_of_the_model_are_not_taken_from_the_state(pair):
    state = {"setting": setting_of(1, pair)}
    cfg = load_config("configs/t2t_vit_7.yaml")
    assert with_model_of_state(cfg, state) == cfg


def test_another_version_is_a_warning(warned):
    now = setting_of(1)
    then = {**now, "code": "1c05819", "reader": ""}
    then.pop("threads")  # of an earlier version
    check_setting(then, {**now, "code": "", "reader": "pillow"}, "latest.pdparams")
    assert "code version was 1c05819 and is now unknown: the run is no longer bit-exact" in warned.text
    assert "image reader was unknown and is now pillow" in warned.text and "thread" not in warned.text


def test_an_installed_package_has_no_version_of_the_current_folder(monkeypatch):
    assert _code_version() or not (ROOT / ".git").exists()
    monkeypatch.setattr("t2t_vit.training.resume.ROOT", type(ROOT)())
    assert _code_version() == ""


def test_key_newer_than_the_state_gets_its_default(copied):
    latest = copied / "lit_data/latest.pdparams"
    state = checkpoint.read(latest)
    lines = [line for line in state["setting"]["config"].splitlines() if "MIX_SWITCH_PROB" not in line]
    checkpoint.save(latest, {**state, "setting": {**state["setting"], "config": "\n".join(lines)}})
    run(copied, *SAME)
    error = the_only_error(run(copied, *SAME, "AUG.MIX_SWITCH_PROB", 0.1, status=1))
    assert "AUG.MIX_SWITCH_PROB was 0.5, is 0.1" in error


# --- Another folder ---


def test_resume_none_starts_a_new_run_and_keeps_the_first(short_run, copied):
    assert "an earlier run was moved to" in run(copied, *SAME, "--resume", "none").stdout
    assert_moved(copied, short_run)
    assert (copied / "lit_data/metrics.jsonl").read_bytes() == (short_run / "lit_data/metrics.jsonl").read_bytes()


def assert_moved(output, short_run):
    """The run of `short_run` is complete in lit_data.1 of `output`, with its log, and nothing else was moved aside."""
    for path in (short_run / "lit_data").iterdir():
        assert (output / "lit_data.1" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (output / "lit_data.1.log").read_bytes() == (short_run / "lit_data.log").read_bytes()
    assert not list(output.glob("lit_data.2*"))


def test_new_run_that_fails_at_once_keeps_the_earlier_one_in_one_place(short_run, copied, tmp_path):
    words = ["TRAIN.EPOCHS", 2, "TRAIN.BASE_LR", 1e38, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.MAX_BAD_STEPS", 5]
    done = run(copied, *words, "--resume", "none", status=1)
    assert f"an earlier run was moved to {copied}/lit_data.1\n" in done.stdout
    assert done.stderr.rstrip().endswith("nothing has been saved yet")
    for choice in ("none", "auto"):
        assert "was moved" not in run(copied, *words, "--resume", choice, status=1).stdout
        assert_moved(copied, short_run)
    assert (copied / "lit_data.log").read_text().count("error: ") == 3
    # The earlier run continues from its new place.
    done = run(tmp_path / "again", *SAME, "--resume", copied / "lit_data.1/latest.pdparams")
    assert "all done: 1 epoch;" in done.stdout and (tmp_path / "again/lit_data/latest.pdparams").is_file()


def test_new_run_that_dies_while_it_moves_the_earlier_one_loses_nothing(short_run, copied):
    deaths = [("replace", name, 1) for name in ("lit_data.1", "lit_data.1.log", "config.yaml", "classes.txt")]
    run_after_deaths(copied, deaths, *SAME, "--resume", "none")
    assert_moved(copied, short_run)
    assert (copied / "lit_data/metrics.jsonl").read_bytes() == (short_run / "lit_data/metrics.jsonl").read_bytes()


def test_state_from_another_folder_brings_its_best_weights(short_run, tmp_path):
    words = ["TRAIN.EPOCHS", 3, "TRAIN.BASE_LR", 1e-9, "TRAIN.MIN_LR", 0.0, "TRAIN.WARMUP_LR", 0.0]
    done = run(tmp_path, *words, "--resume", short_run / "lit_data/latest.pdparams", "--force")
    assert "Epoch [3/3], avg_Loss" in done.stdout and "Epoch [1/3]" not in done.stdout
    epochs = rows(tmp_path / "lit_data")
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    state = checkpoint.read(tmp_path / "lit_data/latest.pdparams")
    best = max(epochs, key=lambda row: row["val_ema_top1"])
    assert (state["best_top1"], state["best_epoch"]) == (best["val_ema_top1"], best["epoch"])
    assert len(rows(short_run / "lit_data")) == 1


# --- Files that are no states of this run ---


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.update(epoch="x"), "is not a training state .no epoch"),
        (lambda state: state.update(model=3), "no model"),
        (lambda state: state.pop("setting"), "no setting"),
        (lambda state: state["optimizer"].popitem(), "no AdamW state for the 42 trained tensors"),
        (lambda state: state["model"].update({"head.bias": 3.0}), "head.bias is not an array"),
    ],
)
def test_wrong_states_are_named(short_run, tmp_path, change, message):
    state = checkpoint.read(short_run / "lit_data/latest.pdparams")
    change(state)
    checkpoint.save(tmp_path / "wrong.pdparams", state)
    words = ["--resume", tmp_path / "wrong.pdparams", *SAME]
    assert re.search(message, the_only_error(run(tmp_path / "run", *words, status=1)))


@pytest.mark.parametrize("choice", ["absent.pdparams", str(ROOT)])
def test_missing_state_is_named(tmp_path, choice):
    line = the_only_error(run(tmp_path, "--resume", choice, status=1))
    assert line == f"error: --resume {choice}: no such file; give a latest.pdparams, auto or none"


def test_weights_are_not_a_state(short_run, tmp_path):
    line = the_only_error(run(tmp_path, "--resume", short_run / "lit_data/best.pdparams", status=1))
    assert "is not a training state" in line
