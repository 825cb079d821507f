"""Damaged states, full disks, lost data and divergence: the last good state is kept, and the run can continue."""

import contextlib
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest
from conftest import ROOT
from resuming import OFTEN, assert_same_run, run, run_until, send, terminate, the_only_error

from t2t_vit.weights import checkpoint


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Run folder of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("left")
    run(output)
    return output / "lit_data"


def test_damaged_state_is_noticed_and_the_one_before_used(left_alone, tmp_path):
    terminate(tmp_path, 2, 3, *OFTEN)
    latest, before = (tmp_path / "lit_data" / name for name in ("latest.pdparams", "latest.1.pdparams"))
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    done = run(tmp_path, *OFTEN)
    assert f"warning: {latest} is damaged" in done.stderr and "checksum" in done.stderr
    assert f"resumed {before}: 1 epoch and " in done.stdout
    assert_same_run(tmp_path / "lit_data", left_alone)

    for path in (tmp_path / "lit_data").glob("latest*.pdparams"):
        path.write_bytes(path.read_bytes()[:-1000])
    assert re.search(r"latest.2.pdparams is damaged .* --resume none starts a new run",
                     the_only_error(run(tmp_path, status=1)))  # fmt: skip


def test_lost_best_file_is_a_warning(left_alone, tmp_path):
    shutil.copytree(left_alone, tmp_path / "lit_data")
    (tmp_path / "lit_data/best.pdparams").unlink()
    assert f"warning: {tmp_path}/lit_data/best.pdparams is missing" in run(tmp_path).stderr


@pytest.fixture
def small_disk(tmp_path):
    """A mounted file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_and_read_only_disks_keep_the_last_state(left_alone, small_disk):
    words = [*OFTEN, "TRAIN.KEEP", 2]

    def fill():
        with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 4096):
                pass

    line = the_only_error(run_until(small_disk, 2, 3, fill, *words, status=1))
    assert re.search(
        r"cannot be written: No space left on device; .*latest.pdparams contains 1 epoch and \d+ steps, --resume", line
    )
    assert not list(small_disk.rglob("*.tmp*"))
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "no permission to write in" in the_only_error(run(small_disk, *words, status=1))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    run(small_disk, *words)
    assert_same_run(small_disk / "lit_data", left_alone)


def test_deleted_data_keeps_the_last_state(left_alone, tmp_path):
    data, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(ROOT / "lit_data", data)
    words = ["--data-path", data, *OFTEN]
    line = the_only_error(run_until(tmp_path, 2, 3, lambda: data.rename(away), *words, status=1))
    assert re.fullmatch(r"error: image \S+ not found; \S+latest.pdparams contains \d epoch.*, --resume auto .*", line)
    assert "data folder" in the_only_error(run(tmp_path, *words, status=1))
    away.rename(data)
    run(tmp_path, *words)
    assert_same_run(tmp_path / "lit_data", left_alone)


# --- Steps that are not finite ---


@pytest.mark.parametrize("batch", [8, 25])  # 6 or 2 steps an epoch
def test_diverging_run_stops_with_the_last_good_state(left_alone, tmp_path, batch):
    shutil.copytree(left_alone, tmp_path / "lit_data")
    words = ["TRAIN.EPOCHS", 40, "TRAIN.BATCH_SIZE", batch, "TRAIN.BASE_LR", 1e38, "--force"]
    done = run(tmp_path, *words, status=1)
    assert re.search(
        r"^error: the loss or its gradient was not finite in 1\d steps in a row \(TRAIN.MAX_BAD_STEPS\), up to epoch "
        r"\d+, step \d+; .*latest.pdparams contains \d+ epochs, --resume auto",
        done.stderr,
        flags=re.MULTILINE,
    )
    assert "skipped steps: " in done.stdout
    last = re.findall(r"^Epoch \[(\d+)/40\], Step \[(\d+)/", done.stdout, flags=re.MULTILINE)[-1]
    assert "up to epoch {}, step {};".format(*last) in done.stderr
    states = [checkpoint.read(path) for path in (tmp_path / "lit_data").glob("latest*.pdparams")]
    assert any(state["epoch"] == 2 for state in states)
    for weights in [*(state["model"] for state in states), checkpoint.read(tmp_path / "lit_data/best.pdparams")]:
        assert all(np.isfinite(value).all() for value in weights.values())


def test_signal_while_steps_fail_does_not_replace_the_state(left_alone, tmp_path):
    shutil.copytree(left_alone, tmp_path / "lit_data")
    words = ["TRAIN.EPOCHS", 40, "TRAIN.BASE_LR", 1e38, "TRAIN.MAX_BAD_STEPS", 1000, "--force"]
    done = run_until(tmp_path, 3, 6, send(signal.SIGTERM), *words)
    assert "warning: not saved: the last " in done.stderr
    assert done.stdout.splitlines()[-2].endswith("latest.pdparams contains 2 epochs")
    assert checkpoint.read(tmp_path / "lit_data/latest.pdparams")["epoch"] == 2
