"""A run that is cut, anywhere and in any way, and resumed ends as the run that was left alone."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, error_line, few_digits

from t2t_vit.common.errors import UserError
from t2t_vit.config import accumulation, load_config, with_keys
from t2t_vit.data.dataset import load_data
from t2t_vit.training.resume import check_setting, setting
from t2t_vit.weights import checkpoint

# All that could make a difference is on: augmentation, dropout, drop path, two data workers, accumulation, clipping.
SMALL = [
    "MODEL.T2T.DEPTH", 1, "MODEL.DROP_RATE", 0.1, "MODEL.ATTN_DROP_RATE", 0.1, "MODEL.DROP_PATH_RATE", 0.1,
    "AUG.HFLIP", 0.5, "AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1", "AUG.ERASE_PROB", 0.25, "AUG.MIXUP", 0.8,
    "AUG.CUTMIX", 1.0, "AUG.REPEATS", 2, "DATA.NUM_WORKERS", 2, "TRAIN.BATCH_SIZE", 16, "TRAIN.ACCUM_STEPS", 2,
    "TRAIN.CLIP_NORM", 1.0, "TRAIN.EMA_DECAY", 0.9, "TRAIN.WARMUP_EPOCHS", 1, "TRAIN.COOLDOWN_EPOCHS", 0,
    "TRAIN.LOG_EVERY", 5,
]  # fmt: skip
_LISTS = tempfile.TemporaryDirectory()  # until the tests end
SMALL += few_digits(Path(_LISTS.name), 72)  # half of the training images: 22 steps an epoch
OFTEN = ["TRAIN.SAVE_MINUTES", 0.002, "TRAIN.KEEP", 3]


def command(output, *words):
    return [sys.executable, str(ROOT / "tools/train.py"), "--output", str(output), *map(str, [*SMALL, *words])]


def start(output, *words):
    with open(f"{output}.stdout", "a") as stdout:
        return subprocess.Popen(command(output, *words), stdout=stdout, stderr=subprocess.STDOUT, env=ENVIRONMENT)


def die(output, call, name, count, *words):
    """Run the command until it dies at one write; see dying_train.py."""
    python, _, *rest = command(output, *words)
    program = [python, str(ROOT / "tests/programs/dying_train.py"), call, name, str(count), *rest]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 9, f"{call} {name} {count}\n{done.stdout}\n{done.stderr}"


def wait_for(what, process=None, seconds=300):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.001)


def assert_same_run(folder, other):
    """Weights, moving average, optimizer, best weights and metrics of two runs are the same, bit by bit."""
    state, expected = (checkpoint.read(path / "latest.pdparams") for path in (folder, other))
    for part in ("model", "ema", "optimizer"):
        assert set(state[part]) == set(expected[part]) and state[part]
        for name, value in expected[part].items():
            assert (state[part][name] == value).all(), f"{part} {name}"
    for key in ("epoch", "best_top1", "best_epoch", "scores", "images", "meter"):
        assert state[key] == expected[key], key
    for name in ("metrics.jsonl", "best.pdparams"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """(run folder, seconds until its first save and its end) of a run of six epochs that nothing disturbs."""
    output = tmp_path_factory.mktemp("left") / "alone"
    began = time.monotonic()
    process = start(output, "TRAIN.EPOCHS", 6, *OFTEN)
    wait_for((output / "lit_data/latest.pdparams").is_file, process)
    seconds = time.monotonic() - began
    assert process.wait(300) == 0
    return output / "lit_data", seconds, time.monotonic() - began


# Kinds of writes in the life of a run, in an order in which the run gets further.
WRITES = [
    ("replace", "config.yaml", 1),  # the folder is empty
    ("replace", "next.pdparams", 1),  # the first state is written but has no name
    ("replace", "latest.pdparams", 2),  # the newest state is latest.1.pdparams, the next is next.pdparams
    ("replace", "latest.2.pdparams", 2),
    ("replace", "best.pdparams", 1),  # the epoch has no row
    ("fsync", "metrics.jsonl", 1),  # the row of the epoch is written, its state is not
    ("fsync", "times.jsonl", 2),
]
# And any others: the folder is flushed after each file that is written, and after each save.
WRITES += [("fsync", "lit_data", count) for count in random.Random(3).sample(range(3, 21), 2)]


@pytest.mark.timeout(900)
def test_death_at_any_write_changes_nothing(left_alone, tmp_path):
    output, words = tmp_path / "killed", ["TRAIN.EPOCHS", 6, *OFTEN]
    for call, name, count in WRITES:
        die(output, call, name, count, *words)
    run(output, *words)
    assert_same_run(output / "lit_data", left_alone[0])
    assert sorted(path.name for path in (output / "lit_data").iterdir()) == [
        "best.pdparams", "classes.txt", "config.yaml", "latest.1.pdparams", "latest.2.pdparams", "latest.pdparams",
        "metrics.jsonl", "times.jsonl"]  # fmt: skip
    assert not list(output.glob("lit_data.[0-9]*"))  # nothing was moved aside
    log = (output / "lit_data.log").read_text()
    log = log[log.rindex(": 0 epochs and ") :]  # starts before the first state leave their lines
    steps = re.findall(r"^Epoch \[(\d+)/6\], Step \[(\d+)/22\]", log, flags=re.MULTILINE)
    assert steps[-5:] == [("6", str(step)) for step in (5, 10, 15, 20, 22)] and len(steps) == len(set(steps))
    assert log.count("Epoch [2/6], avg_Loss") == 1


def test_workers_change_nothing(left_alone, tmp_path):
    output = tmp_path / "alone"
    process = start(output, "TRAIN.EPOCHS", 6, "DATA.NUM_WORKERS", 0)
    assert process.wait(300) == 0
    assert_same_run(output / "lit_data", left_alone[0])


def run(output, *words, status=0):
    """The finished command, for what it prints."""
    done = subprocess.run(command(output, *words), capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def run_until(output, what, act, *words):
    """Start the command, wait until its log holds `what` beyond what it held before, `act(process)`, wait for its end.

    Returns (status, stdout, stderr).
    """
    log = output / "lit_data.log"
    before = log.read_text().count(what) if log.is_file() else 0
    process = subprocess.Popen(command(output, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=ENVIRONMENT)  # fmt: skip
    wait_for(lambda: log.is_file() and log.read_text().count(what) > before, process)
    act(process)
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def the_only_error(stderr):
    lines = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0]


# --- Cut by a signal or a clock ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_tell_how_to_go_on(left_alone, tmp_path, number):
    output = tmp_path / "cut"
    words = ["TRAIN.EPOCHS", 6]
    for what in ("Step [5/22]", "Step [22/22]", "Epoch [4/6], Step [10/22]"):
        # After the last step of an epoch the signal meets the validation.
        status, stdout, _ = run_until(output, what, lambda process: process.send_signal(number), *words)
        assert status == 0
        stopped, going_on = stdout.splitlines()[-2:]
        assert re.fullmatch(rf"stopped by {number.name} after \d epochs( and \d+ steps)?, saved in \S+", stopped)
        assert going_on == f"continue with: python {ROOT}/tools/train.py {' '.join(command(output, *words)[2:])}" \
            .replace("[1.0, 1.0]", "'[1.0, 1.0]'") + " --resume auto"  # fmt: skip
    assert run(output, *words).returncode == 0
    assert_same_run(output / "lit_data", left_alone[0])
    assert (output / "lit_data.log").read_text().count(f"stopped by {number.name}") == 3
    assert (output / "lit_data.log").read_text().count("avg_Loss") == 6


def test_a_lost_terminal_does_not_lose_the_run(left_alone, tmp_path):
    # Whoever read the output is gone after its first line; then the terminal itself hangs up.
    words = command(tmp_path, "TRAIN.EPOCHS", 6)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
                               start_new_session=True)  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    log = tmp_path / "lit_data.log"
    wait_for(lambda: log.is_file() and "Epoch [2/6], Step [5/22]" in log.read_text(), process)
    os.killpg(process.pid, signal.SIGHUP)  # the data workers too
    assert process.wait(300) == 0 and process.stderr.read() == b""
    assert "stopped by SIGHUP after 1 epochs and " in log.read_text()
    run(tmp_path, "TRAIN.EPOCHS", 6)
    assert_same_run(tmp_path / "lit_data", left_alone[0])


def test_time_limit_saves_and_stops_before_it(left_alone, tmp_path):
    expected, seconds, whole = left_alone
    output, limit = tmp_path / "limited", int(seconds + (whole - seconds) / 3) + 1
    attempts = 0
    while attempts < 30:
        attempts += 1
        began = time.monotonic()
        done = run(output, "TRAIN.EPOCHS", 6, "TRAIN.TIME_LIMIT", f"{limit}s")
        assert time.monotonic() - began < limit + 5  # the end of the process itself
        if "stopped by TRAIN.TIME_LIMIT after" not in done.stdout:
            break
    assert attempts >= 2 and done.stdout.splitlines()[-1].startswith("done: ")
    assert_same_run(output / "lit_data", expected)
    again = run(output, "TRAIN.EPOCHS", 6)
    assert "all 6 epochs are done; --resume none starts a new run" in again.stdout
    assert_same_run(output / "lit_data", expected)


def test_cut_before_the_validation_and_killed_after_it(left_alone, tmp_path):
    # The save after that validation holds an optimizer that was loaded and has made no step.
    words = ["TRAIN.EPOCHS", 6, "TRAIN.SAVE_MINUTES", 0.0]
    terminate = subprocess.Popen.terminate
    status, stdout, _ = run_until(tmp_path, "Epoch [2/6], Step [22/22]", terminate, *words)
    assert status == 0 and "1 epochs and 22 steps" in stdout
    status, _, _ = run_until(tmp_path, "Epoch [3/6], Step [5/22]", subprocess.Popen.kill, *words)
    assert status == -signal.SIGKILL
    assert "resumed " in run(tmp_path, *words).stdout
    assert_same_run(tmp_path / "lit_data", left_alone[0])


def test_fine_tuning_resumes_exactly_too(tmp_path):
    words = ["TRAIN.OPTIMIZER", "sgd", "TRAIN.BASE_LR", 0.02, "TRAIN.BACKBONE_LR", 0.005, "TRAIN.LAYER_DECAY", 0.75,
             "TRAIN.FREEZE", "['tokens_to_token.*', '!*.project.*', 'cls_token']", "TRAIN.EPOCHS", 2]  # fmt: skip
    alone = run(tmp_path / "alone", *words)
    assert (
        "backbone 1e-06 in epoch 1, 0.0025" in alone.stdout
        and "layer decay 0.75: 0.562 x in layer 0 to 1 x" in alone.stdout
    )
    for what in ("Epoch [1/2], Step [10/22]", "Epoch [2/2], Step [5/22]"):
        status, stdout, _ = run_until(tmp_path / "cut", what, subprocess.Popen.terminate, *words)
        assert status == 0 and "stopped by SIGTERM after " in stdout
    run(tmp_path / "cut", *words)
    assert_same_run(tmp_path / "cut/lit_data", tmp_path / "alone/lit_data")
    assert json.loads((tmp_path / "alone/lit_data/metrics.jsonl").read_text().splitlines()[1])["lr"] > 0.009
    # Another optimizer cannot continue, even with --force.
    line = the_only_error(run(tmp_path / "cut", *words, "TRAIN.OPTIMIZER", "adamw", status=1).stderr)
    assert "TRAIN.OPTIMIZER was 'sgd', is 'adamw'" in line
    line = the_only_error(run(tmp_path / "cut", *words, "TRAIN.OPTIMIZER", "adamw", "--force", status=1).stderr)
    assert re.search("no AdamW state of the .* tensors of this model .TRAIN.OPTIMIZER, .*MODEL.PRETRAINED", line)


# --- Faults ---


def test_damaged_state_is_noticed_and_the_one_before_used(left_alone, tmp_path):
    output = tmp_path / "damaged"
    status, _, _ = run_until(output, "Epoch [2/6], Step [10/22]", subprocess.Popen.terminate, "TRAIN.EPOCHS", 6, *OFTEN)
    assert status == 0
    latest, before = (output / "lit_data" / name for name in ("latest.pdparams", "latest.1.pdparams"))
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    done = run(output, "TRAIN.EPOCHS", 6, *OFTEN)
    assert f"warning: {latest} is damaged" in done.stderr and "checksum" in done.stderr
    assert f"resumed {before}: 1 epochs and " in done.stdout
    assert_same_run(output / "lit_data", left_alone[0])

    for path in (output / "lit_data").glob("latest*.pdparams"):
        path.write_bytes(path.read_bytes()[:-1000])
    assert re.search(r"latest.2.pdparams is damaged .* --resume none starts a new run",
                     the_only_error(run(output, "TRAIN.EPOCHS", 6, status=1).stderr))  # fmt: skip


def test_lost_lines_and_a_lost_best_file_are_told(left_alone, tmp_path):
    shutil.copytree(left_alone[0], tmp_path / "lit_data")
    folder = tmp_path / "lit_data"
    (folder / "best.pdparams").unlink()
    first, rest = (folder / "metrics.jsonl").read_text().split("\n", 1)
    (folder / "metrics.jsonl").write_text(first + "\n" + rest[:50])
    done = run(tmp_path, "TRAIN.EPOCHS", 6, "TRAIN.KEEP", 3, "--resume", folder / "latest.2.pdparams")
    assert f"warning: {folder}/metrics.jsonl has lost lines" in done.stderr
    assert f"warning: {folder}/best.pdparams is missing" in done.stderr
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 6]


def test_log_every_changes_nothing_but_the_log(left_alone, tmp_path):
    run(tmp_path, "TRAIN.EPOCHS", 6, "TRAIN.LOG_EVERY", 22)
    assert (tmp_path / "lit_data/metrics.jsonl").read_bytes() == (left_alone[0] / "metrics.jsonl").read_bytes()


def test_going_back_to_an_earlier_state_is_exact_too(left_alone, tmp_path):
    shutil.copytree(left_alone[0], tmp_path / "lit_data")
    earlier = tmp_path / "lit_data/latest.2.pdparams"
    step = checkpoint.read(earlier)["meter"]["step"]
    done = run(tmp_path, "TRAIN.EPOCHS", 6, "TRAIN.KEEP", 3, "--resume", earlier)
    assert f"resumed {earlier}: 5 epochs and {step} steps done" in done.stdout
    assert [path.name for path in sorted((tmp_path / "lit_data").glob("latest*"))] == [
        "latest.1.pdparams", "latest.2.pdparams", "latest.pdparams"]  # fmt: skip
    assert_same_run(tmp_path / "lit_data", left_alone[0])


@pytest.fixture
def small_disk(tmp_path):
    """A mounted file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_and_read_only_disks_keep_the_last_state(left_alone, small_disk):
    words = ["TRAIN.EPOCHS", 6, *OFTEN, "TRAIN.KEEP", 2]

    def fill(_):
        with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 4096):
                pass

    status, _, stderr = run_until(small_disk, "Epoch [2/6], Step [5/22]", fill, *words)
    assert status == 1
    line = the_only_error(stderr)
    assert re.search(
        r"cannot be written: No space left on device; .*latest.pdparams holds 1 epochs and \d+ steps, --resume", line
    )
    assert not list(small_disk.rglob("*.tmp*"))
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "no permission to write in" in the_only_error(run(small_disk, *words, status=1).stderr)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    run(small_disk, *words)
    assert_same_run(small_disk / "lit_data", left_alone[0])


