"""If one of several processes fails, stop all of them. Otherwise they would wait forever in a collective operation.

Paddle's launcher stops only the processes on its own machine, and it does not show the reason of the failure. Therefore
each process starts a monitor process (monitor_process.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from t2t_vit.common import ranks
from t2t_vit.common.errors import UserError, one_line

_OTHERS_SECONDS = 5  # wait this long in case another process failed first and caused this failure
_DONE_SECONDS = 70  # more than the 60 s that the monitor of rank 0 waits for the others


class FailureMonitor:
    """Context manager around all work that several processes do together. With one process, it does nothing.

    If a process raises an exception, hangs or dies in this context, the reason is written to stderr and to the log of
    the main process, and all processes exit with a status other than 0.

    Args:
        start_seconds: time until all processes must have started.
        silence_seconds: time without an answer after which a process counts as lost; gloo gives up after 30.
    """

    def __init__(self, start_seconds: float = 300, silence_seconds: float = 20) -> None:
        self.limits = (start_seconds, silence_seconds)
        self._monitor: Any = None

    def __enter__(self) -> FailureMonitor:
        if ranks.world_size() == 1:
            return self
        setting = {
            "pid": os.getpid(),
            "rank": ranks.rank(),
            "world_size": ranks.world_size(),
            "address": ranks.main_endpoint(),
            "job": os.environ["PADDLE_TRAINER_ENDPOINTS"],
            "limits": self.limits,
        }
        command = [sys.executable, str(Path(__file__).with_name("monitor_process.py")), json.dumps(setting)]
        # In its own session, because the launcher kills the whole process group and Ctrl-Z stops it.
        self._monitor = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if not self._monitor:
            return
        if error is None:
            self.send(done=True)
            if ranks.rank() == 0:
                with contextlib.suppress(subprocess.TimeoutExpired):  # another process hangs while it exits
                    self._monitor.wait(_DONE_SECONDS)
            return
        if not isinstance(error, (UserError, OSError, KeyboardInterrupt)):
            # A collective operation may have failed because another process died. In that case, the monitor kills this
            # process while it sleeps, and the log shows the reason of the other process.
            time.sleep(_OTHERS_SECONDS)
        self.send(reason=one_line(error))

    def send(self, **message: Any) -> None:
        """Send `log` (the file for the error line of the main process) or `hint` (text added to that line)."""
        if self._monitor:
            with contextlib.suppress(OSError):  # this monitor is dead; the other monitors stop their processes
                self._monitor.stdin.write((json.dumps(message) + "\n").encode())
                self._monitor.stdin.flush()
