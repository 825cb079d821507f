"""Figures drawn by matplotlib, an optional package."""

import contextlib
import importlib.util
import warnings
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
# matplotlib's own font has no Chinese characters. These fonts of common systems do.
_CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei",
            "Microsoft YaHei", "PingFang SC", "Heiti SC")  # fmt: skip


def check_suffix(path, option):
    """Raise UserError if a figure cannot have this file name, which `option` has set."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"{option} {path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def require_matplotlib():
    """Raise UserError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the plot is drawn by matplotlib, which is not installed: pip install matplotlib")


@contextlib.contextmanager
def figure_to(path, size, layout="constrained", dpi=120):
    """Yield an empty Figure of `size` (width, height) in inches, and write it to a file afterwards."""
    require_matplotlib()
    import matplotlib  # here because it is optional and takes half a second
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in _CHINESE if name in installed)]
    with matplotlib.rc_context({"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as boxes
        figure = Figure(figsize=size, layout=layout)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=dpi)


def plain(text):
    """`text` for matplotlib: $ does not start a formula, and a leading _ does not hide it from the legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
