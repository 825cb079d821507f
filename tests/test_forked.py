"""A copied process is to its test what a new Python would be."""

import json
import os
import signal
import subprocess
import sys

import forked
import pytest
from forked import Forked

PROGRAM = """
import atexit, json, os, sys, tempfile
import beside
atexit.register(print, "at exit")
imported = "paddle" in sys.modules
files = os.listdir("/proc/self/fd")
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["X"], tempfile.gettempdir(), os.getppid(), imported, files]))
print("noted", file=sys.stderr)
exec(sys.argv[1])
"""


@pytest.fixture
def start(tmp_path):
    """Function that starts PROGRAM with Python code as its word, in tmp_path."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "path").mkdir()
    (tmp_path / "path/beside.py").write_text("")
    environment = {**os.environ, "X": "1", "TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path / "path")}
    command = [sys.executable, "program.py"]
    return lambda code: forked.run([*command, code], cwd=tmp_path, env=environment)


def test_it_has_the_words_folder_environment_and_streams_of_its_test(start, tmp_path):
    done = start("sys.exit(3)")
    line, last = done.stdout.splitlines()
    words, folder, value, temporary, parent, imported, files = json.loads(line)
    assert (words, folder, value, temporary) == (["sys.exit(3)"], str(tmp_path), "1", str(tmp_path))
    assert (parent, imported, last) == (os.getpid(), True, "at exit") and set(files) <= {"0", "1", "2", "3"}
    assert (done.returncode, done.stderr) == (3, "noted\n")


@pytest.mark.parametrize("code, status, error", [
    ("", 0, ""), ("sys.exit('why')", 1, "why\n"), ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ("os.kill(os.getpid(), 9)", -9, ""), ("os._exit(7)", 7, ""),
])  # fmt: skip
def test_it_ends_as_a_new_python_does(start, code, status, error):
    done = start(code)
    assert done.returncode == status and done.stderr.startswith("noted\n") and done.stderr.endswith(error)


def test_it_gets_signals_in_a_session_of_its_own(tmp_path):
    (tmp_path / "x.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, tmp_path / "x.py"]
    with Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "up\n" and os.getsid(process.pid) == process.pid
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate()[1].endswith("KeyboardInterrupt\n") and process.returncode == 1
