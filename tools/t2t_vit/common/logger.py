"""The log of a run: plain lines on the terminal and in one file."""

import contextlib
import logging
import os
import sys

from tqdm import tqdm

from t2t_vit.common.errors import one_line, printable

log = logging.getLogger("t2t")


class _Formatter(logging.Formatter):
    """A record is one line, whatever the names in it hold."""

    def format(self, record):
        return printable(super().format(record))


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar, if there is one. A run that has a log file goes on without its terminal.

    Args:
        aside: to stderr what is no warning too, as stdout is for something else.
    """

    def __init__(self, aside):
        super().__init__()
        self.aside = aside

    def emit(self, record):
        stream = sys.stderr if self.aside or record.levelno >= logging.WARNING else sys.stdout
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except OSError:
            if not any(isinstance(handler, _FileHandler) for handler in log.handlers):
                raise
            leave_terminal()


def leave_terminal():
    """Write to nowhere what would go to a terminal, or a program behind a pipe, that is gone."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a notebook's stream has no descriptor
            os.dup2(nowhere, stream.fileno())


def write_from_handler(text):
    """Write to stderr from the handler of a signal, which may have come in the middle of another write."""
    with contextlib.suppress(OSError, ValueError):  # closed, or a notebook's
        os.write(sys.stderr.fileno(), text.encode())


class _Backlog(logging.Handler):
    """Keeps what is logged before the run has a log file."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def setup_logging(main=True, aside=False):
    """Send the log of the main process to the terminal; all of it to stderr if `aside`."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in (_TerminalHandler(aside), _Backlog()) if main else (logging.NullHandler(),):
        handler.setFormatter(_Formatter())
        log.addHandler(handler)


class _FileHandler(logging.FileHandler):
    """A full disk costs the log its lines, not the run its life: that ends where a state cannot be saved."""

    def handleError(self, record):
        if not getattr(self, "failed", False):
            self.failed = True
            print(f"warning: {one_line(sys.exc_info()[1])}: {self.baseFilename} misses lines", file=sys.stderr)


def log_to_file(path):
    """Append the log to a file too, from its first line on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file_handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file_handler.setFormatter(_Formatter())
    for handler in list(log.handlers):
        if isinstance(handler, _Backlog):
            for record in handler.records:
                file_handler.emit(record)
            log.removeHandler(handler)
    log.addHandler(file_handler)


@contextlib.contextmanager
def above_progress_bars():
    """What is printed inside appears above the progress bars, which are drawn again below it."""
    with tqdm.external_write_mode(file=sys.stdout):
        yield


def write_to_file_only(line):
    """Add a line to the log file that the terminal shows in another way."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.makeLogRecord({"msg": line}))


def progress_bar(iterable, **options):
    """tqdm on a terminal, nothing elsewhere; gone when done."""
    return tqdm(iterable, disable=None, leave=False, dynamic_ncols=True, **options)
