"""Check where a run writes: only to a new folder or to the folder of a run."""

import os
import re

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_not_shipped, display_path

_OTHER_PLACE = "give this run another NAME or --output"


def check_place(run):
    """Raise UserError if a `RunFolder` would overwrite or move files that no run has written."""
    for key, parent in (("OUTPUT", run.folder.parent), ("LOG", run.log.parent)):
        if os.path.lexists(parent) and not parent.is_dir():
            raise UserError(f"{display_path(parent)} is not a folder (--output, {key})")
    check_not_shipped(run.folder)
    check_not_shipped(run.log)
    if os.path.lexists(run.log) and not run.log.is_file():
        raise UserError(f"{display_path(run.log)} is not a file; {_OTHER_PLACE} (or LOG)")
    for folder in (run.folder, run.scalars):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{display_path(folder)} is not a folder; {_OTHER_PLACE}")
    found = sorted(path.name for path in run.folder.iterdir()) if run.folder.is_dir() else []
    if not _is_run(run) and not all(name == "export" or name.startswith(".") for name in found):
        names = ", ".join(found[:3] + ["..."] * (len(found) > 3))
        raise UserError(f"{display_path(run.folder)} is not the folder of a run, it holds {names}; {_OTHER_PLACE}")


def _is_run(run):
    """Whether the folder contains a state, or a config that a run has written."""
    if any(path.is_file() for path in run.folder.glob("latest*.pdparams")):
        return True
    text = run.config.read_bytes() if run.config.is_file() else b""
    return all(re.search(pattern, text, re.M) for pattern in (rb"^NAME: *\S", rb"^SEED:", rb"^OUTPUT:", rb"^TRAIN:"))
