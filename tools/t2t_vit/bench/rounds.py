"""Timing in rounds: what takes turns, what a round is, and how the figures of many are told."""

import math
import statistics
import time

PAUSE = 0.25  # seconds between two turns: OpenMP's threads spin for 0.2 s after their last work
ROUND_SECONDS = 0.4  # that a round lasts at least
WARM_UP = 2  # calls before anything is timed


class Timed:
    """A function without arguments, timed in rounds that last `ROUND_SECONDS` or one call.

    It must have done its work when it returns.
    """

    def __init__(self, function):
        self.function = function
        for _ in range(WARM_UP):
            function()
        start = time.perf_counter()
        function()
        self.calls = max(1, math.ceil(ROUND_SECONDS / (time.perf_counter() - start)))

    def seconds(self):
        """Seconds of a call, the mean over a round."""
        start = time.perf_counter()
        for _ in range(self.calls):
            self.function()
        return (time.perf_counter() - start) / self.calls


class Stopwatch:
    """Seconds of each stage of something that runs many times: of CPU time, or by another clock."""

    def __init__(self, clock=time.process_time):
        self.clock = clock
        self.seconds, self.last = {}, clock()

    def lap(self, stage):
        """Count the time since the last lap for a stage; None: for none."""
        now = self.clock()
        self.add(stage, now - self.last)
        self.last = self.clock()

    def add(self, stage, seconds):
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def interleave(subjects, rounds):
    """{key: what `round` gave each time} of {key: Subject} that take turns.

    Where a machine drifts or does other work too, only figures of one such run can be compared.
    """
    results = {key: [] for key in subjects}
    for _ in range(rounds):
        for key, subject in subjects.items():
            time.sleep(PAUSE)
            results[key].append(subject("round"))
    return results


def finished(tensor):
    """The tensor, once a device that works on its own has computed it."""
    tensor[(0,) * tensor.ndim].item()
    return tensor


def summary(values):
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "rounds": values}


def spread(figures):
    return f"{figures['median']:.1f} ({figures['lowest']:.1f} .. {figures['highest']:.1f})"


def table(header, rows, markdown=False):
    """Lines of a table of texts: columns as wide as they need, or Markdown."""
    rows = [header, *rows]
    if markdown:
        rows.insert(1, ["---"] * len(header))
        return [f"| {' | '.join(row)} |" for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
