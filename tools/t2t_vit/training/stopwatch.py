"""Measure how long an epoch waits for images and how long it trains."""

import time
from dataclasses import dataclass


@dataclass
class Lap:
    """Seconds that some steps took."""

    steps: int = 0
    read: float = 0.0  # waiting for images
    train: float = 0.0

    @property
    def seconds(self):
        """Seconds of both together."""
        return self.read + self.train


class Stopwatch:
    """Reading and training time of one epoch, and of the steps since the last log line."""

    def __init__(self, clock=time.perf_counter):
        self.clock = clock
        self.current, self.epoch = Lap(), Lap()  # since the last log line; up to it
        self.restart()

    def restart(self):
        """Restart the timer, so that a save or a validation is not counted."""
        self.mark = self.clock()

    def batch_read(self):
        """Note that the images of a step have arrived."""
        self.current.read += self._since_mark()
        self.current.steps += 1

    def step_done(self):
        """Note that a step has ended."""
        self.current.train += self._since_mark()

    def _since_mark(self):
        before, self.mark = self.mark, self.clock()
        return self.mark - before

    def lap(self):
        """Return the `Lap` since the last call."""
        self.step_done()
        lap, self.current = self.current, Lap()
        self.epoch.read += lap.read
        self.epoch.train += lap.train
        return lap

    def state(self):
        """Return the times for a saved state."""
        read = self.epoch.read + self.current.read
        return {"seconds": self.epoch.seconds + self.current.seconds, "read_seconds": read}

    def load_state(self, state):
        """Restore `state` and start a new lap."""
        self.epoch = Lap(read=state["read_seconds"], train=state["seconds"] - state["read_seconds"])
