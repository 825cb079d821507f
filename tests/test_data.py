"""Reading data sets and images, transforms, and the order of batches."""

import math
import os
import struct

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageCms
from scipy import stats

from t2t_vit.common.errors import UserError
from t2t_vit.config import CLASS_LISTS, load_config
from t2t_vit.data import transforms
from t2t_vit.data.batch import Normalize
from t2t_vit.data.classes import read_classes
from t2t_vit.data.crop_reader import PillowPicture, open_picture
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import ImageError, load_image
from t2t_vit.data.transforms import EvalTransform, TrainTransform


def settings(**keys):
    pairs = [(key.replace("__", "."), value) for key, value in keys.items()]
    return load_config(ROOT / "configs/lit_data.yaml", pairs)


def make_folders(root, spec):
    """spec {"train/cat": 2}: folders with that many 4x4 images."""
    for folder, count in spec.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (i, 0, 0)).save(root / folder / f"{i}.png")
    return root


def folder_config(root, classes=2, **keys):
    return settings(DATA__PATH=str(root), MODEL__NUM_CLASSES=str(classes), **keys)


# --- Data sets ---


def test_lit_data_is_complete():
    classes, splits = load_data(settings())
    assert classes.names == ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert (len(splits["train"]), len(splits["val"])) == (1437, 360)
    from_lists = load_data(settings(DATA__TRAIN_LIST="train.txt", DATA__VAL_LIST="val.txt"))[1]
    for name, split in splits.items():
        assert list(split.paths) == list(from_lists[name].paths) and (split.labels == from_lists[name].labels).all()
        counts = np.bincount(split.labels)
        assert counts.max() - counts.min() <= 8  # stratified


def test_classes_are_shared_by_both_splits(tmp_path):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 2, "val/bee": 1})
    classes, splits = load_data(folder_config(tmp_path))
    assert classes.folders == ("ant", "bee")
    assert splits["train"].labels.tolist() == [0, 1, 1] and splits["val"].labels.tolist() == [1]


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_validation_folder_may_have_any_usual_name(tmp_path, name):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, f"{name}/ant": 1, f"{name}/bee": 3})
    assert len(load_data(folder_config(tmp_path))[1]["val"]) == 4


def test_the_split_folder_itself_may_be_given(tmp_path):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "val/bee": 3})
    split = load_data(folder_config(tmp_path / "val"), ["val"])[1]["val"]
    assert split.labels.tolist() == [1, 1, 1]  # bee is 1, by the training folders
    make_folders(tmp_path / "pictures", {"ant": 1, "bee": 1})
    assert load_data(folder_config(tmp_path / "pictures"), ["val"])[1]["val"].labels.tolist() == [0, 1]


def test_given_split_folder_is_used(tmp_path):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "val/bee": 3, "test/ant": 4})
    assert load_data(folder_config(tmp_path / "test"), ["val"])[1]["val"].labels.tolist() == [0] * 4
    assert load_data(folder_config(tmp_path / "val"), ["val"])[1]["val"].labels.tolist() == [1] * 3
    assert load_data(folder_config(tmp_path / "train"), ["train"])[1]["train"].labels.tolist() == [0, 1]


def test_train_folder_is_not_used_for_validation(tmp_path):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "val/bee": 3})
    with pytest.raises(UserError, match="train is not a val folder; give the folder above it"):
        load_data(folder_config(tmp_path / "train"), ["val"])


def test_hidden_files_are_skipped_and_links_are_followed(tmp_path):
    make_folders(tmp_path, {"train/ant/.ipynb_checkpoints": 2, "train/bee/more": 1, "elsewhere": 2})
    (tmp_path / "train/ant/._x.png").write_bytes(b"macOS")
    (tmp_path / "train/ant/dir.png").mkdir()
    (tmp_path / "train/ant/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/bee/loop").symlink_to(tmp_path / "train/bee")
    assert load_data(folder_config(tmp_path), ["train"])[1]["train"].labels.tolist() == [0, 0, 1]


def test_class_list_with_a_repeated_folder_is_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("ant\nbee\nant\n")
    with pytest.raises(UserError, match="classes.txt names ant more than once"):
        read_classes(tmp_path / "classes.txt")


def test_class_missing_in_one_split_is_reported(tmp_path, warned):
    make_folders(tmp_path, {"train/ant": 1, "train/bee": 1, "val/bee": 1, "val/wasp": 1})
    with pytest.raises(UserError, match="val has class folders that are not in .*train: wasp"):
        load_data(folder_config(tmp_path))
    make_folders(tmp_path / "b", {"train/ant": 1, "train/bee": 0, "val/ant": 1})
    load_data(folder_config(tmp_path / "b"))
    assert "1 of 2 classes have no image in" in warned.text and warned.text.count("bee") == 2


