"""The fast JPEG reader compared with Pillow."""

import functools
import struct

import numpy as np
import pytest
from PIL import Image
from test_data import settings

from t2t_vit.data import crop_reader
from t2t_vit.data.augment import build_augment
from t2t_vit.data.crop_reader import JpegPicture, PillowPicture, open_picture, reader_name
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import ImageError, load_image
from t2t_vit.data.loader import EvalLoader, TrainLoader
from t2t_vit.data.transforms import TrainTransform

turbo = pytest.mark.skipif(crop_reader.simplejpeg is None, reason="simplejpeg and cykooz.resizer are not installed")
INTERPOLATIONS = ("bilinear", "bicubic")


@functools.lru_cache(maxsize=1)
def both(path):
    fast, slow = open_picture(path, 3, "turbo"), open_picture(path, 3, "pillow")
    assert isinstance(slow, PillowPicture) and fast.size == slow.size
    return fast, slow


def crops(path, box, side, interpolation):
    fast, slow = (picture.crop(box, (side, side), interpolation) for picture in both(path))
    assert fast.dtype == slow.dtype == np.uint8 and fast.shape == slow.shape == (side, side, 3)
    return fast.astype(int), slow.astype(int)


def decibels(one, other):
    error = np.mean((one - other) ** 2.0)
    return 10 * np.log10(255**2 / error) if error else np.inf


def random_box(size, rng, smallest):
    width, height = (int(rng.integers(min(smallest, length), length + 1)) for length in size)
    left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
    return left, top, left + width, top + height


