"""The documents: README.md and docs/, with their Chinese translations."""

import re

from conftest import ROOT

ENGLISH = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if "_cn" not in path.name)]
CHINESE = {path: path.with_name(f"{path.stem}_cn.md") for path in ENGLISH}
TRANSLATED = [(english, chinese) for english, chinese in CHINESE.items() if chinese.exists()]
ALL = [*ENGLISH, *(chinese for _, chinese in TRANSLATED)]


def blocks(path, language):
    """The code blocks of a document in a language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def prose(path):
    """The text of a document without its code blocks."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def sections(path):
    """{heading: text} of a document, code blocks left out."""
    parts = re.split(r"^(#+ .*)$", prose(path), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def rows(text):
    """The cells of each row of its tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading.lstrip("# ")).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
