"""The sheet of `augment`: it shows the pixels and the targets that training uses."""

import numpy as np
import pytest
from conftest import ROOT, error_line, tool
from PIL import Image

from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainDataset
from t2t_vit.pictures import augment
from t2t_vit.pictures.augment import EPOCHS, MIXED_EPOCHS, PAIRS
from t2t_vit.pictures.sheet import GAP, LINE, MARGIN, TILE, Heading

FULL = ["AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1", "AUG.ERASE_PROB", "0.5", "AUG.MIXUP", "0.8", "AUG.CUTMIX", "1.0"]
HEADING = 54 + LINE
TOP = MARGIN + HEADING + LINE + 14  # of the first row of images
ROW, MIXED_ROW = TILE + LINE + 14, TILE + 2 * LINE + 14
COLUMNS = 1 + EPOCHS
SIZE, FACTOR = 16, 8  # of the digits, and how much they are enlarged


def config(*words):
    return load_config(ROOT / "configs/lit_data.yaml", list(zip(words[::2], words[1::2])))


def training_images(cfg):
    classes, splits = load_data(cfg, ["train"])
    return classes, splits["train"], TrainDataset(splits["train"], cfg)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    """Pixels of the sheet with all kinds of augmentation on."""
    folder = tmp_path_factory.mktemp("sheet")
    done = tool("visualize", "augment", "--data-path", ROOT / "lit_data", "--count", 3, *FULL, cwd=folder, fresh=False)
    assert (done.stdout, done.stderr) == ("augment.png written\n", "")
    return np.asarray(Image.open(folder / "augment.png"))


def tile_of(sheet, column, top):
    left = MARGIN + column * (TILE + GAP)
    return sheet[top : top + TILE, left : left + TILE]


def digit(sheet, column, top):
    """The 16x16 pixels of an enlarged tile."""
    small = tile_of(sheet, column, top)[::FACTOR, ::FACTOR]
    assert (small.repeat(FACTOR, 0).repeat(FACTOR, 1) == tile_of(sheet, column, top)).all()
    return small


# --- Augmented images ---


