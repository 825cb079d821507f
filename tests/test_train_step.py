"""What one step does: moving average, skipped steps, clipping, and no waiting for the device."""

import contextlib
import json
import logging
import math
from collections import Counter

import numpy as np
import paddle
import pytest
from conftest import ROOT, few_digits, tool

from t2t_vit.common.errors import UserError
from t2t_vit.config import all_keys, load_config
from t2t_vit.config_values import accumulation, to_seconds
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.models import cpu_ops
from t2t_vit.parallel import processes
from t2t_vit.runs import interruption
from t2t_vit.runs.interruption import GO_ON, SAVE, STOP_FOR_TIME, InterruptHandler
from t2t_vit.runs.run_folder import RunFolder
from t2t_vit.training.ema import ModelEma
from t2t_vit.training.epoch_sums import EpochSums, Means
from t2t_vit.training.evaluator import Scores
from t2t_vit.training.flat import FlatWeights
from t2t_vit.training.resume import FREE_KEYS, setting
from t2t_vit.training.stop_rules import BadSteps, check_skipped
from t2t_vit.training.stopwatch import Lap, Stopwatch
from t2t_vit.training.train_log import TrainLog, log_summary
from t2t_vit.training.train_step import StepResult, TrainStep
from t2t_vit.training.trainer import Trainer
from t2t_vit.weights import checkpoint


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


def make_trainer(cfg):
    classes, splits = load_data(cfg)
    interrupts = InterruptHandler(cfg.TRAIN, 0.0)
    return Trainer(cfg, classes, splits, RunFolder(cfg), interrupts, setting(cfg, splits))


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


def in_two_processes(monkeypatch):
    """`EpochSums` of two processes, which are summed and gathered as by Paddle."""
    both = []
    for is_main in (True, False):
        monkeypatch.setattr(processes, "is_main", lambda is_main=is_main: is_main)
        both.append(EpochSums())
    monkeypatch.setattr(processes, "sum_over_processes", lambda _: both[0].own + both[1].own)
    monkeypatch.setattr(processes, "gather", lambda _: np.stack([sums.own.numpy() for sums in both]))
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    return both


def add_steps(both, numbers):
    """Add steps of 8 images in each process, one of them unreadable in the second. Step 3 is skipped."""
    for number in numbers:
        for rank, sums in enumerate(both):
            figures = (paddle.to_tensor(float(value)) for value in (number + rank, 4 * rank))
            sums.add(
                StepResult(
                    *figures, 8, ("broken",) * rank, paddle.to_tensor(2.0 * number), paddle.to_tensor(number != 3)
                )
            )


def test_means_are_those_of_all_processes_and_of_the_steps_since_the_last_line(monkeypatch):
    both = in_two_processes(monkeypatch)
    add_steps(both, [1, 2])
    assert both[0].lap() == Means(2.0, 0.25, 3.0, 0, 2)
    add_steps(both, [3, 4])
    assert both[0].lap() == Means(4.5, 0.25, 8.0, 1, 2)
    assert both[0].means() == Means(pytest.approx(17 / 6), 0.25, pytest.approx(14 / 3), 1, 4)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_sums_continue_on_another_number_of_processes(monkeypatch, number):
    both = in_two_processes(monkeypatch)
    add_steps(both, [1, 3])
    both[0].lap()
    add_steps(both, [4])
    state, ranks = both[0].state(), []
    monkeypatch.setattr(processes, "world_size", lambda: number)
    for rank in range(number):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "is_main", lambda rank=rank: rank == 0)
        ranks.append(EpochSums())
        ranks[-1].load_state(state)
    monkeypatch.setattr(processes, "sum_over_processes", lambda _: sum(sums.own for sums in ranks))
    assert ranks[-1].means() == Means(1.5, 0.25, 2.0, 1, 2)  # of the last line
    assert ranks[-1].lap() == Means(4.5, 0.25, 8.0, 0, 1)


def test_bad_steps_in_a_row_end_the_run_at_the_next_check():
    rule = BadSteps(3)
    for ok in (False, False, True, False, False, False, True):
        rule.add(paddle.to_tensor(ok))
    with pytest.raises(
        UserError, match=r"not finite in 3 steps in a row \(TRAIN.MAX_BAD_STEPS\), up to epoch 2, step 7"
    ):
        rule.check(2, 7)
    rule.check(2, 8)  # counts from the last check on


def test_bad_steps_in_a_row_are_saved(tmp_path):
    cfg = lit_config(("OUTPUT", str(tmp_path)))
    trainer = make_trainer(cfg)
    trainer.train_step(next(steps(cfg)), 1e-3, 0, 0)  # makes the optimizer's state
    for ok in (False, False, True):
        trainer.bad_steps.add(paddle.to_tensor(ok))
    trainer.step = 3
    trainer.run.start(cfg, trainer.classes)
    trainer._save()
    state = checkpoint.read(trainer.run.latest)
    trainer.bad_steps = BadSteps(2)
    trainer.resume(trainer.run.latest, state)
    assert trainer.bad_steps.streak.item() == 0
    with pytest.raises(UserError, match="in 2 steps in a row"):
        trainer.bad_steps.check(1, 3)
    del state["meter"]["worst_streak"]  # as in a state of a version that did not save it
    trainer.resume(trainer.run.latest, state)
    trainer.bad_steps.check(1, 3)


