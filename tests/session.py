"""Checks of a whole test run: the order of the files, and which tests may be skipped."""

from collections import Counter
from pathlib import Path

_HERE = Path(__file__).parent
DURATIONS = _HERE / "durations.txt"
SKIPPED = _HERE / "skipped.txt"


def read_durations():
    """{file name: seconds} of durations.txt."""
    lines = (line.split() for line in DURATIONS.read_text().splitlines() if not line.startswith("#"))
    return {name: float(seconds) for seconds, name in lines}


def longest_first(items):
    """Sort tests by the duration of their file, for processes that share the files. New files come first.

    Within a file the random order is kept, unless the file sets IN_ORDER.
    """
    durations = read_durations()

    def place(item):
        place_in_file = ()
        if getattr(item.module, "IN_ORDER", False):
            parameters = item.callspec.indices.values() if hasattr(item, "callspec") else ()
            place_in_file = (item.function.__code__.co_firstlineno, *parameters)
        return -durations.get(item.path.name, 1e9), place_in_file

    items.sort(key=place)


def read_skipped():
    """Tests that may be skipped: the names before the # in skipped.txt."""
    lines = (line.partition("#")[0].strip() for line in SKIPPED.read_text().splitlines())
    return [line for line in lines if line]


def may_be_skipped(test, names):
    """True if `names` lists the test, its function (all parameters) or its file."""
    return any(test == name or test.startswith((f"{name}[", f"{name}::")) for name in names)


class SessionReport:
    """Pytest plugin: adds up the durations of the files and notes what is skipped."""

    def __init__(self, options):
        self.options, self.seconds, self.skipped = options, Counter(), set()

    def pytest_runtest_logreport(self, report):
        test = report.nodeid.replace("\\", "/").removeprefix("tests/")
        self.seconds[test.partition("::")[0]] += report.duration
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.add(test)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.skipped.add(report.nodeid.removeprefix("tests/"))

    def pytest_terminal_summary(self, terminalreporter):
        for test in self.unexpected():
            terminalreporter.write_line(f"SKIPPED, but tests/skipped.txt does not list it: {test}", red=True)

    def pytest_sessionfinish(self, session):
        if session.exitstatus == 0 and self.unexpected():
            session.exitstatus = 1
        if self.options.write_durations:
            lines = [f"{seconds:7.1f}  {name}\n" for name, seconds in self.seconds.most_common()]
            DURATIONS.write_text("# Seconds of each file: python -m pytest --write-durations\n" + "".join(lines))

    def unexpected(self):
        """Skipped tests that skipped.txt does not list, if --check-skips is given."""
        names = read_skipped()
        return sorted(test for test in self.skipped if self.options.check_skips and not may_be_skipped(test, names))
