"""Random erasing: the distribution of its boxes and how it fills them."""

import math

import numpy as np
import paddle
import pytest
from scipy import integrate, stats
from test_data import settings

from t2t_vit.config import with_keys
from t2t_vit.data.batch import Batch, BatchDraws, TrainInput, channels_first, to_tensors
from t2t_vit.data.erasing import RandomErasing
from t2t_vit.data.mixup import Mixup
from t2t_vit.data.seeding import MIX, generator

# Area fraction at which both sides always fit: 0.28 * 10 / 3 < 1.
SMALLEST, SURE, LARGEST = 0.02, 0.28, 1 / 3
LOG_ASPECT = math.log(1 / 0.3)


def erasing(probability=1.0, size=4096, **keys):
    return RandomErasing(settings(AUG__ERASE_PROB=str(probability), DATA__IMAGE_SIZE=str(size), **keys))


def draw(draws=8000, **options):
    """(draws, ERASE_COUNT, 4) boxes."""
    erase, rng = erasing(**options), np.random.default_rng(0)
    boxes = np.array([erase.draw_boxes(rng) for _ in range(draws)])
    assert boxes.dtype == np.int16
    return boxes.astype(int)


def sides(boxes):
    top, left, bottom, right = np.moveaxis(boxes, -1, 0)
    return bottom - top, right - left


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_fraction_of_erased_images(probability):
    boxes = draw(probability=probability, size=224)
    erased = (boxes[:, 0, 2] > 0).mean()
    assert abs(erased - probability) <= 4 * math.sqrt(probability * (1 - probability) / 8000)
    assert (boxes[boxes[:, 0, 2] == 0] == 0).all()


def test_area_and_aspect_are_uniform_where_the_sides_fit():
    boxes = draw()[:, 0]
    height, width = sides(boxes)
    area, log_aspect = height * width / 4096**2, np.log(height / width)
    sure = area < SURE
    assert stats.kstest(area[sure], stats.uniform(SMALLEST, SURE - SMALLEST).cdf).pvalue > 0.001
    assert stats.kstest(log_aspect[sure], stats.uniform(-LOG_ASPECT, 2 * LOG_ASPECT).cdf).pvalue > 0.001
    assert area.min() > 0.0199 and area.max() < 0.3334 and np.abs(log_aspect).max() < LOG_ASPECT + 0.01
    # A box as long as the image is drawn again: of an area a, aspects up to 1/a fit.
    fits, _ = integrate.quad(lambda a: min(1, -math.log(a) / LOG_ASPECT), SMALLEST, LARGEST, points=[0.3])
    share = (SURE - SMALLEST) / fits
    assert abs(sure.mean() - share) < 4 * math.sqrt(share * (1 - share) / 8000)
    assert height.max() < 4096 and width.max() < 4096


def test_every_position_is_equally_likely():
    boxes = draw(size=64)[:, 0]
    height, width = sides(boxes)
    assert boxes.min() >= 0 and boxes.max() == 64  # the far edge is reached
    dither = np.random.default_rng(1).random((2, len(boxes)))
    for start, length, shift in ((boxes[:, 0], height, dither[0]), (boxes[:, 1], width, dither[1])):
        assert stats.kstest((start + shift) / (64 - length + 1), "uniform").pvalue > 0.001


def test_sides_are_rounded_and_position_independent_of_shape():
    boxes = draw(size=16)[:, 0]
    height, width = sides(boxes)
    assert height.max() == width.max() == 15  # never the whole side
    assert stats.spearmanr(height * width, boxes[:, 0] - (16 - height) / 2).pvalue > 0.001
    rng = np.random.default_rng(2)
    area, aspect = rng.uniform(SMALLEST, LARGEST, 40000) * 256, np.exp(rng.uniform(-LOG_ASPECT, LOG_ASPECT, 40000))
    expected = np.stack([np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))])
    expected = expected[:, expected.max(0) < 16]
    for mine, theirs in ((height, expected[0]), (width, expected[1])):
        counts = np.array([np.bincount(values.astype(int), minlength=17) for values in (mine, theirs)])
        assert stats.chi2_contingency(counts[:, counts.sum(0) > 50]).pvalue > 0.001


