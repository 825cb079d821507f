"""The files of one training run: output/<name>/, log/<name>.log and log/<name>.visualdl/."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import IO

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import (
    atomic_path,
    check_writable,
    display_path,
    flush_to_disk,
    lock,
    naming,
    remove_temporary_files,
    write_text,
)
from t2t_vit.common.logger import log
from t2t_vit.config import resolve
from t2t_vit.data.classes import ClassList
from t2t_vit.runs import visualdl
from t2t_vit.weights import checkpoint

_GIVEN_UP = ".old"  # suffix of newer states after the run went back to an earlier one; the next save removes them
_KEPT_LINES = (b"error: ", b"warning: ", b"stopped by ")  # lines that stay when the log is truncated to a state


class RunFolder:
    """Where a run keeps its files.

    latest.pdparams: state to resume from. latest.1.pdparams: the state before, and so on. best.pdparams: weights only.
    config.yaml: merged config. classes.txt: class list. metrics.jsonl: one line per epoch, identical if the run is
    repeated. times.jsonl: seconds and memory of each epoch.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.folder = resolve(cfg.OUTPUT) / cfg.NAME
        self.log = resolve(cfg.LOG) / f"{cfg.NAME}.log"
        self.scalars = resolve(cfg.LOG) / f"{cfg.NAME}.visualdl"
        self.latest = self.folder / "latest.pdparams"
        self.best = self.folder / "best.pdparams"
        self.metrics = self.folder / "metrics.jsonl"
        self.times = self.folder / "times.jsonl"
        self.config = self.folder / "config.yaml"
        self.keep = cfg.TRAIN.KEEP
        self._lock: IO | None = None

    def lock(self) -> None:
        """Lock this run against other processes until this process ends. Call it after `check_place`.

        Raises UserError if another process holds the lock, OSError if the folder is not writable.
        """
        if self._lock:
            return
        path = self.folder.with_name(f".{self.folder.name}.lock")
        check_writable(path)
        check_writable(self.log)
        if self.folder.exists():
            check_writable(self.latest)
        self._lock = open(path, "w")  # noqa: SIM115  stays open until the process ends
        try:
            if not lock(self._lock):
                log.warning("warning: %s cannot be locked on this file system; do not start this run twice", path)
        except BlockingIOError:
            raise UserError(f"{self.folder} is being trained by another process; give this run another NAME") from None

    # --- Begin ---

    def start(self, cfg: CfgNode, classes: ClassList) -> None:
        """Make the folder of a new run, with its config and class list.

        An earlier run of this name is renamed with the next free number. If it failed before it saved anything, its
        folder and log are reused.
        """
        if self._has_results():
            target = _free_name(self.folder)
            os.replace(self.folder, target)
            log.info("an earlier run was moved to %s", display_path(target))
        if not self.config.is_file():
            for path in (self.log, self.scalars):
                if path.exists():
                    os.replace(path, _free_name(path))
        self._write_header(cfg, classes)

    def _has_results(self):
        """Whether the folder contains a state, best weights or a line of metrics."""
        return any(self.folder.glob("latest*.pdparams*")) or self.best.is_file() or _size(self.metrics) > 0

    def _write_header(self, cfg, classes):
        """Write the merged config and the class list, and remove half-written files of a killed process."""
        write_text(self.config, cfg.dump())
        remove_temporary_files(self.folder)
        write_text(self.folder / "classes.txt", classes.to_text())

    def continue_from(self, path: Path, sizes: dict[str, int], cfg: CfgNode, classes: ClassList) -> None:
        """Prepare the folder to continue from the state in `path`.

        If the state is in another folder, an earlier run of this name is renamed, and the state, the best weights and
        the metrics are copied here. Files are truncated to `sizes`, because the run repeats what came later. Lines of
        the log about errors, warnings and stops are kept.
        """
        origin = path.resolve().parent
        if origin == self.folder.resolve():
            self._make_latest(path)
            self._write_header(cfg, classes)
        else:
            self.start(cfg, classes)
            sources = [(origin / target.name, target) for target in (self.best, self.metrics, self.times)]
            for source, target in [*sources, (path, self.latest)]:
                if source.is_file():
                    with atomic_path(target) as temporary:
                        shutil.copyfile(source, temporary)
        for name, target in self._growing().items():
            if _size(target) > sizes.get(name, 0):
                _cut(target, sizes.get(name, 0), keep=_KEPT_LINES if name == "log" else ())

    # --- States ---

    def states(self) -> list[Path]:
        """List the files with states to resume from, the newest first. They may be damaged."""
        return [path for path in map(self._kept, range(1000)) if path.is_file()]

    def _kept(self, number):
        return self.folder / f"latest.{number}.pdparams" if number else self.latest

    def save_state(self, state: dict) -> None:
        """Save `state` as the latest, and keep the TRAIN.KEEP - 1 states before it."""
        new = self.folder / "next.pdparams"
        checkpoint.save(new, state)
        for number in reversed(range(self.keep - 1)):
            if self._kept(number).is_file():
                os.replace(self._kept(number), self._kept(number + 1))
        os.replace(new, self.latest)
        flush_to_disk(self.folder)
        for path in [*self.states()[self.keep :], *self.folder.glob(f"latest*{_GIVEN_UP}")]:
            path.unlink()

    def _make_latest(self, path):
        """Make an earlier state of this folder the one to resume from."""
        if path.resolve() == self.latest.resolve():
            return
        names = [state.name for state in self.states()]
        with atomic_path(self.latest) as temporary:
            shutil.copyfile(path, temporary)  # first, because the loop may rename `path`
            for newer in names[: names.index(path.name)] if path.name in names else names:
                os.replace(self.folder / newer, self.folder / f"{newer}{_GIVEN_UP}")

    # --- Files that grow ---

    def append_rows(self, metrics: dict[str, float | str], times: dict[str, float]) -> None:
        """Add one epoch's lines to metrics.jsonl and times.jsonl; numbers that are not finite become null."""
        for path, row in ((self.metrics, metrics), (self.times, times)):
            broken = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
            finite = {**row, **dict.fromkeys(broken)}
            with naming(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")
                flush_to_disk(file)

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of the files that grow with the run, by name."""
        return {name: _size(path) for name, path in self._growing().items()}

    def _growing(self):
        curves = self.scalars / visualdl.FILE_NAME
        return {"metrics": self.metrics, "times": self.times, "log": self.log, "scalars": curves}


def _size(path):
    return path.stat().st_size if path.is_file() else 0


def _cut(path, size, keep):
    """Truncate a file to `size` bytes, but keep later lines that start with one of `keep`."""
    data = path.read_bytes()
    lines = data[size:].splitlines(keepends=True)
    kept = [line for line in lines if line.startswith(keep)]
    with atomic_path(path) as temporary:
        temporary.write_bytes(data[:size] + b"".join(kept))


def _free_name(path):
    """Return the first of x.1.log, x.2.log, ... (for a folder x: x.1, x.2, ...) that does not exist."""
    for number in itertools.count(1):
        target = path.with_name(f"{path.stem}.{number}{path.suffix}") if path.is_file() else Path(f"{path}.{number}")
        if not os.path.lexists(target):
            return target
