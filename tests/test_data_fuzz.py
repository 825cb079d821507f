"""Damaged lists, archives and images give a result or a UserError, never another exception."""

import contextlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cifar_archives import binary, python2
from test_images import detailed
from test_unpack import tar_bytes

from t2t_vit.common.errors import UserError
from t2t_vit.data.classes import read_classes
from t2t_vit.data.crop_reader import open_picture
from t2t_vit.data.dataset import read_list
from t2t_vit.data.images import ImageError, load_image
from t2t_vit.data.unpacker import Unpacker
from t2t_vit.data.val_classes import ValClasses

EXAMPLES = int(os.environ.get("T2T_FUZZ", 40))  # T2T_FUZZ=2000 for a long search
some = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)


@st.composite
def damaged(draw, contents):
    """One of `contents` with some bytes changed, or cut off."""
    data = bytearray(draw(st.sampled_from(contents)))
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=5)):
        data[place] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


# --- Lists ---

LISTS = [text.encode(encoding) for encoding in ("utf-8", "utf-16") for text in (
    "a/0.png 0\na/1.png 1\n", "image,label\n\"a/0.png\",0\n", "ImageId,PredictionString\nx,n01440764 1 2 3 4\n",
    "index\tfolder\tname\n0\tcat\tcat\n1\tdog\told dog\n", "0: cat\n1: dog\n", "cat 0\ndog 1\n",
    json.dumps({"0": ["n01440764", "tench"], "1": ["b", "c"]}), json.dumps({"cat": 0, "dog": 1}),
)]  # fmt: skip


@some
@given(damaged(LISTS))
def test_damaged_lists(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list.txt")
        path.write_bytes(content)
        for read in (read_classes, lambda path: read_list(path.parent, "val", path, None)):
            try:
                assert len(read(path))
            except UserError as error:
                assert "list.txt" in str(error)


# --- Archives ---


def zip_bytes(files, method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def compressed(tar, mode):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("train/cat/0.png"))
        member = tarfile.TarInfo("n01440764.tar")
        member.size = len(tar)
        archive.addfile(member, io.BytesIO(tar))
    return stream.getvalue()


FILES = {"train/cat/1.png": b"one" * 99, "train/dog/x/2.png": b"two", "val_list.txt": b"val/x 1\n",
         "val/ILSVRC2012_val_00000001.JPEG": b"x"}  # fmt: skip
ARCHIVES = [tar_bytes(FILES), *(compressed(tar_bytes(FILES), f"w:{kind}") for kind in ("gz", "bz2", "xz")),
            *(zip_bytes(FILES, method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)),
            tar_bytes(binary(100)), tar_bytes(python2(10))]  # fmt: skip


@some
@given(damaged(ARCHIVES))
def test_damaged_archives(content):
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "x.tar"), Path(folder, "out")
        path.write_bytes(content)
        classes = ValClasses([path], None)
        with contextlib.suppress(UserError):
            Unpacker(out, classes, is_new=True, is_trusted=True).unpack(path)
        assert set(os.listdir(folder)) <= {"x.tar", "out"}
        assert not list(out.rglob(".*.part"))


# --- Images ---


def encoded(image, kind, **keys):
    stream = io.BytesIO()
    image.save(stream, kind, **keys)
    return stream.getvalue()


def pictures():
    image, exif = detailed(24, 31), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30))
    plain = [(kind, {}) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP")]
    yield from (encoded(image, kind, **keys) for kind, keys in [*plain, ("JPEG", {"progressive": True, "exif": exif})])
    yield from (encoded(deep, kind) for kind in ("PNG", "TIFF"))
    yield encoded(image.quantize(8), "PNG", transparency=0)
    yield encoded(image.convert("CMYK"), "JPEG")


@pytest.mark.parametrize("reader", ["turbo", "pillow"])
@some
@given(content=damaged(list(pictures())))
def test_damaged_images(reader, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.jpg")
        path.write_bytes(content)
        for channels in (1, 3):
            try:
                assert load_image(path, channels, upright=True).mode == {1: "L", 3: "RGB"}[channels]
                picture = open_picture(path, channels, reader, upright=True)
                box = (0, 0, *picture.size)
                assert picture.crop(box, (16, 16), "bicubic").shape == (16, 16, channels)
            except ImageError as error:
                assert "x.jpg" in str(error)
