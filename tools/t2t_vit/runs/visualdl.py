"""Curves for VisualDL, where it is installed: `visualdl --logdir log`."""

import contextlib
import importlib.util
import io
import math
import os
import tempfile

FILE_NAME = "vdlrecords.run.log"  # VisualDL continues a file of this form instead of beginning another


@contextlib.contextmanager
def _home_for_visualdl():
    """A home folder that can be written: VisualDL makes files in it at import (2.5.3), and in ./~ if there is none."""
    home = os.environ.get("HOME")
    if os.access(os.path.expanduser("~"), os.W_OK):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            del os.environ["HOME"]
            if home is not None:
                os.environ["HOME"] = home


class Scalars:
    """Writes numbers by step into one file of a folder; until `open` it keeps them.

    Args:
        active: False for a process that writes nothing.
    """

    def __init__(self, active=True):
        self._active = active and importlib.util.find_spec("visualdl") is not None
        self._writer = None
        self._kept = []

    def open(self, folder):
        """Write to `folder` from now on, after what is there."""
        if not self._active:
            return
        with _home_for_visualdl(), contextlib.redirect_stdout(io.StringIO()):  # it tells of the file that it continues
            from visualdl import LogWriter

            self._writer = LogWriter(str(folder), file_name=FILE_NAME)
        for step, values in self._kept:
            self.add(step, values)
        self._kept = []

    def add(self, step, values):
        """Add {tag: number} at a step; what is not finite is left out."""
        if not self._active:
            return
        if not self._writer:
            self._kept.append((step, values))
            return
        for tag, value in values.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(tag, value, step)

    def flush(self):
        """Hand all to the operating system."""
        if self._writer:
            self._writer.flush()
