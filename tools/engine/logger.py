"""The log of a run: plain lines on the terminal and in one file."""

import logging
import sys

from tqdm import tqdm

log = logging.getLogger("t2t")


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar, if there is one."""

    def emit(self, record):
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _Backlog(logging.Handler):
    """Keeps what is logged before the run has a log file."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


def setup_logging(main=True):
    """Send the log of the main process to the terminal."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(_TerminalHandler() if main else logging.NullHandler())
    log.addHandler(_Backlog())


def log_to_file(path):
    """Append the log to a file too, from its first line on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file_handler = logging.FileHandler(path, encoding="utf-8")
    for handler in list(log.handlers):
        if isinstance(handler, _Backlog):
            for record in handler.records:
                file_handler.emit(record)
            log.removeHandler(handler)
    log.addHandler(file_handler)


def write_to_file_only(line):
    """Add a line to the log file that the terminal shows in another way."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.makeLogRecord({"msg": line}))


def progress_bar(iterable, **options):
    """tqdm on a terminal, nothing elsewhere; gone when done."""
    return tqdm(iterable, disable=None, leave=False, dynamic_ncols=True, **options)