@pytest.mark.parametrize(
    "spec, classes, message",
    [
        ({}, 2, "has no class folders|has no val/ folder"),
        ({"train/ant": 1, "train/bee": 1}, 2, "has no val/ folder"),
        ({"train": 0, "val": 0}, 2, "has no class folders"),
        ({"train/ant": 0, "train/bee": 0, "val/ant": 1}, 2, "contain no images"),
        ({"train/ant": 1, "train/bee": 1, "val/ant": 1}, 3, "NUM_CLASSES is 3 but .* has 2 classes; set .*CLASSES 2"),
    ],
)
def test_unusable_folders_are_named(tmp_path, spec, classes, message):
    make_folders(tmp_path, spec)
    with pytest.raises(UserError, match=message):
        load_data(folder_config(tmp_path, classes))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a b.png 0\nc.png x\n", "train.txt, line 2: expected 'relative/path label'"),
        ("a b.png \u00b2\n", "line 1: expected"),
        ("a b.png 2\n", "line 1: label 2 is out of range, the last of 2 classes is 1"),
        ("", "is empty"),
        ("a b.png 1" + "0" * 5000 + "\n", "line 1: expected"),
        ("gone.png 0\n", "names gone.png, which is in none of"),
    ],
)
def test_list_files_are_checked(tmp_path, text, message):
    make_folders(tmp_path, {"train": 0, "val": 0})
    Image.new("L", (4, 4)).save(tmp_path / "train" / "a b.png")
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load_data(folder_config(tmp_path, DATA__TRAIN_LIST="train.txt", DATA__VAL_LIST="train.txt"))


def test_list_paths_may_contain_spaces_and_start_at_root_or_split(tmp_path):
    make_folders(tmp_path, {"train": 0})
    Image.new("L", (4, 4)).save(tmp_path / "train" / "a b.png")
    for text in ("a b.png 1\n", "\ufeffa b.png 1\n", "train/a b.png 1\n", f"{tmp_path}/train/a b.png\t1\n"):
        (tmp_path / "list.txt").write_text(text)
        split = load_data(folder_config(tmp_path, DATA__TRAIN_LIST="list.txt"), ["train"])[1]["train"]
        assert (list(split.paths), split.labels.tolist()) == ([f"{tmp_path}/train/a b.png"], [1])


def test_imagenet_classes_give_official_ids():
    classes = read_classes(CLASS_LISTS["imagenet1k"])
    assert len(classes) == 1000 and classes.folders[923] == "n07579787" and classes.names[0] == "tench"


def test_partial_imagenet_folders_keep_official_ids(imagenet_sample):
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("DATA.PATH", str(imagenet_sample))])
    by_folder = load_data(cfg)[1]
    cfg = load_config(
        ROOT / "configs/t2t_vit_7.yaml",
        [("DATA.PATH", str(imagenet_sample)), ("DATA.TRAIN_LIST", "train.txt"), ("DATA.VAL_LIST", "val.txt")],
    )
    by_list = load_data(cfg)[1]
    for name in ("train", "val"):
        assert dict(zip(by_folder[name].paths, by_folder[name].labels)) == dict(
            zip(by_list[name].paths, by_list[name].labels)
        )


# --- Images ---


def test_every_mode_becomes_rgb(tmp_path):
    red = (200, 30, 40)
    rgb = Image.new("RGB", (4, 4), red)
    images = {
        "rgb.png": rgb,
        "palette.png": rgb.quantize(4),
        "palette.gif": rgb.quantize(4),
        "opaque.png": rgb.convert("RGBA"),
        "cmyk.tif": rgb.convert("CMYK"),
        "lab.tif": ImageCms.profileToProfile(
            rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        ),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
        pixels = np.asarray(load_image(tmp_path / name)).astype(int)
        assert pixels.shape == (4, 4, 3)
        assert name.startswith("lab") or np.abs(pixels - red).max() <= 3, name
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(load_image(tmp_path / "clear.png")) == 255).all()  # white shows through
    half = rgb.quantize(4)
    half.info["transparency"] = 0
    half.save(tmp_path / "hole.png", transparency=half.getpixel((0, 0)))
    assert (np.asarray(load_image(tmp_path / "hole.png")) == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_rgb(tmp_path, mode):
    Image.new("L", (4, 4), 255).convert(mode).save(tmp_path / "x.png")
    assert (np.asarray(load_image(tmp_path / "x.png")) == 255).all()
    assert np.asarray(load_image(tmp_path / "x.png", channels=1)).shape == (4, 4)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "x.png")
    pixels = np.asarray(load_image(tmp_path / "x.png"))[:, :, 0]
    assert np.abs(pixels - values / 257).max() <= 0.5


