"""The sheets of pictures: their drawing against a stored picture, sizes, captions and limits."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw

from t2t_vit.common import figures
from t2t_vit.common.errors import UserError
from t2t_vit.common.figures import CHINESE_FONTS, chinese_font, figure_to
from t2t_vit.pictures import sheet
from t2t_vit.pictures.sheet import GAP, LINE, MARGIN, SPACE, TILE, Cell, Heading, draw_sheet, fitted, load_font

GOLDEN = ROOT / "tests/golden/sheet.png"


def example():
    """A small sheet with everything that a sheet can contain."""
    ramp = np.linspace(0, 255, 8 * 8).astype(np.uint8).reshape(8, 8, 1)
    colours = np.stack(np.broadcast_arrays(ramp[..., 0], 255 - ramp[..., 0], 90), axis=-1).astype(np.uint8)
    wide = Image.new("RGB", (300, 150), (200, 10, 10))
    return draw_sheet(
        [
            Heading("A title", ("a note in grey",)),
            [None, Cell(None, (("red", (190, 30, 30)),))],
            [Cell(ramp, ("a", "+"), shaded=True), Cell(colours, ("W" * 40,), True), Cell(wide, ("mix",))],
        ],
        tile=48,
        columns=3,
    )


def blocks(image):
    """Mean colours of blocks of 6 x 6 pixels, so that font smoothing makes no difference."""
    pixels = np.asarray(image, np.float32)
    height, width = (length // 6 for length in pixels.shape[:2])
    return pixels[: 6 * height, : 6 * width].reshape(height, 6, width, 6, 3).mean((1, 3))


def difference(image):
    """Largest difference of a block from the stored picture."""
    return np.abs(blocks(image) - blocks(Image.open(GOLDEN).convert("RGB"))).max()


@pytest.mark.skipif(not hasattr(load_font(15), "font"), reason="this Pillow has another font")
def test_drawing_equals_the_stored_one():
    assert difference(example()) < 30


@pytest.mark.skipif(not hasattr(load_font(15), "font"), reason="this Pillow has another font")
def test_broken_drawing_differs_from_the_stored_one():
    whole = example()
    for box in ((20, 28, 100, 50), (70, 95, 120, 110), (20, 125, 70, 170), (140, 125, 200, 170)):
        broken = whole.copy()
        broken.paste("white", box)
        assert difference(broken) > 60, box
    shifted = whole.transform(whole.size, Image.Transform.AFFINE, (1, 0, 3, 0, 1, 0))
    assert difference(shifted) > 60


def test_size_of_a_sheet():
    drawn = draw_sheet([Heading("", ("", "")), [Cell(Image.new("L", (3, 3)), ("", ""))], [Cell(None, ("",))]], 50, 5)
    assert drawn.size == (2 * MARGIN + 5 * 50 + 4 * GAP, 2 * MARGIN + 54 + 2 * LINE + 50 + 2 * LINE + 14 + LINE + 14)


def test_pictures_are_shown_whole():
    pixels = np.asarray(fitted(Image.new("RGB", (600, 300), (200, 10, 10))))
    assert pixels.shape == (TILE, TILE, 3)
    assert (pixels[TILE // 4 : 3 * TILE // 4] == (200, 10, 10)).all()
    assert (pixels[: TILE // 4] == sheet.SHADE).all() and (pixels[3 * TILE // 4 :] == sheet.SHADE).all()


@pytest.mark.parametrize("size", [1, 16, 100, 128, 224, 384])
def test_pictures_of_any_size_fit(size):
    pixels = np.asarray(fitted(np.full((size, size, 1), 77, np.uint8)))
    assert pixels.shape == (TILE, TILE, 3)
    assert (pixels[TILE // 2, TILE // 2] == 77).all()


def test_small_pixels_stay_squares():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert (np.asarray(fitted(pixels)) == pixels.repeat(8, 0).repeat(8, 1)).all()


def test_text_stays_within_its_column():
    for text in ("ox", "a name that is far too long for one tile", "W" * 200, "", "$x_1^2", "\u732b"):
        drawn = draw_sheet([[None, Cell(None, (text,)), None]], tile=100)
        ink = np.asarray(drawn).min(-1) < 200
        left = MARGIN + 100 + GAP
        assert ink.any() == bool(text)
        assert not ink[:, :left].any() and not ink[:, left + 100 + GAP - SPACE :].any()


def test_tables_divide_long_rows_evenly_and_pair_short_ones():
    def table(pictures, *captions):
        """A table whose rows have these captions, each cell as its image, or its captions if it has none."""
        rows_of = [[[Cell(f"{name}{line}", (line,)) for line in row] for row in captions] for name in pictures]
        rows = sheet.table([Cell(name) for name in pictures], rows_of)
        return [" ".join((cell.image or cell.lines[0]) if cell else "-" for cell in row) for row in rows]

    assert table("ab", "12345678") == ["- 1 2 3 4", "a a1 a2 a3 a4", "b b1 b2 b3 b4",
                                       "- 5 6 7 8", "a a5 a6 a7 a8", "b b5 b6 b7 b8"]  # fmt: skip
    assert table("a", "1234567") == ["- 1 2 3 4 5 6 7", "a a1 a2 a3 a4 a5 a6 a7"]
    assert table("abc", "123") == ["- 1 2 3 - 1 2 3", "a a1 a2 a3 b b1 b2 b3", "c c1 c2 c3"]
    assert table("a", "1", "2") == ["- 1", "a a1", "- 2", "a a2"]


def test_paths_are_shortened_to_their_folder_and_number():
    draw = ImageDraw.Draw(Image.new("RGB", (9, 9)))
    for path, short in (
        ("/data/pickup/0012.jpg", "pickup/0012.jpg"),
        ("/data/automobile/0012.jpg", "autom.../0012.jpg"),
        ("/data/n01440764/n01440764_10026.JPEG", "n0144...0026.JPEG"),
    ):
        assert sheet.short_path(path) == short
        assert draw.textlength(short, load_font(15)) <= TILE + GAP - SPACE


def test_too_high_sheet_is_refused(tmp_path):
    rows = [[Cell(Image.new("RGB", (8, 8)))]] * 500
    with pytest.raises(UserError, match="the sheet would be 71040 pixels high, but 65500 is the limit: lower --count"):
        sheet.save_sheet(rows, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_chinese_names_use_an_installed_font():
    if not chinese_font():
        pytest.skip(f"none of the fonts {', '.join(CHINESE_FONTS)}")
    one, other = (np.asarray(draw_sheet([[Cell(None, (text,))]])) for text in "\u732b\u72d7")
    assert (one != other).any()  # two boxes would be the same
    assert load_font(15, "\u00e9").getname() == load_font(15).getname()


def drawn_text(path, text):
    """Pixels of a plot with a text."""
    with figure_to(path, (1, 1)) as figure:
        figure.text(0.5, 0.5, text)
    return np.asarray(Image.open(path).convert("L"))


def test_plots_use_an_installed_chinese_font(tmp_path):
    pytest.importorskip("matplotlib")
    if not chinese_font():
        pytest.skip(f"none of the fonts {', '.join(CHINESE_FONTS)}")
    one, other = (drawn_text(tmp_path / "x.png", text) for text in "\u732b\u72d7")
    assert one.shape != other.shape or (one != other).any()  # two boxes would be the same


def test_chinese_names_without_a_font_are_drawn_all_the_same(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for module in (figures, sheet):
        monkeypatch.setattr(module, "chinese_font", lambda *_: None)
    assert (np.asarray(draw_sheet([[Cell(None, ("\u732b",))]])) < 128).any()
    assert (drawn_text(tmp_path / "x.png", "\u732b") < 128).any()