def detailed(height, width, seed=0):
    """Edges, ramps and a little noise, as a picture has them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    fine = Image.fromarray(rng.integers(0, 256, (11, 13, 3), dtype=np.uint8)).resize((width, height), 0)
    return Image.blend(coarse, fine, 0.4)


# --- Plain JPEG files ---


@pytest.fixture(scope="module")
def sample(imagenet_sample):
    paths = sorted(imagenet_sample.rglob("*.JPEG"))
    assert len(paths) == 76
    return paths


@turbo
def test_decoding_is_identical(sample):
    rng = np.random.default_rng(0)
    for path in sample:
        assert isinstance(open_picture(path, 3, "turbo"), JpegPicture)
        width, height = both(path)[0].size
        side = min(width, height)
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        for box in ((left, top, left + side, top + side), (0, 0, 32, 32), (width - 33, height - 33, width, height)):
            fast, slow = crops(path, box, box[2] - box[0], "bicubic")  # nothing is scaled
            assert (fast == slow).all(), path


@turbo
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_unreduced_crops_equal_pillow(sample, interpolation):
    rng = np.random.default_rng(1)
    for path in sample:
        size = both(path)[0].size
        anywhere = random_box(size, rng, 20)
        side = max(64, -(-min(anywhere[2] - anywhere[0], anywhere[3] - anywhere[1]) // 4))
        for box in (anywhere, (0, 0, size[0], 31), (size[0] - 29, 0, *size)):
            fast, slow = crops(path, box, side, interpolation)
            assert decibels(fast, slow) > 45
            assert interpolation == "bicubic" or np.abs(fast - slow).max() <= 1


@turbo
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_crops_of_real_pictures_may_be_reduced(sample, interpolation):
    rng = np.random.default_rng(2)
    reductions = set()
    for path in sample:
        size = both(path)[0].size
        for side in (48, 64):
            box = random_box(size, rng, 200)
            reductions.add(crop_reader._reduction(box, side))
            assert decibels(*crops(path, box, side, interpolation)) > 40, (path, box, side)
    assert {1, 2} <= reductions


@turbo
@pytest.mark.parametrize("factor, shape, side", [(2, (1203, 1301), 224), (4, (1201, 2401), 64), (8, (1951, 2999), 64)])
def test_every_reduction_of_large_pictures(tmp_path, sample, factor, shape, side):
    height, width = shape
    tile = load_image(sample[3]).resize((600, 450), Image.Resampling.LANCZOS)
    large = np.tile(np.asarray(tile), (-(-height // 450), -(-width // 600), 1))[:height, :width]
    Image.fromarray(large).save(tmp_path / "x.jpg", quality=95)
    length = factor * max(3 * side // 2, 240)
    boxes = [
        (0, 0, width, height),
        (0, 0, length, length),
        (width - length, height - length, width, height),
        (7, 5, 7 + length, height),
    ]
    for box in boxes:
        assert crop_reader._reduction(box, side) == factor
        for interpolation in INTERPOLATIONS:
            assert decibels(*crops(tmp_path / "x.jpg", box, side, interpolation)) > 40, box


@turbo
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("length", [96, 160, 320, 640])
def test_a_crop_sees_nothing_outside_its_box(tmp_path, length, interpolation):
    pixels = np.zeros((length + 64, length + 64, 3), np.uint8)
    pixels[32:-32, 32:-32] = 255
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
    fast, slow = crops(tmp_path / "x.jpg", (32, 32, length + 32, length + 32), 32, interpolation)
    assert slow.min() == 255 and fast.min() >= 253


@turbo
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 2), (17, 33), (300, 301), (641, 403)])
def test_odd_sizes(tmp_path, size):
    detailed(size[1], size[0]).save(tmp_path / "x.jpg", quality=95)
    for side in (16, 45):
        for box in ((0, 0, *size), (size[0] // 2, size[1] // 2, *size)):
            fast, slow = crops(tmp_path / "x.jpg", box, side, "bilinear")
            reduced = crop_reader._reduction(box, side) > 1
            assert decibels(fast, slow) > 40 if reduced else np.abs(fast - slow).max() <= 1


# --- Unusual files ---


def save_unusual(kind, path):
    image = detailed(120, 161)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    options = {
        "grey": (image.convert("L"), {}), "cmyk": (image.convert("CMYK"), {}),
        "exif": (image, {"exif": exif}), "4:4:4": (image, {"subsampling": 0}), "4:2:2": (image, {"subsampling": 1}),
        "rgb": (image, {"keep_rgb": True}), "restart": (image, {"restart_marker_rows": 2}), "garbage": (image, {}),
        "coarse": (image, {"quality": 5}), "comment": (image, {"comment": b"x" * 60000}),
        "progressive": (image, {"progressive": True}),
    }  # fmt: skip
    if kind == "png":
        image.save(path, format="PNG")
    elif kind == "mpo":
        image.save(path, format="MPO", save_all=True, append_images=[detailed(60, 60, 1)])
    else:
        picture, keys = options[kind]
        picture.save(path, **{"quality": 90, **keys})
    if kind == "garbage":
        path.write_bytes(path.read_bytes() + b"\xff\xd8\xff junk" * 50)


@pytest.mark.parametrize(
    "kind",
    ["grey", "cmyk", "progressive", "exif", "4:4:4", "4:2:2", "rgb", "restart", "garbage", "coarse", "comment", "png",
     "mpo"],
)  # fmt: skip
def test_unusual_files_give_pillows_pixels(tmp_path, kind):
    path = tmp_path / "x.jpg"
    save_unusual(kind, path)
    assert both(path)[0].size == (161, 120)
    for box, side in (((0, 0, 161, 120), 64), ((30, 20, 94, 84), 64), ((100, 60, 161, 120), 64)):
        fast, slow = crops(path, box, side, "bilinear")
        assert np.abs(fast - slow).max() <= 1
    fast, slow = crops(path, (30, 20, 94, 84), 64, "bicubic")
    assert (fast == slow).all()


def bomb():
    header = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65000, 65000, 3)
    return header + bytes([1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]) + b"\xff\xd9"


@pytest.mark.parametrize("reader", ["turbo", "pillow"])
@pytest.mark.parametrize(
    "kind", ["truncated", "headless", "empty", "text", "magic", "missing", "folder", "link", "bomb"]
)
def test_unreadable_files_are_named(tmp_path, kind, reader):
    path = tmp_path / "broken.jpg"
    detailed(200, 200).save(tmp_path / "whole.jpg", quality=95)
    data = (tmp_path / "whole.jpg").read_bytes()
    content = {"truncated": data[: len(data) // 2], "headless": data[:100], "empty": b"", "text": b"just text",
               "magic": b"\xff\xd8\xff", "bomb": bomb()}  # fmt: skip
    if kind in content:
        path.write_bytes(content[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="broken.jpg"):
        open_picture(path, 3, reader).crop((0, 0, 150, 150), (32, 32), "bilinear")


def test_damaged_files_are_read_or_refused_as_pillow_does(tmp_path):
    detailed(200, 200).save(tmp_path / "whole.jpg", quality=95)
    data = (tmp_path / "whole.jpg").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = []
    for i in range(40):
        damaged = bytearray(data)
        for place in rng.integers(30 if i % 2 else 700, len(data), 1 + i % 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "x.jpg").write_bytes(damaged)
        results = []
        for reader in ("turbo", "pillow"):
            try:
                picture = open_picture(tmp_path / "x.jpg", 3, reader)
                results.append(picture.crop((9, 9, 159, 159), (150, 150), "bicubic"))
            except ImageError:
                results.append(None)
        outcomes.append(results[1] is not None)
        assert (results[0] is None) == (results[1] is None) and np.array_equal(*results), i
    assert any(outcomes)


# --- Which reader ---


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pillow_reader_is_pillow(tmp_path, interpolation):
    image = detailed(150, 210)
    image.save(tmp_path / "x.jpg", quality=90)
    image.save(tmp_path / "x.png")
    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for name, channels, mode in (("x.jpg", 3, "RGB"), ("x.jpg", 1, "L"), ("x.png", 3, "RGB")):
        with Image.open(tmp_path / name) as opened:
            expected = np.asarray(opened.convert(mode).crop((3, 5, 190, 140)).resize((48, 48), resampling))
        for reader in ("pillow",) if name == "x.jpg" and channels == 3 else ("pillow", "turbo"):
            out = open_picture(tmp_path / name, channels, reader).crop((3, 5, 190, 140), (48, 48), interpolation)
            assert out.shape == (48, 48, channels) and (out.reshape(expected.shape) == expected).all()


def test_without_the_fast_libraries_pillow_reads(tmp_path, monkeypatch):
    detailed(100, 100).save(tmp_path / "x.jpg")
    monkeypatch.setattr(crop_reader, "simplejpeg", None)
    monkeypatch.setattr(crop_reader, "cykooz_resizer", None)
    assert reader_name("turbo") == reader_name("pillow") == "pillow"
    fast, slow = crops(tmp_path / "x.jpg", (0, 0, 90, 80), 16, "bicubic")
    assert (fast == slow).all()


@turbo
def test_only_the_training_loader_uses_the_fast_reader(tmp_path, monkeypatch):
    for split in ("train", "val"):
        for name, seed in (("ant", 0), ("bee", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            detailed(100, 100, seed).save(tmp_path / split / name / "x.jpg")
    used, decode_jpeg = [], crop_reader.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        crop_reader.simplejpeg, "decode_jpeg", lambda *args, **keys: used.append(1) or decode_jpeg(*args, **keys)
    )
    expected = [np.asarray(Image.open(tmp_path / f"val/{name}/x.jpg")) for name in ("ant", "bee")]
    for reader, number in (("turbo", 2), ("pillow", 0)):
        cfg = settings(DATA__PATH=str(tmp_path), MODEL__NUM_CLASSES="2", DATA__READER=reader, DATA__NUM_WORKERS="0",
                       DATA__IMAGE_SIZE="100", TRAIN__BATCH_SIZE="2", VAL__CROP_PCT="1.0")  # fmt: skip
        splits = load_data(cfg)[1]
        ((batch, labels),) = EvalLoader(splits["val"], cfg)
        assert (batch.numpy() == expected).all() and labels.tolist() == [0, 1]
        assert not used
        list(TrainLoader(splits["train"], cfg).epoch_steps(0))
        assert len(used) == number
        used.clear()


# --- The whole transform ---


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "v0-mstd0.5", "3a", ""])
def test_the_generator_alone_decides(text):
    transform = TrainTransform(settings(AUG__AUTO_AUGMENT=text, AUG__COLOR_JITTER="0.4"))
    picture = PillowPicture(detailed(40, 50))
    first, second = ([transform(picture, np.random.default_rng(i)).tobytes() for i in range(20)] for _ in range(2))
    assert first == second and len(set(first)) == 20


@pytest.mark.parametrize("text", ["rand-m10-mstd0.5-inc1", "rand-m10-mstdinf", "v0-mstd9"])
def test_no_image_is_too_small(text):
    rng, (transform,) = np.random.default_rng(0), build_augment(settings(AUG__AUTO_AUGMENT=text))
    pictures = [detailed(*size) for size in ((1, 1), (1, 2), (3, 1), (2, 2), (5, 4))]
    pictures += [picture.convert("L") for picture in pictures]
    for picture in pictures * (2000 if text.endswith("inc1") else 300):
        out = transform(picture, rng)
        assert (out.size, out.mode) == (picture.size, picture.mode)