def test_real_imagenet_pictures_load(imagenet_sample):
    paths = sorted(imagenet_sample.rglob("*.JPEG"))
    assert len(paths) == 76
    modes = {Image.open(path).mode for path in paths}
    assert "L" in modes
    assert {load_image(path).mode for path in paths} == {"RGB"}


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "not an image"), (b"just text", "not an image"), ("truncated", "truncated"), (None, "not found")],
)
def test_unreadable_images_are_named(tmp_path, content, reason):
    path = tmp_path / "x.jpg"
    if content == "truncated":
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-700])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=f"x.jpg.*{reason}"):
        load_image(path)


def test_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (load_image, lambda path: open_picture(path, 3, "turbo")):
        with pytest.raises(ImageError, match="pipe.jpg cannot be read: it is not a file"):
            read(tmp_path / "pipe.jpg")


def test_checksum_depends_on_names_and_labels_but_not_on_folders(tmp_path):
    sums = []
    for folder, spec in (("a", 2), ("b", 2), ("c", 3)):
        make_folders(tmp_path / folder, {"train/ant": spec, "train/bee": 1, "val/ant": 1})
        sums.append(load_data(folder_config(tmp_path / folder))[1]["train"].checksum())
    (tmp_path / "b/train/ant/1.png").rename(tmp_path / "b/train/ant/7.png")
    sums.append(load_data(folder_config(tmp_path / "b"))[1]["train"].checksum())
    (tmp_path / "a/train/ant/1.png").rename(tmp_path / "a/train/bee/1.png")
    sums.append(load_data(folder_config(tmp_path / "a"))[1]["train"].checksum())
    assert sums[0] == sums[1] and len(set(sums)) == 4


def test_bomb_and_folder_are_named(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match="folder.jpg"):
        load_image(tmp_path / "folder.jpg")
    header = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "bomb.bmp").write_bytes(header)
    with pytest.raises(ImageError, match="bomb.bmp.*decompression bomb"):
        load_image(tmp_path / "bomb.bmp")


# --- Transforms ---


def test_evaluation_is_resize_bicubic_then_centre_crop():
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml")
    rng = np.random.default_rng(0)
    for width, height, resized, box in [
        (500, 375, (330, 248), (53, 12)),
        (375, 500, (248, 330), (12, 53)),
        (248, 248, (248, 248), (12, 12)),
        (68, 91, (248, 331), (12, 54)),
    ]:
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        expected = image.resize(resized, Image.Resampling.BICUBIC).crop((*box, box[0] + 224, box[1] + 224))
        assert (EvalTransform(cfg)(image) == np.asarray(expected)).all()
    assert EvalTransform(load_config(ROOT / "configs/t2t_vit_14_384.yaml")).resize == 426


def test_squash_is_a_plain_resize():
    cfg = load_config(ROOT / "configs/t2t_paddle_t2t_vit_7.yaml")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (375, 500, 3), dtype=np.uint8))
    expected = image.resize((224, 224), Image.Resampling.BILINEAR)
    assert (EvalTransform(cfg)(image) == np.asarray(expected)).all()


@pytest.mark.parametrize("shape", [(3, 180), (180, 3)])
def test_ends_of_a_very_long_image_are_cut_off_first(shape, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8))
    transform = EvalTransform(load_config(ROOT / "configs/t2t_vit_7.yaml"))
    cut = transform(image)
    monkeypatch.setattr(transforms, "_LONGEST", 1000)
    assert np.abs(cut.astype(int) - transform(image)).max() <= 1
    monkeypatch.undo()
    assert transform(Image.new("RGB", (1, 65000))).shape == (224, 224, 3)  # 12 GB otherwise


def test_crop_follows_scale_and_ratio():
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml")
    transform = TrainTransform(cfg)
    rng = np.random.default_rng(0)
    boxes = np.array([transform.crop_box((1000, 1000), rng) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1000
    area, log_ratio = width * height / 1e6, np.log(width / height)
    # Near 1 the sides of a long crop would not fit and the draw is repeated, so the laws are tested below that.
    small = area < 0.7
    assert stats.kstest(area[small], stats.uniform(0.08, 0.62).cdf).pvalue > 0.001
    assert stats.kstest(log_ratio[small], stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3)).cdf).pvalue > 0.001


def test_crop_of_an_extreme_image_is_the_largest_centred_one():
    transform = TrainTransform(load_config(ROOT / "configs/t2t_vit_7.yaml", [("AUG.SCALE", "[1.0, 1.0]")]))
    assert transform.crop_box((1000, 100), np.random.default_rng(0)) == (433, 0, 566, 100)
    assert transform.crop_box((100, 1000), np.random.default_rng(0)) == (0, 433, 100, 566)


