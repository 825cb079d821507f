"""The figures of a benchmark in its --json file, where a killed benchmark continues."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path, read_text, write_text
from t2t_vit.common.logger import log, progress_bar

_LARGEST = 100_000_000  # bytes


class Report:
    """The figures of one benchmark: `content` is the JSON.

    Args:
        path: file of --json, or None.
        conditions: {"machine": {...}, "options": {...}}. Figures of other conditions cannot be compared.
        is_resumed: whether the file is written after every measurement, and continued if it exists.

    Raises UserError if the file to continue has figures of other conditions, or is another file.
    """

    def __init__(self, path: str | None, conditions: dict[str, dict], is_resumed: bool) -> None:
        self.path = path or ""
        is_file = not self.path.startswith(("/dev/", "/proc/")) and os.path.isfile(self.path)
        self.is_resumed = is_resumed and bool(path) and (is_file or not os.path.exists(self.path))
        self.content: dict[str, Any] = {**conditions, "finished": {}}
        if is_file:
            found = _continued(self.path, json.loads(json.dumps(conditions)), only_kind=not is_resumed)
            self.content = found if is_resumed else self.content

    def measure(self, name: str, units: dict[str, Any], measure: Callable[[Any], list[dict]]) -> list[dict]:
        """Add the rows of `measure(unit)` to list `name` for all {title: unit}, except those that the file has.

        Returns the rows of all units.
        """
        rows, finished = self.content.setdefault(name, []), self.content["finished"].setdefault(name, [])
        if finished:
            log.info("%s has %d of %d measurements: continuing", display_path(self.path), len(finished), len(units))
        for title in progress_bar([title for title in units if title not in finished], desc="measured"):
            rows += measure(units[title])
            finished.append(title)
            if self.is_resumed:
                self.write()
        return rows

    def write(self) -> None:
        """Replace the file, if there is one."""
        if self.path:
            write_text(self.path, json.dumps(self.content, indent=1) + "\n")


def _continued(path, conditions, only_kind):
    """Return the content of a file. Raises UserError unless a benchmark wrote it under the same conditions, or with
    `only_kind`, the same kind of benchmark."""
    shown = display_path(path)
    try:
        content = json.loads(read_text(path, _LARGEST))
        found = {part: dict(content[part]) for part in (*conditions, "finished")}
        for name, titles in found["finished"].items():
            if not len(content[name]) >= len(titles) == sum(isinstance(title, str) for title in titles):
                raise ValueError(name)
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{shown} has no figures that this benchmark can continue; give --json another file") from None
    theirs, ours = (_flat({part: each[part] for part in conditions}) for each in (found, conditions))
    for name in ["options benchmark"] if only_kind else {**theirs, **ours}:
        was, now = theirs.get(name), ours.get(name)
        if was != now:
            reason = f"{shown} has figures with {name} {was!r} instead of {now!r}"
            raise UserError(f"{reason}; give --json another file, or remove this one")
    return content


def _flat(value, name=""):
    """Return {"options rounds": 5, ...} of nested dicts."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(part, f"{name} {key}".strip()) for key, part in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}
