"""Classes of different sizes: weights in the loss, and how often an epoch draws an image."""

import itertools

import numpy as np
import paddle
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from resuming import assert_same_run, kill, run
from sklearn.utils.class_weight import compute_class_weight

from t2t_vit.config import load_config
from t2t_vit.data.balance import balance_lines, class_weights, draw_images
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.training.losses import CrossEntropy, DistillationLoss
from t2t_vit.training.train_step import TrainStep

LABELS = np.repeat([0, 1, 3], [90, 27, 3])  # class 2 has no images
WEIGHTS = np.array([0.2, 3.0, 1.0, 7.0])
RNG = np.random.default_rng(0)
SMALL_MODEL = ["MODEL.T2T.DEPTH", 1, "MODEL.T2T.EMBED_DIM", 32, "MODEL.T2T.TOKEN_DIM", 16,
               "MODEL.T2T.TOKENS_TYPE", "transformer", "MODEL.DROP_PATH_RATE", 0.0]  # fmt: skip
LOGITS, TEACHER = RNG.normal(0, 2, (2, 6, 4))
Y = np.array([0, 1, 2, 3, 3, 0])


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory):
    """Options to train on 60 zeros and 6 sevens, and to validate on sevens only."""
    folder = tmp_path_factory.mktemp("unbalanced")
    for split, counts in (("train", {"0": 60, "7": 6}), ("val", {"7": 30})):
        lines = (ROOT / f"lit_data/{split}.txt").read_text().splitlines(keepends=True)
        chosen = [line for digit, count in counts.items() for line in [x for x in lines if x[0] == digit][:count]]
        (folder / f"{split}.txt").write_text("".join(chosen))
    return ["DATA.TRAIN_LIST", folder / "train.txt", "DATA.VAL_LIST", folder / "val.txt"]


# --- Weights ---


def test_weights_are_those_of_scikit_learn():
    present = np.unique(LABELS)
    weights = class_weights(LABELS, 5, "auto")
    assert np.allclose(weights[present], compute_class_weight("balanced", classes=present, y=LABELS), rtol=1e-12)
    assert (weights[[2, 4]] == 0).all() and weights.shape == (5,)
    half = class_weights(LABELS, 4, "sqrt")
    assert half[3] / half[0] == pytest.approx(30**0.5) and weights[3] / weights[0] == pytest.approx(30)
    for found in (weights, half):
        assert found[LABELS].mean() == pytest.approx(1)


def test_log_has_the_range_of_the_weights_in_one_short_line():
    cfg = load_config("configs/lit_data.yaml", [("TRAIN.CLASS_WEIGHTS", "auto")])
    (line,) = balance_lines(cfg.TRAIN, LABELS)
    assert line == (
        "TRAIN.CLASS_WEIGHTS auto: an image's loss counts 0.444 times (largest class) to 13.3 times (smallest)"
    )
    cfg = load_config("configs/lit_data.yaml", [("TRAIN.SAMPLER", "sqrt")])
    (line,) = balance_lines(cfg.TRAIN, LABELS)
    assert line == "TRAIN.SAMPLER sqrt: an epoch draws an image 0.771 times (largest class) to 4.22 times (smallest)"
    assert balance_lines(load_config("configs/lit_data.yaml").TRAIN, LABELS) == []


# --- The loss ---


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def smoothed(labels, smoothing):
    return np.eye(4)[labels] * (1 - smoothing) + smoothing / 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_loss_and_gradient_by_definition(smoothing, share):
    """Mean over the images of share * w(y) * CE(y) + (1 - share) * w(y') * CE(y'), where y' is the partner's label."""
    own, other = smoothed(Y, smoothing), smoothed(Y[::-1], smoothing)
    wanted = share * WEIGHTS[Y][:, None] * own + (1 - share) * WEIGHTS[Y[::-1]][:, None] * other
    expected = -(wanted * log_softmax(LOGITS)).sum(1).mean()
    gradient = (wanted.sum(1, keepdims=True) * np.exp(log_softmax(LOGITS)) - wanted) / len(Y)
    mixed = paddle.to_tensor(share * own + (1 - share) * other, "float32")
    for targets in [mixed, *([paddle.to_tensor(Y)] if share == 1 else [])]:
        logits = paddle.to_tensor(LOGITS, "float32", stop_gradient=False)
        loss = CrossEntropy(smoothing, WEIGHTS)(logits, targets)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert np.allclose(logits.grad.numpy(), gradient, atol=1e-6)


def test_equal_weights_change_nothing():
    logits = paddle.to_tensor(LOGITS, "float32")
    for targets in (paddle.to_tensor(Y), paddle.to_tensor(smoothed(Y, 0.1), "float32")):
        plain, equal = (CrossEntropy(0.1, weights)(logits, targets).item() for weights in (None, np.ones(4)))
        assert equal == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_distance_from_a_teacher_has_no_weights(kind):
    pairs = [("DISTILL.TYPE", kind), ("DISTILL.TEACHER", "pit_ti"), ("DISTILL.ALPHA", "0.3")]
    logits, teacher, labels = (paddle.to_tensor(x.astype("float32")) for x in (LOGITS, TEACHER, Y))
    labels = labels.astype("int64")
    distill = load_config("configs/lit_data.yaml", pairs).DISTILL
    weighted, plain = CrossEntropy(0.1, WEIGHTS), CrossEntropy(0.1)
    found, alone = (DistillationLoss(loss, distill)(logits, labels, teacher).item() for loss in (weighted, plain))
    difference = (weighted(logits, labels) - plain(logits, labels)).item()
    assert found - alone == pytest.approx(0.7 * difference, abs=1e-6) and abs(difference) > 0.1