def test_vanished_data_keep_the_last_state(left_alone, tmp_path):
    data, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(ROOT / "lit_data", data)
    words = ["--data-path", data, "TRAIN.EPOCHS", 6, *OFTEN]
    status, _, stderr = run_until(tmp_path, "Epoch [2/6], Step [5/22]", lambda _: data.rename(away), *words)
    assert status == 1
    line = the_only_error(stderr)
    assert re.fullmatch(r"error: image \S+ not found; \S+latest.pdparams holds \d epochs.*, --resume auto .*", line)
    assert "data folder" in the_only_error(run(tmp_path, *words, status=1).stderr)
    away.rename(data)
    run(tmp_path, *words)
    assert_same_run(tmp_path / "lit_data", left_alone[0])


def test_diverging_run_stops_with_the_last_good_state(tmp_path):
    run(tmp_path, "TRAIN.EPOCHS", 2)
    words = ["TRAIN.EPOCHS", 4, "TRAIN.BASE_LR", 1e38, "--force"]
    done = run(tmp_path, *words, status=1)
    assert re.search(
        r"error: the loss or its gradient was not finite in \d+ steps in a row \(TRAIN.MAX_BAD_STEPS\), up to epoch 3, "
        r"step \d+; .*latest.pdparams holds 2 epochs, --resume auto",
        done.stderr,
    )
    assert "skipped steps: " in done.stdout
    for name in ("latest", "latest.1", "best"):
        tree = checkpoint.read(tmp_path / f"lit_data/{name}.pdparams")
        weights = tree if name == "best" else {**tree["model"], **tree["ema"]}
        assert all(np.abs(value).max() < 1e3 for value in weights.values())


