"""Which image files are read, how large they may be, and how they become 8-bit upright pixels."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL
import pytest
from conftest import ROOT
from PIL import Image, PngImagePlugin, features
from test_data import settings
from test_images import detailed, turbo

from t2t_vit.common.errors import UserError
from t2t_vit.config import default_config, load_config
from t2t_vit.data import images
from t2t_vit.data.crop_reader import open_picture
from t2t_vit.data.images import FORMATS, ImageError, load_image, reading, stored_form
from t2t_vit.data.index import EXTENSIONS
from t2t_vit.data.transforms import EvalTransform
from t2t_vit.deploy.metadata import Metadata
from t2t_vit.deploy.predict import read_images

RAMP = np.arange(64 * 80).reshape(64, 80)


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch):
    monkeypatch.setattr(images, "_warned", [])


def png(width, height, bits, colour, *chunks):
    """Bytes of a PNG file of zeros: a small file with a large decoded size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    row = bytes(1 + width * bits * {0: 1, 2: 3, 3: 1, 6: 4}[colour] // 8)
    pixels = chunk(b"IDAT", zlib.compress(row * min(height, 20)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*each) for each in chunks) + pixels + chunk(b"IEND", b"")


# --- Formats ---


def test_no_other_program_is_started_by_a_picture(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin/gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    picture = tmp_path / "x.png"
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(ImageError, match="x.png cannot be read: not an image"):
        load_image(picture)
    assert not (tmp_path / "started").exists()


def test_images_are_opened_in_one_place_only():
    found = [path for path in (ROOT / "tools").rglob("*.py") if "Image.open(" in path.read_text(encoding="utf-8")]
    found.remove(ROOT / "tools/t2t_vit/deploy/predict_onnx.py")  # a program that stands alone
    assert found == [ROOT / "tools/t2t_vit/data/images.py"]


def test_every_extension_has_a_format():
    registered = Image.registered_extensions()
    assert {registered[ending] for ending in EXTENSIONS if ending in registered} <= set(FORMATS)
    assert {".avif", ".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= EXTENSIONS


def test_avif_and_heic_are_read_or_named(tmp_path, monkeypatch):
    if "AVIF" in Image.OPEN and features.check("avif"):
        detailed(40, 50).save(tmp_path / "x.avif")
        assert load_image(tmp_path / "x.avif").size == (50, 40)
    (tmp_path / "y.avif").write_bytes(b"\0\0\0\x20ftypavif" + bytes(40))
    (tmp_path / "z.jpg").write_bytes(b"\0\0\0\x20ftypheic" + bytes(40))
    monkeypatch.setattr(images, "_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(ImageError, match="AVIF needs Pillow 11.3 or newer"):
        load_image(tmp_path / "y.avif")
    with pytest.raises(ImageError, match="HEIC is not supported: save it as JPEG"):
        load_image(tmp_path / "z.jpg")


def test_long_texts_in_a_picture_are_accepted(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "edited " * 500_000, zip=True)
    detailed(20, 30).save(tmp_path / "x.png", pnginfo=info)
    assert np.array_equal(load_image(tmp_path / "x.png"), detailed(20, 30))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO", "TIFF"])
def test_first_frame_counts(tmp_path, kind):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:])
    found = np.asarray(load_image(tmp_path / "x")).astype(int)
    assert found.shape == (24, 32, 3) and np.abs(found - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize("clear", [False, True])
def test_modes_become_what_they_show(tmp_path, mode, clear):
    """Black stays black, and transparent black shows the white below."""
    image, keys = Image.new("RGB", (16, 16), "black").convert(mode), {}
    if clear and "A" in mode:
        image.putalpha(0)
    elif clear:
        keys["transparency"] = 0
    image.save(tmp_path / "x", "JPEG" if mode == "CMYK" else "PNG", **keys)
    expected = 255 if clear and mode != "CMYK" else 0
    for channels in (1, 3):
        assert np.abs(np.asarray(load_image(tmp_path / "x", channels)).astype(int) - expected).max() <= 2


# --- Size ---


@pytest.mark.parametrize(
    "bits, colour, chunks", [(16, 0, []), (8, 3, [(b"PLTE", bytes(3)), (b"tRNS", b"\0")]), (8, 2, []), (8, 6, [])]
)
def test_decompression_bombs_are_refused_by_their_header(tmp_path, monkeypatch, bits, colour, chunks):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(13000, 13700, bits, colour, *chunks))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda _self: pytest.fail("decoded"))
    line = r"bomb.png cannot be read: 13000x13700 pixels take \d+ MB decoded, the limit is 512 MB"
    with pytest.raises(ImageError, match=line):
        load_image(path)
    small = tmp_path / "small.png"
    small.write_bytes(png(1000, 1000, bits, colour, *chunks))
    with pytest.raises(ImageError, match="the limit is 3 MB"):
        load_image(small, most_bytes=3 << 20)


def test_memory_stays_below_the_limit(tmp_path):
    """A 16-bit picture and one with a transparent palette once took 30 and 13 bytes for each pixel."""
    Image.new("P", (4000, 3000)).save(tmp_path / "p.png", transparency=0)
    Image.fromarray(np.full((3000, 4000), 60000, np.uint16)).save(tmp_path / "i.png")
    command = [sys.executable, ROOT / "tests/programs/memory_of_images.py", tmp_path / "p.png", tmp_path / "i.png"]
    used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert used < 10 * 4000 * 3000 + (10 << 20)  # as `images._check_size` counts


# --- More than 8 bits ---


def test_16_bits_are_scaled(tmp_path):
    values = (RAMP * 12).astype(np.uint16)  # 0 to 61428
    Image.fromarray(values).save(tmp_path / "x.png")
    Image.fromarray(values).save(tmp_path / "x.tif")
    (tmp_path / "x.pgm").write_bytes(b"P5 80 64 65535\n" + values.astype(">u2").tobytes())
    for name in ("x.png", "x.tif", "x.pgm"):
        for reader in ("turbo", "pillow"):
            found = open_picture(tmp_path / name, 1, reader).crop((0, 0, 80, 64), (80, 64), "bilinear")[:, :, 0]
            assert np.array_equal(found, np.rint(values / 257)), name


def test_grey_bits_can_be_set(tmp_path, warned):
    values = (RAMP % 4001).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    dark = np.asarray(load_image(tmp_path / "x.png", 1))
    load_image(tmp_path / "x.png", 1)
    assert dark.max() == 16
    assert [record.getMessage() for record in warned.records] == [
        f"warning: {tmp_path}/x.png uses at most 12 of 16 bits and looks nearly black; set DATA.GREY_BITS to the bits "
        "that hold values, often 12 (only the first such image is named)"
    ]
    cfg = settings(DATA__GREY_BITS="12", DATA__CHANNELS="1", DATA__MEAN="[0.5]", DATA__STD="[0.5]")
    assert np.array_equal(load_image(tmp_path / "x.png", **reading(cfg)), np.rint(values / (4095 / 255)))
    Image.fromarray(values + 200).save(tmp_path / "y.png")
    with pytest.raises(ImageError, match="run from 200 to 4200, but DATA.GREY_BITS 12 allows 0 to 4095"):
        load_image(tmp_path / "y.png", grey_bits=12)


@pytest.mark.parametrize(
    "values, expected",
    [
        (RAMP % 251, RAMP % 251),  # 8-bit values in 32-bit integers
        (RAMP * 12, np.rint(RAMP * 12 / 257)),
        (RAMP - 1, "its values run from -1 to 5118, but DATA.GREY_BITS 16 allows 0 to 65535"),
        (RAMP * 100, "its values run from 0 to 511900, but"),
        (np.float32(RAMP / RAMP.max()), np.rint(RAMP / RAMP.max() * 255)),
        (np.float32(RAMP % 256), "its values are floats from 0 to 255, but only 0 to 1 is supported"),
        (np.float32([[0.5, np.nan]]), "its values are floats from nan to nan"),
    ],
)
def test_32_bit_images_with_a_known_range_are_read(tmp_path, values, expected):
    values = values.astype(np.int32) if values.dtype != np.float32 else values
    Image.fromarray(values).save(tmp_path / "x.tif")
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=f"x.tif cannot be read: {expected}"):
            load_image(tmp_path / "x.tif", 1)
    else:
        assert np.array_equal(load_image(tmp_path / "x.tif", 1), expected)


