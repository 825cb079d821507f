"""Draw sheets of pictures with captions, with Pillow: rows of square cells below a title."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from t2t_vit.common.errors import UserError
from t2t_vit.common.figures import check_suffix, chinese_font
from t2t_vit.common.files import atomic_path, check_outputs, display_path
from t2t_vit.common.logger import log
from t2t_vit.data.images import to_image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF"}
TILE = 128  # pixels: side of a picture, unless the sheet sets another
GAP, MARGIN, LINE = 16, 20, 20  # pixels: between pictures, around the sheet, per line of text
SPACE = 12  # pixels: smallest distance between the captions of two pictures, wider than a blank
LONGEST_ROW = 8  # maximum number of cells per row in `table`; a wider sheet would be unreadable on a page
BAR = (192, 12)  # pixels: width and height of a colour bar
MAX_HEIGHT = 65_500  # pixels; JPEG allows no more
PAPER, SHADE, INK, FAINT = "white", (233, 236, 240), (25, 25, 25), (110, 110, 110)
RIGHT, WRONG = (0, 120, 60), (190, 30, 30)


@dataclass(frozen=True)
class Heading:
    """A title with lines of smaller text, as wide as the sheet, and a colour bar."""

    title: str
    notes: tuple = ()
    bar: tuple = ()  # (text at its left end, colours as uint8 (1, W, 3), text at its right end)


@dataclass(frozen=True)
class Cell:
    """A picture and its caption."""

    image: object  # PIL image or uint8 (H, W, 1 or 3); None: the caption alone
    lines: tuple = ()  # below the picture, each a text or (text, colour)
    shaded: bool = False


def check_sheet(path, inputs=()):
    """Raise UserError or OSError if no sheet can be written to `path`, or if it is one of `inputs`."""
    check_suffix(path, "--sheet", FORMATS)
    check_outputs([path], inputs)


def save_sheet(rows, path, tile=TILE, columns=4):
    """Draw a sheet and write it to a file atomically. For the arguments see `draw_sheet`."""
    sheet = draw_sheet(rows, tile, columns)
    with atomic_path(path) as temporary:
        sheet.save(temporary, FORMATS[Path(path).suffix.lower()], quality=92, subsampling=0, resolution=150)
    log.info("%s written", display_path(path))


def draw_sheet(rows, tile=TILE, columns=4):
    """Draw a sheet and return it as an RGB PIL image.

    Args:
        rows: each is a `Heading` or a list of `Cell`s. None in a list leaves a cell empty.
        tile: side of a picture in pixels.
        columns: smallest number of cells per row.
    """
    columns = max(columns, *(len(row) for row in rows if isinstance(row, list)), 1)
    width = 2 * MARGIN + columns * tile + (columns - 1) * GAP
    heights = [_height(row, tile) for row in rows]
    height = sum(heights) + 2 * MARGIN
    if height > MAX_HEIGHT:
        raise UserError(f"the sheet would be {height} pixels high, but {MAX_HEIGHT} is the limit: lower --count")
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for row, height in zip(rows, heights):
        if isinstance(row, Heading):
            _draw_heading(sheet, draw, row, top, width - 2 * MARGIN)
        else:
            for column, cell in enumerate(row):
                if cell:
                    _draw_cell(sheet, draw, cell, (MARGIN + column * (tile + GAP), top), tile, height)
        top += height
    return sheet


def _height(row, tile):
    if isinstance(row, Heading):
        return 54 + LINE * (len(row.notes) + bool(row.bar))
    cells = [cell for cell in row if cell]
    picture = tile if any(cell.image is not None for cell in cells) else 0
    return picture + LINE * max(len(cell.lines) for cell in cells) + 14


def _draw_heading(sheet, draw, heading, top, room):
    write(draw, heading.title, MARGIN, top + 8, room, size=25)
    top += 42
    for note in heading.notes:
        write(draw, note, MARGIN, top, room, colour=FAINT)
        top += LINE
    if heading.bar:
        least, colours, most = heading.bar
        left = MARGIN + round(draw.textlength(least, load_font(15, least))) + 8
        write(draw, least, MARGIN, top, room, colour=FAINT)
        sheet.paste(to_image(colours).resize(BAR), (left, top + 4))
        write(draw, most, left + BAR[0] + 8, top, room, colour=FAINT)


def _draw_cell(sheet, draw, cell, place, tile, height):
    left, top = place
    if cell.shaded:
        draw.rectangle((left - GAP // 2, top - 6, left + tile + GAP // 2 - 1, top + height - 7), SHADE)
    if cell.image is not None:
        sheet.paste(fitted(cell.image, tile), (left, top))
        top += tile + 4
    for number, line in enumerate(cell.lines):
        text, colour = (line, INK) if isinstance(line, str) else line
        write(draw, text, left, top + LINE * number, tile + GAP - SPACE, colour=colour)


def fitted(image, tile=TILE):
    """Scale a picture to fit a square and centre it. Small pictures are enlarged by an integer factor."""
    image = (image if isinstance(image, Image.Image) else to_image(image)).convert("RGB")
    scale = tile / max(image.size)
    scale, resampling = (int(scale), Image.Resampling.NEAREST) if scale >= 1 else (scale, Image.Resampling.BICUBIC)
    image = image.resize([max(1, round(scale * length)) for length in image.size], resampling)
    square = Image.new("RGB", (tile, tile), SHADE)
    square.paste(image, ((tile - image.width) // 2, (tile - image.height) // 2))
    return square


def table(pictures, rows_of):
    """Build the rows of a sheet with pictures and what belongs to each, with the captions once above each column.

    Args:
        pictures: the `Cell` of each picture.
        rows_of: for each picture, its rows of `Cell`s. Their number and captions are the same for all pictures. A row
            that is too long is split evenly; two short ones stand side by side.
    """
    table = []
    for rows in zip(*rows_of):  # the same row of every picture
        length = math.ceil(len(rows[0]) / math.ceil(len(rows[0]) / (LONGEST_ROW - 1)))
        for start in range(0, len(rows[0]), length):
            parts = [row[start : start + length] for row in rows]
            header = [None, *(Cell(None, cell.lines) for cell in parts[0])]
            lines = [[picture, *(Cell(cell.image) for cell in part)] for picture, part in zip(pictures, parts)]
            if len(lines) > 1 and 2 * len(header) <= LONGEST_ROW:
                header *= 2
                lines = [
                    [*left, *right] for left, right in itertools.zip_longest(lines[::2], lines[1::2], fillvalue=[])
                ]
            table += [header, *lines]
    return table


def short_name(name):
    """Return the first name of a class: "tench" of "tench, Tinca tinca"."""
    return name.split(",")[0].strip()


def short_path(path):
    """Return the folder and the name of a file, shortened to fit a caption."""
    name = "/".join(Path(path).absolute().parts[-2:])
    return name if len(name) <= 17 else f"{name[:5]}...{name[-9:]}"


def write(draw, text, left, top, room, size=15, colour=INK):
    """Write a line of text, shortened to `room` pixels."""
    font = load_font(size, text)
    if not hasattr(font, "font"):  # Pillow's bitmap font has Latin letters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    short = text
    while text and draw.textlength(short, font) > room:
        text = text[:-1]
        short = text.rstrip() + "..."
    draw.text((left, top), short, colour, font)


def load_font(size, text=""):
    """Load Pillow's own font, or an installed Chinese one if the text has Chinese characters."""
    if max(text, default="") >= "\u2e80" and chinese_font(size):
        return chinese_font(size)
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()
