"""Unusual machines: no file locks, no home folder, no terminal, a CPU quota, a notebook."""

import errno
import fcntl
import math
import os
import pty
import pwd
import re
import signal
import stat
import struct
import subprocess
import sys
import termios
import time

import pytest
from conftest import ENVIRONMENT, ROOT, error_line

from t2t_vit import config
from t2t_vit.common import runtime
from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path, lock, write_text
from t2t_vit.config import load_config
from t2t_vit.data.unpack import claim
from t2t_vit.runs.interruption import STOP_FOR_SIGNAL, InterruptHandler
from t2t_vit.runs.run_folder import RunFolder
from t2t_vit.runs.visualdl import Scalars
from t2t_vit.weights import download


def test_file_system_without_locks_and_folder_flushes(tmp_path, monkeypatch, warned):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    def fsync(file, really=os.fsync):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        really(file)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(os, "fsync", fsync)
    cfg = load_config(ROOT / "configs/lit_data.yaml", [("OUTPUT", str(tmp_path)), ("LOG", str(tmp_path))])
    run = RunFolder(cfg)
    run.lock()
    assert "lit_data.lock cannot be locked on this file system; do not start this run twice" in warned.text
    write_text(tmp_path / "lit_data/config.yaml", cfg.dump())
    run.save_state({"epoch": 1})
    assert run.latest.is_file()
    with claim(tmp_path):
        pass
    with open(tmp_path / "lock", "w") as file:
        assert lock(file, wait=True) is False

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "x", "")


def test_locked_run_is_an_error(tmp_path):
    cfg = load_config(ROOT / "configs/lit_data.yaml", [("OUTPUT", str(tmp_path)), ("LOG", str(tmp_path))])
    first = RunFolder(cfg)
    first.lock()
    with pytest.raises(UserError, match="is being trained by another process"):
        RunFolder(cfg).lock()


@pytest.mark.parametrize("files, cores", [
    ({"cpu.max": "150000 100000"}, 1.5), ({"cpu.max": "50000 100000"}, 0.5), ({"cpu.max": "max 100000"}, math.inf),
    ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    ({"cpu.max": "x"}, math.inf), ({}, math.inf),
])  # fmt: skip
def test_container_quota_limits_the_cores(tmp_path, monkeypatch, files, cores):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert runtime._quota(tmp_path) == cores
    monkeypatch.setattr(runtime, "_quota", lambda _: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert runtime.cores() == max(1, int(min(8, cores)))
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert 1 <= runtime.cores() <= os.cpu_count()


@pytest.mark.parametrize(("lines", "chosen"), [
    ("vendor_id : AuthenticAMD\nflags : fpu fma avx avx2\n", True),
    ("vendor_id : HygonGenuine\nflags : fma avx2", True),
    ("vendor_id : GenuineIntel\nflags : fpu fma avx avx2\n", False),
    ("vendor_id : AuthenticAMD\nflags : fma avx", False),
    ("CPU implementer : 0x41\nFeatures : fp asimd\n", False), (None, False),
])  # fmt: skip
def test_the_matrix_products_use_the_avx2_of_every_maker(tmp_path, monkeypatch, lines, chosen):
    if lines:
        (tmp_path / "cpuinfo").write_text(lines)
    assert runtime.needs_avx2_chosen(tmp_path / "cpuinfo") == chosen
    monkeypatch.setattr(runtime, "needs_avx2_chosen", lambda _: chosen)
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "")  # so that the test leaves it as it was
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE")
    runtime.import_paddle("cpu", several=True)
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == ("5" if chosen else None)


def test_user_without_a_home_and_a_name(monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "T2T_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert str(config.resolve("~/x")) == f"{ROOT}/~/x"
    with pytest.raises(UserError, match="no home folder to keep downloads in; set T2T_CACHE"):
        download.cache_folder()
    monkeypatch.setenv("HOME", "/proc/home")
    with pytest.raises(
        UserError, match=r"/proc/home/.cache/t2t_vit/\w+ cannot be created .*; set T2T_CACHE to a folder"
    ):
        download.download("http://127.0.0.1:9/x.pdparams")


def test_removed_current_folder_is_an_error(tmp_path, monkeypatch):
    words = f'cd "$1" && rmdir "$1" && exec "{sys.executable}" "{ROOT}/tools/predict.py"'
    (tmp_path / "x").mkdir()
    done = subprocess.run(["bash", "-c", words, "-", tmp_path / "x"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: the current folder has been removed; cd to another one\n")
    (tmp_path / "y").mkdir()
    monkeypatch.chdir(tmp_path / "y")
    (tmp_path / "y").rmdir()
    assert str(display_path(tmp_path / "latest.pdparams")) == f"{tmp_path}/latest.pdparams"  # a run goes on


@pytest.mark.parametrize("home", [None, "/proc/home"])
def test_curves_need_no_home(tmp_path, home):
    pytest.importorskip("visualdl")
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "HOME"}
    environment |= {"TMPDIR": str(tmp_path), **({"HOME": home} if home else {})}
    command = [sys.executable, ROOT / "tests/programs/curves_without_home.py"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert os.listdir(tmp_path) == ["curves"]


def test_curves_that_cannot_be_written_do_not_end_a_training(tmp_path, monkeypatch, warned):
    (tmp_path / "visualdl.py").write_text("open('/proc/home/conf', 'w')\n")
    monkeypatch.delitem(sys.modules, "visualdl", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    scalars = Scalars()
    scalars.open(tmp_path)
    scalars.add(1, {"train/loss": 1.0})
    assert "no curves are written: /proc/home/conf: " in warned.text


# --- Notebooks, threads, terminals ---


def test_five_interrupts_in_a_notebook_save_once(tmp_path):
    words = [ROOT / "tools/train.py", "--output", tmp_path, "MODEL.T2T.DEPTH", "1", "TRAIN.LOG_EVERY", "2"]
    done = subprocess.run(
        [sys.executable, ROOT / "tests/programs/notebook.py", *words], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch("stopped by SIGINT after 0 epochs and .*", done.stdout.splitlines()[-2])
    assert (tmp_path / "lit_data/latest.pdparams").is_file()


def test_second_interrupt_later_quits(capfd):
    with InterruptHandler(load_config(ROOT / "configs/lit_data.yaml").TRAIN, time.monotonic()) as watch:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert watch.after_step() == STOP_FOR_SIGNAL
        watch.signalled_at -= 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert capfd.readouterr().err.count("Ctrl-C again after 2 seconds quits") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_answer_is_on_its_own_line_beside_a_progress_bar():
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, ROOT / "tools/predict.py"], stdout=child, stderr=child, cwd=ROOT)
    os.close(child)
    data = b""
    while True:
        try:
            data += os.read(parent, 1024)
        except OSError:  # all is read
            break
    assert process.wait(60) == 0
    before, answer, _ = data.decode().partition("lit_data/val/3/0045.png")
    assert answer and "predict: " in before and re.search(r"(\r *\r|\n)$", before), before


def test_output_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    line = error_line("train", "--output", tmp_path / "file/x", "DATA.NUM_WORKERS", 0)
    assert line.startswith(f"error: {tmp_path}/file/x") and line.count("\n") == 0
