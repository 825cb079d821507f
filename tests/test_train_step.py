"""What one step does: moving average, skipped steps, clipping, and no waiting for the device."""

import contextlib
import math
from collections import Counter

import numpy as np
import paddle
import pytest
from conftest import ROOT

from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.config_values import accumulation
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.models import cpu_ops
from t2t_vit.parallel import processes
from t2t_vit.training.ema import ModelEma
from t2t_vit.training.epoch_sums import EpochSums
from t2t_vit.training.flat import FlatWeights
from t2t_vit.training.stop_rules import BadSteps
from t2t_vit.training.train_log import TrainLog
from t2t_vit.training.train_step import TrainStep


def lit_config(*pairs):
    small = [("MODEL.T2T.DEPTH", "1"), ("TRAIN.EMA_DECAY", "0.9"), ("TRAIN.BATCH_SIZE", "16")]
    return load_config(ROOT / "configs/lit_data.yaml", [*small, *pairs])


def steps(cfg):
    """The training steps of one epoch, as lists of batches."""
    return TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg).epoch_steps(0)


def arrays(tensors):
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def make_step(cfg, labels=None):
    paddle.seed(0)
    step = TrainStep(cfg, labels)
    step.model.train()
    return step


def test_average_by_definition():
    model = paddle.nn.Linear(3, 2)
    model.register_buffer("scale", paddle.ones([2]))
    weights = FlatWeights(model, [["weight"], ["bias"]])
    ema, expected = ModelEma(model, weights, 0.9), {n: t.numpy().astype("f8") for n, t in model.state_dict().items()}
    for number in range(5):
        for tensor in model.state_dict().values():
            tensor.set_value(paddle.full_like(tensor, float(number)))
        ok = number != 2
        ema.update(paddle.to_tensor(ok))
        if ok:
            expected = {name: 0.9 * value + 0.1 * number for name, value in expected.items()}
    assert set(ema.model.state_dict()) == {"weight", "bias", "scale"}  # buffers too
    for name, tensor in ema.model.state_dict().items():
        assert np.allclose(tensor.numpy(), expected[name], atol=1e-6), name
        assert tensor.stop_gradient


def test_average_follows_the_steps():
    cfg = lit_config()
    step = make_step(cfg)
    expected = arrays(step.model.state_dict())
    for number, batches in zip(range(3), steps(cfg)):
        step(batches, 1e-3, 0, number)
        expected = {name: 0.9 * expected[name] + 0.1 * now for name, now in arrays(step.model.state_dict()).items()}
    average = step.models()["ema"].state_dict()
    assert all(np.allclose(average[name].numpy(), value, atol=1e-6) for name, value in expected.items())
    assert not np.allclose(expected["head.weight"], step.model.state_dict()["head.weight"].numpy(), atol=1e-4)


def test_average_starts_from_the_loaded_weights(tmp_path):
    loaded = {name: tensor * 0 + 0.5 for name, tensor in make_step(lit_config()).model.state_dict().items()}
    paddle.save(loaded, str(tmp_path / "weights.pdparams"))
    step = make_step(lit_config())
    step.start_from(tmp_path / "weights.pdparams")
    for weights in (step.weights("raw"), step.weights("ema")):
        assert all((tensor.numpy() == 0.5).all() for tensor in weights.values())


