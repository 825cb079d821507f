"""Start commands in several processes on this machine, with Paddle's launcher and gloo."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT, tool

# A model without dropout, which differs between processes, and images without augmentation.
PLAIN = [
    "MODEL.T2T.EMBED_DIM", 32, "MODEL.T2T.DEPTH", 2, "MODEL.T2T.TOKEN_DIM", 8, "MODEL.T2T.TOKENS_TYPE", "transformer",
    "AUG.SCALE", "[1.0, 1.0]", "AUG.RATIO", "[1.0, 1.0]", "AUG.INTERPOLATION", "bilinear", "AUG.HFLIP", 0.0,
    "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.EPOCHS", 1, "TRAIN.LOG_EVERY", 1,
]  # fmt: skip
LONG = [*PLAIN, "TRAIN.EPOCHS", 500, "TRAIN.SAVE_MINUTES", 0.002]


def start(log_dir, script, *words, launch=("--nproc_per_node", "2")):
    """Start the launcher; its output goes to log_dir/launcher.txt."""
    command = [sys.executable, "-m", "paddle.distributed.launch", *launch, "--log_dir", log_dir, script, *words]
    log_dir.mkdir(parents=True, exist_ok=True)
    environment = {**ENVIRONMENT, "PADDLE_DISTRI_BACKEND": "gloo"}  # over CPU; cards take nccl by themselves
    with open(log_dir / "launcher.txt", "a") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, cwd=ROOT,
                                   env=environment)  # fmt: skip
    started.append(process)
    return process


started = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    started.clear()


def train(output, *words):
    """Run tools/train.py in this process."""
    return tool("train", "--output", output, *words, fresh=False)


def launched(log_dir, name, *words, **options):
    """Run tools/NAME.py in two processes to its end; all that the launcher printed."""
    process = start(log_dir, ROOT / f"tools/{name}.py", "--device", "cpu", *words, **options)
    assert process.wait(200) == 0, (log_dir / "launcher.txt").read_text()
    return (log_dir / "launcher.txt").read_text()


def rank_of(launcher, rank):
    """Process id of one rank that a launcher has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        if f"PADDLE_TRAINER_ID={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise LookupError(rank)


def wait_for(what, process, seconds=90):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_nodes(tmp_path, *words, own=((), ())):
    """Start two launchers as two machines without a shared disk; each has its `own` words and --output."""
    master = f"127.0.0.1:{free_port()}"
    launch = ["--nnodes", 2, "--master", master, "--nproc_per_node", 1, "--rank"]
    words = [ROOT / "tools/train.py", "--device", "cpu", *words]
    return [start(tmp_path / f"launch{node}", *words, *own[node], "--output", tmp_path / f"node{node}",
                  launch=(*launch, node)) for node in (0, 1)]  # fmt: skip
