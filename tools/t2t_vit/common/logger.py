"""The log of a run: plain lines, printed to the terminal and written to one file."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from t2t_vit.common.errors import one_line, printable

log = logging.getLogger("t2t")


class _Formatter(logging.Formatter):
    """Formats each record as one line."""

    def format(self, record):
        return printable(super().format(record))


class _TerminalHandler(logging.Handler):
    """Prints above a progress bar. If the terminal is gone, a run with a log file continues.

    Args:
        aside: print everything to stderr, not only warnings, because stdout holds the results.
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


class _FileHandler(logging.FileHandler):
    """If the disk is full, log lines are lost. The run ends only when a state cannot be saved."""

    def handleError(self, record):
        if not getattr(self, "failed", False):
            self.failed = True
            error = sys.exc_info()[1] or OSError()
            print(f"warning: {one_line(error)}: {self.baseFilename} is missing log lines", file=sys.stderr)


def setup_logging(main: bool = True, aside: bool = False) -> None:
    """Print the log to the terminal, only in the main process; everything to stderr if `aside`."""
    log.handlers.clear()
    log.setLevel(logging.INFO)
    log.propagate = False
    # Records are kept until the run has a log file.
    backlog = logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
    for handler in (_TerminalHandler(aside), backlog) if main else (logging.NullHandler(),):
        handler.setFormatter(_Formatter())
        log.addHandler(handler)


def log_to_file(path: Path) -> None:
    """Also write the log to a file, including the lines so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file_handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file_handler.setFormatter(_Formatter())
    for backlog in [handler for handler in log.handlers if isinstance(handler, logging.handlers.MemoryHandler)]:
        backlog.setTarget(file_handler)
        backlog.close()  # this writes its records to the file
        log.removeHandler(backlog)
    log.addHandler(file_handler)


def write_to_file_only(line: str) -> None:
    """Write a line to the log file only, because the terminal shows the same in another way."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.makeLogRecord({"msg": line}))


def leave_terminal() -> None:
    """Redirect stdout and stderr to /dev/null, because the terminal or the reader of a pipe is gone."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a notebook's stream has no descriptor
            os.dup2(nowhere, stream.fileno())


def write_from_handler(text: str) -> None:
    """Write to stderr from a signal handler, which may interrupt another write."""
    with contextlib.suppress(OSError, ValueError):  # closed, or a stream of a notebook
        os.write(sys.stderr.fileno(), text.encode())


@contextlib.contextmanager
def above_progress_bars() -> Iterator[None]:
    """Let print() write above the progress bars."""
    with tqdm.external_write_mode(file=sys.stdout):
        yield


def progress_bar(iterable: Iterable | None, **options: Any) -> tqdm:
    """A tqdm bar that disappears when done; only on a terminal."""
    return tqdm(iterable, disable=None, leave=False, dynamic_ncols=True, **options)
