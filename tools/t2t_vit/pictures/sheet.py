"""Sheets of pictures drawn with Pillow: strips of tiles with text, one below the other."""

import contextlib
import os

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

TILE = 128  # pixels, the largest side of a tile; smaller images are enlarged by a whole factor
GAP, MARGIN = 12, 20
COLUMNS = 16
CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc")
PAPER, SHADE, INK, FAINT = "white", (233, 236, 240), (25, 25, 25), (110, 110, 110)


def check_sheet(path):
    """Raise UserError for a name that no sheet can have."""
    from t2t_vit.common.errors import UserError

    if os.path.splitext(path)[1].lower() not in FORMATS:
        raise UserError(f"--sheet is {path} but must end in {', '.join(FORMATS)}")


def save(image, path):
    from t2t_vit.common.files import atomic_path

    with atomic_path(path) as temporary:
        image.save(temporary, FORMATS[os.path.splitext(path)[1].lower()], quality=92, subsampling=0)


def width():
    return 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP


def left_of(column):
    return MARGIN + column * (TILE + GAP)


def blank(height):
    """(empty strip, its ImageDraw)"""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width(), height), PAPER)
    return strip, ImageDraw.Draw(strip)


def stack(strips):
    """The strips below each other, with a margin."""
    from PIL import Image

    sheet = Image.new("RGB", (width(), sum(strip.height for strip in strips) + 2 * MARGIN), PAPER)
    top = MARGIN
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def heading(title, settings):
    strip, draw = blank(78)
    write(draw, title, MARGIN, 10, width() - 2 * MARGIN, size=26)
    write(draw, settings, MARGIN, 46, width() - 2 * MARGIN, size=16, ink=FAINT)
    return strip


def tile(pixels):
    """uint8 (S, S, channels) -> RGB PIL image of at most TILE x TILE, in the middle of a tile."""
    from PIL import Image

    from t2t_vit.data.images import to_image

    image = to_image(pixels).convert("RGB")
    factor = TILE // image.width
    if factor:
        return centred(image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST))
    return image.resize((TILE, TILE), Image.Resampling.BICUBIC)


def thumbnail(image):
    """PIL image of any shape -> the whole of it within a tile."""
    from PIL import Image

    image = image.convert("RGB")
    scale = TILE / max(image.size)
    size = tuple(max(1, round(scale * length)) for length in image.size)
    return centred(image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST))


def centred(image):
    from PIL import Image

    tile = Image.new("RGB", (TILE, TILE), SHADE)
    tile.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    return tile


def short_name(name):
    """The first of a class's names: "tench" of "tench, Tinca tinca"."""
    return name.split(",")[0].strip()


def write(draw, text, left, top, room, size=15, ink=INK):
    """Write a line, cut to a width in pixels."""
    font = load_font(size, text)
    if not hasattr(font, "font"):  # Pillow's bitmap font knows Latin letters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    short = text
    while text and draw.textlength(short, font) > room:
        text = text[:-1]
        short = text.rstrip() + "..."
    draw.text((left, top), short, ink, font)


def load_font(size, text=""):
    """Pillow's own font, or one of `CHINESE_FONTS` that the system has for text which needs it."""
    from PIL import ImageFont

    for name in CHINESE_FONTS if max(text, default="") >= "\u2e80" else ():
        with contextlib.suppress(OSError, ImportError):
            return ImageFont.truetype(name, size)  # searched for in the folders of the system's fonts
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()