def test_boxes_of_an_image_share_the_area():
    boxes = draw(AUG__ERASE_COUNT="5")
    height, width = sides(boxes)
    numbers = (height > 0).sum(1)
    assert stats.chisquare(np.bincount(numbers, minlength=6)[1:]).pvalue > 0.001  # 1 to 5, equally likely
    for number in range(2, 6):  # with two or more the sides always fit
        mine = boxes[numbers == number]
        assert (mine[:, number:] == 0).all()
        height, width = sides(mine[:, :number])
        shares = (height * width * number / 4096**2).ravel()
        assert stats.kstest(shares, stats.uniform(SMALLEST, LARGEST - SMALLEST).cdf).pvalue > 0.001
        assert abs(stats.spearmanr(shares[::number], shares[1::number]).statistic) < 0.1  # drawn separately


def test_draws_depend_on_the_generator_alone():
    erase = erasing(probability=0.5, size=224, AUG__ERASE_COUNT="3")
    first, second = ([erase.draw_boxes(np.random.default_rng(i)).tolist() for i in range(50)] for _ in range(2))
    assert first == second and len(set(map(str, first))) > 10


# --- Filling ---

BOXES = np.array(
    [[[2, 3, 30, 38], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 20, 40], [10, 30, 32, 48]],
     [[31, 47, 32, 48], [0, 0, 1, 1]]], np.int16,
)  # fmt: skip


def pixels(batch=4, height=32, width=48, channels=3):
    values = np.random.default_rng(5).uniform(10, 20, (batch, height, width, channels))
    return values.astype(np.float32)


def fill(mode, boxes=BOXES, seed=0, images=None):
    images = pixels() if images is None else images
    erase = erasing(size=32, AUG__ERASE_MODE=mode, AUG__ERASE_COUNT=str(boxes.shape[1]))
    plan = erase.plan(boxes, images.shape[1:], np.random.default_rng(seed))
    out = erase(paddle.to_tensor(images), to_tensors(plan)).numpy()
    inside = np.zeros(images.shape[:3], bool)
    for i, image_boxes in enumerate(boxes):
        for top, left, bottom, right in image_boxes:
            inside[i, top:bottom, left:right] = True
    assert out.dtype == np.float32 and (out[~inside] == images[~inside]).all()
    return out, inside


def test_const_is_the_mean_colour():
    out, inside = fill("const")
    assert (out[inside] == 0).all() and (out[1] == pixels()[1]).all()


