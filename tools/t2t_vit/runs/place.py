"""Check where a run writes: only to a new folder or to the folder of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_not_shipped, display_path, holds
from t2t_vit.config import ROOT, resolve
from t2t_vit.runs.run_folder import RunFolder

_OTHER_PLACE = "give this run another NAME or --output"


def check_place(run: RunFolder, cfg: CfgNode) -> None:
    """Raise UserError if `run`, a `RunFolder`, would overwrite or move files that were not written by a run."""
    for key, parent in (("OUTPUT", run.folder.parent), ("LOG", run.log.parent)):
        if os.path.lexists(parent) and not parent.is_dir():
            raise UserError(f"{display_path(parent)} is not a folder (--output, {key})")
    check_not_shipped(run.folder)
    check_not_shipped(run.log)
    for what, path in (("the repository", ROOT), ("the data", resolve(cfg.DATA.PATH))):
        if holds(run.folder, path):
            raise UserError(f"the run folder {display_path(run.folder)} would contain {what}; {_OTHER_PLACE}")
    if os.path.lexists(run.folder):
        _check_folder(run)
    for path, is_own in ((run.log, _is_log), (run.scalars, _is_scalars)):
        if os.path.lexists(path) and not is_own(path):
            raise UserError(f"{display_path(path)} was not written by a run; {_OTHER_PLACE} (or LOG)")


def _check_folder(run):
    if not run.folder.is_dir():
        raise UserError(f"{display_path(run.folder)} is not a folder; {_OTHER_PLACE}")
    found = sorted(path.name for path in run.folder.iterdir())
    if not is_run(run) and not all(name == "export" or name.startswith(".") for name in found):
        names = ", ".join(found[:3] + ["..."] * (len(found) > 3))
        raise UserError(f"{display_path(run.folder)} is not a run folder, it contains {names}; {_OTHER_PLACE}")


def check_move(run: RunFolder, files: Iterable[str | Path]) -> None:
    """Raise UserError if a new run reads one of `files` from an earlier run that it would move aside."""
    for path in files:
        if is_run(run) and holds(run.folder, path):
            raise UserError(f"{display_path(path)} is in the run folder that would be moved aside; give another NAME")


def is_run(run):
    """Whether the folder contains a state, or a config that a run wrote."""
    if any(path.is_file() for path in run.folder.glob("latest*.pdparams")):
        return True
    text = run.config.read_bytes() if run.config.is_file() else b""
    return all(re.search(pattern, text, re.M) for pattern in (rb"^NAME: *\S", rb"^SEED:", rb"^OUTPUT:", rb"^TRAIN:"))


def _is_log(path):
    """Whether a run wrote this log: it has the first line of a run's log, or only lines that may come before that."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(2**16)
    before = (b"warning: ", b"error: ", b"weights from ", b"resumed ", b"an earlier run ")
    begun = re.search(rb"^\S.*: PaddlePaddle \S+ on ", start, re.M)
    return bool(begun) or all(line.startswith(before) for line in start.splitlines())


def _is_scalars(path):
    return path.is_dir() and all(name.startswith(("vdlrecords", ".")) for name in os.listdir(path))
