"""Time functions in alternating rounds, and format the results as lines and tables."""

import statistics
import time
import timeit

PAUSE = 0.25  # seconds between two rounds: OpenMP threads spin for 0.2 s after their last work
WARM_UP = 2  # calls before anything is timed


class Timed:
    """Times a function without arguments, in rounds of at least 0.2 s. The function must wait for its device.

    The function may have a dict `laps`, to which it adds the seconds of its parts.
    """

    def __init__(self, function):
        for _ in range(WARM_UP):
            function()
        self.function, self.timer = function, timeit.Timer(function)
        self.calls, _ = self.timer.autorange()

    def seconds(self):
        """Time one round and return the mean seconds per call."""
        return self.timer.timeit(self.calls) / self.calls

    def round(self):
        """Time one round. Returns {"seconds": per call, and those of each part}."""
        laps = getattr(self.function, "laps", {})
        laps.clear()
        seconds = self.seconds()
        return {"seconds": seconds, **{part: lap / self.calls for part, lap in laps.items()}}


def interleave(functions, rounds, pause=PAUSE):
    """Call every function once per round and return the results: {key: function} -> {key: list of results}.

    The speed of a machine drifts, so only figures that were measured together can be compared.
    """
    results = {key: [] for key in functions}
    for _ in range(rounds):
        for key, function in functions.items():
            time.sleep(pause)
            results[key].append(function())
    return results


def finished(tensor):
    """Wait until the device has computed `tensor`, then return it."""
    tensor[(0,) * tensor.ndim].item()
    return tensor


def summary(values):
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "rounds": values}


def spread(figures):
    return f"{figures['median']:.1f} ({figures['lowest']:.1f} .. {figures['highest']:.1f})"


def table(header, rows, markdown=False):
    """Format rows of strings as the lines of an aligned or a Markdown table."""
    rows = [header, *rows]
    if markdown:
        rows.insert(1, ["---"] * len(header))
        return [f"| {' | '.join(row)} |" for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
