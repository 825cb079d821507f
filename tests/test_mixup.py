"""Mixup and cutmix: definitions, distributions, targets, and the loss on them."""

import math
from collections import Counter

import numpy as np
import paddle
import pytest
from scipy import stats
from test_data import settings

from t2t_vit.data.batch import Batch, BatchDraws, TrainInput, channels_first, to_tensors
from t2t_vit.data.mixup import Mixup
from t2t_vit.training.losses import CrossEntropy

MODES = ("batch", "pair", "elem")


def mixup(mixup=0.0, cutmix=0.0, mode="elem", **keys):
    return Mixup(settings(AUG__MIXUP=str(mixup), AUG__CUTMIX=str(cutmix), AUG__MIX_MODE=mode, **keys))


def draws(mix, number=6000, height=224, width=160):
    """`number` independent lam and boxes."""
    lam, boxes = mix.draw(number, height, width, np.random.default_rng(0))
    assert lam.shape == (number,) and boxes.shape == (number, 4)
    return lam, boxes


def areas(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def near(share, probability, number):
    return abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / number)


def fair(outcomes, number):
    """Whether `number` different outcomes are equally likely."""
    counts = list(Counter(outcomes).values())
    return len(counts) == number and stats.chisquare(counts).pvalue > 0.001


# --- Laws ---


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_lam_of_mixup_is_beta(alpha):
    lam, boxes = draws(mixup(alpha))
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 0.001 and not boxes.any()
    rng, whole = np.random.default_rng(1), mixup(alpha, mode="batch")
    lam = [whole.draw(4, 8, 8, rng)[0] for _ in range(2000)]
    assert all((one == one[0]).all() for one in lam)
    assert stats.kstest([one[0] for one in lam], stats.beta(alpha, alpha).cdf).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_box_of_cutmix(alpha):
    """Sides sqrt(1 - lam) of the image's, centre anywhere in it, clipped at its edge; lam follows from the rest."""
    lam, boxes = draws(mixup(cutmix=alpha))
    rng, sizes = np.random.default_rng(1), np.array([[224], [160]])
    half = (sizes * np.sqrt(1 - rng.beta(alpha, alpha, 60000))).astype(int) // 2
    centre = np.floor(rng.random((2, 60000)) * sizes)
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half, sizes)
    for i, expected in enumerate((*low, *high)):
        assert stats.ks_2samp(boxes[:, i], expected).pvalue > 0.001
    assert stats.ks_2samp(lam, 1 - (high - low).prod(0) / (224 * 160)).pvalue > 0.001
    assert (lam == 1 - areas(boxes) / (224 * 160)).all()
    assert boxes.min() >= 0 and (boxes.max(0) <= [224, 160, 224, 160]).all()
    whole = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < sizes.T).all(1)
    shape = (boxes[whole, 2] - boxes[whole, 0]) / 224 - (boxes[whole, 3] - boxes[whole, 1]) / 160
    assert whole.any() and np.abs(shape).max() <= 2 / 160  # of the image's own shape


def test_minmax_bounds_the_sides():
    lam, boxes = draws(mixup(cutmix=1.0, AUG__CUTMIX_MINMAX="[0.25, 0.75]"))
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    for start, length, side in ((boxes[:, 0], height, 224), (boxes[:, 1], width, 160)):
        counts = np.bincount(length)
        assert counts.nonzero()[0][[0, -1]].tolist() == [side // 4, side * 3 // 4]
        assert stats.chisquare(counts[side // 4 :]).pvalue > 0.001
        place = (start + np.random.default_rng(1).random(6000)) / (side - length + 1)
        assert stats.kstest(place, "uniform").pvalue > 0.001  # whole within the image
    assert (lam == 1 - height * width / (224 * 160)).all() and abs(stats.spearmanr(height, width).statistic) < 0.06
    for edges in ("[0.0, 0.0]", "[1.0, 1.0]", "[0.0, 1.0]"):
        lam, boxes = draws(mixup(cutmix=1.0, AUG__CUTMIX_MINMAX=edges), 200, 5, 9)
        assert (lam == 1 - areas(boxes) / 45).all()
        check_mix(mixup(cutmix=1.0, AUG__CUTMIX_MINMAX=edges), 6, 5, 9)


@pytest.mark.parametrize("switch, probability", [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.3, 0.4), (0.5, 0.0)])
def test_switch_and_probability(switch, probability):
    keys = {"AUG__MIX_SWITCH_PROB": str(switch), "AUG__MIX_PROB": str(probability)}
    lam, boxes = draws(mixup(0.8, 1.0, **keys), 20000, 10**6, 10**6)  # no box too small to cut
    cut = boxes.any(1)
    assert near(cut.mean(), switch * probability, 20000) and near((lam == 1).mean(), 1 - probability, 20000)
    rest = lam[~cut & (lam < 1)]
    assert len(rest) < 100 or stats.kstest(rest, stats.beta(0.8, 0.8).cdf).pvalue > 0.001
    rng, whole = np.random.default_rng(2), mixup(0.8, 1.0, "batch", **keys)
    batches = [whole.draw(2, 10**6, 10**6, rng) for _ in range(3000)]
    assert near(np.mean([lam[0] == 1 for lam, _ in batches]), 1 - probability, 3000)
    assert near(np.mean([boxes.any() for _, boxes in batches]), switch * probability, 3000)


def test_mixup_or_cutmix_alone_ignores_the_switch():
    for switch in ("0.0", "1.0"):
        only_mixup, only_cutmix = (mixup(*alphas, AUG__MIX_SWITCH_PROB=switch) for alphas in ((0.8, 0.0), (0.0, 1.0)))
        assert not draws(only_mixup)[1].any() and draws(only_cutmix, 6000, 10**6, 10**6)[1].any(1).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8])