def test_two_bad_steps_in_a_row_are_not_saved(tmp_path, warned):
    trainer = make_trainer(lit_config(("OUTPUT", str(tmp_path))))
    trainer.run.start(trainer.cfg, trainer.classes)
    for bad, is_saved in ((1, True), (2, False)):
        trainer.run.latest.unlink(missing_ok=True)
        trainer.bad_steps.add(paddle.to_tensor(False))
        trainer._save()
        assert trainer.run.latest.is_file() == is_saved, bad
    assert warned.text.count("not saved: the last 2 steps were not finite") == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(lit_config(("OUTPUT", str(tmp_path))))
    trainer.run.start(trainer.cfg, trainer.classes)
    bias = trainer.train_step.model.head.bias
    bias.set_value(paddle.full_like(bias, float("inf")))
    with pytest.raises(UserError, match=r"weights are no longer finite \(head.bias\); a lower TRAIN.BASE_LR"):
        trainer._save()
    assert not trainer.run.latest.exists()


def test_the_first_of_the_best_epochs_is_kept(tmp_path):
    trainer, infinite = make_trainer(lit_config(("OUTPUT", str(tmp_path)), ("VAL.BEST", "raw"))), float("inf")
    trainer.run.start(trainer.cfg, trainer.classes)
    found = []
    for trainer.epoch, (loss, top1) in enumerate(
        [(infinite, 0.5), (2.0, 0.0), (2.0, 0.3), (1.0, 0.3), (infinite, 0.4)]
    ):
        trainer._keep_best({"raw": Scores(loss, top1, 1.0, 8)})
        found.append((trainer.best_epoch, trainer.best_top1, trainer.run.best.exists()))
    assert found == [(0, -1.0, False), (1, 0.0, True), (2, 0.3, True), (2, 0.3, True), (2, 0.3, True)]


def test_a_run_without_a_best_epoch_says_so(tmp_path, warned):
    warned.set_level(logging.INFO, "t2t")
    trainer = make_trainer(lit_config(("OUTPUT", str(tmp_path))))
    trainer.epoch, trainer.scores = trainer.total_epochs, {"raw": 0.1, "ema": 0.25}
    trainer.fit()
    assert warned.messages == [
        f"all done: {trainer.epoch} epochs; --resume none starts a new run",
        f"latest: raw 0.1000, ema 0.2500 in {trainer.run.latest}",
        "done: no validation had a finite loss",
    ]


def test_too_many_unreadable_images_end_the_run():
    log = TrainLog(1, 16)
    check_skipped(5, 500, log)
    with pytest.raises(
        UserError, match="6 images could not be read, but DATA.ON_ERROR skip allows only 5 of the 500 in an epoch"
    ):
        check_skipped(6, 500, log)


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