def test_clipping_by_the_norm_of_all_gradients():
    cfg = lit_config(("TRAIN.CLIP_NORM", "0.01"), ("TRAIN.WEIGHT_DECAY", "0.0"))
    seen = []
    for config in (lit_config(("TRAIN.WEIGHT_DECAY", "0.0")), cfg):
        step = make_step(config)
        update = step.optimizer.inner.step

        def note(step=step, update=update):
            groups = step.optimizer.parameters
            seen.append(math.sqrt(sum(float((group.grad.astype("float64") ** 2).sum()) for group in groups)))
            update()

        step.optimizer.inner.step = note
        norm = step(next(steps(config)), 1e-3, 0, 0).gradient_norm.item()
    assert norm == pytest.approx(seen[0], rel=1e-5) and seen[0] > 0.1  # reported before clipping
    assert seen[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_step_that_is_not_finite_is_skipped(fault):
    cfg = lit_config()
    step, batches = make_step(cfg), steps(cfg)
    step(next(batches), 1e-3, 0, 0)
    before = [arrays(model.state_dict()) for model in step.models().values()]
    criterion = step.criterion
    if fault == "loss":
        step.criterion = lambda logits, labels: criterion(logits, labels) + float("inf")  # of a finite gradient
    else:
        step.criterion = lambda logits, labels: (logits - logits.detach()).sum().sqrt()  # sqrt'(0) = inf
    result = step(next(batches), 1e-3, 0, 1)
    assert not result.ok.item()
    for model, weights in zip(step.models().values(), before):
        for name, tensor in model.state_dict().items():
            assert (tensor.numpy() == weights[name]).all(), name
    step.criterion = criterion
    assert step(next(batches), 1e-3, 0, 2).ok.item()
    assert all(np.isfinite(tensor.numpy()).all() for tensor in step.state()["optimizer"].values())
    assert (step.model.state_dict()["head.weight"].numpy() != before[0]["head.weight"]).any()


def diverging(criterion):
    return lambda logits, labels: criterion(logits, labels) * float("nan")


def test_skipped_steps_are_counted_and_leave_the_means_alone():
    cfg = lit_config()
    step, batches = make_step(cfg), steps(cfg)
    criterion, sums, rule = step.criterion, EpochSums(), BadSteps(3)
    losses = []
    for number in range(6):
        bad = number in (1, 2, 4)
        step.criterion = diverging(criterion) if bad else criterion
        result = step(next(batches), 1e-3, 0, number)
        losses += [] if bad else [result.loss.item()]
        sums.add(result)
        rule.add(result.ok)
    means = sums.lap()
    assert means == sums.means() and means.skipped_steps == 3
    assert means.loss == pytest.approx(np.mean(losses), abs=1e-6) and math.isfinite(means.grad_norm)
    rule.check(1, 6)  # two in a row are allowed


def test_a_step_never_waits_for_the_device(monkeypatch):
    """Reading a number from the device is allowed only when a line is logged.

    Copies to the device wait too, so everything must arrive with the batch.
    """
    monkeypatch.setattr(cpu_ops, "_enabled", False)  # forms for a CPU, which may read the weights
    recipe = [("AUG.ERASE_PROB", "1.0"), ("AUG.MIXUP", "0.8"), ("AUG.CUTMIX", "1.0"), ("AUG.MIX_MODE", "elem")]
    recipe += [("TRAIN.CLASS_WEIGHTS", "auto")]
    cfg = lit_config(("TRAIN.LOG_EVERY", "3"), ("TRAIN.CLIP_NORM", "1.0"), ("TRAIN.ACCUM_STEPS", "2"), *recipe,
                     ("TRAIN.LAYER_DECAY", "0.9"), ("CPU.MICRO_BATCH", "0"))  # fmt: skip
    step, sums, rule, log = make_step(cfg, np.arange(10)), EpochSums(), BadSteps(10), TrainLog(1, 32)
    batches = [batches for _, batches in zip(range(2), steps(cfg))]

    def run(number):
        result = step(batches[number], 1e-3, 0, number)
        sums.add(result)
        rule.add(result.ok)
        log.add_skipped(result.skipped)

    run(0)  # makes the optimizer's state
    read = []
    moving = [(paddle.Tensor, name) for name in ("numpy", "item", "tolist", "__bool__", "__float__", "__int__",
                                                 "__array__", "set_value", "copy_")]  # fmt: skip
    for owner, name in [*moving, (paddle, "to_tensor")]:
        original = getattr(owner, name)

        def noting(*arguments, original=original, name=name, **options):
            read.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)
    run(1)
    assert not read
    sums.lap()
    assert read


# --- Ways to compute the same step ---


def whole_step(*pairs):
    """A `TrainStep` that does not split batches."""
    return make_step(lit_config(("CPU.MICRO_BATCH", "0"), *pairs))


def count_passes(step):
    """Counter of the forward passes through each block, from now on."""
    passes = Counter()
    for number, block in enumerate(step.live_model.blocks):
        block.register_forward_pre_hook(lambda layer, inputs, number=number: passes.update([number]))
    return passes


@pytest.mark.parametrize("size", ["0", "6"])
def test_a_step_counts_the_images_whose_label_with_the_larger_weight_is_predicted(size):
    mixed = ("AUG.MIXUP", "0.8", "AUG.MIX_MODE", "elem", "AUG.ERASE_PROB", "0.0", "MODEL.DROP_PATH_RATE", "0.0")
    step = make_step(lit_config(("CPU.MICRO_BATCH", size), ("TRAIN.ACCUM_STEPS", "2"), *zip(mixed[::2], mixed[1::2])))
    batch, right = next(steps(step.cfg)), 0
    for images, targets in map(step.train_input, batch):
        right += (step.model(images).numpy().argmax(1) == targets.numpy().argmax(1)).sum()
    result = step(batch, 1e-3, 0, 0)
    assert (result.correct.item(), result.images) == (right, 32) and 0 < right < 16


