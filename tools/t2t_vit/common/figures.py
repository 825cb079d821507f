"""Figures drawn with matplotlib, an optional library, and the font for Chinese letters."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
# Files of fonts with Chinese letters, which Linux, Windows and macOS have in their font folders.
CHINESE_FONTS = (
    "NotoSansCJK-Regular.ttc", "SourceHanSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc",
    "simhei.ttf", "PingFang.ttc", "STHeiti Light.ttc",
)  # fmt: skip


def check_suffix(path: str | Path, option: str, suffixes: Collection[str] = SUFFIXES) -> None:
    """Raise UserError unless the file that `option` names ends in one of `suffixes`."""
    if Path(path).suffix.lower() not in suffixes:
        *others, last = suffixes
        raise UserError(f"{option} {path} must end in {', '.join(others)} or {last}")


def require_matplotlib() -> type[Figure]:
    """Return matplotlib's Figure class. Raises UserError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which would look for a display
    except ImportError:
        raise UserError("the plot needs matplotlib, which is not installed: pip install matplotlib") from None
    return Figure


@functools.cache
def chinese_font(size: int = 12) -> ImageFont.FreeTypeFont | None:
    """Load the first installed one of CHINESE_FONTS with Pillow. Returns None if there is none."""
    for name in CHINESE_FONTS:
        with contextlib.suppress(OSError, ImportError):
            return ImageFont.truetype(name, size)
    return None


@contextlib.contextmanager
def figure_to(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield an empty Figure of `size` (width, height) in inches, then write it to a file atomically."""
    figure_class = require_matplotlib()
    import matplotlib  # optional
    from matplotlib.font_manager import FontProperties, fontManager

    family = ["DejaVu Sans"]
    if chinese := chinese_font():  # matplotlib's own list of fonts may be older than the font
        fontManager.addfont(chinese.path)
        family.append(FontProperties(fname=chinese.path).get_name())
    with matplotlib.rc_context({"font.family": family}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # they are drawn as boxes
        figure = figure_class(figsize=size, layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=120, bbox_inches="tight")


def plain(text: str) -> str:
    """Escape a name, so that matplotlib does not read $...$ as a formula or hide a label that starts with _."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
