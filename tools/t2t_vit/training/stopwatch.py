"""How long an epoch waits for images and how long it trains."""

import time
from dataclasses import dataclass


@dataclass
class Lap:
    """Seconds of some steps."""

    steps: int = 0
    read: float = 0.0  # waiting for images
    train: float = 0.0

    @property
    def seconds(self):
        """Of both."""
        return self.read + self.train


class Stopwatch:
    """Reading and training time of one epoch, and of the steps since the last log line."""

    def __init__(self, clock=time.perf_counter):
        self.clock = clock
        self.current, self.epoch = Lap(), Lap()  # of these steps; of all until then
        self.restart()

    def restart(self):
        """Leave out the time since the last step, which went into a save or a validation."""
        self.mark = self.clock()

    def batch_read(self):
        """The images of a step have arrived."""
        self.current.read += self._since_mark()
        self.current.steps += 1

    def step_done(self):
        """A step has ended."""
        self.current.train += self._since_mark()

    def _since_mark(self):
        before, self.mark = self.mark, self.clock()
        return self.mark - before

    def lap(self):
        """`Lap` since the last call."""
        self.step_done()
        lap, self.current = self.current, Lap()
        self.epoch.read += lap.read
        self.epoch.train += lap.train
        return lap

    def state(self):
        """For a saved state."""
        read = self.epoch.read + self.current.read
        return {"seconds": self.epoch.seconds + self.current.seconds, "read_seconds": read}

    def load_state(self, state):
        """Restore `state`; a new lap begins."""
        self.epoch = Lap(read=state["read_seconds"], train=state["seconds"] - state["read_seconds"])
