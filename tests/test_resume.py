"""A run that is interrupted anywhere, in any way, and resumed gives the same result as an undisturbed run."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ENVIRONMENT, ROOT
from resuming import (
    OFTEN,
    SMALL,
    WORKERS,
    assert_same_run,
    kill,
    rows,
    run,
    run_after_deaths,
    run_until,
    send,
    terminate,
    the_only_error,
)

from t2t_vit.common.errors import counted
from t2t_vit.runs import interruption
from t2t_vit.training import evaluator, trainer
from t2t_vit.weights import checkpoint


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Run folder of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("left")
    run(output, *OFTEN)
    return output / "lit_data"


# --- Killed ---

# Kinds of writes of a run, in the order of its progress.
WRITES = [
    ("replace", "config.yaml", 1),  # the folder is empty
    ("replace", "next.pdparams", 1),  # the first state is written but has no name
    ("replace", "latest.pdparams", 2),  # the newest state is latest.1.pdparams, the next is next.pdparams
    ("replace", "latest.2.pdparams", 2),
    ("replace", "best.pdparams", 1),  # the epoch has no row
    ("fsync", "metrics.jsonl", 1),  # the row of the epoch is written, its state is not
    ("fsync", "times.jsonl", 1),
]
# And any others: the folder is flushed after each file that is written, and after each save.
WRITES += [("fsync", "lit_data", count) for count in random.Random(3).sample(range(3, 8), 2)]


def test_death_at_any_write_and_workers_change_nothing(left_alone, tmp_path):
    run_after_deaths(tmp_path, WRITES, *OFTEN)
    assert_same_run(tmp_path / "lit_data", left_alone)
    assert sorted(path.name for path in (tmp_path / "lit_data").iterdir()) == [
        "best.pdparams", "classes.txt", "config.yaml", "latest.1.pdparams", "latest.2.pdparams", "latest.pdparams",
        "metrics.jsonl", "times.jsonl"]  # fmt: skip
    assert not list(tmp_path.glob("lit_data.[0-9]*"))  # nothing was moved aside
    log = (tmp_path / "lit_data.log").read_text()
    log = log[log.rindex(": 0 epochs and ") :]  # starts before the first state also wrote lines
    steps = re.findall(r"^Epoch \[(\d+)/2\], Step \[(\d+)/6\]", log, flags=re.MULTILINE)
    assert steps[-2:] == [("2", "3"), ("2", "6")] and len(steps) == len(set(steps))
    assert log.count("Epoch [1/2], avg_Loss") == 1


def test_interrupted_before_validation_and_killed_after_it(left_alone, tmp_path):
    # The save after that validation holds an optimizer that was loaded and has made no step.
    words = ["TRAIN.SAVE_MINUTES", 0.0]
    assert "0 epochs and 6 steps" in terminate(tmp_path, 1, 6, *words).stdout
    kill(tmp_path, 2, 3, *words)
    assert ": 1 epoch done" in run(tmp_path, *words).stdout
    assert_same_run(tmp_path / "lit_data", left_alone)


# --- Cut by a signal or a clock ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_print_how_to_continue(left_alone, tmp_path, number):
    for epoch, step in ((1, 3), (1, 6), (2, 3)):
        # After the last step of an epoch the signal meets the validation.
        done = run_until(tmp_path, epoch, step, send(number))
        stopped, going_on = done.stdout.splitlines()[-2:]
        assert re.fullmatch(rf"stopped by {number.name} after \d epochs?( and \d+ steps?)?, saved in \S+", stopped)
        words = " ".join(map(str, SMALL)).replace("[1.0, 1.0]", "'[1.0, 1.0]'")
        assert going_on == f"continue with: python {ROOT}/tools/train.py --output {tmp_path} {words} --resume auto"
    run(tmp_path)
    assert_same_run(tmp_path / "lit_data", left_alone)
    assert (tmp_path / "lit_data.log").read_text().count(f"stopped by {number.name}") == 3
    assert (tmp_path / "lit_data.log").read_text().count("avg_Loss") == 2


def test_a_signal_ends_a_validation_which_is_repeated_later(tmp_path, monkeypatch):
    totals, batches = evaluator._batch_totals, []

    def signalled(logits, labels):
        batches.append(len(labels))
        if len(batches) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return totals(logits, labels)

    monkeypatch.setattr(evaluator, "_batch_totals", signalled)
    words = ["VAL.BATCH_SIZE", 20]
    stopped = run(tmp_path, *words).stdout.splitlines()[-2]
    assert stopped.startswith("stopped by SIGTERM after 0 epochs and 6 steps, saved in ")
    assert batches == [20, 20]  # the first batch, in both models
    run(tmp_path, *words)
    assert batches == [20] * 22
    assert [row["epoch"] for row in rows(tmp_path / "lit_data") if "val_ema_top1" in row] == [1, 2]


def test_a_lost_terminal_does_not_lose_the_run(left_alone, tmp_path):
    # The reader of the output exits after the first line; then the terminal hangs up.
    command = [sys.executable, ROOT / "tools/train.py", "--output", tmp_path, *SMALL, *WORKERS]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=ENVIRONMENT, start_new_session=True)  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    log = tmp_path / "lit_data.log"
    while not (log.is_file() and "Epoch [1/2], Step [3/6]" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGHUP)  # the data workers too
    assert process.wait(300) == 0 and process.stderr.read() == b""
    assert "stopped by SIGHUP after " in log.read_text()
    run(tmp_path)
    assert_same_run(tmp_path / "lit_data", left_alone)


def test_time_limit_saves_and_stops_before_it(left_alone, tmp_path, monkeypatch):
    late = [0.0]
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))
    for epoch, seconds in ((1, 550.0), (2, 605.0)):
        late[0] = 0.0
        # It keeps 65 s for two saves and its end; the second time, a step takes all that is left.
        done = run_until(tmp_path, epoch, 3, lambda seconds=seconds: late.append(seconds + late.pop()),
                         "TRAIN.TIME_LIMIT", "10m")  # fmt: skip
        assert f"stopped by TRAIN.TIME_LIMIT after {counted(epoch - 1, 'epoch')} and 3 steps, saved in" in done.stdout
    late[0] = 0.0
    assert run(tmp_path, "TRAIN.TIME_LIMIT", "10m").stdout.splitlines()[-1].startswith("done: ")
    assert_same_run(tmp_path / "lit_data", left_alone)
    assert "all done: 2 epochs; --resume none starts a new run" in run(tmp_path).stdout
    assert_same_run(tmp_path / "lit_data", left_alone)


# --- Other ways to the same end ---


def test_fine_tuning_resumes_exactly_too(tmp_path):
    words = ["TRAIN.OPTIMIZER", "sgd", "TRAIN.BASE_LR", 0.02, "TRAIN.BACKBONE_LR", 0.005, "TRAIN.LAYER_DECAY", 0.75,
             "TRAIN.FREEZE", "['tokens_to_token.*', '!*.project.*', 'cls_token']"]  # fmt: skip
    alone = run(tmp_path / "alone", *words)
    assert (
        "backbone 0.0005 in epoch 1, 0.0025" in alone.stdout
        and "layer decay 0.75: 0.562 x in layer 0 to 1 x" in alone.stdout
    )
    for epoch, step in ((1, 6), (2, 3)):
        assert "stopped by SIGTERM after " in terminate(tmp_path / "cut", epoch, step, *words).stdout
    run(tmp_path / "cut", *words)
    assert_same_run(tmp_path / "cut/lit_data", tmp_path / "alone/lit_data")
    assert rows(tmp_path / "alone/lit_data")[1]["lr"] > 0.009
    # Another optimizer cannot continue, even with --force.
    words += ["TRAIN.OPTIMIZER", "adamw"]
    line = the_only_error(run(tmp_path / "cut", *words, status=1))
    assert "TRAIN.OPTIMIZER was 'sgd', is 'adamw'" in line
    line = the_only_error(run(tmp_path / "cut", *words, "--force", status=1))
    assert re.search("no AdamW state for the .* tensors of this model .TRAIN.OPTIMIZER, .*MODEL.PRETRAINED", line)


def test_val_every_leaves_out_validations_but_the_last(tmp_path, monkeypatch):
    bars = []

    def bar(steps, **options):
        bars.append((options["desc"], options["initial"], options["total"]))
        return steps

    monkeypatch.setattr(trainer, "progress_bar", bar)
    words = ["TRAIN.EPOCHS", 3, "VAL.EVERY", 2]
    terminate(tmp_path, 2, 3, *words)
    run(tmp_path, *words)
    assert [row["epoch"] for row in rows(tmp_path / "lit_data") if "val_top1" in row] == [2, 3]
    assert bars == [("epoch 1", 0, 6), ("epoch 2", 0, 6), ("epoch 2", 3, 6), ("epoch 3", 0, 6)]


def test_log_every_changes_nothing_but_the_log(left_alone, tmp_path):
    run(tmp_path, "TRAIN.LOG_EVERY", 6)
    assert (tmp_path / "lit_data/metrics.jsonl").read_bytes() == (left_alone / "metrics.jsonl").read_bytes()


def test_going_back_to_an_earlier_state_is_exact_too(left_alone, tmp_path):
    shutil.copytree(left_alone, tmp_path / "lit_data")
    earlier = tmp_path / "lit_data/latest.2.pdparams"
    assert checkpoint.read(earlier)["meter"]["step"] == 6
    done = run(tmp_path, *OFTEN, "--resume", earlier)
    assert f"resumed {earlier}: 1 epoch and 6 steps done" in done.stdout
    assert [path.name for path in sorted((tmp_path / "lit_data").glob("latest*"))] == [
        "latest.1.pdparams", "latest.2.pdparams", "latest.pdparams"]  # fmt: skip
    assert_same_run(tmp_path / "lit_data", left_alone)