@pytest.mark.parametrize("size", ["0", "6"])
def test_a_batch_that_is_given_twice_has_the_same_mean_gradient(monkeypatch, size):
    batch, results, events = next(steps(lit_config())), [], []
    monkeypatch.setattr(processes, "local_gradients", lambda _: contextlib.nullcontext(events.append("local")))
    for batches in (batch, batch * 3):
        step = make_step(lit_config(("CPU.MICRO_BATCH", size), ("MODEL.DROP_PATH_RATE", "0.0")))
        result = step(batches, 1e-3, 0, 0, events.append)
        results.append((result.loss.item(), result.gradient_norm.item()))
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    # Several processes average their gradients in the last pass only.
    one = ["input", "forward and backward"]
    assert events == one + ["input", "local", "forward and backward"] * 2 + one


def test_recompute_runs_each_block_but_the_last_twice():
    batch, losses = next(steps(lit_config())), []
    for recompute, times in (("False", 1), ("True", 2)):
        step = whole_step(("TRAIN.RECOMPUTE", recompute), ("MODEL.T2T.DEPTH", "2"))
        passes = count_passes(step)
        losses.append(step(batch, 1e-3, 0, 0).loss.item())
        assert passes == {
            0: times,
            1: 1,
        }  # the backward pass starts with the last block, so recomputing it would save nothing
    assert losses[0] == losses[1]


def test_compiled_training_runs_the_compiled_program():
    step, plain = whole_step(("TRAIN.TO_STATIC", "True")), whole_step()
    passes, batches = count_passes(step), steps(lit_config())
    for number in range(2):
        batch = next(batches)
        loss = step(batch, 1e-3, 0, number).loss.item()
        assert loss == pytest.approx(plain(batch, 1e-3, 0, number).loss.item(), rel=1e-5)
        assert passes == ({0: 1} if number == 0 else {})  # Python runs the block only to compile it
        passes.clear()
    assert len(step.live_model.forward.program_cache) == 1


@pytest.mark.parametrize(("threads", "expected"), [("3", [(4, 4), (6, 6), (6, 6)]), ("2", [(4, 4), (12, 12)])])
def test_micro_batches_pass_through_the_model_in_parts(threads, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    step, sizes = make_step(lit_config(("CPU.MICRO_BATCH", "6"))), []
    part = step._backward_part

    def noted(model, tensors, weight):
        sizes.append((len(tensors[0]), round(weight * 16)))
        return part(model, tensors, weight)

    step._backward_part = noted
    batch = next(steps(lit_config()))
    loss = step(batch, 1e-3, 0, 0).loss.item()
    assert sorted(sizes) == expected
    assert loss == pytest.approx(whole_step()(batch, 1e-3, 0, 0).loss.item(), rel=1e-5)


# --- Images of one step over all processes ---


@pytest.mark.parametrize("processes, batch, passes", [(1, 64, 8), (8, 64, 1), (4, 64, 2), (4, 128, 1), (3, 64, None)])
def test_global_batch_is_the_same_on_any_number_of_cards(processes, batch, passes):
    cfg = load_config(ROOT / "configs/t2t_vit_7.yaml", [("TRAIN.BATCH_SIZE", str(batch))])
    if passes:
        assert accumulation(cfg, processes) == passes
        return
    message = "TRAIN.GLOBAL_BATCH 512 is not a multiple of TRAIN.BATCH_SIZE 64 x 3 processes; "
    with pytest.raises(UserError, match=message + "set another number of processes, or TRAIN.GLOBAL_BATCH 576"):
        accumulation(cfg, processes)
    with pytest.raises(UserError, match="set TRAIN.BATCH_SIZE 32, or TRAIN.GLOBAL_BATCH 1024"):
        accumulation(cfg, 16)


def test_accum_steps_on_the_command_line_override_global_batch_in_the_file():
    recipe = ROOT / "configs/t2t_vit_7.yaml"
    assert accumulation(load_config(recipe, [("TRAIN.ACCUM_STEPS", "3")]), 1) == 3
    both = [("TRAIN.ACCUM_STEPS", "3"), ("TRAIN.GLOBAL_BATCH", "128")]
    assert accumulation(load_config(recipe, both), 1) == 2
    assert accumulation(load_config(ROOT / "configs/lit_data.yaml", [("TRAIN.ACCUM_STEPS", "3")]), 2) == 3
