"""How long an epoch waits for images and how long it trains."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Lap:
    """Seconds of the steps between two log lines."""

    steps: int
    read: float  # waiting for images
    train: float

    @property
    def seconds(self):
        """Of both."""
        return self.read + self.train


class Stopwatch:
    """Reading and training time of one epoch.

    Args:
        clock: function that returns seconds.
    """

    def __init__(self, clock=time.perf_counter):
        self.clock = clock
        self.steps, self.read, self.train = 0, 0.0, 0.0  # of the current lap
        self.epoch_seconds = self.epoch_read = 0.0  # of the finished laps
        self.restart()

    def restart(self):
        """Leave out the time since the last step, which went into a save or a validation."""
        self.mark = self.clock()

    def batch_read(self):
        """The images of a step have arrived."""
        self.read += self._since_mark()
        self.steps += 1

    def step_done(self):
        """A step has ended."""
        self.train += self._since_mark()

    def lap(self):
        """End the current lap and return it."""
        self.step_done()
        lap = Lap(self.steps, self.read, self.train)
        self.epoch_seconds += lap.seconds
        self.epoch_read += lap.read
        self.steps, self.read, self.train = 0, 0.0, 0.0
        return lap

    def _since_mark(self):
        before, self.mark = self.mark, self.clock()
        return self.mark - before

    def state(self):
        """For a saved state."""
        return {
            "window_steps": self.steps,
            "read_time": self.read,
            "train_time": self.train,
            "seconds": self.epoch_seconds,
            "read_seconds": self.epoch_read,
        }

    def load_state(self, state):
        """Restore `state`."""
        self.steps, self.read, self.train = state["window_steps"], state["read_time"], state["train_time"]
        self.epoch_seconds, self.epoch_read = state["seconds"], state["read_seconds"]
