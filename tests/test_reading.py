"""Loader processes that fail, die or find no memory: each ends the run in one line, none lets it wait."""

import re
import shutil
import signal
import subprocess
import sys
import types

import pytest
from conftest import ROOT, few_digits

from t2t_vit.data import reading

BEGIN = """
import multiprocessing, os, signal, sys
sys.path.insert(0, "tools")
from t2t_vit.cli import import_paddle
import_paddle("cpu")
from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.data.reading import data_loader, read_all
from t2t_vit.common.errors import UserError
import numpy as np
def first_steps():
    cfg = load_config("configs/lit_data.yaml", [("DATA.NUM_WORKERS", "2")])
    steps = TrainLoader(load_data(cfg)[1]["train"], cfg, epochs=100).epoch_steps(0)
    next(steps)
    return steps
"""


def start(program):
    """A process of its own: Paddle would find a dead loader process once more in a later test."""
    return subprocess.Popen([sys.executable, "-c", BEGIN + program], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def ended(process, seconds=60):
    """(status, stdout, stderr) of a process that must end by itself."""
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, error


FAULTS = """
class Data(list):
    def __getitem__(self, index):
        if fault == "dataset" and index == 5:
            raise error
        return np.full(3, index)
class Order(list):
    def __iter__(self):
        yield from ([0, 1], [2, 3])
        if fault == "order":
            raise error
        yield from ([4, 5], [6, 7])
def collate(samples):
    if fault == "collate" and samples[0][0] == 4:
        raise error
    return [np.stack(samples)]
for fault in ("dataset", "order", "collate"):
    for error in (ValueError("unforeseen"), UserError("a sentence"), MemoryError()):
        seen = []
        try:
            for (batch,) in read_all(data_loader(Data(range(8)), Order(range(4)), collate, WORKERS, True)):
                seen.append(batch.numpy()[:, 0].tolist())
        except (RuntimeError, UserError) as told:
            print(fault, seen, type(told).__name__, told)
"""


@pytest.mark.parametrize("count", [0, 2])
def test_failure_anywhere_in_reading_reaches_the_main_thread(count):
    status, out, error = ended(start(FAULTS.replace("WORKERS", str(count))))
    told = ["RuntimeError ValueError: unforeseen", "UserError a sentence", "UserError out of memory while reading "
            "images; lower DATA.NUM_WORKERS or the batch size"]  # fmt: skip
    lines = [f"{fault} [[0, 1], [2, 3]] {line}" for fault in ("dataset", "order", "collate") for line in told]
    assert (status, out.splitlines(), error) == (0, lines, "")


@pytest.mark.parametrize("number, advice", [
    ("SIGKILL", "if the memory ran out, lower DATA.NUM_WORKERS"),
    ("SIGBUS", "/dev/shm is full: in Docker, start the container with a larger --shm-size"),
])  # fmt: skip
def test_a_killed_loader_process_is_one_line(number, advice):
    program = f"""
steps = first_steps()
os.kill(multiprocessing.active_children()[0].pid, signal.{number})
try:
    for _ in range(1000):
        next(steps)
except UserError as error:
    print(error, flush=True)
"""
    _, out, _ = ended(start(program))
    assert re.fullmatch(rf"a data loader process ended \(by {number}\); {advice}\n", out)


def test_loader_process_that_dies_while_it_sends_a_batch_ends_the_reading():
    program = """
loader = data_loader(list(range(1000)), [[i] for i in range(1000)], lambda _: [np.zeros(1 << 23)], 2, False)
try:
    for number, _ in enumerate(read_all(loader)):
        if number == 1:
            print(multiprocessing.active_children()[0].pid, flush=True)
except UserError as error:
    print(error, flush=True)
"""
    process = start(program)
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)  # the loader process fills the pipe, and waits in the middle of a batch
    subprocess.run(["sleep", "1"], check=True)
    subprocess.run(["kill", "-KILL", str(worker)], check=True)
    process.send_signal(signal.SIGCONT)
    _, out, _ = ended(process, seconds=30)
    assert out == "a data loader process ended (by SIGKILL); if the memory ran out, lower DATA.NUM_WORKERS\n"


def test_a_command_ends_although_multiprocessing_lost_a_loader_process():
    # Whoever waits for the first process is not told of its end, and finds it gone; the second still runs.
    program = """
steps = first_steps()
worker = multiprocessing.active_children()[0]
os.kill(worker.pid, signal.SIGKILL)
try:
    os.waitpid(worker.pid, 0)
except ChildProcessError:
    pass
print("end", flush=True)
"""
    status, out, error = ended(start(program))
    assert (status, out) == (0, "end\n"), error


# --- Shared memory ---


def test_small_shared_memory_of_a_container_is_told_and_not_used(tmp_path):
    words = ["--output", tmp_path, *few_digits(tmp_path, 20), "DATA.NUM_WORKERS", 2, "TRAIN.EPOCHS", 1,
             "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "MODEL.T2T.DEPTH", 1, "VAL.BEST", "raw"]  # fmt: skip
    command = ["bash", "-c", 'mount -t tmpfs -o size=1M x /dev/shm && exec "$@"', "bash", sys.executable,
               ROOT / "tools/train.py", *words]  # fmt: skip
    apart = ["unshare", "-rm"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("a mount of its own needs unshare and user namespaces")
    done = subprocess.run([*apart, *map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"warning: /dev/shm has 1 MB and the loader processes may need 2: they send the images "
                        r"through pipes, .* --shm-size 1g\n", done.stderr)  # fmt: skip


def test_shared_memory_is_measured_for_all_that_is_read_ahead(monkeypatch, told):
    from test_data import settings

    cfg = settings(DATA__NUM_WORKERS="8", TRAIN__BATCH_SIZE="128", VAL__BATCH_SIZE="100", DATA__IMAGE_SIZE="224",
                   DATA__CHANNELS="3")  # fmt: skip
    needed = (2 * 8 + 2) * 228 * 224 * 224 * 3 + 2**20  # a multiple of 4096
    for free, fits in ((needed, True), (needed - 4096, False)):
        memory = types.SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_blocks=16384)
        monkeypatch.setattr(reading.os, "statvfs", lambda _, memory=memory: memory)
        reading._warn.cache_clear()
        assert reading.shared_memory_fits(cfg, 128, 100) is fits
    assert [record.getMessage() for record in told.records] == [
        "warning: /dev/shm has 64 MB and the loader processes may need 591: they send the images through pipes, which "
        "is slower; in Docker, start the container with --shm-size 2g"
    ]
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")
    assert not reading.shared_memory_fits(cfg, 128)
    assert reading.shared_memory_fits(settings(DATA__NUM_WORKERS="0"), 10**9)
