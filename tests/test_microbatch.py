"""Parts of a batch on several threads: the same gradients as the whole batch, and dropout of their own."""

import contextlib
import itertools
import time

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line
from test_cpu import T2T, close
from test_train_step import steps

from t2t_vit.common.errors import UserError
from t2t_vit.common.runtime import asked_threads
from t2t_vit.config import load_config
from t2t_vit.models.dropout import Dropout, drawing_from
from t2t_vit.models.zoo import create_model
from t2t_vit.parallel import microbatch
from t2t_vit.parallel.microbatch import MicroBatches, inference
from t2t_vit.training.train_step import TrainStep

# --- Parts of a batch ---


def settings(*pairs, config="lit_data"):
    depth = ("MODEL.PIT.DEPTH", "[1, 2]") if config == "lit_data_pit" else ("MODEL.T2T.DEPTH", "2")
    keys = (("DATA.NUM_WORKERS", "0"), ("TRAIN.BATCH_SIZE", "10"), depth)
    return load_config(f"configs/{config}.yaml", [*keys, *zip(pairs[::2], pairs[1::2])])


def losses(*pairs, count=3, config="lit_data"):
    """Losses, and the weights, of the first steps of a training with these settings."""
    cfg = settings(*pairs, config=config)
    step = train_step(cfg)
    batches = itertools.islice(steps(cfg), count)
    found = [step(batch, 1e-3, 0, number) for number, batch in enumerate(batches)]
    return [float(result.loss) for result in found], {k: v.numpy() for k, v in step.model.state_dict().items()}


def train_step(cfg):
    paddle.seed(cfg.SEED)
    step = TrainStep(cfg)
    step.train()
    return step


def test_parts_of_a_batch_give_the_gradients_of_the_batch():
    no_dropout = ("MODEL.DROP_PATH_RATE", "0.0", "MODEL.T2T.TOKENS_TYPE", "transformer")
    whole = losses(*no_dropout, "CPU.MICRO_BATCH", "0")
    for size in ("1", "3", "10", "64"):
        parts = losses(*no_dropout, "CPU.MICRO_BATCH", size)
        assert close(parts[0], whole[0])
        # AdamW divides by the size of the gradient, which amplifies rounding of gradients near 0.
        assert all(close(parts[1][name], value, 1e-3) for name, value in whole[1].items())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_parts_learn_from_a_teacher_as_the_batch_does(kind):
    words = ("MODEL.DROP_PATH_RATE", "0.0", "MODEL.T2T.TOKENS_TYPE", "transformer", "DISTILL.TYPE", kind)
    words += ("DISTILL.TEACHER", str(ROOT / "output/pretrained/lit_data/config.yaml"), "DISTILL.TAU", "2.0")
    whole = losses(*words, "CPU.MICRO_BATCH", "0", count=2)
    parts = losses(*words, "CPU.MICRO_BATCH", "3", count=2)
    alone = losses(*words[:4], "CPU.MICRO_BATCH", "3", count=2)
    assert close(parts[0], whole[0])
    assert not close(alone[0], whole[0], 1e-3)


