"""Text files that name images and classes: list files and class lists, also in the forms in which others write them."""

import json
import os
import re
import unicodedata
from pathlib import Path

from t2t_vit.common.errors import UserError

_DIGITS, _SEPARATORS = "0123456789", " \t:,"
KAGGLE_HEADER = "imageid,predictionstring"  # of LOC_val_solution.csv: "ILSVRC2012_val_00000001,n01751748 111 108 ..."


def read_lines(path, what, key=""):
    """Lines of a text file in UTF-8, or in UTF-16 with a byte order mark; errors say `what` it is and its key."""
    key = f" ({key})" if key else ""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, a device has no end
            raise UserError(f"{what} {path} is {'a folder' if os.path.isdir(path) else 'not a file'}{key}")
        return lines_of(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{what} {path} not found{key}") from None
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}{key}") from None
    except ValueError:
        raise UserError(f"{what} {path} is not a text file in UTF-8{key}") from None


def lines_of(content):
    """Lines of the bytes of a text file. Raises ValueError if they are none."""
    is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    if "\0" in text:
        raise ValueError("NUL in a text")
    return re.split(r"\r\n?|\n", text)  # splitlines() would also split at separators that a name may hold


# --- Lists of images ---


def image_rows(lines):
    """Yield (line number, path, label) of the lines of a list file; path and label are None where a line has not both.

    Forms: "relative/path label" with blanks or a tab between, "path,label" with or without a header line, and
    Kaggle's LOC_val_solution.csv, of whose boxes the first names the class.
    """
    is_kaggle = lines[0].lower().startswith(KAGGLE_HEADER)
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or number == 1 and (is_kaggle or re.fullmatch(r"[A-Za-z_ ]+,[A-Za-z_ ]+", line)):
            continue
        if is_kaggle:
            image, _, boxes = line.partition(",")
            label = boxes.strip().partition(" ")[0]
            yield (number, f"{image}.JPEG", label) if image and label else (number, None, None)
            continue
        *path, label = line.rsplit("\t" if "\t" in line else None, 1)
        if "\t" not in line and "," in label:
            *path, label = line.rsplit(",", 1)
        path, label = "".join(path).rstrip(" ,"), label.strip()
        if path[:1] == path[-1:] == '"':
            path = path[1:-1]
        yield (number, path, label) if path and label else (number, None, None)


def respelled(paths):
    """Yield the paths of a list as written, with / for \\ (Windows), with composed and decomposed accents (macOS)."""
    yield paths
    yield [path.replace("\\", "/") for path in paths]
    for form in ("NFC", "NFD"):
        yield [unicodedata.normalize(form, path) for path in paths]


# --- Class lists ---


def class_rows(lines, path):
    """[(folder, name), ...] of a class list, in the order of the ids.

    Forms: the header and lines "index<tab>folder<tab>name" that `ClassList.to_text` writes; one name a line; "0: cat",
    "0 cat" or "cat 0", numbered from 0; JSON with ids as keys or as values, or a list. "n01440764 tench" is the
    folder and the name of a class of ImageNet.
    """
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UserError(f"class list {path} is empty")
    if lines[0].lstrip()[0] in "[{" and (rows := _json_rows("\n".join(lines), path)):
        return rows
    if "\t" in lines[0] and not re.search(r"^[0-9]+\t|\t[0-9]+$", lines[0]):
        return _table_rows(lines, path)
    for divide in (_number_first, _number_last):
        pairs = [divide(line.strip()) for line in lines]
        if all(pairs) and sorted(number for number, _ in pairs) == list(range(len(lines))):
            lines = [name for _, name in sorted(pairs)]
            break
    return [_folder_and_name(line) for line in lines]


def _table_rows(lines, path):
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows):
        if len(row) != 3 or row[0] != str(number):
            raise UserError(f"class list {path}, line {number + 2}: expected '{number}<tab>folder<tab>name'")
    return [(folder, name) for _, folder, name in rows]


def _number_first(line):
    rest = line.lstrip(_DIGITS)
    return _pair(line[: len(line) - len(rest)], rest.lstrip(_SEPARATORS), rest)


def _number_last(line):
    rest = line.rstrip(_DIGITS)
    return _pair(line[len(rest) :], rest.rstrip(_SEPARATORS), rest)


def _pair(number, name, rest):
    """(number, name) if there are both and a separator, which `rest` has beside the name; else None."""
    return (int(number), name) if 0 < len(number) < 10 and 0 < len(name) < len(rest) else None


def _folder_and_name(text):
    if match := re.fullmatch(r"(n[0-9]{8})[\s,]+(.+)", text):
        return match.groups()
    return text, text


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