# --- Upright ---


def rotated(path, number, kind="JPEG", xmp=False):
    """Return a picture stored with EXIF orientation `number`."""
    turns = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    upright, method = detailed(96, 128), images._UPRIGHT.get(number)
    stored = upright if method is None else upright.transpose(turns.get(method, method))
    keys = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    if xmp:
        keys["xmp"] = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="%d"/></x:xmpmeta>' % number
    else:
        keys["exif"] = Image.Exif()
        keys["exif"][0x0112] = number
    stored.save(path, kind, **keys)
    return upright


@pytest.mark.parametrize("reader", [pytest.param("turbo", marks=turbo), "pillow"])
@pytest.mark.parametrize("number", range(1, 10))
def test_pictures_are_read_upright(tmp_path, number, reader):
    expected = np.asarray(rotated(tmp_path / "x.jpg", number)).astype(int)
    picture = open_picture(tmp_path / "x.jpg", 3, reader, upright=True)
    assert picture.size == (128, 96)
    found = picture.crop((0, 0, 128, 96), (128, 96), "bilinear").astype(int)
    assert np.abs(found - expected).mean() < 3
    as_stored = open_picture(tmp_path / "x.jpg", 3, reader)
    assert as_stored.size == ((96, 128) if 5 <= number <= 8 else (128, 96))
    assert stored_form(tmp_path / "x.jpg") == ("RGB", number in range(2, 9))