def two_steps(options, *pairs):
    """Losses of two steps of 12 images with class weights, and the weights of the head after them."""
    words = [*options, *SMALL_MODEL, "TRAIN.CLASS_WEIGHTS", "auto", "DATA.NUM_WORKERS", "0", *pairs]
    cfg = load_config("configs/lit_data.yaml", list(zip(words[::2], map(str, words[1::2]))))
    split = load_data(cfg, ["train"])[1]["train"]
    paddle.seed(0)
    step = TrainStep(cfg, split.labels)
    step.train()
    batches = itertools.islice(TrainLoader(split, cfg).epoch_steps(0), 2)
    losses = [step(batch, 1e-3, 0, number).loss.item() for number, batch in enumerate(batches)]
    return losses, step.model.head.weight.numpy()


@pytest.mark.parametrize("size, passes, micro, mixup", [(12, 1, 5, 0.8), (4, 3, 3, 0.0)])
def test_parts_and_passes_make_the_step_of_the_whole_batch(unbalanced, size, passes, micro, mixup):
    mixing = ["AUG.MIXUP", mixup, "AUG.MIX_MODE", "elem"]
    whole = two_steps(unbalanced, *mixing, "TRAIN.BATCH_SIZE", 12, "CPU.MICRO_BATCH", 0)
    parts = ["TRAIN.BATCH_SIZE", size, "TRAIN.ACCUM_STEPS", passes, "CPU.MICRO_BATCH", micro]
    found = two_steps(unbalanced, *mixing, *parts)
    assert found[0] == pytest.approx(whole[0], rel=1e-5)
    assert np.allclose(found[1], whole[1], atol=1e-5)


# --- The sampler ---


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    rule=st.sampled_from(["balanced", "sqrt"]),
    seed=st.integers(0, 2**32),
)
def test_every_class_and_image_has_its_number_of_draws_up_to_rounding(sizes, rule, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    indices, before = draw_images(labels, rule, np.random.default_rng(seed))
    again = draw_images(labels, rule, np.random.default_rng(seed))
    assert (indices == again[0]).all() and (before == again[1]).all()
    weights, sizes = class_weights(labels, len(sizes), rule), np.array(sizes)
    assert len(indices) == len(labels) and len(set(zip(indices, before))) == len(labels)
    draws = np.bincount(indices, minlength=len(labels))
    assert (np.abs(draws - weights[labels]) < 1 + 1e-9).all()
    assert all(set(before[indices == image]) == set(range(count)) for image, count in enumerate(draws))
    of_class = np.bincount(labels[indices], minlength=len(sizes))
    assert (np.abs(of_class - weights * sizes) < 1 + 1e-9).all()
    if rule == "balanced":
        assert np.ptp(of_class[sizes > 0]) <= 2


def test_every_image_of_a_class_is_drawn_equally_often_in_the_long_run():
    draws = sum(np.bincount(draw_images(LABELS, "balanced", np.random.default_rng(i))[0]) for i in range(300)) / 300
    assert np.abs(draws - class_weights(LABELS, 4, "balanced")[LABELS]).max() < 0.15


# --- Both ---


def recall(weights, rule):
    """Recall of a class with a tenth of the images, whose features overlap those of the other class."""
    rng, labels = np.random.default_rng(1), np.repeat([0, 1], [200, 20])
    features = [rng.normal(2.0 * y[:, None] - 1, 1.5, (len(y), 4)).astype("float32") for y in (labels, np.ones(500))]
    paddle.seed(0)
    model = paddle.nn.Linear(4, 2)
    loss = CrossEntropy(0.1, class_weights(labels, 2, weights) if weights else None)
    optimizer = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
    for epoch in range(15):
        for batch in draw_images(labels, rule, np.random.default_rng(epoch))[0].reshape(4, -1):
            loss(model(paddle.to_tensor(features[0][batch])), paddle.to_tensor(labels[batch])).backward()
            optimizer.step()
            optimizer.clear_grad()
    return model(paddle.to_tensor(features[1])).argmax(axis=-1).numpy().mean()


def test_weights_and_sampler_raise_the_recall_of_a_rare_class():
    none, weights, sampler = recall("", ""), recall("auto", ""), recall("", "balanced")
    assert none < 0.7 and min(weights, sampler) > 0.8
    assert none < recall("", "sqrt") < sampler and none < recall("sqrt", "") < weights


def test_balanced_run_resumes_exactly_in_the_middle_of_an_epoch(unbalanced, tmp_path):
    words = [*unbalanced, "TRAIN.SAMPLER", "balanced", "TRAIN.LOG_EVERY", 1, "TRAIN.SAVE_MINUTES", 1e-6]
    alone = run(tmp_path / "alone", *words)
    assert "\nTRAIN.SAMPLER balanced: an epoch draws an image 0.55 times (largest class) to 5.5 times" in alone.stdout
    kill(tmp_path / "cut", 2, 3, *words)
    assert ": 1 epoch and 2 steps done" in run(tmp_path / "cut", *words).stdout
    assert_same_run(tmp_path / "cut/lit_data", tmp_path / "alone/lit_data")
