"""When to save and when to stop: signals, SAVE_MINUTES, TIME_LIMIT."""

from __future__ import annotations

import math
import signal
import time

from yacs.config import CfgNode

from t2t_vit.common.logger import leave_terminal, write_from_handler
from t2t_vit.common.runtime import ignore_interrupts
from t2t_vit.config_values import to_seconds
from t2t_vit.parallel import processes

GO_ON, SAVE, STOP_FOR_TIME, STOP_FOR_SIGNAL = range(4)  # with several processes, the largest one wins
STOPS = (STOP_FOR_TIME, STOP_FOR_SIGNAL)
_AGREE_SECONDS = 5.0  # between checks of several processes; a check waits for the devices
_EXIT_SECONDS = 5.0  # reserved for the exit of the process after its last save
_SAVE_SECONDS = 30.0  # reserved for a save, unless one has taken longer
_REPEAT_SECONDS = 2.0  # a second Ctrl-C within this time is ignored
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class InterruptHandler:
    """Decides after each step whether to continue, save or stop.

    As a context manager, it handles SIGTERM, SIGINT and SIGHUP. After the first signal, the run saves and stops. A
    second SIGINT within `_REPEAT_SECONDS` is ignored; a later one stops at once. Under nohup, SIGHUP stays ignored.
    TRAIN.TIME_LIMIT counts from `started`, the `time.monotonic()` when the command started.
    """

    def __init__(self, train: CfgNode, started: float) -> None:
        self.limit = to_seconds(train.TIME_LIMIT) or math.inf
        self.interval = 60 * train.SAVE_MINUTES or math.inf
        self.started = started
        self.signal, self.signalled_at = "", 0.0  # name and time of the first signal
        self.slowest_save = min(_SAVE_SECONDS, self.limit / 10)
        self.last_save = time.monotonic()
        self.steps = 0  # steps since the command started
        self.seconds_between = 0.0  # time between the last two checks
        self.epoch_starts()

    def __enter__(self) -> InterruptHandler:
        self._earlier = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in self._earlier.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: the handler was not set by Python
        if self.signal:
            ignore_interrupts()

    def _note(self, number, _frame):
        if number == signal.SIGHUP:
            leave_terminal()
        if not self.signal:
            self.signal, self.signalled_at = signal.Signals(number).name, time.monotonic()
            if number == signal.SIGINT:
                how = f"Ctrl-C again after {_REPEAT_SECONDS:.0f} seconds quits without saving"
                write_from_handler(f"\nsaving after this step; {how}\n")
        elif number == signal.SIGINT and time.monotonic() > self.signalled_at + _REPEAT_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process is exiting
            raise KeyboardInterrupt

    def epoch_starts(self) -> None:
        """Restart the timer so that validation is not counted."""
        self.checked, self.checked_at, self.next_check = time.monotonic(), self.steps, self.steps + 1

    def after_step(self) -> int:
        """Return GO_ON, SAVE, STOP_FOR_TIME or STOP_FOR_SIGNAL, the same in every process."""
        self.steps += 1
        if self.steps < self.next_check:
            return GO_ON
        now = time.monotonic()
        action, self.seconds_between = processes.max_over_processes([self._action(), now - self.checked])
        steps = 1
        if processes.world_size() > 1:
            steps = int(_AGREE_SECONDS * (self.steps - self.checked_at) / max(self.seconds_between, 1e-3))
        self.checked, self.checked_at, self.next_check = now, self.steps, self.steps + max(1, steps)
        return int(action)

    def before_validation(self, seconds: float) -> int:
        """Like `after_step`, but also returns STOP_FOR_TIME if there is no time for a validation of about `seconds`."""
        return int(processes.max_over_processes([self._action(seconds)])[0])

    def must_stop(self) -> bool:
        """Whether this process alone would stop now."""
        return self._action() in STOPS

    def _action(self, seconds_ahead=0.0):
        if self.signal:
            return STOP_FOR_SIGNAL
        now = time.monotonic()
        if now + seconds_ahead > self.started + self.limit - self._reserve():
            return STOP_FOR_TIME
        return SAVE if now > self.last_save + self.interval else GO_ON

    def _reserve(self):
        """Return the seconds to reserve before the limit: until the next check, two saves, and the exit."""
        return 2 * self.slowest_save + self.seconds_between + min(_EXIT_SECONDS, self.limit / 10)

    def saved(self, seconds: float) -> None:
        """Note that a save has just ended, and how many seconds it took."""
        self.last_save = time.monotonic()
        self.slowest_save = max(seconds, self.slowest_save)

    def reason(self, action: int) -> str:
        """Return the reason of a stop for the log."""
        if action == STOP_FOR_SIGNAL:
            return self.signal or "a signal to another process"
        return "TRAIN.TIME_LIMIT"
