"""Run by the launcher in two processes, for test_processes.py: in_ranks.py FOLDER COMMANDS.

Each process writes FOLDER/rankN.json and FOLDER/rankN.npz, and then runs COMMANDS, a JSON list of the words of
tools/train.py, one after the other.
"""

import itertools
import json
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests.parent / "tools"), str(tests)]
    from t2t_vit import cli

    cli.import_paddle("cpu", several=True)

import in_process
import paddle
import test_amp

from t2t_vit.common.logger import setup_logging
from t2t_vit.config import default_config, load_config
from t2t_vit.data.dataset import Split, load_data
from t2t_vit.data.loader import EvalLoader, TrainLoader
from t2t_vit.data.paths import Paths
from t2t_vit.parallel import processes
from t2t_vit.training.evaluator import evaluate
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights.build import build_trained_model

SIZES = (1, 7, 8, 31, 360)
DTYPE = "float16" if paddle.__version__ < "3" else "bfloat16"  # gloo's sum of float16 is infinite in 3.3.1


def scores():
    """{N: scores as a dict} of the published model on N images, a third of which have a wrong label on purpose."""
    cfg = load_config("configs/lit_data.yaml", [("VAL.BATCH_SIZE", "16")])
    model, _ = build_trained_model(cfg, "output/pretrained/lit_data/best.pdparams")
    whole = load_data(cfg, ["val"])[1]["val"]
    order = [number * 97 % len(whole) for number in range(len(whole))]  # the files are sorted by class
    result = {}
    for size in SIZES:
        paths, labels = Paths.of(whole.paths[i] for i in order[:size]), whole.labels[order[:size]]
        split = Split("val", whole.source, paths, (labels + (np.arange(size) % 3 == 0)) % 10)
        loader = EvalLoader(split, cfg, processes.rank(), processes.world_size())
        result[str(size)] = asdict(evaluate(model, loader, cfg))
    return result


def training_batches(cfg):
    train = load_data(cfg, ["train"])[1]["train"]
    return TrainLoader(train, cfg, processes.rank(), processes.world_size()).epoch_steps(0)


def diverging():
    """[whether the step counts, checksum of the weights after it]; in the second of three steps, the loss of the last
    rank is infinite."""
    cfg = load_config("configs/lit_data.yaml", [("MODEL.T2T.DEPTH", "1"), ("TRAIN.BATCH_SIZE", "8")])
    batches, step, seen = training_batches(cfg), TrainStep(cfg), []
    criterion = step.criterion
    for number in range(3):
        diverges = number == 1 and processes.rank() == processes.world_size() - 1
        step.criterion = (lambda *args: criterion(*args) + float("inf")) if diverges else criterion
        ok = step(next(batches), 1e-3, 0, number).ok.item()
        weights = [tensor.numpy().tobytes() for tensor in step.model.state_dict().values()]
        seen.append([ok, zlib.crc32(b"".join(weights))])
    return seen


def amp_weights(batch_size):
    """The float32 weights after three AMP O2 steps of 16 images, with gradient accumulation; see test_amp.py."""
    cfg = test_amp.config("O2", DTYPE, BATCH_SIZE=batch_size, ACCUM_STEPS=2, OPTIMIZER="sgd", EMA_DECAY=0.0)
    step = test_amp.make_step(cfg)
    for number, batch in enumerate(itertools.islice(training_batches(cfg), 3)):
        assert step(batch, 0.1, 0, number).ok.item()
    return test_amp.arrays(step.weights("raw"))


if __name__ == "__main__":
    processes.setup(default_config())
    setup_logging(main=False)
    file = f"{sys.argv[1]}/rank{processes.rank()}"
    Path(f"{file}.json").write_text(json.dumps({"scores": scores(), "diverging": diverging()}))
    with pytest.MonkeyPatch.context() as patch:
        test_amp.stand_in(patch)
        np.savez(f"{file}.npz", **amp_weights(4))
    for words in json.loads(sys.argv[2]):
        done = in_process.run("tools/train.py", words, Path.cwd())
        assert done.returncode == 0, done.stdout + done.stderr
        processes.barrier()  # until the monitors of this run have ended
