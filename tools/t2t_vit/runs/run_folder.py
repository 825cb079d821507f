"""Files of one training run: output/<name>/, log/<name>.log and log/<name>.visualdl/."""

import itertools
import json
import math
import os
import re
import shutil
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import (
    atomic_path,
    check_not_shipped,
    check_writable,
    display_path,
    flush_to_disk,
    holds,
    lock,
    naming,
    remove_temporary_files,
    write_text,
)
from t2t_vit.common.logger import log
from t2t_vit.config import ROOT, resolve
from t2t_vit.runs import visualdl
from t2t_vit.weights import checkpoint

_GIVEN_UP = ".old"  # ends the name of a state that a resumed run has left behind
_OTHER_PLACE = "give this run another NAME or --output"


class RunFolder:
    """Where a run keeps its files.

    latest.pdparams: state to resume from, latest.1.pdparams the one before, and so on; best.pdparams: weights only;
    config.yaml: merged config; classes.txt: class list; metrics.jsonl: one line per epoch, the same whenever the run is
    repeated; times.jsonl: seconds and memory of each epoch.
    """

    def __init__(self, cfg):
        self.folder = resolve(cfg.OUTPUT) / cfg.NAME
        self.log = resolve(cfg.LOG) / f"{cfg.NAME}.log"
        self.scalars = resolve(cfg.LOG) / f"{cfg.NAME}.visualdl"
        self.latest = self.folder / "latest.pdparams"
        self.best = self.folder / "best.pdparams"
        self.metrics = self.folder / "metrics.jsonl"
        self.times = self.folder / "times.jsonl"
        self.keep = cfg.TRAIN.KEEP

    def check_place(self, cfg):
        """Raise UserError where this run would write to, or move aside, files that no run made or that it reads."""
        for key, parent in (("OUTPUT", self.folder.parent), ("LOG", self.log.parent)):
            if os.path.lexists(parent) and not parent.is_dir():
                raise UserError(f"{display_path(parent)} is not a folder (--output, {key})")
        check_not_shipped(self.folder)
        check_not_shipped(self.log)
        for what, path in (("the repository", ROOT), ("the data", resolve(cfg.DATA.PATH))):
            if holds(self.folder, path):
                raise UserError(f"the run folder {display_path(self.folder)} would hold {what}; {_OTHER_PLACE}")
        if self.folder.is_dir():
            found = sorted(path.name for path in self.folder.iterdir())
            if not self.is_run() and not _has_room(found):
                names = ", ".join(found[:3] + ["..."] * (len(found) > 3))
                raise UserError(
                    f"{display_path(self.folder)} is not the folder of a run, it holds {names}; {_OTHER_PLACE}"
                )
            for path in (self.latest, self.best, self.metrics, self.times, self.folder / "config.yaml"):
                if os.path.lexists(path) and not path.is_file():
                    raise UserError(f"{display_path(path)} is not a file; remove it, or {_OTHER_PLACE}")
        elif os.path.lexists(self.folder):
            raise UserError(f"{display_path(self.folder)} is not a folder; {_OTHER_PLACE}")
        for path, is_own in ((self.log, _is_log), (self._new_log(), _is_log), (self.scalars, _is_scalars)):
            if os.path.lexists(path) and not is_own(path):
                raise UserError(f"{display_path(path)} is not of a run; {_OTHER_PLACE} (or LOG)")

    def check_move(self, files):
        """Raise UserError if a new run would move aside an earlier one that holds one of `files`, which it reads."""
        for path in files:
            if self.is_run() and holds(self.folder, path):
                raise UserError(f"{display_path(path)} lies in the run that would be moved aside; give this run a NAME")

    def is_run(self):
        """Whether the folder holds a state, or a config that a run wrote."""
        config = self.folder / "config.yaml"
        if any(path.is_file() for path in self.folder.glob("latest*.pdparams")):
            return True
        text = config.read_bytes() if config.is_file() else b""
        return all(
            re.search(pattern, text, re.M) for pattern in (rb"^NAME: *\S", rb"^SEED:", rb"^OUTPUT:", rb"^TRAIN:")
        )

    def lock(self):
        """Keep other processes from training a run of this name until this one ends; after `check_place`.

        Raises UserError if one does already, OSError if the folder cannot be written.
        """
        if hasattr(self, "_lock"):
            return
        path = self.folder.with_name(f".{self.folder.name}.lock")
        check_writable(path)
        check_writable(self.log)
        if self.folder.exists():
            check_writable(self.latest)
        self._lock = open(path, "w")  # noqa: SIM115  held until the process ends, however it ends
        try:
            if not lock(self._lock):
                log.warning("warning: %s cannot be locked on this file system; do not train this run twice", path)
        except BlockingIOError:
            raise UserError(f"{self.folder} is being trained by another process; give this run a NAME") from None
        if self.is_run():
            remove_temporary_files(self.folder)

    def states(self):
        """Files that may hold a state to resume from, the newest first."""
        return [path for path in (self._kept(number) for number in range(1000)) if path.is_file()]

    def _kept(self, number):
        return self.folder / f"latest.{number}.pdparams" if number else self.latest

    def save_state(self, state):
        """Make `state` the latest, and keep TRAIN.KEEP - 1 before it."""
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
        """Put a state of this folder before all others; newer ones, damaged or given up, stay until the next save."""
        if path.resolve() == self.latest.resolve():
            return
        names = [state.name for state in self.states()]
        with atomic_path(self.latest) as temporary:
            shutil.copyfile(path, temporary)  # first: it may be one that was given up before
            for newer in names[: names.index(path.name)] if path.name in names else names:
                os.replace(self.folder / newer, self.folder / f"{newer}{_GIVEN_UP}")

    def log_until_begun(self):
        """Where a new run logs until it begins: beside the log of an earlier run, if there is one."""
        path = self._new_log() if self.log.exists() else self.log
        path.unlink(missing_ok=True)
        return path

    def _new_log(self):
        return self.log.with_name(f"{self.folder.name}.new.log")

    def begin(self, cfg, classes):
        """Make folder and log those of a new run, with its merged config and class list.

        Called at the first save, so that a run that fails before leaves the earlier one where it is: that one is
        renamed to the next free number.
        """
        if self.is_run():
            target = _free_name(self.folder)
            os.replace(self.folder, target)
            log.info("an earlier run was moved to %s", display_path(target))
        new_log = self._new_log()
        for path in (self.log, self.scalars) if new_log.exists() else (self.scalars,):
            if path.exists():
                os.replace(path, _free_name(path))
        if new_log.exists():
            os.replace(new_log, self.log)
        self.write_header(cfg, classes)

    def write_header(self, cfg, classes):
        """Write the merged config and the class list."""
        write_text(self.folder / "config.yaml", cfg.dump())
        write_text(self.folder / "classes.txt", classes.to_text())

    def append_rows(self, metrics, times):
        """Add one epoch's lines to metrics.jsonl and times.jsonl; what is not finite becomes null."""
        for path, row in ((self.metrics, metrics), (self.times, times)):
            row = {key: value if math.isfinite(value) else None for key, value in row.items()}
            with naming(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                flush_to_disk(file)

    def sizes(self):
        """Bytes of each file that grows with the run, by name."""
        return {name: path.stat().st_size if path.is_file() else 0 for name, path in self._growing().items()}

    def _growing(self):
        curves = self.scalars / visualdl.FILE_NAME
        return {"metrics": self.metrics, "times": self.times, "log": self.log, "scalars": curves}

    def continue_from(self, path, sizes, cfg, classes):
        """Make this the folder of the run that the state in `path` is of.

        If the state is in another folder, the best weights and the rows beside it are copied here, and an earlier run
        of this name is moved aside. What the files hold beyond `sizes`, which the run does again, is dropped, but for
        errors, warnings and stops in the log.
        """
        origin = path.resolve().parent
        if origin == self.folder.resolve():
            self._make_latest(path)
            self.write_header(cfg, classes)
        else:
            if self.log.exists():
                os.replace(self.log, _free_name(self.log))
            self.begin(cfg, classes)
            for target in (self.best, self.metrics, self.times):
                if (origin / target.name).is_file():
                    with atomic_path(target) as temporary:
                        shutil.copyfile(origin / target.name, temporary)
        for name, target in self._growing().items():
            size, found = sizes.get(name, 0), target.stat().st_size if target.is_file() else 0
            if found < size and target in (self.metrics, self.times):
                log.warning("warning: %s has lost lines: %d bytes of %d are left", display_path(target), found, size)
                size = target.read_bytes().rfind(b"\n") + 1 if found else 0
            if found > size:
                _cut(target, size, keep=("error: ", "warning: ", "stopped by ") if name == "log" else ())


def _has_room(names):
    """Whether a run may begin in a folder with these names: that of an export, or hidden ones."""
    return all(name == "export" or name.startswith(".") for name in names)


def _is_log(path):
    """Whether a run wrote this file: it has the line of every start, or only what may come before that line."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(2**16)
    before = (b"warning: ", b"error: ", b"weights from ", b"resumed ")
    begun = re.search(rb"^\S.*: PaddlePaddle \S+ on ", start, re.M)
    return bool(begun) or all(line.startswith(before) for line in start.splitlines())


def _is_scalars(path):
    return path.is_dir() and all(name.startswith(("vdlrecords", ".")) for name in os.listdir(path))


def _cut(path, size, keep):
    """Shorten a file to `size` bytes and the lines after them that start with one of `keep`."""
    data = path.read_bytes()
    lines = data[size:].splitlines(keepends=True)
    kept = [line for line in lines if keep and line.decode(errors="replace").startswith(keep)]
    with atomic_path(path) as temporary:
        temporary.write_bytes(data[:size] + b"".join(kept))


def _free_name(path):
    """First of x.1.log, x.2.log, ... (or x.1, x.2, ... of a folder x) that does not exist."""
    for number in itertools.count(1):
        target = path.with_name(f"{path.stem}.{number}{path.suffix}") if path.is_file() else Path(f"{path}.{number}")
        if not os.path.lexists(target):
            return target
