"""Sheets of pictures with captions, drawn with matplotlib: one line of cells below the other."""

import math

from t2t_vit.common.errors import UserError
from t2t_vit.common.figures import check_suffix, figure_to, require_matplotlib
from t2t_vit.common.files import check_outputs

CELL, GAP, CAPTION, MARGIN, LINE = 1.5, 0.12, 0.36, 0.25, 0.2  # inches
DPI = 110
COLUMNS = 11  # of a line; what is longer is broken
LETTERS = 24  # of a line of a caption
MOST_LINES = 300  # the drawing library's largest picture, 2 ** 16 pixels high


def check_figure(path, inputs):
    """Raise UserError for a file that no sheet can be written to, one of `inputs` too, or if matplotlib is missing."""
    check_suffix(path, "--sheet")
    require_matplotlib()
    check_outputs([path], inputs)


def lines_of(picture, rows):
    """The lines of a sheet for one picture: a cell for it, then those of each row, broken where they are too many.

    A cell is (RGB image, or uint8 (rows, columns, 3) drawn as squares; caption of one or two lines), or None.
    """
    parts = []
    for row in rows:
        length = math.ceil(len(row) / math.ceil(len(row) / (COLUMNS - 1)))
        parts += [row[start : start + length] for start in range(0, len(row), length)]
    return [[None if place else picture, *part] for place, part in enumerate(parts)]


def paired(lines):
    """The lines of two pictures in one, where they are short: a sheet of many pictures becomes less long."""
    if len(lines) < 3 or max(map(len, lines)) > 4 or not all(line[0] for line in lines):
        return lines
    width = max(map(len, lines))
    rights = [*lines[1::2], []]
    return [[*left, *[None] * (width - len(left)), *right] for left, right in zip(lines[::2], rights)]


def save_figure(path, title, explanations, lines):
    """Write a sheet: a title, lines that explain it, lines of cells."""
    if len(lines) > MOST_LINES:
        raise UserError(f"the sheet would have {len(lines)} lines of pictures, at most {MOST_LINES}: lower --count")
    lines = paired(lines)
    columns = max(map(len, lines))
    width = max(2 * MARGIN + columns * CELL + (columns - 1) * GAP, 4 * CELL)
    head = MARGIN + 0.32 + LINE * len(explanations)
    height = head + len(lines) * (CELL + CAPTION + GAP) + MARGIN
    with figure_to(path, (width, height), layout=None, dpi=DPI) as figure:
        options = {"parse_math": False, "va": "top"}
        figure.text(MARGIN / width, 1 - MARGIN / height, title, size=13, **options)
        for place, text in enumerate(explanations):
            top = MARGIN + 0.32 + LINE * place
            figure.text(MARGIN / width, 1 - top / height, text, size=8, color="0.4", **options)
        for row, line in enumerate(lines):
            for column, cell in enumerate(line):
                if cell:
                    left = MARGIN + column * (CELL + GAP)
                    bottom = height - head - row * (CELL + CAPTION + GAP) - CAPTION - CELL
                    axes = figure.add_axes((left / width, bottom / height, CELL / width, CELL / height))
                    _draw(axes, *cell)


def _draw(axes, image, caption):
    axes.imshow(image, interpolation="nearest" if hasattr(image, "shape") else "antialiased")
    axes.set_axis_off()
    text = "\n".join(line if len(line) <= LETTERS else f"{line[: LETTERS - 3]}..." for line in caption.split("\n"))
    axes.set_title(text, size=8, pad=3, parse_math=False)