def test_sheet_has_the_promised_size(sheet):
    height = TOP + 3 * ROW + HEADING + MIXED_EPOCHS * MIXED_ROW + MARGIN
    assert sheet.shape == (height, 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP, 3)
    assert (sheet[:MARGIN] == 255).all() and (sheet[:, -MARGIN // 2 :] == 255).all()


def test_rows_show_the_images_as_they_are(sheet):
    cfg = config(*FULL)
    _, split, _ = training_images(cfg)
    for row, index in enumerate(augment.choose(split.labels, 3, cfg.SEED)):
        pixels = np.asarray(Image.open(split.paths[index]).convert("RGB"))
        enlarged = pixels.repeat(TILE // 8, 0).repeat(TILE // 8, 1)
        assert (tile_of(sheet, 0, TOP + row * ROW) == enlarged).all()
        name = sheet[TOP + row * ROW + TILE : TOP + (row + 1) * ROW, MARGIN : MARGIN + TILE]
        assert (name < 128).any(), "no class name below the image"


def test_augmented_tiles_equal_training_images(sheet):
    cfg = config(*FULL)
    _, split, dataset = training_images(cfg)
    erased = 0
    for row, index in enumerate(augment.choose(split.labels, 3, cfg.SEED)):
        tiles = [digit(sheet, 1 + epoch, TOP + row * ROW) for epoch in range(EPOCHS)]
        for epoch, shown in enumerate(tiles):
            pixels, _, boxes, *_ = dataset[(epoch, index, 0)]
            outside = np.ones((SIZE, SIZE), bool)
            for top, left, bottom, right in boxes:
                outside[top:bottom, left:right] = False
            assert (shown[outside] == pixels[outside]).all()
            if not outside.all():
                erased += 1
                assert (shown[~outside] != pixels[~outside]).mean() > 0.5
            assert not any((shown == other).all() for other in tiles[:epoch]), "two epochs show the same"
    assert 0.25 * 3 * EPOCHS < erased < 0.75 * 3 * EPOCHS


def test_images_are_drawn_from_the_seed_and_from_all_classes():
    labels = np.repeat(np.arange(5), [1, 2, 3, 4, 50]).astype(np.int32)
    chosen = augment.choose(labels, 5, 1)
    assert sorted(labels[chosen]) == [0, 1, 2, 3, 4]
    assert chosen == augment.choose(labels, 5, 1) != augment.choose(labels, 5, 2)
    assert sorted(labels[augment.choose(labels, 9, 1)]) == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert sorted(augment.choose(labels, 100, 1)) == list(range(60))


# --- Mixed images ---


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_weights_agree_with_targets_and_pixels(mode):
    cfg = config("AUG.MIXUP", 0.8, "AUG.CUTMIX", 1.0, "AUG.MIX_MODE", mode)
    classes, split, dataset = training_images(cfg)
    indices = augment.choose(split.labels, 2 * PAIRS, cfg.SEED)
    seen = set()
    for epoch in range(MIXED_EPOCHS):
        sources, mixed, labels, targets = augment.mixed_batch(dataset, epoch, indices, cfg)
        assert (labels == split.labels[indices]).all()
        assert (sources == np.stack([dataset[(epoch, index, 0)][0] for index in indices])).all()
        for i in range(PAIRS):
            own = (targets[i][labels[i]] - 0.1 / 10) / 0.9  # without label smoothing
            if labels[i] != labels[-1 - i]:
                assert targets[i][labels[-1 - i]] == pytest.approx(0.9 * (1 - own) + 0.1 / 10, abs=1e-5)
            a, b, mix = (x.astype(float) for x in (sources[i], sources[-1 - i], mixed[i]))
            is_own, is_other = (mix == a).all(-1), (mix == b).all(-1)
            if (is_own | is_other).all():
                seen.add("cutmix")
                assert (is_own & ~is_other).mean() - 0.01 <= own <= 1 - (is_other & ~is_own).mean() + 0.01
            else:
                seen.add("mixup")
                assert np.abs(own * a + (1 - own) * b - mix).max() < 0.006 * 255 + 1
    assert seen == {"mixup", "cutmix"}


def test_mixed_tiles_of_the_sheet(sheet):
    cfg = config(*FULL)
    _, split, dataset = training_images(cfg)
    indices = augment.choose(split.labels, 2 * PAIRS, cfg.SEED)
    for epoch in range(MIXED_EPOCHS):
        sources, mixed, _, _ = augment.mixed_batch(dataset, epoch, indices, cfg)
        top = TOP + 3 * ROW + HEADING + epoch * MIXED_ROW
        for i in range(PAIRS):
            for column, pixels in enumerate((sources[i], sources[-1 - i], mixed[i]), start=1 + 3 * i):
                assert (digit(sheet, column, top) == pixels).all()


def test_mixing_that_ends_or_is_off():
    cfg = config("AUG.MIXUP", 0.8, "AUG.MIX_OFF_EPOCH", 2)
    classes, split, dataset = training_images(cfg)
    indices = augment.choose(split.labels, 2 * PAIRS, cfg.SEED)
    for epoch, mixes in ((1, True), (2, False)):
        sources, mixed, labels, targets = augment.mixed_batch(dataset, epoch, indices, cfg)
        assert (sources != mixed).any() == mixes
        assert (targets[0][labels[0]] < 0.9) == mixes
    rows = augment.augment_rows(split, classes.names, config(), count=1)
    assert len(rows) == 3 and isinstance(rows[0], Heading)  # no heading for what is off
    assert rows[0].notes == ("SCALE [0.7, 1.0]",)


# --- Files and mistakes ---


def test_jpeg_of_grey_images(tmp_path):
    grey = ["DATA.CHANNELS", 1, "DATA.MEAN", "[0.3]", "DATA.STD", "[0.35]", "DATA.IMAGE_SIZE", 160]
    tool("visualize", "augment", "--sheet", tmp_path / "x.JPG", "--count", 1, *grey, *FULL, fresh=False)
    with Image.open(tmp_path / "x.JPG") as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")


@pytest.mark.parametrize(
    "words, message",
    [
        (["augment", "--sheet", "x.gif"], "error: --sheet x.gif must end in .png, .jpg, .jpeg or .pdf"),
        (["augment", "--sheet", "LICENSE/x.png"], "error: LICENSE/x.png: cannot be written: "),
        (["augment"], "error: data folder /absent not found"),
    ],
)
def test_mistakes_are_one_line(words, message):
    assert error_line("visualize", *words, "--data-path", "/absent").startswith(message)


def test_another_picture_is_a_usage_error():
    for words in ([], ["augmented"], ["--count", "3", "augment"]):
        assert "usage: visualize.py PICTURE" in tool("visualize", *words, status=2).stderr
    assert "attention: where a model looks" in " ".join(tool("visualize", "--help", fresh=False).stdout.split())
