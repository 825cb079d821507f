"""What a run counts, saves and logs besides its steps: sums, bad steps, the best epoch, times, curves."""

import json
import logging

import numpy as np
import paddle
import pytest
from conftest import few_digits, tool
from test_train_step import lit_config, steps

from t2t_vit.common.errors import UserError
from t2t_vit.config import all_keys
from t2t_vit.config_values import to_seconds
from t2t_vit.data.dataset import load_data
from t2t_vit.parallel import processes
from t2t_vit.runs import interruption
from t2t_vit.runs.interruption import GO_ON, SAVE, STOP_FOR_TIME, InterruptHandler
from t2t_vit.runs.run_folder import RunFolder
from t2t_vit.training.epoch_sums import EpochSums, Means
from t2t_vit.training.evaluator import Scores
from t2t_vit.training.resume import FREE_KEYS, setting
from t2t_vit.training.stop_rules import BadSteps, check_skipped
from t2t_vit.training.stopwatch import Lap, Stopwatch
from t2t_vit.training.train_log import TrainLog, log_summary
from t2t_vit.training.train_step import StepResult
from t2t_vit.training.trainer import Trainer
from t2t_vit.weights import checkpoint


def make_trainer(cfg):
    classes, splits = load_data(cfg)
    interrupts = InterruptHandler(cfg.TRAIN, 0.0)
    return Trainer(cfg, classes, splits, RunFolder(cfg), interrupts, setting(cfg, splits))


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
