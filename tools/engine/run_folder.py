"""Files of one training run: output/<name>/ and log/<name>.log."""

import fcntl
import itertools
import json
import os
import shutil
from pathlib import Path

from config import resolve
from engine.logger import log
from errors import UserError
from files import atomic_path, check_writable, naming, shown, write_text


class RunFolder:
    """Where a run keeps its files.

    latest.pdparams: state to resume from; best.pdparams: weights only; config.yaml: merged config; classes.txt: class
    list; metrics.jsonl: one line per epoch.
    """

    def __init__(self, cfg):
        self.folder = resolve(cfg.OUTPUT) / cfg.NAME
        self.log = resolve(cfg.LOG) / f"{cfg.NAME}.log"
        self.latest = self.folder / "latest.pdparams"
        self.best = self.folder / "best.pdparams"
        self.metrics = self.folder / "metrics.jsonl"

    def lock(self):
        """Keep other processes from training a run of this name until this one ends.

        Raises UserError if one does already, OSError if the folder cannot be written.
        """
        path = self.folder.with_name(f".{self.folder.name}.lock")
        check_writable(path)
        self._lock = open(path, "w")  # noqa: SIM115  held until the process ends, however it ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.folder} is being trained by another process; give this run a NAME") from None

    def begin(self, cfg, classes):
        """Make the folder that of a new run, with its merged config and class list.

        Called at the first save, so that a run that fails before leaves the earlier one where it is: that one is
        renamed to the next free number.
        """
        if self.folder.exists():
            target = _free_name(self.folder)
            os.replace(self.folder, target)
            log.info("an earlier run was moved to %s", shown(target))
        self.write_header(cfg, classes)

    def move_earlier_log_aside(self):
        """Rename the log of an earlier run to the next free number."""
        if self.log.exists():
            os.replace(self.log, _free_name(self.log))

    def write_header(self, cfg, classes):
        """Write the merged config and the class list."""
        write_text(self.folder / "config.yaml", cfg.dump())
        write_text(self.folder / "classes.txt", classes.to_text())

    def append_metrics(self, row):
        """Add one epoch's line to metrics.jsonl."""
        with naming(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def continue_from(self, state, epoch, cfg, classes):
        """Make this the folder of the run that a state, after `epoch` epochs, is of.

        If the state is in another folder, the best weights and the metrics beside it are copied here, and an earlier
        run of this name is moved aside. Metrics of later epochs, which the run does again, and a line that was cut
        while written are dropped.
        """
        origin = state.resolve().parent
        if origin == self.folder.resolve():
            self.write_header(cfg, classes)
        else:
            self.move_earlier_log_aside()
            self.begin(cfg, classes)
            if (origin / self.best.name).is_file():
                with atomic_path(self.best) as temporary:
                    shutil.copyfile(origin / self.best.name, temporary)
        if not (origin / self.metrics.name).is_file():
            return
        lines = (origin / self.metrics.name).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epoch]
        write_text(self.metrics, "".join(kept))
        if len(kept) < len(lines):
            log.info("metrics.jsonl: %d line(s) after epoch %d dropped", len(lines) - len(kept), epoch)


def _free_name(path):
    """First of x.1.log, x.2.log, ... (or x.1, x.2, ... of a folder x) that does not exist."""
    for number in itertools.count(1):
        target = path.with_name(f"{path.stem}.{number}{path.suffix}") if path.is_file() else Path(f"{path}.{number}")
        if not target.exists():
            return target
