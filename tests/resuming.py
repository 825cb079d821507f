"""Short training runs that are interrupted and resumed; most run inside the test process, see in_process.py."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import in_process
from conftest import ENVIRONMENT, ROOT, few_digits

from t2t_vit.training.train_log import TrainLog
from t2t_vit.weights import checkpoint

# Everything that could make a difference is on: augmentation, dropout, drop path, accumulation, clipping.
SMALL = [
    "MODEL.T2T.DEPTH", 1, "MODEL.T2T.EMBED_DIM", 32, "MODEL.T2T.TOKEN_DIM", 16,
    "MODEL.DROP_RATE", 0.1, "MODEL.ATTN_DROP_RATE", 0.1, "MODEL.DROP_PATH_RATE", 0.1,
    "AUG.HFLIP", 0.5, "AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1", "AUG.ERASE_PROB", 0.25, "AUG.MIXUP", 0.8,
    "AUG.CUTMIX", 1.0, "AUG.REPEATS", 2, "DATA.NUM_WORKERS", 0, "TRAIN.BATCH_SIZE", 8, "TRAIN.ACCUM_STEPS", 2,
    "TRAIN.CLIP_NORM", 1.0, "TRAIN.EMA_DECAY", 0.7, "TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 1,
    "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.LOG_EVERY", 3,
]  # fmt: skip
_LISTS = tempfile.TemporaryDirectory()  # until the tests end
SMALL += few_digits(Path(_LISTS.name), 10)  # 100 images: 6 steps an epoch
OFTEN = ["TRAIN.SAVE_MINUTES", 1e-6, "TRAIN.KEEP", 3]  # after each step
WORKERS = ["DATA.NUM_WORKERS", 2]


class Killed(BaseException):
    """Ends a training run at this point, as if it were killed."""


def run(output, *words, status=0):
    """The finished command, for what it prints."""
    done = in_process.run(ROOT / "tools/train.py", ["--output", output, *SMALL, *words], ROOT)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def at_step(epoch, step, act):
    """Context manager: call `act` after the log line of a step (from 1) of an epoch (from 1)."""
    original, calls = TrainLog.line, []

    def line(self, number, done, *figures):
        original(self, number, done, *figures)
        if (number + 1, done) == (epoch, step):
            calls.append(act())

    with mock.patch.object(TrainLog, "line", line):
        yield
    assert len(calls) == 1


def run_until(output, epoch, step, act, *words, status=0):
    """`run` with a call of `act` after the log line of a step of an epoch."""
    with at_step(epoch, step, act):
        return run(output, *words, status=status)


def kill(output, epoch, step, *words):
    """Let the run die after a log line."""

    def die():
        raise Killed

    with contextlib.suppress(Killed):
        run_until(output, epoch, step, die, *words)
    gc.collect()  # closes the lock of the run folder


def send(number):
    """Function that sends a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def terminate(output, epoch, step, *words):
    """`run` that gets SIGTERM after a log line."""
    return run_until(output, epoch, step, send(signal.SIGTERM), *words)


def run_after_deaths(output, deaths, *words):
    """Run the command so that it dies at one write after the other, then finishes; see dying_train.py."""
    command = [sys.executable, ROOT / "tests/programs/dying_train.py", json.dumps(deaths), "--output", output, *SMALL]
    command = [str(word) for word in (*command, *WORKERS, *words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr


def the_only_error(done):
    """Return the error line of a finished command, and check that stderr has only warnings besides."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