def test_flip_has_its_probability_and_mirrors():
    ramp = Image.fromarray(np.tile(np.arange(0, 160, 10, dtype=np.uint8), (16, 1))).convert("RGB")
    cfg = settings(AUG__HFLIP="0.3", AUG__SCALE="[1.0, 1.0]", AUG__RATIO="[1.0, 1.0]")
    outputs = [TrainTransform(cfg)(PillowPicture(ramp), np.random.default_rng(i)) for i in range(1000)]
    straight = np.asarray(ramp)
    flipped = [np.array_equal(out, straight[:, ::-1]) for out in outputs]
    assert all(f or np.array_equal(out, straight) for f, out in zip(flipped, outputs))
    assert abs(np.mean(flipped) - 0.3) < 0.05


def padding(**keys):
    keys = {"AUG__PADDED_CROP": "0.125", "AUG__INTERPOLATION": "bicubic", "AUG__HFLIP": "0.0", **keys}
    return TrainTransform(settings(**keys))


def padded(picture, seed, **keys):
    return padding(**keys)(picture, np.random.default_rng(seed))


@pytest.mark.parametrize(
    "width, height, resized", [(8, 8, (16, 16)), (16, 16, (16, 16)), (25, 9, (44, 16)), (7, 9, (16, 20))]
)
def test_padded_crop_is_any_window_of_the_resized_picture_with_a_black_border(width, height, resized):
    image = Image.fromarray(np.random.default_rng(0).integers(50, 255, (height, width, 3), dtype=np.uint8))
    whole = np.asarray(image.resize(resized, Image.Resampling.BICUBIC)).astype(int) + 1  # so that only the border is 0
    bordered = np.pad(whole, ((2, 2), (2, 2), (0, 0))) - 1  # 16 / 8 = 2 pixels
    bordered[bordered < 0] = 0
    windows = {
        bordered[y : y + 16, x : x + 16].tobytes(): (y, x)
        for y in range(bordered.shape[0] - 15)
        for x in range(bordered.shape[1] - 15)
    }
    transform, rng = padding(), np.random.default_rng(1)
    found = [windows[transform(PillowPicture(image), rng).astype(int).tobytes()] for _ in range(10 * len(windows))]
    counts = np.array([found.count(place) for place in windows.values()])
    assert counts.min() > 0
    assert stats.chisquare(counts).pvalue > 0.001  # all alike


def test_padded_crop_flips_augments_and_replaces_the_random_resized_one():
    ramp = PillowPicture(Image.fromarray(np.tile(np.arange(10, 170, 10, dtype=np.uint8), (16, 1))).convert("RGB"))
    keys = {"AUG__SCALE": "[0.1, 0.1]"}  # without effect
    straight, flipped = padded(ramp, 3, **keys), padded(ramp, 3, AUG__HFLIP="1.0", **keys)
    assert set(straight.ravel().tolist()) <= {0, *range(10, 170, 10)} and (flipped == straight[:, ::-1]).all()
    assert not (padded(ramp, 3, AUG__AUTO_AUGMENT="rand-m9-n5-p1") == straight).all()
    tiny = padded(ramp, 3, AUG__PADDED_CROP="0.01")  # less than a pixel
    assert (tiny == np.asarray(ramp.image)).all()


@pytest.mark.parametrize("reader", ["turbo", "pillow"])
def test_padded_crop_of_jpeg_files_and_of_very_long_pictures(tmp_path, reader):
    row, column = np.meshgrid(np.linspace(60, 250, 500), np.linspace(250, 60, 400))
    image = Image.fromarray(np.stack([row, column, row], axis=2).astype(np.uint8))
    image.save(tmp_path / "x.jpg", quality=95)
    keys = {"DATA__IMAGE_SIZE": "32", "DATA__CHANNELS": "3", "DATA__MEAN": "[0, 0, 0]", "DATA__STD": "[1, 1, 1]"}
    expected = padded(PillowPicture(load_image(tmp_path / "x.jpg")), 5, **keys).astype(int)
    out = padded(open_picture(tmp_path / "x.jpg", 3, reader), 5, **keys)
    assert (expected.min(axis=2) == 0).any() and np.abs(out - expected).max() <= 3  # the same border too
    for size in ((1, 65000), (65000, 1)):
        Image.new("RGB", size, (200, 200, 200)).save(tmp_path / "long.jpg")
        out = padded(open_picture(tmp_path / "long.jpg", 3, reader), 5, **{**keys, "DATA__IMAGE_SIZE": "224"})
        assert out.shape == (224, 224, 3) and out.max() >= 199


def test_normalisation_is_official():
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml")
    import paddle

    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    out = Normalize(cfg)(paddle.to_tensor(pixels)).numpy()
    assert np.abs(out - expected.transpose(0, 3, 1, 2)).max() < 1e-6
