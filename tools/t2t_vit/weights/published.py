"""Published weights by name: `t2t_vit_14.paddlevit` is a row of published.tsv, `t2t_vit_14` the first to download.

A row has the name (MODEL.PUBLISHER), top-1 (or top-1 / top-5) in % as published, the link, the config that evaluates
the weights, and what the page asks for. The publishers state no checksums.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log

SUFFIX = ".pdparams"  # users of PaddleViT and MindSpore omit it
_BROWSER_HOSTS = ("drive.google.com", "pan.baidu.com")  # they serve a page, not the file
_FILE = re.compile(r"\.(pdparams|pdopt|pth|pt|tar|bin|safetensors)$", re.IGNORECASE)


class Published(NamedTuple):
    """A row of published.tsv."""

    name: str
    top1: str
    url: str
    config: str  # name of a file in configs/, without .yaml
    remark: str = ""

    @property
    def model(self) -> str:
        return self.name.partition(".")[0]

    @property
    def needs_browser(self) -> bool:
        return urllib.parse.urlsplit(self.url).hostname in _BROWSER_HOSTS


@functools.cache
def table() -> dict[str, Published]:
    """Return {name: row}. The name of a model is the first of its rows that can be downloaded without a browser."""
    lines = Path(__file__).with_name("published.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [Published(*line.split("\t")) for line in lines]
    found = {row.name: row for row in rows}
    for row in rows:
        if not row.needs_browser:
            found.setdefault(row.model, row)
    return found


def weights_of(model: str) -> Published:
    """Return the row that the name of a model means. Raises UserError if it has none."""
    if model not in table():
        raise UserError(f"no weights of {model} are published: give pretrained a file or a URL")
    return table()[model]


def similar(name: str) -> list[str]:
    """List published names like `name`, which is no file name with a known suffix; [] if there are none."""
    word = name.lower().replace("-", "_")
    return [] if _FILE.search(word) else difflib.get_close_matches(word, table(), n=3, cutoff=0.75)


def meaning(choice: str | Path, folder: str | Path) -> str:
    """Return what a word for weights means: a URL or a published name as it is, or a path, made absolute from `folder`.

    A file or folder wins over a published name. For a file, a warning says so.
    """
    word = str(choice)
    if "://" in word:
        return word
    path = os.path.abspath(os.path.join(folder, os.path.expanduser(word)))
    if word not in table():
        return path
    for place in (path, path + SUFFIX):
        if os.path.isfile(place):
            _warn(place, word)
        if os.path.exists(place):
            return path
    return word


@functools.cache  # once, although a command asks twice
def _warn(path, word):
    name = table()[word].name
    remedy = f"name those {name}" if name != word else "move it to use those"
    log.warning("warning: the file %s is used, not the published weights %s; %s", display_path(path), word, remedy)
