"""Figures drawn with matplotlib, an optional library."""

import contextlib
import warnings
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
# Installed ones of these draw the Chinese names of classes and runs.
_CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei")
_CHINESE += ("Microsoft YaHei", "PingFang SC", "Heiti SC")


def check_suffix(path, option, suffixes=SUFFIXES):
    """Raise UserError unless the file that `option` names ends in one of `suffixes`."""
    if Path(path).suffix.lower() not in suffixes:
        *others, last = suffixes
        raise UserError(f"{option} {path} must end in {', '.join(others)} or {last}")


def require_matplotlib():
    """matplotlib's Figure class. Raises UserError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # without pyplot, which would look for a screen
    except ImportError:
        raise UserError("the plot is drawn by matplotlib, which is not installed: pip install matplotlib") from None
    return Figure


@contextlib.contextmanager
def figure_to(path, size):
    """Yield an empty Figure of `size` (width, height) in inches, and write it to a file, complete or not at all."""
    figure_class = require_matplotlib()
    import matplotlib  # optional
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in _CHINESE if name in installed)]
    with matplotlib.rc_context({"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as boxes
        figure = figure_class(figsize=size, layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=120)


def plain(text):
    """A name as matplotlib shows it letter by letter: without formulas between $, and not hidden by a leading _."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
