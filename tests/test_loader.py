"""The data loader: order of the images, batches, broken images, loader processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from paddle.io.dataloader.flat import _flatten_batch
from test_data import folder_config, make_folders, settings

from t2t_vit.common.errors import UserError
from t2t_vit.data.batch import TrainInput
from t2t_vit.data.dataset import Split, load_data
from t2t_vit.data.loader import EvalOrder, TrainCollate, TrainDataset, TrainLoader, TrainOrder

# The whole recipe on the digits.
RECIPE = {
    "AUG__AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
    "AUG__ERASE_PROB": "0.25",
    "AUG__MIXUP": "0.8",
    "AUG__CUTMIX": "1.0",
}

LABELS = np.arange(50) // 40  # 40 images of one class, 10 of another


@pytest.fixture(scope="module")
def digits():
    return load_data(settings(), ["train"])[1]["train"]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_images", [1, 7, 8, 31, 360])
def test_validation_sees_each_image_once(world_size, num_images):
    seen = []
    for rank in range(world_size):
        order = EvalOrder(num_images, 4, rank, world_size)
        batches = list(order)
        assert len(batches) == len(order)
        seen += sum(batches, [])
    assert sorted(seen) == list(range(num_images))


def global_batches(world_size, epochs=1, **keys):
    """Every step's samples of all processes, sorted."""
    cfg = settings(TRAIN__BATCH_SIZE=str(12 // world_size), **keys)
    orders = [TrainOrder(LABELS, cfg, rank, world_size, epochs) for rank in range(world_size)]
    return [sorted(sum(parts, [])) for parts in zip(*orders)]


def test_training_order_depends_on_seed_and_epoch_and_not_on_the_processes():
    batches = global_batches(1, epochs=2)
    assert len(batches) == 8 and {len(batch) for batch in batches} == {12}
    assert batches == global_batches(1, epochs=2) == global_batches(2, epochs=2) == global_batches(4, epochs=2)
    indices = [[index for _, index, _ in batch] for batch in batches]
    assert {epoch for batch in batches[:4] for epoch, _, _ in batch} == {0}
    assert len(set(sum(indices[:4], []))) == len(set(sum(indices[4:], []))) == 48
    assert indices[:4] != indices[4:]
    assert indices[:4] != [[index for _, index, _ in batch] for batch in global_batches(1, SEED="4")]


@pytest.mark.parametrize("repeats", ["1", "3"])
def test_balanced_order_depends_on_seed_and_epoch_and_not_on_the_processes(repeats):
    keys = {"TRAIN__SAMPLER": "balanced", "AUG__REPEATS": repeats}
    batches = global_batches(1, epochs=2, **keys)
    assert len(batches) == 8 and batches == global_batches(2, epochs=2, **keys) == global_batches(4, epochs=2, **keys)
    samples = sum(batches, [])
    assert len(set(samples)) == 96  # copies of an image have numbers of their own
    assert [index for _, index, _ in batches[0]] != [index for _, index, _ in batches[4]]
    assert batches != global_batches(1, epochs=2, SEED="4", **keys)
    rare = np.mean([LABELS[index] for _, index, _ in samples])
    assert 0.4 < rare < 0.6  # a fifth of the images


@pytest.mark.parametrize("sampler", ["", "balanced"])
def test_epoch_can_start_in_the_middle(sampler):
    cfg = settings(TRAIN__BATCH_SIZE="6", TRAIN__ACCUM_STEPS="2", TRAIN__SAMPLER=sampler)
    whole, rest = TrainOrder(LABELS, cfg, epochs=2), TrainOrder(LABELS, cfg, epochs=2)
    rest.start = 24
    assert list(whole)[4:] == list(rest) and len(rest) == 4


def test_repeated_augmentation_spreads_the_copies_over_the_processes():
    batches = global_batches(3, AUG__REPEATS="3")
    samples = sum(batches, [])
    assert len(samples) == 48 and len(set(samples)) == 48
    indices, counts = np.unique([index for _, index, _ in samples], return_counts=True)
    assert (counts == 3).all() and len(indices) == 16  # a third of the images
    cfg = settings(TRAIN__BATCH_SIZE="4", AUG__REPEATS="3")
    for rank in range(3):
        batch = next(iter(TrainOrder(LABELS, cfg, rank, 3)))
        assert len({index for _, index, _ in batch}) == 4  # no image twice in a process's batch


def test_copies_of_an_image_are_augmented_differently(digits):
    dataset = TrainDataset(digits, settings(**RECIPE))
    first, second = (dataset[(0, 5, copy)][0] for copy in (0, 1))
    assert (first == dataset[(0, 5, 0)][0]).all() and (first != second).any()


def model_inputs(cfg, split, epochs=(0, 1), start=0):
    loader, train_input = TrainLoader(split, cfg, epochs=2), TrainInput(cfg)
    return [
        [array.numpy() for array in train_input(step[0])]
        for epoch in epochs
        for step in loader.epoch_steps(epoch, start if epoch == epochs[0] else 0)
    ]


def test_every_batch_has_as_many_tensors(digits):
    """Paddle copies them to a GPU through buffers, whose number the first batch determines."""
    dataset, counts = TrainDataset(digits, settings(**RECIPE)), set()
    for keys in ({}, {"AUG__MIX_PROB": "0.5"}, {"AUG__MIXUP": "0.0", "AUG__CUTMIX": "0.0", "AUG__ERASE_PROB": "0.0"}):
        collate = TrainCollate(settings(**{**RECIPE, **keys}))
        for index in range(8):
            batch = collate([dataset[(0, index, copy)] for copy in range(2)])
            arrays, _ = _flatten_batch(batch)
            assert all(array.size for array in arrays)
            counts.add(len(arrays))
    assert len(counts) == 1


def test_workers_and_reading_ahead_change_nothing(digits):
    few = Split("train", digits.source, digits.paths.where(np.arange(len(digits)) % 4 == 0), digits.labels[::4])
    recipe = {**RECIPE, "TRAIN__BATCH_SIZE": "64"}
    alone = model_inputs(settings(DATA__NUM_WORKERS="0", **recipe), few)
    workers = model_inputs(settings(DATA__NUM_WORKERS="2", **recipe), few)
    resumed = model_inputs(settings(DATA__NUM_WORKERS="2", **recipe), few, epochs=(1,), start=2 * 64)
    assert len(alone) == len(workers) == 10 and len(resumed) == 3
    for a, b in [*zip(alone, workers), *zip(alone[7:], resumed)]:
        assert (a[0] == b[0]).all() and (a[1] == b[1]).all()
    assert (alone[0][0] != alone[5][0]).any()


# --- Broken images ---


def broken_data(root, broken=("train/bee/1.png",), images=100):
    make_folders(root, {"train/ant": images, "train/bee": images, "val/ant": 1, "val/bee": 1})
    for name in broken:
        (root / name).write_bytes(b"text")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_image_in_a_worker_is_named(tmp_path, workers):
    broken_data(tmp_path, images=3)
    cfg = folder_config(tmp_path, DATA__NUM_WORKERS=workers, TRAIN__BATCH_SIZE="2")
    loader = TrainLoader(load_data(cfg)[1]["train"], cfg)
    with pytest.raises(UserError, match=r"^image .*bee/1.png cannot be read: not an image$"):
        list(loader.epoch_steps(0))


def test_broken_image_is_replaced_by_the_same_other_one_each_time(tmp_path):
    broken_data(tmp_path, images=10)
    batches = []
    for workers in ("0", "2"):
        cfg = folder_config(tmp_path, DATA__NUM_WORKERS=workers, TRAIN__BATCH_SIZE="20", DATA__ON_ERROR="skip")
        split = load_data(cfg)[1]["train"]
        batches += [step[0] for step in TrainLoader(split, cfg).epoch_steps(0)]
    for batch in batches:
        assert [os.path.basename(line.split(" cannot")[0]) for line in batch.skipped] == ["1.png"]
        assert (batch.images.numpy() == batches[0].images.numpy()).all()
        assert (batch.labels.numpy() == batches[0].labels.numpy()).all()
    assert (batches[0].images.numpy().max(axis=(1, 2, 3)) <= 9).all()  # the red of make_folders: no zeros in its place


def test_names_with_line_ends_count_once(tmp_path):
    make_folders(tmp_path, {"train/ant": 10, "train/bee": 10, "val/ant": 1, "val/bee": 1})
    (tmp_path / "train/bee/a\u2028b\nc\x0b.png").write_text("text")
    cfg = folder_config(tmp_path, DATA__NUM_WORKERS="0", TRAIN__BATCH_SIZE="21", DATA__ON_ERROR="skip")
    (batch,) = next(TrainLoader(load_data(cfg)[1]["train"], cfg).epoch_steps(0))
    assert len(batch.skipped) == 1


def test_too_many_unreadable_images_in_a_row_end_the_reading(tmp_path):
    broken_data(tmp_path, [f"train/{name}/{i}.png" for name in ("ant", "bee") for i in range(3)], images=3)
    cfg = folder_config(tmp_path, DATA__NUM_WORKERS="0", TRAIN__BATCH_SIZE="2", DATA__ON_ERROR="skip")
    with pytest.raises(UserError, match="cannot be read: not an image"):
        list(TrainLoader(load_data(cfg)[1]["train"], cfg).epoch_steps(0))


def test_too_few_images_for_a_batch_are_an_error(tmp_path):
    make_folders(tmp_path, {"train/ant": 3, "train/bee": 3, "val/ant": 1})
    cfg = folder_config(tmp_path)
    with pytest.raises(UserError, match="6 images, fewer than one step of 32 .*; lower TRAIN.BATCH_SIZE or"):
        TrainLoader(load_data(cfg)[1]["train"], cfg)
    cfg = folder_config(tmp_path, TRAIN__GLOBAL_BATCH="64")
    with pytest.raises(UserError, match="lower TRAIN.GLOBAL_BATCH$"):
        TrainLoader(load_data(cfg)[1]["train"], cfg)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's death")
def test_process_that_starts_after_its_parents_death_ends():
    done = subprocess.run([sys.executable, ROOT / "tests/programs/orphan.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
