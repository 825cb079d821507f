"""Write curves for VisualDL, if it is installed. View them with `visualdl --logdir log`."""

import contextlib
import importlib.util
import io
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from t2t_vit.common.errors import one_line
from t2t_vit.common.logger import log

FILE_NAME = "vdlrecords.run.log"  # VisualDL appends to a file with such a name instead of starting a new one


@contextlib.contextmanager
def _private_home():
    """A temporary HOME, because VisualDL 2.5.3 writes to ~/.visualdl at import, or to ./~ without a home folder."""
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            del os.environ["HOME"]
            if home is not None:
                os.environ["HOME"] = home


class Scalars:
    """Appends numbers by step to one file in a folder. Does nothing before `open`."""

    def __init__(self) -> None:
        self._writer: Any = None

    def open(self, folder: Path) -> None:
        """Write to `folder` from now on, if VisualDL is installed."""
        if importlib.util.find_spec("visualdl") is None:
            return
        try:
            with _private_home():
                from visualdl import LogWriter  # optional
        except OSError as error:
            log.warning("warning: VisualDL cannot be imported, so no curves are written: %s", one_line(error))
            return
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it continues the file
            self._writer = LogWriter(str(folder), file_name=FILE_NAME)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add {tag: number} at a step, except numbers that are not finite."""
        for tag, value in values.items() if self._writer else ():
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Write all buffered numbers to the file."""
        if self._writer:
            self._writer.flush()