def test_a_save_counts_neither_as_reading_nor_as_training():
    now = [0.0]
    stopwatch = Stopwatch(clock=lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    wait(100)
    stopwatch.restart()
    wait(0.5)
    stopwatch.batch_read()
    wait(2)
    assert stopwatch.lap() == Lap(1, 0.5, 2.0)
    wait(1)
    stopwatch.step_done()
    assert stopwatch.lap() == Lap(0, 0.0, 1.0)
    wait(1)
    stopwatch.batch_read()
    assert stopwatch.state() == {"seconds": 4.5, "read_seconds": 1.5}
    other = Stopwatch()
    other.load_state(stopwatch.state())
    assert other.state() == stopwatch.state()


def test_slow_reading_is_a_warning_once(warned):
    log = TrainLog(1, 16)
    for read, seconds in ((50, 59), (9, 100)):  # too short to judge; a good one
        log.check_reading(Lap(1, read, seconds - read), 0)
    assert not warned.text
    for read, seconds in ((42, 100), (90, 100)):
        log.check_reading(Lap(1, read, seconds - read), 0)
    assert warned.text.count("of the time was spent waiting for images") == 1
    assert "warning: 42% of the time" in warned.text and "raise DATA.NUM_WORKERS (0; " in warned.text


# --- When to save and stop ---


def test_times_are_read():
    assert [to_seconds(text) for text in ("71h30m", "90m", "30s", "1h1s", "0s")] == [257400, 5400, 30, 3601, 0]
    assert [to_seconds(text) for text in ("", "3", "5x", "1m1h", "-3s", "1.5h")] == [0] * 6
    with pytest.raises(UserError, match="TRAIN.TIME_LIMIT is '72' but must be a time such as 71h30m"):
        lit_config(("TRAIN.TIME_LIMIT", "72"))


def test_time_for_the_save_is_measured(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(interruption, "_EXIT_SECONDS", 0.0)
    watch = InterruptHandler(
        lit_config(("TRAIN.TIME_LIMIT", "10m"), ("TRAIN.SAVE_MINUTES", "3.0")).TRAIN, started=900.0
    )

    def after(seconds):
        now[0] += seconds
        return watch.after_step()

    assert [after(10) for _ in range(18)] == [GO_ON] * 18
    assert after(10) == SAVE
    watch.saved(35.0)
    assert after(20) == GO_ON
    # The process must have exited at 900 + 600 s, so it stops two saves of 35 s and a step of 31 s before that.
    assert [after(30) for _ in range(6)] == [GO_ON] * 5 + [SAVE]
    watch.saved(20.0)
    assert after(31) == STOP_FOR_TIME
    assert now[0] <= 1500 - 2 * 35


def test_settings_of_the_state_are_all_config_keys():
    assert set(all_keys()) >= FREE_KEYS


# --- Curves ---


def test_visualdl_curves_contain_each_step_once(tmp_path):
    visualdl = pytest.importorskip("visualdl")
    words = ["--output", tmp_path, *few_digits(tmp_path), "MODEL.T2T.DEPTH", 1, "TRAIN.EPOCHS", 2]
    words += ["TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.LOG_EVERY", 5, "TRAIN.BATCH_SIZE", 10]
    folder = tmp_path / "lit_data.visualdl"
    tool("train", *words, fresh=False)
    # As if killed after the first epoch was saved: its rows and curves of later steps are dropped and made again.
    (tmp_path / "lit_data/latest.pdparams").unlink()
    tool("train", *words, fresh=False)
    (file,) = folder.iterdir()
    reader = visualdl.LogReader(file_path=str(file))
    expected = {"accuracy/train", "accuracy/val", "accuracy/val_ema", "accuracy_top5/val", "accuracy_top5/val_ema",
                "loss/train", "loss/val", "loss/val_ema", "step/learning_rate", "step/gradient_norm",
                "system/images_per_second", "system/read_seconds", "system/memory_mb"}  # fmt: skip
    assert set(reader.get_tags()["scalar"]) == expected
    assert [point.id for point in reader.get_data("scalar", "loss/train")] == [5, 10, 15, 20]
    assert [point.id for point in reader.get_data("scalar", "accuracy/val_ema")] == [1, 2]
    rows = [json.loads(line) for line in (tmp_path / "lit_data/metrics.jsonl").read_text().splitlines()]
    values = [point.value for point in reader.get_data("scalar", "accuracy/val_ema")]
    assert values == pytest.approx([row["val_ema_top1"] for row in rows])


@pytest.mark.parametrize("epochs, best, advice", [(1, "ema", "0.8"), (40, "ema", None), (1, "better", None)])
def test_short_run_gets_a_warning_about_its_average(epochs, best, advice, tmp_path, caplog):
    pairs = [("TRAIN.EPOCHS", str(epochs)), ("TRAIN.WARMUP_EPOCHS", "0"), ("VAL.BEST", best)]
    cfg = lit_config(("TRAIN.BATCH_SIZE", "64"), ("TRAIN.EMA_DECAY", "0.99"), ("OUTPUT", str(tmp_path)), *pairs)
    log_summary(make_trainer(cfg))
    warnings = [record.getMessage() for record in caplog.records if "EMA_DECAY" in record.getMessage()]
    assert bool(warnings) == bool(advice)
    assert not advice or f"set TRAIN.EMA_DECAY {advice} or VAL.BEST better" in warnings[0]


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


def test_micro_batches_pass_through_the_model_in_parts():
    step, sizes = make_step(lit_config(("CPU.MICRO_BATCH", "6"))), []
    part = step._backward_part

    def noted(model, tensors, weight):
        sizes.append((len(tensors[0]), round(weight * 16)))
        return part(model, tensors, weight)

    step._backward_part = noted
    batch = next(steps(lit_config()))
    loss = step(batch, 1e-3, 0, 0).loss.item()
    assert sorted(sizes) == [(4, 4), (6, 6), (6, 6)]
    assert loss == pytest.approx(whole_step()(batch, 1e-3, 0, 0).loss.item(), rel=1e-5)


@pytest.mark.parametrize("best", ["raw", "ema"])
def test_val_best_chooses_the_best_weights(tmp_path, best):
    words = ["--output", tmp_path, *few_digits(tmp_path), "MODEL.T2T.DEPTH", 1, "TRAIN.EPOCHS", 1]
    words += ["TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.BATCH_SIZE", 20]
    tool("train", *words, "VAL.BEST", best, fresh=False)
    state, weights = (checkpoint.read(tmp_path / f"lit_data/{name}.pdparams") for name in ("latest", "best"))
    own, other = ("model", "ema") if best == "raw" else ("ema", "model")
    assert all((weights[name] == value).all() for name, value in state[own].items())
    assert any((weights[name] != value).any() for name, value in state[other].items())
    (row,) = (json.loads(line) for line in (tmp_path / "lit_data/metrics.jsonl").read_text().splitlines())
    assert state["best_top1"] == row["val_top1" if best == "raw" else "val_ema_top1"]


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
