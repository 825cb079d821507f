"""One process fails, all stop: without this the others would wait for it in their next collective operation.

Paddle's launcher ends the processes of its own machine, but not those of others, and not before the reason is lost
that the failed process alone knows. So each process has a monitor (monitor.py) beside it from before the import of
paddle until it is done.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from t2t_vit.common import ranks
from t2t_vit.common.errors import UserError, one_line

_LAST_WORD_SECONDS = 5  # for the monitor to end this process because of another one
_DONE_SECONDS = 70  # for the monitor of rank 0 to hear that all are done, which it awaits for 60 s


class FailureMonitor:
    """Context of what several processes do together; alone it does nothing.

    If a process leaves it by an exception, is stopped, or dies, the log of the main process tells why, and all end
    with a status that is not 0.

    Args:
        log: file to which the reason is added, in the main process, besides stderr; None for none.
    """

    limits = (300, 60)  # seconds for all to start, and without an answer that mean a stopped process

    def __init__(self, log=None):
        self.log, self._monitor = log, None

    def __enter__(self):
        if ranks.world_size() == 1:
            return self
        host, port = ranks.main_endpoint()
        setting = {
            "pid": os.getpid(),
            "rank": ranks.rank(),
            "world_size": ranks.world_size(),
            "address": (host, port),
            "job": os.environ["PADDLE_TRAINER_ENDPOINTS"],
            "log": self.log and str(self.log),
            "limits": self.limits,
        }
        command = [sys.executable, str(Path(__file__).with_name("monitor.py")), json.dumps(setting)]
        # A session of its own: the launcher ends the group of the process, and Ctrl-Z stops it.
        self._monitor = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(self, kind, error, _traceback):
        if not self._monitor:
            return
        if error is None:
            self.tell(done=True)
            if ranks.rank() == 0:
                with contextlib.suppress(subprocess.TimeoutExpired):  # another process hangs after the training
                    self._monitor.wait(_DONE_SECONDS)
            return
        if not isinstance(error, (UserError, OSError, KeyboardInterrupt)):
            # A collective operation that failed because another process is gone: the monitor ends this one meanwhile.
            time.sleep(_LAST_WORD_SECONDS)
        self.tell(reason=one_line(error))

    def tell(self, **message):
        """Let the monitor know: log=file, hint=what to say with a failure, done, reason."""
        if self._monitor:
            with contextlib.suppress(OSError):  # the monitor is gone, and the others end this process
                self._monitor.stdin.write((json.dumps(message) + "\n").encode())
                self._monitor.stdin.flush()
