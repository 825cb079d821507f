"""Run AMP O2 steps with gradient accumulation, in one process or several; see test_amp.py."""

import itertools
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent / "tools"), str(tests)]
    from t2t_vit import cli

    cli.import_paddle("cpu", several=True)

import test_amp

from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.parallel import processes

DTYPE = "float16" if paddle.__version__ < "3" else "bfloat16"  # gloo's sum of float16 is infinite in 3.3.1


def weights(batch_size):
    """The float32 weights after three steps of 16 images."""
    cfg = test_amp.config("O2", DTYPE, BATCH_SIZE=batch_size, ACCUM_STEPS=2, OPTIMIZER="sgd", EMA_DECAY=0.0)
    processes.setup(cfg)
    rank, world_size = processes.rank(), processes.world_size()
    step = test_amp.make_step(cfg)
    batches = TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg, rank, world_size).epoch_steps(0)
    for number, batch in enumerate(itertools.islice(batches, 3)):
        assert step(batch, 0.1, 0, number).ok.item()
    return test_amp.arrays(step.weights("raw"))


if __name__ == "__main__":
    test_amp.stand_in(pytest.MonkeyPatch())
    found = weights(4)
    np.savez(f"{sys.argv[1]}/rank{processes.rank()}.npz", **found)