def test_modes(batch):
    rng = np.random.default_rng(0)
    for _ in range(20):
        lam, boxes = mixup(0.8, 1.0, "batch").draw(batch, 64, 64, rng)
        assert lam.shape == (batch,) and (lam == lam[0]).all() and (boxes == boxes[0]).all()
        lam, boxes = mixup(0.8, 1.0, "pair").draw(batch, 64, 64, rng)
        assert lam.shape == (batch,) and (lam == lam[::-1]).all() and (boxes == boxes[::-1]).all()
    for mode, different in (("pair", (batch + 1) // 2), ("elem", batch)):
        assert len(set(mixup(0.8, mode=mode).draw(batch, 64, 64, rng)[0])) == different


# --- Images and targets ---


def check_mix(mix, batch, height, width, classes=10, smoothing=0.1, seed=0):
    """Mix a batch and compare every pixel and target with the definition, one by one."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, height, width, 3)).astype(np.float32)
    labels = rng.integers(classes, size=batch)
    plan = to_tensors(mix.plan(batch, height, width, np.random.default_rng(seed)))
    out, targets = mix(paddle.to_tensor(images), paddle.to_tensor(labels), plan)
    out, targets = out.numpy(), targets.numpy()
    lam, boxes = mix.draw(batch, height, width, np.random.default_rng(seed))
    assert targets.shape == (batch, classes) and targets.dtype == out.dtype == np.float32
    for i in range(batch):
        partner = images[batch - 1 - i]
        if boxes[i].any():
            top, left, bottom, right = boxes[i]
            expected = images[i].copy()
            expected[top:bottom, left:right] = partner[top:bottom, left:right]
            assert (out[i] == expected).all()
            assert lam[i] == 1 - (bottom - top) * (right - left) / (height * width)
        else:
            assert np.abs(out[i] - (lam[i] * images[i] + (1 - lam[i]) * partner)).max() < 1e-5
        target = np.full(classes, smoothing / classes)
        target[labels[i]] += lam[i] * (1 - smoothing)
        target[labels[batch - 1 - i]] += (1 - lam[i]) * (1 - smoothing)
        assert np.abs(targets[i] - target).max() < 1e-6
    assert np.abs(targets.sum(1) - 1).max() < 1e-5 and targets.min() >= 0
    return lam, boxes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_images_and_targets_follow_the_definition(mode, alphas):
    seen = set()
    for seed, batch in enumerate((1, 2, 3, 4, 5, 8, 8, 8)):
        mix = mixup(*alphas, mode, AUG__MIX_PROB="0.8", TRAIN__LABEL_SMOOTHING="0.1")
        lam, boxes = check_mix(mix, batch, 12, 20, smoothing=0.1, seed=seed)
        seen |= {"cut" if box.any() else "mixed" if one < 1 else "own" for one, box in zip(lam, boxes)}
    assert seen >= {kind for kind, alpha in zip(("mixed", "cut"), alphas) if alpha}


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_any_number_of_classes(classes, smoothing):
    keys = {"MODEL__NUM_CLASSES": str(classes), "TRAIN__LABEL_SMOOTHING": str(smoothing)}
    check_mix(mixup(0.8, 1.0, "elem", **keys), 16, 5, 3, classes, smoothing)


def test_middle_of_an_odd_batch_is_its_own_partner():
    for mode in MODES:
        for mix in (mixup(0.8, mode=mode), mixup(cutmix=1.0, mode=mode)):
            images, labels = np.random.default_rng(0).random((3, 4, 4, 3), np.float32), paddle.to_tensor([1, 2, 3])
            plan = to_tensors(mix.plan(3, 4, 4, np.random.default_rng(1)))
            out, targets = mix(paddle.to_tensor(images), labels, plan)
            assert np.abs(out.numpy()[1] - images[1]).max() < 1e-6 and abs(targets.numpy()[1, 2] - 0.91) < 1e-6


# --- The model's input ---


def train_input(epoch=0, **keys):
    cfg = settings(**keys)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    images, labels = paddle.to_tensor(pixels), paddle.to_tensor([3, 1, 4, 1, 5])
    drawn = to_tensors(BatchDraws(cfg)(np.zeros((5, 1, 4), np.int16), (epoch, 11, 0)))
    batch = Batch(images, labels, *drawn, ())
    out, targets = TrainInput(cfg)(batch)
    plain = channels_first(TrainInput(cfg).normalize.channels_last(images))
    return out.numpy(), targets, plain.numpy(), labels.numpy()


@pytest.mark.parametrize(
    "keys, on",
    [
        ({"AUG__MIXUP": "0.8"}, [1, 1, 1]), ({"AUG__CUTMIX": "1.0"}, [1, 1, 1]), ({}, [0, 0, 0]),
        ({"AUG__MIXUP": "0.8", "AUG__MIX_PROB": "0.0"}, [0, 0, 0]),
        ({"AUG__MIXUP": "0.8", "AUG__CUTMIX": "1.0", "AUG__MIX_OFF_EPOCH": "7"}, [1, 1, 0]),
        ({"AUG__CUTMIX": "1.0", "AUG__MIX_OFF_EPOCH": "1"}, [1, 0, 0]),
    ],
)  # fmt: skip
def test_when_images_are_mixed(keys, on):
    for epoch, mixed in zip((0, 6, 7), on):
        assert Mixup(settings(**keys)).is_on(epoch) == bool(mixed)
        out, targets, plain, labels = train_input(epoch, **keys)
        assert out.shape == (5, 3, 16, 16) and targets.shape == ([5, 10] if mixed else [5])
        assert mixed or (out == plain).all() and (targets.numpy() == labels).all() and targets.dtype == paddle.int64


def test_input_depends_on_seed_and_sample_alone():
    keys = {"AUG__MIXUP": "0.8", "AUG__CUTMIX": "1.0", "AUG__MIX_MODE": "elem"}
    first, again = train_input(**keys), train_input(**keys)
    assert (first[0] == again[0]).all() and (first[1].numpy() == again[1].numpy()).all()
    for other in (train_input(epoch=1, **keys), train_input(SEED="9", **keys)):
        assert (first[0] != other[0]).any() and (first[1].numpy() != other[1].numpy()).any()


def test_mixup_is_of_normalised_images():
    for mode in MODES:
        out, targets, plain, labels = train_input(AUG__MIXUP="0.8", AUG__MIX_MODE=mode, TRAIN__LABEL_SMOOTHING="0.0")
        assert labels[0] != labels[4]
        own = targets.numpy()[0, labels[0]]
        assert 0 < own < 1 and np.abs(out[0] - (own * plain[0] + (1 - own) * plain[4])).max() < 1e-5


# --- The loss ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_loss_of_labels_equals_loss_of_targets(smoothing, classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (16, classes)).astype(np.float32), rng.integers(classes, size=16)
    targets = np.full((16, classes), smoothing / classes)
    targets[range(16), labels] = 1 - smoothing + smoothing / classes
    wide = logits.astype(np.float64)
    log_softmax = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    expected = -(targets * log_softmax).sum(1).mean()
    loss, x = CrossEntropy(smoothing), paddle.to_tensor(logits)
    hard = float(loss(x, paddle.to_tensor(labels)))
    soft = float(loss(x, paddle.to_tensor(targets.astype(np.float32))))
    assert hard == pytest.approx(expected, rel=1e-6) and soft == pytest.approx(hard, rel=1e-6)
    if not smoothing:
        assert hard == pytest.approx(-log_softmax[range(16), labels].mean(), rel=1e-6)
    mixed = 0.3 * targets + 0.7 * targets[::-1]
    both = [float(loss(x, paddle.to_tensor(labels[order].copy()))) for order in (slice(None), slice(None, None, -1))]
    soft = float(loss(x, paddle.to_tensor(mixed.astype(np.float32))))
    assert soft == pytest.approx(0.3 * both[0] + 0.7 * both[1], rel=2e-6)
