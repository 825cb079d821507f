"""Augmentation: every operation against its formula, every policy against its distribution."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from test_data import settings
from test_mixup import fair, near

from t2t_vit.common.errors import UserError
from t2t_vit.data import augment
from t2t_vit.data.augment import AutoAugment, ColorJitter, RandAugment, ThreeAugment, build_augment

GEOMETRIC = ("ShearX", "ShearY", "TranslateXRel", "TranslateYRel", "Rotate")
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
NAMES = (*GEOMETRIC, *ENHANCEMENTS, "AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd")
IMAGENET = {"DATA__MEAN": "[0.485, 0.456, 0.406]"}
BLACK_TO_WHITE = np.arange(256, dtype=np.uint8).reshape(16, 16)


def policy(text, interpolation="bilinear", **keys):
    return build_augment(settings(AUG__AUTO_AUGMENT=text, AUG__INTERPOLATION=interpolation, **{**IMAGENET, **keys}))[0]


def picture(height=20, width=20, seed=0, levels=256):
    return np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)


def apply(name, pixels, level, sign=1, text="rand-m9-inc1", **keys):
    signs = SimpleNamespace(integers=lambda _high: 0 if sign > 0 else 1)  # in place of the generator
    return np.asarray(policy(text, **keys).operations.apply(name, Image.fromarray(pixels), level, signs))


def test_point_operations(monkeypatch):
    x = BLACK_TO_WHITE.astype(int)
    for level in (0, 3, 5, 7.7, 10):
        for text, threshold in (("rand-m9", int(level * 25.6)), ("rand-m9-inc1", 256 - int(level * 25.6))):
            solarized = apply("Solarize", BLACK_TO_WHITE, level, text=text)
            assert (solarized == np.where(x < threshold, x, 255 - x)).all()
        added = apply("SolarizeAdd", BLACK_TO_WHITE, level)
        assert (added == np.where(x < 128, x + int(level * 11), x)).all()
    monkeypatch.setitem(augment._INCREASING_VALUES, "SolarizeAdd", lambda _share, _sign: 200)
    added = apply("SolarizeAdd", BLACK_TO_WHITE, 9)
    assert (added == np.where(x < 128, np.minimum(x + 200, 255), x)).all() and (added == 255).sum() == 74
    assert (apply("Invert", BLACK_TO_WHITE, 4) == 255 - x).all()


def test_posterize_keeps_the_highest_bits():
    for text, name, bits in [
        ("rand-m9-inc1", "Posterize", {0: 4, 2.4: 4, 2.5: 3, 5: 2, 9: 1, 9.9: 1, 10: 0}),
        ("rand-m9", "Posterize", {0: 0, 2: 0, 2.4: 0, 2.5: 1, 5: 2, 9: 3, 10: 4}),
        ("original", "PosterizeOriginal", {0: 4, 5: 6, 6: 6, 7: 6, 8: 7, 10: 8}),
    ]:
        for level, kept in bits.items():
            mask = 0xFF << (8 - kept) & 0xFF  # 0 bits: black, as in the Pillow of the official runs
            assert (apply(name, BLACK_TO_WHITE, level, text=text) == BLACK_TO_WHITE & mask).all(), level


def dull_image(name, x):
    grey = np.rint(x @ [0.299, 0.587, 0.114])
    if name == "Sharpness":  # mean of 3 x 3 pixels, the centre counting five times; the border stays
        smooth, weights = x.copy(), np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
        smooth[1:-1, 1:-1] = np.rint(ndimage.convolve(x, weights[:, :, None]))[1:-1, 1:-1]
        return smooth
    return {"Brightness": 0, "Contrast": np.rint(grey.mean()), "Color": grey[:, :, None]}[name]


@pytest.mark.parametrize("name", ENHANCEMENTS)
def test_enhancements_blend_with_a_dull_image(name):
    x = picture().astype(float)
    dull = dull_image(name, x)
    for text, level, sign, factor in [
        ("rand-m9-inc1", 10, 1, 1.9), ("rand-m9-inc1", 10, -1, 0.1), ("rand-m9-inc1", 5, -1, 0.55),
        ("rand-m9", 0, 1, 0.1), ("rand-m9", 5, -1, 1.0), ("rand-m9", 9, 1, 1.72), ("v0", 10, -1, 1.9),
    ]:  # fmt: skip
        expected = np.clip(dull + factor * (x - dull), 0, 255)
        # Pillow truncates; its grey and its smoothing may round the other way.
        assert np.abs(apply(name, picture(), level, sign, text) - expected).max() <= 2.1, (text, level, sign)
    assert (apply(name, picture(), 0) == picture()).all()


def test_autocontrast_stretches_each_channel():
    x = picture(levels=100) + np.array([20, 60, 100], np.uint8)
    expected = (x - x.min((0, 1))) * 255.0 / np.ptp(x, (0, 1))
    assert np.abs(apply("AutoContrast", x, 9) - expected).max() < 1.001
    assert (apply("AutoContrast", np.full((4, 4, 3), 77, np.uint8), 9) == 77).all()


def test_equalize_flattens_the_histogram():
    x = picture(64, 64) // 3 + picture(64, 64, 1) // 6
    out = apply("Equalize", x, 9)
    for channel in range(3):
        counts = np.bincount(x[:, :, channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        table = (counts.cumsum() - counts + step // 2) // step
        assert (out[:, :, channel] == np.minimum(table, 255)[x[:, :, channel]]).all()
        assert stats.kstest(out[:, :, channel].ravel() / 255, "uniform").statistic < 0.05


def sampled(x, source):
    """Bilinear samples of x at source(column, row), both counted from the corner, the mean outside; what is inside."""
    height, width, _ = x.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    sx, sy = source(columns, rows)
    channels = np.moveaxis(x.astype(float), -1, 0)
    values = [ndimage.map_coordinates(part, [sy - 0.5, sx - 0.5], order=1, mode="nearest") for part in channels]
    inside = (sx >= 0) & (sx < width) & (sy >= 0) & (sy < height)
    return np.where(inside[..., None], np.stack(values, -1), (124, 116, 104)), inside


@pytest.mark.parametrize("level, sign", [(0, 1), (3.3, -1), (9, 1), (10, 1), (10, -1)])
def test_geometric_operations_follow_their_coordinates(level, sign):
    x, share = picture(20, 40), sign * level / 10
    cos, sin = np.cos(np.radians(30 * share)), np.sin(np.radians(30 * share))  # counter-clockwise, about the centre
    sources = {
        "ShearX": lambda c, r: (c + 0.3 * share * r, r),
        "ShearY": lambda c, r: (c, r + 0.3 * share * c),
        "TranslateXRel": lambda c, r: (c + share * 18, r),
        "TranslateYRel": lambda c, r: (c, r + share * 9),
        "Rotate": lambda c, r: (20 + cos * (c - 20) - sin * (r - 10), 10 + sin * (c - 20) + cos * (r - 10)),
    }
    for name, source in sources.items():
        expected, inside = sampled(x, source)
        out = apply(name, x, level, sign)
        wrong = np.abs(out - expected).max(-1) > 1.5
        assert wrong.sum() <= 2, name  # at the very edge inside and outside may swap
        assert level < 9 or (~inside).any() and (out[~inside] == (124, 116, 104)).all(-1).mean() > 0.9
        if name.startswith("Translate") and level == 10:  # whole pixels
            assert (out == expected).all() and (apply(name, x, 10, sign, interpolation="bicubic") == expected).all()


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_change_as_grey_rgb_ones(name):
    grey = picture()[:, :, 0]
    for level, sign in ((9, 1), (10, -1), (0, 1)):
        colour = apply(name, np.repeat(grey[:, :, None], 3, 2), level, sign)
        assert np.abs(apply(name, grey, level, sign).astype(int) - colour[:, :, 0]).max() <= 1
    one = policy("rand-m9-inc1", DATA__CHANNELS="1", DATA__MEAN="[0.25]", DATA__STD="[0.2]")
    out = np.asarray(one.operations.apply("TranslateXRel", Image.fromarray(grey), 10, np.random.default_rng(0)))
    assert (out == 64).all(0).sum() == 9


def test_values_at_known_levels():
    plain, increasing = (policy(text).operations.values for text in ("rand-m9", "rand-m9-inc1"))
    shared = {"SolarizeAdd": (0, 55, 110), "Rotate": (0, 15, 30), **dict.fromkeys(("ShearX", "ShearY"), (0, 0.15, 0.3)),
              **dict.fromkeys(("TranslateXRel", "TranslateYRel"), (0, 0.225, 0.45))}  # fmt: skip
    weaker = {"Posterize": (0, 2, 4), "Solarize": (0, 128, 256), **dict.fromkeys(ENHANCEMENTS, (0.1, 1.0, 1.9))}
    stronger = {"Posterize": (4, 2, 0), "Solarize": (256, 128, 0), **dict.fromkeys(ENHANCEMENTS, (1.0, 1.45, 1.9))}
    assert set(plain) == set(increasing) == set(NAMES)
    for table, own in ((plain, weaker), (increasing, stronger), (policy("original").operations.values, weaker)):
        for name, values in {**shared, **own}.items():
            assert [table[name](share, 1) for share in (0, 0.5, 1)] == pytest.approx(values), name
    assert all(increasing[name](0.7, -1) == plain[name](0.7, -1) == -plain[name](0.7, 1) for name in GEOMETRIC)
    assert [increasing[name](1, -1) for name in ENHANCEMENTS] == pytest.approx([0.1] * 4)
    assert [plain[name](1, -1) for name in ENHANCEMENTS] == pytest.approx([1.9] * 4)


def record(transform, monkeypatch, draws):
    """What `transform` applies to each of `draws` images: lists of (name, level, sign, resampling)."""
    done, values = [], {}

    def function(image, drawn, canvas):
        done[-1].append((*drawn, canvas["resample"]))
        return image

    for name in augment._FUNCTIONS:
        monkeypatch.setitem(augment._FUNCTIONS, name, function)
        values[name] = lambda share, sign, name=name: (name, share * 10, sign)
    transform.operations.values = values
    image, rng = Image.new("RGB", (1, 1)), np.random.default_rng(0)
    for _ in range(draws):
        done.append([])
        transform(image, rng)
    return done


def test_randaugment_distribution(monkeypatch):
    images = record(policy("rand-m9-mstd0.5-inc1", "random"), monkeypatch, 30000)
    names, levels, signs, resampling = (np.array(column) for column in zip(*sum(images, [])))
    assert set(names) == set(NAMES) and fair(names, 15)
    numbers = np.bincount([len(image) for image in images])
    assert stats.chisquare(numbers, np.array([0.25, 0.5, 0.25]) * 30000).pvalue > 0.001
    same = [image[0][0] == image[1][0] for image in images if len(image) == 2]
    assert near(np.mean(same), 1 / 15, len(same))  # drawn with replacement
    assert levels.max() == 10 and near(np.mean(levels == 10), stats.norm.sf(2), len(levels))
    assert stats.kstest(levels[levels < 10], stats.truncnorm(-18, 2, 9, 0.5).cdf).pvalue > 0.001
    assert set(signs) == {1, -1} and fair(signs, 2)
    assert set(resampling) == {Image.Resampling.BILINEAR, Image.Resampling.BICUBIC} and fair(resampling, 2)
    for columns in ((names, signs), (names, resampling), (signs, resampling), (names, levels > 9)):
        assert stats.chi2_contingency(stats.contingency.crosstab(*columns).count).pvalue > 0.001  # independent


@pytest.mark.parametrize("text, number, level", [("rand-m7-n3-p1", 3, 7), ("rand-p1-n1", 1, 10), ("rand-m0-p1", 2, 0)])
def test_randaugment_options(monkeypatch, text, number, level):
    images = record(policy(text, "bicubic"), monkeypatch, 300)
    assert {len(image) for image in images} == {number}
    assert {(row[1], row[3]) for row in sum(images, [])} == {(level, Image.Resampling.BICUBIC)}
    levels = [row[1] for row in sum(record(policy("rand-m6-mstdinf-p0.2-n4"), monkeypatch, 5000), [])]
    assert near(len(levels) / 20000, 0.2, 20000)
    assert stats.kstest(levels, stats.uniform(0, 6).cdf).pvalue > 0.001


# --- Policies ---

INITIALS = ["PosterizeOriginal", "Rotate", "Solarize", "AutoContrast", "Equalize", "Color", "Contrast", "Invert",
            "Sharpness", "ShearX", "ShearY", "SolarizeAdd", "TranslateYRel"]  # fmt: skip
# One of PRSAECTIHXYDM for its name above, probability in tenths, level (t: ten), as in the papers and timm 0.3.4.
PAIRS = {
    "original": "P48R69 S65A65 E88E63 P67P66 E47S24 E44R88 S63E67 P85Et2 R23S68 E68P46 R88C40 R49E62 E07E88 I64Et8 "
    "C64Tt8 R88Ct2 C88S87 H47I68 X65Et9 C40E63 E47S24 S65A65 I64Et8 C64Tt8 E88E63",
    "v0": "E81Y84 C49E63 C41R68 S83E47 S42S62 C20E88 E48D83 X29R68 C61Et2 I49R60 Et9Y63 C47E60 P46A47 S68C69 S24R89 "
    "Rt7M89 X00S84 Y80C64 Ct0R62 E84E08 Et4A62 Y47D67 P82S6t S68E61 C86R45",
}


@pytest.mark.parametrize("name", PAIRS)
def test_autoaugment_tables_and_distribution(monkeypatch, name):
    transform = policy(name)
    number = {digit: 10 if digit == "t" else int(digit) for digit in "0123456789t"}
    initials = {**dict(zip("PRSAECTIHXYDM", INITIALS)), **({"P": "Posterize"} if name == "v0" else {})}
    triples = [PAIRS[name].replace(" ", "")[i : i + 3] for i in range(0, 150, 3)]
    expected = [(initials[a], number[b] / 10, number[c]) for a, b, c in triples]
    assert sum(transform.policy, []) == expected and {len(pair) for pair in transform.policy} == {2}
    images = record(transform, monkeypatch, 20000)
    seen = Counter((row[0], round(row[1], 6)) for row in sum(images, []))
    shares = Counter()
    for operation, probability, level in expected:
        shares[operation, level] += probability / 25
    assert set(seen) == {key for key, share in shares.items() if share}
    for key, count in seen.items():
        assert abs(count / 20000 - shares[key]) < 4 * math.sqrt(shares[key] / 20000), key
    none = np.mean([(1 - a[1]) * (1 - b[1]) for a, b in zip(expected[::2], expected[1::2])])
    assert near(np.mean([not image for image in images]), none, 20000)


def test_autoaugment_pairs_are_equally_likely_and_levels_may_vary(monkeypatch):
    transform = AutoAugment(policy("v0").operations, [f"Invert 1 {i / 4}, Rotate 1 9" for i in range(25)])
    images = record(transform, monkeypatch, 10000)
    assert {tuple(row[0] for row in image) for image in images} == {("Invert", "Rotate")}
    assert fair([image[0][1] for image in images], 25)
    rows = sum(record(policy("v0-mstd0.5"), monkeypatch, 4000), [])
    levels = np.array([row[1] for row in rows if row[0] == "TranslateYRel"])
    assert stats.kstest(levels[levels < 10], stats.truncnorm(-18, 2, 9, 0.5).cdf).pvalue > 0.001


def test_three_augment_operations_are_equally_likely(monkeypatch):
    image, radii, rng, transform = Image.fromarray(picture()), [], np.random.default_rng(0), policy("3a")
    blur = augment.ImageFilter.GaussianBlur
    monkeypatch.setattr(augment.ImageFilter, "GaussianBlur", lambda radius: radii.append(radius) or blur(radius))
    outputs = [np.asarray(transform(image, rng)) for _ in range(1500)]
    solarized = np.where(picture() < 128, picture(), 255 - picture())
    kinds = [(out == np.asarray(image.convert("L"))[..., None]).all() + 2 * (out == solarized).all() for out in outputs]
    assert fair(kinds, 3) and kinds.count(0) == len(radii)
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > 0.001


@pytest.mark.parametrize("strength, low, high", [(0.4, 0.6, 1.4), (1.0, 0.0, 2.0)])
def test_colour_jitter(monkeypatch, strength, low, high):
    def fake(name):
        return lambda image: SimpleNamespace(enhance=lambda factor: done.append((name, factor)) or image)

    done, rng = [], np.random.default_rng(0)
    monkeypatch.setattr(augment, "ImageEnhance", SimpleNamespace(**{name: fake(name) for name in ENHANCEMENTS}))
    transform = build_augment(settings(AUG__COLOR_JITTER=str(strength)))[0]
    for _ in range(3000):
        transform(None, rng)
    orders = [tuple(name for name, _ in done[i : i + 3]) for i in range(0, 9000, 3)]
    assert fair(orders, 6) and all(set(order) == {"Brightness", "Contrast", "Color"} for order in orders)
    for name in orders[0]:
        mine = [factor for other, factor in done if other == name]
        assert stats.kstest(mine, stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_policies_by_name_and_no_jitter_with_a_policy():
    kinds = {"": [ColorJitter], "3a": [ThreeAugment, ColorJitter], "original": [AutoAugment], "v0-mstd1": [AutoAugment]}
    rand = ("rand", "rand-m9-mstd0.5-inc1", "rand-inc1-mstd0.5-m9", "rand-inc0-p0-n1-m0-mstdinf", "rand-m7.5")
    for text, kind in {**kinds, **dict.fromkeys(rand, [RandAugment])}.items():
        built = build_augment(settings(AUG__AUTO_AUGMENT=text, AUG__COLOR_JITTER="0.4"))
        assert [type(transform) for transform in built] == kind, text
        assert len(build_augment(settings(AUG__AUTO_AUGMENT=text, AUG__COLOR_JITTER="0.0"))) == bool(text)


@pytest.mark.parametrize(
    "text",
    ["Rand-m9", "rand-", "rand-m", "rand-9", "rand-m11", "rand-m-1", "rand-n0", "rand-n1.5", "rand-n101", "rand-p1.5",
     "rand-ninf", "rand-minf", "rand-pinf", "rand-incinf", "rand-w0", "rand-m9.", "rand m9", "rand-m9-mstd0.5-inc",
     "randm9", "rand_m9", "v1", "v0-m9", "original-mstd", "3a-m9", "augmix-m3", "-", " rand", "rand-m9\n"],
)  # fmt: skip
def test_wrong_strings_are_refused(text):
    with pytest.raises(UserError, match="AUG.AUTO_AUGMENT is "):
        build_augment(settings(AUG__AUTO_AUGMENT=text))