writes_xmp = pytest.mark.skipif(int(PIL.__version__.partition(".")[0]) < 11, reason="Pillow before 11 writes no XMP")
KINDS = [("PNG", False), ("WEBP", False), ("TIFF", False), pytest.param("JPEG", True, marks=writes_xmp)]


@pytest.mark.parametrize("kind, xmp", KINDS)
def test_other_formats_and_xmp_rotate_too(tmp_path, kind, xmp):
    expected = np.asarray(rotated(tmp_path / "x", 6, kind, xmp)).astype(int)
    for reader in ("turbo", "pillow"):
        picture = open_picture(tmp_path / "x", 3, reader, upright=True)
        assert picture.size == (128, 96)
        assert np.abs(picture.crop((0, 0, 128, 96), (128, 96), "bilinear") - expected).mean() < 6
    load_image(tmp_path / "x", upright=True).save(tmp_path / "y.png")
    assert load_image(tmp_path / "y.png", upright=True).size == (128, 96), "rotated twice"


def test_a_tiff_is_rotated_once(tmp_path, monkeypatch):
    """Pillow rotates TIFF while it loads; up to 10.0 it still gives the stored orientation afterwards."""
    rotated(tmp_path / "x.tif", 6, "TIFF")
    monkeypatch.setattr(images, "_orientation", lambda image: 6)
    assert load_image(tmp_path / "x.tif", upright=True).size == (128, 96)


def test_damaged_exif_data_rotate_nothing(tmp_path):
    detailed(30, 40).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(5))
    for reader in ("turbo", "pillow"):
        assert open_picture(tmp_path / "x.jpg", 3, reader, upright=True).size == (40, 30)


def test_exif_key_decides_which_pictures_are_rotated():
    imagenet, own = default_config(), load_config("configs/lit_data.yaml")
    found = [
        [reading(cfg if key is None else load_config(path, [("DATA.EXIF", key)]), by_hand)["upright"]
         for by_hand in (False, True)]
        for cfg, path in ((imagenet, "configs/t2t_vit_7.yaml"), (own, "configs/lit_data.yaml"))
        for key in (None, "upright", "ignore")
    ]  # fmt: skip
    both = [[True, True], [False, False]]
    assert found == [[False, True], *both, [True, True], *both]  # ImageNet's own data as in the official evaluation
    with pytest.raises(UserError, match="DATA.EXIF is 'yes' but must be auto, upright or ignore"):
        load_config("configs/lit_data.yaml", [("DATA.EXIF", "yes")])


def test_pictures_given_by_hand_are_read_upright(tmp_path):
    rotated(tmp_path / "phone.jpg", 6)
    cfg = load_config("configs/t2t_vit_7.yaml")
    pixels, errors = read_images([tmp_path / "phone.jpg"], cfg)
    assert not errors
    assert np.array_equal(
        pixels[tmp_path / "phone.jpg"], EvalTransform(cfg)(load_image(tmp_path / "phone.jpg", 3, True))
    )


def test_exported_models_say_how_pictures_are_read():
    cfg = settings(DATA__EXIF="ignore", DATA__GREY_BITS="12")
    classes = type("Classes", (), {"folders": ["a", "b"], "names": ["a", "b"]})
    entries = Metadata.of(cfg, classes, "fp32").to_entries()
    keys = Metadata.from_entries(entries, "x.onnx").config_keys()
    assert (keys["DATA.EXIF"], keys["DATA.GREY_BITS"]) == ("ignore", 12)
    for name in ("exif", "grey_bits"):
        del entries[name]
    keys = Metadata.from_entries(entries, "older.onnx").config_keys()
    assert (keys["DATA.EXIF"], keys["DATA.GREY_BITS"]) == ("auto", 16)
    with pytest.raises(UserError, match="x.onnx is damaged .ValueError: exif is 1.; export it again"):
        Metadata.from_entries({**entries, "exif": "1"}, "x.onnx")