def test_accumulated_parts_add_up(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    norms = []
    for size in ("0", "3"):
        no_dropout = ("MODEL.DROP_PATH_RATE", "0.0", "MODEL.T2T.TOKENS_TYPE", "transformer")
        cfg = settings(*no_dropout, "TRAIN.ACCUM_STEPS", "2", "CPU.MICRO_BATCH", size)
        norms.append(float(train_step(cfg)(next(steps(cfg)), 1e-3, 0, 0).gradient_norm))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_threads_change_only_the_order_of_sums(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = losses()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    three, again = losses(), losses()
    assert three[0] == again[0]
    assert all((three[1][name] == value).all() for name, value in again[1].items())
    assert close(one[0], three[0])


def test_frozen_parameters_do_not_change(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    cfg = settings("TRAIN.FREEZE", '["tokens_to_token*", "blocks.0*"]')
    step = train_step(cfg)
    before = {name: value.numpy() for name, value in step.model.state_dict().items()}
    step(next(steps(cfg)), 1e-3, 0, 0)
    after = {name: value.numpy() for name, value in step.model.state_dict().items()}
    changed = {name for name in before if (before[name] != after[name]).any()}
    frozen = {name for name in before if name.startswith(("tokens_to_token", "blocks.0", "pos_embed"))}
    assert changed == set(before) - frozen


def test_every_part_draws_its_own_numbers():
    # The batch is one image eight times, so parts differ only in their random draws. The same step draws the same.
    model, batches = train_step(settings("MODEL.DROP_RATE", "0.3")).model, MicroBatches(1, 2)
    image, logits = paddle.randn([1, 3, 16, 16]), []
    for numbers in ([42, 0, 0, 1, 0], [42, 0, 0, 1, 0], [42, 0, 0, 2, 0]):
        parts = batches.backward(
            model, lambda model, part, _: model(part[0]).numpy()[0], [image.expand([8, -1, -1, -1])], numbers
        )
        logits.append(np.stack(parts))
    assert len(np.unique(logits[0], axis=0)) == 8
    assert (logits[0] == logits[1]).all()
    assert (logits[0] != logits[2]).any(axis=1).all()


def test_parts_follow_the_mode_of_the_model():
    cfg = settings("MODEL.DROP_RATE", "0.5")
    step, whole = train_step(cfg), train_step(settings("MODEL.DROP_RATE", "0.5", "CPU.MICRO_BATCH", "0"))
    batch = next(steps(cfg))
    step(batch, 0.0, 0, 0)  # makes the replicas, in training mode
    step.model.eval()
    whole.model.eval()
    assert float(step(batch, 0.0, 0, 1).loss) == pytest.approx(float(whole(batch, 0.0, 0, 1).loss), rel=1e-5)


def test_a_batch_that_fails_leaves_nothing_to_the_next():
    layer, images = paddle.nn.Linear(4, 2), paddle.randn([6, 4])
    parts = MicroBatches(2, 2)

    def run(model, part, share):
        if run.fails and part[0].shape == [2, 4] and (part[0] == images[:2]).all():
            raise UserError("no memory")
        time.sleep(0.2 * run.fails)  # the other thread is not done when this one fails
        (model(part[0]).sum() * share).backward()
        return ()

    for run.fails in (True, False):
        with pytest.raises(UserError) if run.fails else contextlib.nullcontext():
            parts.backward(layer, run, [images], [1])
    assert close(layer.weight.grad.numpy()[:, 0], images.numpy().sum(axis=0) / 3)


def test_inference_by_parts_gives_the_logits_of_the_whole(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    cfg = settings("CPU.MICRO_BATCH", "2")
    model = create_model("t2t_vit_7", **T2T)
    model.eval()
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for count, parts in ((1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [1, 3, 3])):
        images = paddle.randn([count, 3, 32, 32])
        sizes.clear()
        logits = inference(model, cfg)(images)
        assert sorted(sizes) == parts
        assert logits.shape == [count, 10]
        assert logits.stop_gradient
        assert close(logits.numpy(), model(images).numpy())


@pytest.mark.parametrize(("value", "threads"), [("4", 4), ("3,2", 3), (" 2", 2), ("", 0)])
def test_threads_are_those_that_the_user_set(value, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert asked_threads() == threads


@pytest.mark.parametrize("value", ["0", "-3", "many", "99999999", "²"])
def test_impossible_threads_are_an_error(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert error_line("train").endswith(f"OMP_NUM_THREADS={value}, which must be 1 to 1024")


@pytest.mark.parametrize(
    ("pixels", "batch", "size", "most"),
    [(224, 64, 4, 1), (512, 64, 4, 1), (112, 64, 16, 1), (120, 64, 13, 1), (16, 64, 16, 49), (16, 8, 4, 196)],
)
def test_groups_and_parts_of_small_images_are_larger(pixels, batch, size, most):
    parts = microbatch.micro_batches(settings("DATA.IMAGE_SIZE", str(pixels)), batch)
    assert (parts.size, parts.most) == (size, most)


def test_groups_of_a_part_draw_what_they_draw_alone():
    model, images = train_step(settings("MODEL.DROP_RATE", "0.3")).model, paddle.randn([7, 3, 16, 16])
    sizes, logits = [], []
    for threads, most in ((2, 1), (2, 4), (1, 3), (1, 9)):
        parts = MicroBatches(2, threads, most).backward(
            model, lambda model, part, _: model(part[0]).numpy(), [images], [42, 0]
        )
        sizes.append([len(part) for part in parts])
        logits.append(np.concatenate(parts))
    assert sizes == [[2, 2, 2, 1], [4, 3], [6, 1], [7]]
    assert all(close(found, logits[0]) for found in logits[1:])


def test_every_thread_has_a_part_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    parts, cores, sizes = microbatch.micro_batches(settings("DATA.IMAGE_SIZE", "224"), 64), [], []
    monkeypatch.setattr(microbatch.core, "set_num_threads", cores.append)

    def model(images):
        sizes.append(len(images))
        return images

    for count in (2, 6, 40):
        parts.forward(model, paddle.zeros([count, 3, 2, 2]))
    assert sizes == [1, 1] + [2, 2, 2] + [4] * 10  # at most CPU.MICRO_BATCH images
    assert cores == [2, 2, 4] + [1, 1, 1, 4] + [1] * 10 + [4]


def test_parts_keep_the_mode_of_each_layer():
    model = paddle.nn.Sequential(paddle.nn.Dropout(0.9), paddle.nn.Linear(4, 4))
    model[0].eval()  # as a frozen layer
    images = paddle.ones([4, 4])
    parts = MicroBatches(2, 1).backward(model, lambda model, part, _: model(part[0]), [images], [1])
    assert (paddle.concat(parts).numpy() == model(images).numpy()).all()


def test_error_in_a_part_is_raised():
    parts = MicroBatches(2, 2)
    with pytest.raises(ValueError, match="images of 3 channels"):
        parts.forward(create_model("t2t_vit_7", **T2T), paddle.zeros([5, 1, 32, 32]))


def test_wrong_size_of_the_parts_is_an_error():
    assert "CPU.MICRO_BATCH is -1 but must be 0 to 1024" in error_line("train", "CPU.MICRO_BATCH", "-1")


# --- Dropout on threads ---


def test_dropout_of_a_thread_keeps_the_rate_and_the_mean():
    layer, x = Dropout(0.3), paddle.ones([400, 500])
    with drawing_from([[1, 2]], 400):
        first, second = layer(x).numpy(), layer(x).numpy()
    with drawing_from([[1, 2]], 400):
        assert (layer(x).numpy() == first).all()
    with drawing_from([[1, 3]], 400):
        assert (layer(x).numpy() != first).any()
    assert (first != second).any()
    assert (first == 0).mean() == pytest.approx(0.3, abs=0.005)  # 4.9 standard deviations
    assert first.mean() == pytest.approx(1.0, abs=0.008)
    layer.p = 1 - 1e-9
    with drawing_from([[1]], 400):
        assert np.isfinite(layer(x).numpy()).all()
