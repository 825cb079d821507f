"""Read batches through loader processes that fail: python tests/programs/read_batches.py CASE [ARGUMENT]."""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from t2t_vit.cli import import_paddle  # noqa: E402

import_paddle("cpu")
from t2t_vit.common.errors import UserError  # noqa: E402
from t2t_vit.config import load_config  # noqa: E402
from t2t_vit.data.dataset import load_data  # noqa: E402
from t2t_vit.data.loader import TrainLoader  # noqa: E402
from t2t_vit.data.reading import data_loader, read_all  # noqa: E402


def faults(workers):
    """Print the batches before an error in the dataset or the collate function, and the error."""
    for place in ("dataset", "collate"):
        for error in (ValueError("unforeseen"), UserError("a sentence"), MemoryError()):
            seen = []
            order = [[0, 1], [2, 3], [4, 5], [6, 7]]
            loader = data_loader(Data(place, error), order, Collate(place, error), int(workers), True)
            try:
                for (batch,) in read_all(loader):
                    seen.append(batch.numpy()[:, 0].tolist())
            except (RuntimeError, UserError) as raised:
                print(place, seen, type(raised).__name__, raised)


class Faulty:
    """Raises an error at one place."""

    def __init__(self, place, error):
        self.place, self.error = place, error

    def raise_if(self, is_reached):
        if is_reached:
            raise self.error


class Data(Faulty):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.raise_if(self.place == "dataset" and index == 5)
        return np.full(3, index)


class Collate(Faulty):
    def __call__(self, samples):
        self.raise_if(self.place == "collate" and samples[0][0] == 4)
        return [np.stack(samples)]


def first_steps():
    """Steps of a long training with two loader processes, after the first one."""
    cfg = load_config(ROOT / "configs/lit_data.yaml", [("DATA.NUM_WORKERS", "2")])
    steps = TrainLoader(load_data(cfg)[1]["train"], cfg, epochs=100).epoch_steps(0)
    next(steps)
    return steps


def killed(name):
    """Print the error after one of two loader processes gets the signal."""
    steps = first_steps()
    os.kill(multiprocessing.active_children()[0].pid, getattr(signal, name))
    try:
        for _ in range(1000):
            next(steps)
    except UserError as error:
        print(error, flush=True)


def large_batches():
    """Print the pid of a loader process that sends large batches through a pipe, and the error after its death."""
    loader = data_loader(list(range(1000)), [[i] for i in range(1000)], lambda _: [np.zeros(1 << 23)], 2, False)
    try:
        for number, _ in enumerate(read_all(loader)):
            if number == 1:
                print(multiprocessing.active_children()[0].pid, flush=True)
    except UserError as error:
        print(error, flush=True)


def lost():
    """Exit after multiprocessing missed the end of one loader process, while the other one still runs."""
    steps = first_steps()
    worker = multiprocessing.active_children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(worker.pid, 0)
    print("end", flush=True)
    del steps


if __name__ == "__main__":
    {"faults": faults, "killed": killed, "large_batches": large_batches, "lost": lost}[sys.argv[1]](*sys.argv[2:])
