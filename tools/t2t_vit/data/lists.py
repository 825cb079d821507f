"""Read text files that list images, in the formats of several programs."""

import os
import re
from pathlib import Path

from t2t_vit.common.errors import UserError

KAGGLE_HEADER = "imageid,predictionstring"  # of LOC_val_solution.csv: "ILSVRC2012_val_00000001,n01751748 111 108 ..."


def read_lines(path, what, key=""):
    """Read the lines of a UTF-8 file, or UTF-16 with a byte order mark. A UserError names `what`, path and key."""
    key = f" ({key})" if key else ""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would block, a device has no end
            raise UserError(f"{what} {path} is {'a folder' if os.path.isdir(path) else 'not a file'}{key}")
        return lines_of(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{what} {path} not found{key}") from None
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}{key}") from None
    except ValueError:
        raise UserError(f"{what} {path} is not a text file in UTF-8{key}") from None


def lines_of(content):
    """Split the bytes of a text file into lines. Raises ValueError if they are not text."""
    is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    if "\0" in text:
        raise ValueError("NUL in a text")
    return re.split(r"\r\n?|\n", text)  # splitlines() would also split at separators that may occur in a name


def image_rows(lines):
    """Yield (line number, path, label) for the lines of a list file; path and label are None if a line lacks one.

    Forms: "relative/path label" with blanks or a tab between, "path,label" with or without a header line, and Kaggle's
    LOC_val_solution.csv, in which the first box of an image gives its class.
    """
    is_kaggle = lines[0].lower().startswith(KAGGLE_HEADER)
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or number == 1 and (is_kaggle or re.fullmatch(r"[A-Za-z_ ]+,[A-Za-z_ ]+", line)):
            continue
        path, label = _kaggle_row(line) if is_kaggle else _row(line)
        yield (number, path, label) if path and label else (number, None, None)


def _kaggle_row(line):
    image, _, boxes = line.partition(",")
    return image and f"{image}.JPEG", boxes.strip().partition(" ")[0]


def _row(line):
    *path, label = line.rsplit("\t" if "\t" in line else None, 1)
    if "\t" not in line and "," in label:
        *path, label = line.rsplit(",", 1)
    path, label = "".join(path).rstrip(" ,"), label.strip()
    is_quoted = path[:1] == path[-1:] == '"'
    return path[1:-1] if is_quoted else path, label
