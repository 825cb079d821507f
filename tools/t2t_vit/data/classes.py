"""The classes of a data set: their ids, folders and names, and the files that list them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.config import class_list
from t2t_vit.data.index import class_folders
from t2t_vit.data.lists import read_lines

# A line of classes.txt cannot contain control characters, line separators or bytes that are not UTF-8.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# "0: cat" and "cat 0". Written so that matching takes linear time.
_NUMBERED = (
    r"(?P<id>[0-9]{1,9})[ \t:,]+(?P<name>[^ \t:,].*)",
    r"(?P<name>.*[^ \t:,])[ \t:,]+(?P<id>[0-9]{1,9})",
)


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of their ids: folder names and display names."""

    folders: tuple
    names: tuple
    source: str  # file, folder or config key that the classes come from

    def __len__(self) -> int:
        return len(self.folders)

    def to_text(self) -> str:
        """Format the classes as text that `read_classes` can read."""
        rows = zip(range(len(self)), self.folders, self.names)
        return "index\tfolder\tname\n" + "".join(f"{i}\t{folder}\t{name}\n" for i, folder, name in rows)


def some(names: Sequence[str], limit: int = 5) -> str:
    """Join the first `limit` names, for a message."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def composed(name):
    """Normalise a name to NFC, with each accented letter as one character. macOS stores two."""
    return unicodedata.normalize("NFC", name)


def class_order(names):
    """Sort names of class folders by class id: as numbers if all are numbers, else as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def load_classes(cfg, layout):
    """Return the `ClassList` of the data set in a `Layout`. Raises UserError if there is none."""
    if path := class_list(cfg):
        return read_classes(path)
    if (layout.root / "classes.txt").is_file():
        return read_classes(layout.root / "classes.txt")
    if any(layout.lists.values()):
        if not cfg.MODEL.NUM_CLASSES:
            raise UserError("MODEL.NUM_CLASSES is 0 but list files name no classes; set it, or DATA.CLASSES")
        ids = tuple(str(i) for i in range(cfg.MODEL.NUM_CLASSES))
        return ClassList(ids, ids, "MODEL.NUM_CLASSES")
    return _classes_of_folder(layout.shared or layout.own("train") or layout.require("val"))


def _classes_of_folder(folder):
    folders = class_folders(folder)
    if not folders:
        raise UserError(f"{folder} has no class folders")
    if unwritable := next(filter(UNWRITABLE.search, folders), None):
        raise UserError(
            f"{folder} has a class folder {unwritable!r}: rename it, because no class list can hold control characters "
            "or bytes that are not UTF-8"
        )
    names = tuple(dict.fromkeys(map(composed, class_order(folders))))
    return ClassList(names, names, str(folder))


# --- Class lists ---


def read_classes(path: str | Path) -> ClassList:
    """Read a class list: the text of `ClassList.to_text`, or a list from another program.

    Other forms: a name per line; "0: cat", "0 cat" or "cat 0", numbered from 0; JSON with ids as keys or as values, or
    a list. "n01440764 tench" is the folder and the name of an ImageNet class.

    Raises:
        UserError: if the file is missing, is not a class list, or names a class twice.
    """
    rows = _rows([line for line in read_lines(path, "class list", "DATA.CLASSES") if line.strip()], path)
    folders = [composed(folder) for folder, _ in rows]
    repeated = sorted(folder for folder, count in Counter(folders).items() if count > 1)
    if repeated:
        raise UserError(f"class list {path} names {some(repeated)} more than once")
    return ClassList(tuple(folders), tuple(name for _, name in rows), str(path))


def _rows(lines, path):
    """Parse the lines of a class list: [(folder, name), ...] in the order of the ids."""
    if not lines:
        raise UserError(f"class list {path} is empty")
    if lines[0].lstrip()[0] in "[{" and (rows := _json_rows("\n".join(lines), path)):
        return rows
    if "\t" in lines[0] and not re.search(r"^[0-9]+\t|\t[0-9]+$", lines[0]):
        return _table_rows(lines, path)
    for pattern in _NUMBERED:
        matches = [match for line in lines if (match := re.fullmatch(pattern, line.strip()))]
        if sorted(int(match["id"]) for match in matches) == list(range(len(lines))):
            lines = [match["name"] for match in sorted(matches, key=lambda match: int(match["id"]))]
            break
    return [_folder_and_name(line) for line in lines]


def _table_rows(lines, path):
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows):
        if len(row) != 3 or row[0] != str(number):
            raise UserError(f"class list {path}, line {number + 2}: expected '{number}<tab>folder<tab>name'")
    return [(folder, name) for _, folder, name in rows]


def _folder_and_name(text):
    match = re.fullmatch(r"(n[0-9]{8})[\s,]+(.+)", text)
    return match.groups() if match else (text, text)


def _json_rows(text, path):
    """Rows of {"0": "cat"}, {"0": ["n01440764", "tench"]}, {"cat": 0} or ["cat", ...]; None for other text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    number = len(content)
    if isinstance(content, list):
        content = dict(enumerate(content))
    elif content and all(type(value) is int for value in content.values()):
        content = dict(sorted((number, name) for name, number in content.items()))
    try:
        rows = [content[i] if i in content else content[str(i)] for i in range(number)]
    except KeyError as missing:
        raise UserError(f"class list {path} has no class {missing}; number them from 0") from None
    rows = [tuple(row) if isinstance(row, list) else (row, row) for row in rows]
    for number, row in enumerate(rows):
        if len(row) != 2 or not all(isinstance(text, str) and text for text in row):
            raise UserError(f"class list {path}, class {number}: expected a name, or [folder, name]")
    return rows
