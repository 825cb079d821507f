"""Properties that hold for any input: orders of images, the division of a data set, boxes."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import settings as config

from t2t_vit.config import with_keys
from t2t_vit.data.erasing import RandomErasing
from t2t_vit.data.holdout import held_out
from t2t_vit.data.loader import EvalOrder, TrainOrder
from t2t_vit.data.mixup import Mixup
from t2t_vit.data.paths import Paths
from t2t_vit.data.transforms import TrainTransform

CFG = config()
few = settings(max_examples=60, deadline=None, derandomize=True)
generators = st.integers(0, 2**32).map(np.random.default_rng)
sides = st.integers(1, 300)


@few
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_sees_every_image_once(num_images, batch_size, world_size):
    batches = [batch for rank in range(world_size) for batch in EvalOrder(num_images, batch_size, rank, world_size)]
    assert sorted(sum(batches, [])) == list(range(num_images))
    assert all(1 <= len(batch) <= batch_size for batch in batches)


@few
@given(
    st.integers(1, 90), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9),
    st.integers(0, 20), st.sampled_from(["", "balanced", "sqrt"]),
)  # fmt: skip
def test_training_order(num_images, batch_size, world_size, accum_steps, repeats, seed, done, sampler):
    """Every epoch has each image once, except those of the incomplete last step, and can be resumed after any step."""
    keys = {"TRAIN.BATCH_SIZE": batch_size, "TRAIN.ACCUM_STEPS": accum_steps, "AUG.REPEATS": repeats, "SEED": seed}
    cfg = with_keys(CFG, {**keys, "TRAIN.SAMPLER": sampler})
    labels = np.arange(num_images) ** 2 % 7
    orders = [TrainOrder(labels, cfg, rank, world_size, epochs=2) for rank in range(world_size)]
    batches = [list(order) for order in orders]
    step = batch_size * world_size * accum_steps
    for epoch in (0, 1):
        samples = [sample for mine in batches for batch in mine for sample in batch if sample[0] == epoch]
        assert len(samples) == len(set(samples)) == num_images // step * step
        copies = {}  # {(image, number of its draw): its copies}
        for _, index, copy in samples:
            copies.setdefault((index, copy // repeats), set()).add(copy)
        assert {index for index, _ in copies} <= set(range(num_images))
        assert len(copies) == math.ceil(len(samples) / repeats)
        assert sum(len(found) < repeats for found in copies.values()) <= 1  # the last image may be cut
        assert sampler or all(draw == 0 for _, draw in copies)
    steps_done = min(done, num_images // step)
    for order, whole in zip(orders, batches):
        order.start = steps_done * step
        assert list(order) == whole[steps_done * accum_steps :]


@few
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=6),
    st.floats(1e-6, 1),
    st.integers(0, 99),
    generators,
)
def test_division_of_a_data_set(counts, fraction, seed, rng):
    """Every class is in both splits, and the order of the images does not matter."""
    names = np.array([f"{number}/{i}.png" for number, count in enumerate(counts) for i in range(count)])
    class_of = np.repeat(np.arange(len(counts)), counts)
    folders = [str(number) for number in range(len(counts))]
    validates = held_out(Paths.of(names, "/d"), class_of, folders, fraction, seed)
    found = np.bincount(class_of[validates], minlength=len(counts))
    assert (found >= 1).all() and (found < counts).all()
    order = rng.permutation(len(names))
    assert (held_out(Paths.of(names[order], "/d"), class_of[order], folders, fraction, seed) == validates[order]).all()


def assert_inside(boxes, height, width):
    """Boxes (N, 4): top, left, bottom, right."""
    top, left, bottom, right = np.asarray(boxes).T
    assert ((top >= 0) & (top <= bottom) & (bottom <= height)).all()
    assert ((left >= 0) & (left <= right) & (right <= width)).all()


minmax = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@few
@given(st.integers(1, 9), sides, sides, st.sampled_from(["batch", "pair", "elem"]), st.just([]) | minmax, generators)
def test_boxes_of_cutmix_lie_in_the_image(batch, height, width, mode, edges, rng):
    cfg = with_keys(CFG, {"AUG.CUTMIX": 1.0, "AUG.MIXUP": 0.8, "AUG.MIX_MODE": mode, "AUG.CUTMIX_MINMAX": edges})
    lam, boxes = Mixup(cfg).draw(batch, height, width, rng)
    assert lam.shape == (batch,) and boxes.shape == (batch, 4)
    assert_inside(boxes, height, width)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert ((lam >= 0) & (lam <= 1)).all()
    assert (lam[areas > 0] == 1 - areas[areas > 0] / (height * width)).all()


@few
@given(sides, st.integers(1, 4), generators)
def test_boxes_of_erasing_lie_in_the_image(side, count, rng):
    cfg = with_keys(CFG, {"DATA.IMAGE_SIZE": side, "AUG.ERASE_PROB": 1.0, "AUG.ERASE_COUNT": count})
    boxes = RandomErasing(cfg).draw_boxes(rng)
    assert boxes.shape == (count, 4)
    assert_inside(boxes, side, side)


@few
@given(sides, sides, st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted), generators)
def test_random_crops_lie_in_the_image(width, height, scale, rng):
    left, top, right, bottom = TrainTransform(with_keys(CFG, {"AUG.SCALE": scale})).crop_box((width, height), rng)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
