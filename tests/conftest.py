"""Fixtures and helpers for all tests: run commands, real pictures, pages in a browser."""

import gc
import importlib.util
import logging
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

sys.modules["openvino_telemetry"] = None  # it writes into the home folder
SEARCHED = list(sys.path)  # before libraries add to it, as onnxruntime does
sys.path.insert(0, str(ROOT / "tools"))
from t2t_vit import cli  # noqa: E402

if os.environ.get("PYTEST_XDIST_WORKER"):  # several tests run at a time: limit threads, unless a test sets them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts its background jobs without SIGINT, and nohup without SIGHUP.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

cli.import_paddle("cpu", several=True)  # tests/programs/in_ranks.py is one of two processes

import in_process  # noqa: E402  imports paddle
import session  # noqa: E402

# A folder with imagenet_sample/, real ImageNet pictures that the repository may not carry.
SAMPLE_DATA = Path(os.environ.get("T2T_TEST_DATA", ROOT.parent / "shared" / "data"))


# The scripts find the Python that runs the tests, not whatever `python` is.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def pytest_addoption(parser):
    parser.addoption("--check-skips", action="store_true", help="fail if a test is skipped that skipped.txt lacks")
    parser.addoption("--write-durations", action="store_true", help="write tests/durations.txt")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that gets all reports
        config.pluginmanager.register(session.SessionReport(config.option))


def pytest_collection_modifyitems(items):
    session.longest_first(items)


def pytest_collection_finish():
    # Modules and tests stay to the end: `gc.collect` of Paddle's compiler and of in_process.py need not read them.
    gc.collect()
    gc.freeze()


if importlib.util.find_spec("hypothesis"):  # not installed beside PaddlePaddle 2.6.2
    from hypothesis import settings

    settings.register_profile("t2t", deadline=None, derandomize=True, max_examples=50)
    settings.load_profile("t2t")


@pytest.fixture
def warned(caplog, monkeypatch):
    """`caplog` for the warnings of the program, regardless of handlers that earlier tests installed."""
    log = logging.getLogger("t2t")
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "handlers", [])
    caplog.set_level(logging.WARNING, "t2t")
    return caplog


@pytest.fixture
def lines():
    """What is logged during the test."""

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    log, found, handler = logging.getLogger("t2t"), [], Keep()
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield found
    log.setLevel(level)
    log.removeHandler(handler)


@pytest.fixture(scope="session")
def imagenet_sample():
    """Folder of 76 real ImageNet pictures with train.txt and val.txt."""
    folder = SAMPLE_DATA / "imagenet_sample"
    if not folder.is_dir():
        pytest.skip(f"no ImageNet pictures at {folder}; T2T_TEST_DATA names another folder")
    return folder


def few_digits(folder, count=10):
    """Options to train and validate on only the first `count` pictures of each digit. Writes the lists to `folder`."""
    words = []
    for split in ("train", "val"):
        lines = {digit: [] for digit in "0123456789"}
        for line in (ROOT / f"lit_data/{split}.txt").read_text().splitlines(keepends=True):
            lines[line[0]].append(line)
        listed = folder / f"{split}.txt"
        listed.write_text("".join(line for part in lines.values() for line in part[:count]))
        words += [f"DATA.{split.upper()}_LIST", listed]
    return words


def tool(name, *words, status=0, timeout=300, cwd=ROOT, fresh=None):
    """Run tools/NAME.py as a user would; check its exit status and return the finished process.

    It runs in this process, which saves the start of Python and Paddle, unless it is `fresh` or starts processes: a
    page, a benchmark, readers of the images.
    """
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]
    if fresh is None:
        readers = [number for key, number in zip(words, words[1:]) if key == "DATA.NUM_WORKERS"]
        fresh = name == "demo" or (name == "benchmark" and status == 0) or bool(readers and int(readers[-1]))
    if fresh:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd)
    else:
        done = in_process.run(command[1], command[2:], cwd)
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def error_line(name, *words, **options):
    """Run a command that must fail with status 1, and return its only line on stderr."""
    done = tool(name, *words, status=1, **options)
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("warning: ", "note: "))]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def command_of(page, start, folder):
    """Run the command of a page of docs/ that begins so, in `folder`."""
    (line,) = re.findall(rf"^{re.escape(start)}.*$", (ROOT / "docs" / page).read_text("utf-8"), flags=re.MULTILINE)
    done = subprocess.run(line.replace("/path/to", str(folder)), shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def signalled(words, start, number, cwd=ROOT):
    """Return the output lines of a command that gets signal `number` at its first line starting with `start`."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=cwd, env=ENVIRONMENT)
    for line in process.stdout:
        if line.startswith(start):
            process.send_signal(number)
            break
    lines = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    return lines


class Page:
    """A running tools/demo.py, a script that starts it, or tools/serve.py, ready at `url`."""

    def __init__(self, *words, script="tools/demo.py", **environment):
        command = [sys.executable, str(ROOT / script), *map(str, words)]
        env = {**os.environ, **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=env)
        ready, _, _ = select.select([self.process.stdout], [], [], 120)
        self.lines = []
        for line in self.process.stdout if ready else ():
            self.lines.append(line)
            if found := re.match(r"(http://\S+) is ready; Ctrl-C stops it\n", line):
                self.url = found[1]
                return
        self.process.kill()
        raise AssertionError(f"{self.lines} {self.process.stderr.read()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()  # left running by a failed test

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        out, error = self.process.communicate(timeout=60)
        assert (self.process.returncode, out, error) == (0, "", "")
