"""Write curves for VisualDL, if it is installed. View them with `visualdl --logdir log`."""

import contextlib
import importlib.util
import io
import math
import os
import tempfile

FILE_NAME = "vdlrecords.run.log"  # with such a name, VisualDL appends instead of starting a new file


class Scalars:
    """Appends numbers by step to one file in a folder. Does nothing before `open`."""

    def __init__(self):
        self._writer = None

    def open(self, folder):
        """Write to `folder` from now on, if VisualDL is installed."""
        if importlib.util.find_spec("visualdl") is None:
            return
        if not os.access(os.path.expanduser("~"), os.W_OK):
            os.environ["HOME"] = tempfile.gettempdir()  # VisualDL 2.5.3 writes to $HOME (or ./~) when it is imported
        with contextlib.redirect_stdout(io.StringIO()):  # hide its note that it appends to the file
            from visualdl import LogWriter  # optional

            self._writer = LogWriter(str(folder), file_name=FILE_NAME)

    def add(self, step, values):
        """Add {tag: number} at a step, except numbers that are not finite."""
        for tag, value in values.items() if self._writer else ():
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, step)

    def flush(self):
        """Write all buffered numbers to the file."""
        if self._writer:
            self._writer.flush()
