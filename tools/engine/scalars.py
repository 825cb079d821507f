"""Curves for VisualDL, where it is installed: `visualdl --logdir log`."""

import contextlib
import importlib.util
import io
import math

FILE_NAME = "vdlrecords.run.log"  # VisualDL continues a file of this form instead of beginning another


class Scalars:
    """Writes numbers by step into one file of a folder; does nothing without a folder or without VisualDL."""

    def __init__(self):
        self._writer = None

    def open(self, folder):
        """Write to `folder` from now on, after what is there."""
        if importlib.util.find_spec("visualdl") is None:
            return
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of the file that it continues
            from visualdl import LogWriter

            self._writer = LogWriter(str(folder), file_name=FILE_NAME)

    def add(self, step, values):
        """Add {tag: number} at a step; what is not finite is left out."""
        if self._writer:
            for tag, value in values.items():
                if value is not None and math.isfinite(value):
                    self._writer.add_scalar(tag, value, step)

    def flush(self):
        """Hand all to the operating system."""
        if self._writer:
            self._writer.flush()