def test_pixel_is_noise():
    images = pixels(8, 64, 64)
    boxes = np.tile(np.array([[[0, 0, 64, 60]]], np.int16), (8, 1, 1))
    out, inside = fill("pixel", boxes, images=images)
    noise = out[inside].reshape(8, -1, 3)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.001
    for a, b in ((noise[0], noise[1]), (noise[2, :-1], noise[2, 1:]), (noise[..., 0], noise[..., 1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05
    assert np.unique(noise).size > 0.99 * noise.size


def test_rand_is_one_colour_in_each_box():
    boxes = np.tile(np.array([[[1, 2, 5, 9], [5, 0, 8, 9]]], np.int16), (400, 1, 1))
    out, _ = fill("rand", boxes, images=pixels(400, 8, 10))
    colours = np.concatenate([out[:, 1, 2], out[:, 5, 0]])
    assert (out[:, 1:5, 2:9] == out[:, 1:2, 2:3]).all() and (out[:, 5:8, 0:9] == out[:, 5:6, 0:1]).all()
    assert stats.kstest(colours.ravel(), "norm").pvalue > 0.001 and np.unique(colours).size == colours.size


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_filling_is_repeatable_and_nothing_is_erased_without_boxes(mode):
    assert (fill(mode)[0] == fill(mode)[0]).all()
    assert mode == "const" or (fill(mode)[0] != fill(mode, seed=1)[0]).any()
    assert (fill(mode, np.zeros_like(BOXES))[0] == pixels()).all()
    grey = pixels(4, 32, 48, 1)
    assert fill(mode, images=grey)[0].shape == grey.shape


def batch(cfg, boxes, epoch=0):
    images = np.random.default_rng(6).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    boxes = np.array(boxes, np.int16).reshape(4, 1, 4)
    drawn = to_tensors(BatchDraws(cfg)(boxes, (epoch, 7, 0)))
    return Batch(paddle.to_tensor(images), paddle.to_tensor(np.arange(4)), *drawn, ())


def test_the_models_input_is_erased_after_normalising():
    cfg = settings(AUG__ERASE_MODE="pixel")
    plain = batch(cfg, np.zeros(16))
    expected = channels_first(TrainInput(cfg).normalize.channels_last(plain.images)).numpy()
    assert (TrainInput(cfg)(plain)[0].numpy() == expected).all()
    some = batch(cfg, [[0, 0, 0, 0], [0, 0, 16, 16], [0, 0, 0, 0], [4, 5, 9, 12]])
    out = TrainInput(cfg)(some)[0].numpy()
    assert (out == TrainInput(cfg)(some)[0].numpy()).all()
    assert (out[[0, 2]] == expected[[0, 2]]).all()
    assert stats.kstest(out[1].ravel(), "norm").pvalue > 0.001
    changed = (out[3] != expected[3]).all(0)
    assert changed[4:9, 5:12].all() and changed.sum() == 35


def test_erasing_comes_after_mixing():
    """As in T2T-ViT's training, whose loader mixes while it gathers a batch and erases on the GPU."""
    cfg = settings(AUG__ERASE_MODE="const", AUG__MIXUP="0.8")
    untouched = TrainInput(cfg)(batch(cfg, np.zeros(16)))[0].numpy()
    out = TrainInput(cfg)(batch(cfg, [[2, 3, 9, 12], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))[0].numpy()
    assert (out[0, :, 2:9, 3:12] == 0).all()  # the partner is not visible in the box
    assert (out[1:] == untouched[1:]).all()  # the partner's mix is whole


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("kind", ["MIXUP", "CUTMIX"])
def test_erasing_comes_before_mixing_with_erase_mixed_false(mode, kind):
    """As in PiT's training (DeiT), whose data set erases each image."""
    cfg = settings(AUG__ERASE_MODE="const", AUG__ERASE_MIXED="False", AUG__MIX_MODE=mode, **{f"AUG__{kind}": "1.0"})
    boxes = [[2, 3, 9, 12], [0, 0, 0, 0], [0, 0, 16, 16], [0, 0, 0, 0]]
    erased = batch(cfg, boxes)
    images = TrainInput(cfg).normalize.channels_last(erased.images).numpy()
    for image, (top, left, bottom, right) in zip(images, boxes):
        image[top:bottom, left:right] = 0
    lam, cuts = Mixup(cfg).draw(4, 16, 16, generator(cfg.SEED, MIX, (0, 7, 0)))
    expected = [lam[i] * images[i] + (1 - lam[i]) * images[3 - i] for i in range(4)]
    if kind == "CUTMIX":
        expected = images.copy()
        for i, (top, left, bottom, right) in enumerate(cuts):
            expected[i, top:bottom, left:right] = images[3 - i, top:bottom, left:right]
    expected = np.stack(expected).transpose(0, 3, 1, 2)
    out = TrainInput(cfg)(erased)[0].numpy()
    assert np.abs(out - expected).max() < 1e-5
    after = TrainInput(with_keys(cfg, {"AUG.ERASE_MIXED": True}))(erased)[0].numpy()
    assert np.abs(out - after).max() > 0.1
