"""One of several processes with a failure monitor: python monitored.py LOG START_SECONDS SILENCE_SECONDS ACTION."""

import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from t2t_vit.common import ranks  # noqa: E402
from t2t_vit.common.errors import UserError  # noqa: E402
from t2t_vit.parallel.failure_monitor import FailureMonitor  # noqa: E402


def stuck():
    ctypes.PyDLL(None).sleep(60)  # holds Python's lock, as a call of Paddle may


def fail(seconds, error):
    time.sleep(seconds)
    raise error


ACTIONS = {
    "end": lambda: None,
    "wait": lambda: time.sleep(1),
    "slow": lambda: time.sleep(4),
    "stuck": stuck,
    "image": lambda: fail(0, UserError("image x cannot be read")),
    "gloo": lambda: fail(0.5, RuntimeError("gloo")),
    "disk": lambda: fail(0.6, UserError("disk full")),
}

log, start_seconds, silence_seconds, action = sys.argv[1:]
with FailureMonitor(float(start_seconds), float(silence_seconds)) as monitor:
    monitor.send(hint="latest.pdparams is there", **({"log": log} if ranks.is_main() else {}))
    print("begun", flush=True)
    ACTIONS[action]()