def test_run_of_few_steps_an_epoch_stops_when_it_diverges_too(tmp_path):
    run(tmp_path, "TRAIN.EPOCHS", 2, "TRAIN.BATCH_SIZE", 128)
    words = ["TRAIN.EPOCHS", 40, "TRAIN.BATCH_SIZE", 128, "TRAIN.BASE_LR", 1e38, "--force"]  # 2 steps an epoch
    line = the_only_error(run(tmp_path, *words, status=1).stderr)
    assert re.search("not finite in 1[0-2] steps in a row", line)
    states = [checkpoint.read(path) for path in (tmp_path / "lit_data").glob("latest*.pdparams")]
    assert any(state["epoch"] == 2 and np.abs(state["model"]["head.weight"]).max() < 1e3 for state in states)


# --- Another setting, another folder ---


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Folder of the run folder of a run of one epoch."""
    output = tmp_path_factory.mktemp("short")
    run(output, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    return output


def test_other_settings_are_refused_by_name_unless_forced(short_run, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(short_run, output)
    same = ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    line = the_only_error(run(output, *same, "SEED", 7, "TRAIN.BATCH_SIZE", 8, "MODEL.DROP_RATE", 0.0, status=1).stderr)
    for difference in ("SEED was 42, is 7", "TRAIN.BATCH_SIZE was 16, is 8", "MODEL.DROP_RATE was 0.1, is 0.0"):
        assert difference in line
    assert "--force continues" in line and "--resume none" in line
    lists = ["DATA.VAL_LIST", tmp_path / "val.txt"]
    (tmp_path / "val.txt").write_text("".join((ROOT / "lit_data/val.txt").read_text().splitlines(True)[:300]))
    assert "number of val images was 360, is 300" in the_only_error(run(output, *same, *lists, status=1).stderr)
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    done = run(output, *same, "MODEL.PRETRAINED", "absent.pdparams")
    assert "absent.pdparams (--pretrained) has no effect, as the run continues from its state" in done.stderr
    assert "absent" not in (output / "lit_data/config.yaml").read_text()
    # What decides only where and how fast may change; so may the division of a step.
    run(output, *same, "DATA.NUM_WORKERS", 0, "TRAIN.KEEP", 4, "TRAIN.BATCH_SIZE", 32, "TRAIN.ACCUM_STEPS", 1)
    done = run(output, "TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0, "--force")
    assert "warning: continuing with other settings (--force): TRAIN.EPOCHS was 1, is 2" in done.stderr
    assert "Epoch [2/2], avg_Loss" in done.stdout and "Epoch [1/2]" not in done.stdout
    assert "EPOCHS: 2" in (output / "lit_data/config.yaml").read_text()


def test_global_batch_keeps_the_step_on_another_number_of_processes(warned):
    cfg = load_config(ROOT / "configs/lit_data.yaml", [("TRAIN.BATCH_SIZE", "32"), ("TRAIN.GLOBAL_BATCH", "64")])
    splits = load_data(cfg)[1]

    def setting_of(processes):
        resolved = with_keys(cfg, {"TRAIN.ACCUM_STEPS": accumulation(cfg, processes)})
        return {**setting(resolved, splits), "processes": processes}

    check_setting(setting_of(2), setting_of(1), "latest.pdparams")  # is not refused
    assert (
        "TRAIN.ACCUM_STEPS was 1 and is now 2: no longer bit-exact" in warned.text and "a step had" not in warned.text
    )


def test_another_global_batch_names_the_one_that_keeps_the_steps():
    files = [(("TRAIN.BATCH_SIZE", "32"),), (("TRAIN.BATCH_SIZE", "32"), ("TRAIN.GLOBAL_BATCH", "64"))]
    files.append((("TRAIN.BATCH_SIZE", "32"), ("TRAIN.GLOBAL_BATCH", "32")))

    def setting_of(pairs):
        cfg = load_config(ROOT / "configs/lit_data.yaml", pairs)
        return setting(with_keys(cfg, {"TRAIN.ACCUM_STEPS": accumulation(cfg, 1)}), load_data(cfg)[1])

    before, other, same = map(setting_of, files)
    with pytest.raises(UserError, match="TRAIN.GLOBAL_BATCH 32 keeps its steps"):
        check_setting(before, other, "latest.pdparams")
    check_setting(before, same, "latest.pdparams")


def test_a_key_that_is_younger_than_the_state_had_its_default(short_run, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(short_run, output)
    latest = output / "lit_data/latest.pdparams"
    state = checkpoint.read(latest)
    lines = [line for line in state["setting"]["config"].splitlines() if "MIX_SWITCH_PROB" not in line]
    checkpoint.save(latest, {**state, "setting": {**state["setting"], "config": "\n".join(lines)}})
    same = ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    run(output, *same)
    error = the_only_error(run(output, *same, "AUG.MIX_SWITCH_PROB", 0.1, status=1).stderr)
    assert "AUG.MIX_SWITCH_PROB was 0.5, is 0.1" in error


def test_resume_none_starts_a_new_run_and_keeps_the_first(short_run, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(short_run, output)
    done = run(output, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "--resume", "none")
    assert "an earlier run was moved to" in done.stdout
    for name in ("lit_data.1", "lit_data"):
        assert (output / name / "metrics.jsonl").read_bytes() == (short_run / "lit_data/metrics.jsonl").read_bytes()
    assert (output / "lit_data.1.log").read_bytes() == (short_run / "lit_data.log").read_bytes()


def assert_moved(output, short_run):
    """The run of `short_run` is complete in lit_data.1 of `output`, with its log, and nothing else was moved aside."""
    for path in (short_run / "lit_data").iterdir():
        assert (output / "lit_data.1" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (output / "lit_data.1.log").read_bytes() == (short_run / "lit_data.log").read_bytes()
    assert not list(output.glob("lit_data.2*"))


def test_new_run_that_fails_at_once_keeps_the_earlier_one_in_one_place(short_run, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(short_run, output)
    words = ["TRAIN.EPOCHS", 2, "TRAIN.BASE_LR", 1e38, "TRAIN.WARMUP_EPOCHS", 0]
    done = run(output, *words, "--resume", "none", status=1)
    assert f"an earlier run was moved to {output}/lit_data.1\n" in done.stdout
    assert done.stderr.rstrip().endswith("nothing was saved yet")
    for choice in ("none", "auto"):
        assert "was moved" not in run(output, *words, "--resume", choice, status=1).stdout
        assert_moved(output, short_run)
    assert (output / "lit_data.log").read_text().count("error: ") == 3
    # The earlier run continues from its new place.
    state = output / "lit_data.1/latest.pdparams"
    done = run(tmp_path / "again", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "--resume", state)
    assert "all 1 epochs are done" in done.stdout and (tmp_path / "again/lit_data/latest.pdparams").is_file()


def test_new_run_that_dies_while_it_moves_the_earlier_one_loses_nothing(short_run, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(short_run, output)
    words = ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "--resume", "none"]
    for name in ("lit_data.1", "lit_data.1.log", "config.yaml", "classes.txt"):
        die(output, "replace", name, 1, *words)
    run(output, *words)
    assert_moved(output, short_run)
    assert (output / "lit_data/metrics.jsonl").read_bytes() == (short_run / "lit_data/metrics.jsonl").read_bytes()


def test_state_of_another_folder_brings_its_best_along(short_run, tmp_path):
    latest = short_run / "lit_data/latest.pdparams"
    words = ["TRAIN.EPOCHS", 3, "TRAIN.BASE_LR", 1e-9, "TRAIN.MIN_LR", 0.0, "TRAIN.WARMUP_LR", 0.0]
    done = run(tmp_path, *words, "--resume", latest, "--force")
    assert "Epoch [3/3], avg_Loss" in done.stdout and "Epoch [1/3]" not in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "lit_data/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    state = checkpoint.read(tmp_path / "lit_data/latest.pdparams")
    best = max(rows, key=lambda row: row["val_ema_top1"])
    assert (state["best_top1"], state["best_epoch"]) == (best["val_ema_top1"], best["epoch"])
    assert len((short_run / "lit_data/metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.update(epoch="x"), "no training state to resume .no epoch"),
        (lambda state: state.update(model=3), "no model"),
        (lambda state: state.update(epoch=-1), "epoch has an impossible value"),
        (lambda state: state.update(best_top1=float("nan")), "best_top1 has an impossible value"),
        (lambda state: state.update(streak=np.zeros(2, np.float32)), "streak has an impossible value"),
        (lambda state: state["sizes"].update(log="x"), "sizes has an impossible value"),
        (lambda state: state["setting"].update(processes="2"), "processes has an impossible value"),
        (lambda state: state["setting"].update(threads=np.zeros(3)), "setting has an impossible value"),
        (lambda state: state.update(meter={"step": "x"}), "meter has an impossible value"),
        (lambda state: state.pop("setting"), "no setting"),
        (lambda state: state.update(optimizer={}), "no AdamW state of the 28 trained tensors|no AdamW state"),
        (lambda state: state["optimizer"].popitem(), "no AdamW state"),
        (lambda state: state["optimizer"].update({"cls_token/moment1_0": np.zeros(3)}), "cls_token/moment1_0"),
        (lambda state: state["model"].update({"head.bias": 3.0}), "head.bias is not an array"),
        (lambda state: state["ema"].update({"head.bias": np.zeros(7)}), "head.bias is .7., the model's is .10."),
    ],
)
def test_wrong_states_are_named(short_run, tmp_path, change, message):
    state = checkpoint.read(short_run / "lit_data/latest.pdparams")
    change(state)
    checkpoint.save(tmp_path / "wrong.pdparams", state)
    words = [*map(str, SMALL), "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    line = error_line("train", "--output", tmp_path / "run", "--resume", tmp_path / "wrong.pdparams", *words)
    assert re.search(message, line)


@pytest.mark.parametrize("choice", ["absent.pdparams", str(ROOT)])
def test_state_that_is_no_file_is_named(tmp_path, choice):
    line = error_line("train", "--output", tmp_path, "--resume", choice)
    assert line == f"error: --resume {choice}: no such file; give a latest.pdparams, auto or none"


def test_weights_are_no_state(short_run, tmp_path):
    line = error_line("train", "--output", tmp_path, "--resume", short_run / "lit_data/best.pdparams")
    assert "holds no training state to resume" in line
