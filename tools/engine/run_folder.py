"""Files of one training run: output/<name>/ and log/<name>.log."""

import json
import os
import shutil

from config import resolve
from engine.logger import log
from files import atomic_path, write_text


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

    def move_earlier_run_aside(self):
        """Rename the files of an earlier run of this name, so that none is overwritten."""
        if not self.folder.exists() and not self.log.exists():
            return []
        number = 1
        while True:
            moves = [
                (self.folder, self.folder.with_name(f"{self.folder.name}.{number}")),
                (self.log, self.log.with_name(f"{self.log.stem}.{number}.log")),
            ]
            if not any(target.exists() for _, target in moves):
                break
            number += 1
        for source, target in moves:
            if source.exists():
                os.replace(source, target)
        return [target for _, target in moves if target.exists()]

    def write_header(self, cfg, classes):
        """Write the merged config and the class list."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.yaml", cfg.dump())
        write_text(self.folder / "classes.txt", classes.to_text())

    def append_metrics(self, row):
        """Add one epoch's line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def continue_from(self, state, epoch):
        """Bring the best weights and the metrics beside a resumed state, whichever folder it is in, to this run.

        Lines of epochs after `epoch`, which the run does again, and a line that was cut while written are dropped.
        """
        origin = state.parent
        if origin != self.folder and (origin / self.best.name).is_file():
            with atomic_path(self.best) as temporary:
                shutil.copyfile(origin / self.best.name, temporary)
        if not (origin / self.metrics.name).is_file():
            return
        lines = (origin / self.metrics.name).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epoch]
        write_text(self.metrics, "".join(kept))
        if len(kept) < len(lines):
            log.info("metrics.jsonl: %d line(s) after epoch %d dropped", len(lines) - len(kept), epoch)
