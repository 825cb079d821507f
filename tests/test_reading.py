"""Loader processes that fail, die or run out of memory end the run with one line and never block it."""

import re
import shutil
import signal
import subprocess
import sys
import types

import pytest
from conftest import ROOT, few_digits

from t2t_vit.data import reading


def start(*words):
    """Start tests/programs/read_batches.py in its own process, so that later tests do not see dead loader processes."""
    command = [sys.executable, str(ROOT / "tests/programs/read_batches.py"), *words]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process, seconds=60):
    """(status, stdout, stderr) of a process that must end by itself."""
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, error


@pytest.mark.parametrize("count", [0, 2])
def test_every_failure_reaches_the_main_thread(count):
    status, out, error = ended(start("faults", str(count)))
    raised = ["RuntimeError ValueError: unforeseen", "UserError a sentence", "UserError out of memory while reading "
            "images; lower DATA.NUM_WORKERS or the batch size"]  # fmt: skip
    lines = [f"{fault} [[0, 1], [2, 3]] {line}" for fault in ("dataset", "collate") for line in raised]
    assert (status, out.splitlines(), error) == (0, lines, "")


@pytest.mark.parametrize("number, advice", [
    ("SIGKILL", "if the machine ran out of memory, lower DATA.NUM_WORKERS"),
    ("SIGBUS", "/dev/shm is full: in Docker, start the container with a larger --shm-size"),
])  # fmt: skip
def test_killed_loader_process_is_one_line(number, advice):
    _, out, _ = ended(start("killed", number))
    assert re.fullmatch(rf"a data loader process ended \(by {number}\); {advice}\n", out)


def test_loader_process_that_dies_while_it_sends_a_batch_ends_the_reading():
    process = start("large_batches")
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)  # the loader process fills the pipe, and waits in the middle of a batch
    subprocess.run(["sleep", "1"], check=True)
    subprocess.run(["kill", "-KILL", str(worker)], check=True)
    process.send_signal(signal.SIGCONT)
    _, out, _ = ended(process, seconds=30)
    assert out == "a data loader process ended (by SIGKILL); if the machine ran out of memory, lower DATA.NUM_WORKERS\n"


def test_command_exits_although_multiprocessing_lost_a_loader_process():
    status, out, error = ended(start("lost"))
    assert (status, out) == (0, "end\n"), error


# --- Shared memory ---


def test_small_shared_memory_is_not_used(tmp_path):
    words = ["--output", tmp_path, *few_digits(tmp_path, 20), "DATA.NUM_WORKERS", 2, "TRAIN.EPOCHS", 1,
             "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "MODEL.T2T.DEPTH", 1, "VAL.BEST", "raw"]  # fmt: skip
    command = ["bash", "-c", 'mount -t tmpfs -o size=1M x /dev/shm && exec "$@"', "bash", sys.executable,
               ROOT / "tools/train.py", *words]  # fmt: skip
    apart = ["unshare", "-rm"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("a mount of its own needs unshare and user namespaces")
    done = subprocess.run([*apart, *map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"warning: /dev/shm has 1 MB, but the loader processes may need 2: images are sent "
                        r"through pipes, .* --shm-size 1g\n", done.stderr)  # fmt: skip


def test_shared_memory_must_hold_all_batches_that_are_read_ahead(monkeypatch, warned):
    from test_data import settings

    cfg = settings(DATA__NUM_WORKERS="8", TRAIN__BATCH_SIZE="128", VAL__BATCH_SIZE="100", DATA__IMAGE_SIZE="224",
                   DATA__CHANNELS="3")  # fmt: skip
    needed = (2 * 8 + 2) * 228 * 224 * 224 * 3 + 2**20  # a multiple of 4096
    for free, fits in ((needed, True), (needed - 4096, False)):
        memory = types.SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_blocks=16384)
        monkeypatch.setattr(reading.os, "statvfs", lambda _, memory=memory: memory)
        reading._warn.cache_clear()
        assert reading.shared_memory_fits(cfg) is fits
    assert [record.getMessage() for record in warned.records] == [
        "warning: /dev/shm has 64 MB, but the loader processes may need 591: images are sent through pipes, which "
        "is slower; in Docker, start the container with --shm-size 2g"
    ]
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")
    assert not reading.shared_memory_fits(cfg)
    assert reading.shared_memory_fits(settings(DATA__NUM_WORKERS="0", TRAIN__BATCH_SIZE="100000"))
