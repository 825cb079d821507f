"""Read training runs, of this repository or others, as rows of numbers by epoch."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path

# Keys of a row. Accuracies are from 0 to 1. "val" is for the raw weights, "val_ema" for their moving average.
KEYS = (
    "lr", "train_loss", "train_acc", "val_loss", "val_top1", "val_top5", "val_ema_loss", "val_ema_top1",
    "val_ema_top5", "images_per_second",
)  # fmt: skip
# {column of timm's summary.csv: (our key, divisor)}
_COLUMNS = {
    "train_loss": ("train_loss", 1), "eval_loss": ("val_loss", 1), "eval_top1": ("val_top1", 100),
    "eval_top5": ("val_top5", 100), "lr": ("lr", 1),
}  # fmt: skip
_INTEGER = r"\d{1,9}"
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_LONGEST_LINE = 10_000  # only this many characters of a line are searched


@dataclass(frozen=True)
class Run:
    """One training run."""

    name: str
    source: Path  # file that was read
    rows: dict  # {epoch from 1: {key of KEYS: number, or None if it is not finite}}

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return (epochs, numbers) for the epochs that have `key`. A number that is not finite becomes nan."""
        found = {epoch: row[key] for epoch, row in sorted(self.rows.items()) if key in row}
        return list(found), [math.nan if number is None else number for number in found.values()]

    def best(self, key: str) -> tuple[float, int] | None:
        """Return (largest number, its first epoch) of `key`, or None if there is no number."""
        found = [(row[key], -epoch) for epoch, row in self.rows.items() if row.get(key) is not None]
        return (max(found)[0], -max(found)[1]) if found else None

    def best_validation(self, rule: str) -> tuple[float, int, str] | None:
        """Return (top-1, epoch, its key) of best.pdparams, which VAL.BEST `rule` chose. None if it is not known."""
        keys = {"raw": ["val_top1"], "ema": ["val_ema_top1"], "better": ["val_top1", "val_ema_top1"]}[rule]
        found = [(*best, key) for key in keys if (best := self.best(key))]
        found = found or [(*best, "val_top1") for best in [self.best("val_top1")] if best]  # a run without EMA
        return max(found, key=lambda one: (one[0], -one[1])) if found else None


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read files and run folders as `Run`s with distinct names, each file once. Raises UserError, see `read_run`."""
    runs = list({run.source.resolve(): run for run in map(read_run, paths)}.values())
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else Run(str(display_path(run.source)), run.source, run.rows) for run in runs
    ]


def read_run(path: str | Path) -> Run:
    """Read a run folder (also timm's), a metrics.jsonl (and times.jsonl beside it), timm's summary.csv, or a log.

    Logs may come from this repository, T2T_paddle or paddle_pit. If an epoch occurs twice, the last row counts.

    Returns a `Run`. Raises UserError if the file does not exist, has no epoch, or has a bad line.
    """
    path = Path(path)
    if path.is_dir():
        tables = [path / name for name in ("metrics.jsonl", "summary.csv") if (path / name).is_file()]
        if not tables:
            raise UserError(f"{path} has no metrics.jsonl, which a run writes after its first epoch")
        path = tables[0]
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file or run folder'}")
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"{"):
        name, rows = path.resolve().parent.name, _read_metrics(path)
    elif start.startswith(b"epoch,"):
        name, rows = path.resolve().parent.name, _read_summary(path)
    else:
        name, rows = path.stem, _read_log(path)
    if not rows:
        raise UserError(
            f"{path} has no epoch; RUN may be a run folder, its metrics.jsonl, a log of this repository, T2T_paddle or "
            "paddle_pit, or timm's summary.csv"
        )
    return Run(name, path, rows)


def _finite(number):
    """Return a number, or None if it cannot be plotted: nan, inf, beyond 1e100."""
    return number if number is not None and abs(number) <= 1e100 else None


def _checked(epoch):
    if type(epoch) is not int or not 1 <= epoch <= 10**9:
        raise ValueError("an epoch must be a whole number from 1 to 1000000000")
    return epoch


def _read_metrics(path):
    rows = _read_json_lines(path)
    times = path.with_name("times.jsonl")
    if path.name == "metrics.jsonl" and times.is_file():
        for epoch, row in _read_json_lines(times).items():
            rows.setdefault(epoch, {}).update(row)
    return rows


def _read_json_lines(path):
    """Read {epoch: row}. The last line may be incomplete: the run is writing it or was killed."""
    rows, lines = {}, path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line or b"{}")
            if row:
                rows[_checked(row["epoch"])] = {key: _finite(row[key]) for key in KEYS if key in row}
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            if number < len(lines) or line.endswith(b"}"):
                raise UserError(f"{path}, line {number}: not a line of a run's metrics") from None
    return rows


def _read_summary(path):
    """Read timm's summary.csv: epochs from 0, accuracies in percent. A resumed run repeats the header."""
    rows, header = {}, []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            for cells in filter(None, reader):
                if cells[0] == "epoch":
                    header = cells
                    continue
                row = dict(zip(header, cells))
                rows[_checked(int(row["epoch"]) + 1)] = {
                    key: _finite(float(row[column]) / scale)
                    for column, (key, scale) in _COLUMNS.items()
                    if row.get(column)
                }
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _read_log(path):
    log = _Log()
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            log.read(line[:_LONGEST_LINE])
    first = 1 if 0 in log.rows else 0  # T2T_paddle counts epochs from 0
    return {epoch + first: row for epoch, row in log.rows.items()}


class _Log:
    """Collects the epochs of a log, line by line.

    This repository and T2T_paddle write `Epoch [1/40], Step [10/22], ... read_time: 0.01, train_time: 0.2, lr: 0.001`,
    then `Epoch [1/40], avg_Loss: 2.3, avg_acc: 0.1`, then `ImageNet val acc is:0.1`; this repository may add ` (EMA)`.
    paddle_pit writes `Now training epoch 1. LR=0.001`, `Epoch[001/310], Step[0000/1251], ...`, `Epoch[001/310], Train
    Loss: 6.9, Train Acc: 0.01, time: 1500.0`, `Epoch[001/310], Validation Loss: 6.5, Validation Acc@1: ...`.

    T2T_paddle appends to its log and counts from 0 again after each start, so the epochs of later starts are added
    after the earlier ones. For the others, the parts of a run are merged by epoch number.
    """

    NAMES = {
        "avg_Loss": "train_loss", "avg_acc": "train_acc", "Train Loss": "train_loss", "Train Acc": "train_acc",
        "Validation Loss": "val_loss", "Validation Acc@1": "val_top1", "Validation Acc@5": "val_top5", "lr": "lr",
        "images/s": "images_per_second",
    }  # fmt: skip
    EPOCH = re.compile(rf"\bEpoch ?\[({_INTEGER})/\d+\]")
    FIELD = re.compile(rf"([A-Za-z][\w/@]*(?: [A-Z][\w@]*)?): ?({_NUMBER})")
    RATE = re.compile(rf"Now training epoch ({_INTEGER})\. LR=({_NUMBER})")
    VALIDATION = re.compile(rf"\bval acc is: ?({_NUMBER})( \(EMA\))?")

    def __init__(self):
        self.rows = {}  # finished epochs
        self.row = {}  # the current epoch
        self.printed = self.epoch = None  # the current epoch's number in the log, and its key in `rows`
        self.before = 0  # epochs of earlier starts

    def read(self, line):
        if match := self.RATE.search(line):
            self._enter(int(match[1]), begins=True)
            self.row["lr"] = _finite(float(match[2]))
        elif match := self.EPOCH.search(line):
            self._enter(int(match[1]), begins="Step" in line)
            fields = self.FIELD.findall(line)
            self.row.update({self.NAMES[name]: _finite(float(text)) for name, text in fields if name in self.NAMES})
            if "train_loss" in self.row:
                self.rows[self.epoch] = self.row
        elif match := self.VALIDATION.search(line):
            self.row["val_ema_top1" if match[2] else "val_top1"] = _finite(float(match[1]))

    def _enter(self, printed, begins):
        """Start an empty row for a new epoch. `begins`: this line cannot belong to a finished epoch."""
        if printed != self.printed or (begins and "train_loss" in self.row):
            if printed == 0:
                self.before = 1 + max(self.rows, default=-1)
            self.printed, self.epoch, self.row = printed, self.before + printed, {}
