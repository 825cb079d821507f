"""Several processes on the CPU with gloo: same results as one process, one writer, a failure stops all."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_amp
from conftest import ENVIRONMENT, ROOT, tool
from programs import in_ranks

from t2t_vit.weights import checkpoint

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


def has_step(log, count=1):
    return log.is_file() and log.read_text().count("Step [") >= count


# --- The same numbers ---


@pytest.fixture(scope="module")
def in_two(tmp_path_factory):
    """[(results, weights) of rank 0, of rank 1] of programs/in_ranks.py."""
    folder = tmp_path_factory.mktemp("ranks")
    process = start(folder, ROOT / "tests/programs/in_ranks.py", folder)
    assert process.wait(200) == 0, (folder / "launcher.txt").read_text()
    files = [folder / f"rank{rank}" for rank in (0, 1)]
    return [(json.loads(file.with_suffix(".json").read_text()), np.load(f"{file}.npz")) for file in files]


def test_evaluation_counts_every_image_once(in_two):
    result, expected = in_two[0][0]["scores"], in_ranks.scores()
    assert expected["360"]["top1"] < 0.7 < expected["360"]["top5"] < 1  # a third of the labels are wrong on purpose
    for size in map(str, in_ranks.SIZES):
        for key in ("num_images", "top1", "top5"):
            assert result[size][key] == expected[size][key], (size, key)
        assert result[size]["loss"] == pytest.approx(expected[size]["loss"], rel=1e-6), size


def test_two_processes_validate_like_one(tmp_path):
    labels = tmp_path / "real.json"
    labels.write_text(json.dumps([[number % 10, 3] if number % 3 else [] for number in range(360)]))
    words = ["--real-labels", labels, "--report"]
    printed = launched(tmp_path, "val", "--batch-size", 50, *words, tmp_path / "two.json")
    scores = [line for line in printed.splitlines() if line.startswith(("images: ", "ReaL"))]
    alone = tool("val", *words, tmp_path / "one.json").stdout.splitlines()
    assert scores == [line for line in alone if line.startswith(("images: ", "ReaL"))]
    assert scores[0].startswith("images: 360,") and scores[1].endswith(" of 240 images with labels")
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    calibration = [report.pop("calibration") for report in (two, one)]
    assert calibration[0]["ece"] == pytest.approx(calibration[1]["ece"], rel=1e-6)
    assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-6)
    assert two == one and len(one["classes"]) == 10 and one["confusions"]
    assert all((tmp_path / f"workerlog.{rank}").is_file() for rank in (0, 1))


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory):
    """(options of a run of ten steps of 64 images, folder of that run in one process)."""
    folder = tmp_path_factory.mktemp("ten")
    images = sorted((ROOT / "lit_data/train").glob("*/*.png"))[:: 1437 // 640][:640]
    lines = [f"{path.relative_to(ROOT / 'lit_data/train')} {path.parent.name}\n" for path in images]
    (folder / "train.txt").write_text("".join(lines))
    words = [*PLAIN, "DATA.TRAIN_LIST", folder / "train.txt", "DATA.CLASSES", "lit_data/classes.txt"]
    train(folder / "one", "--batch-size", 64, *words)
    return words, folder / "one/lit_data"


def losses(folder):
    return [float(loss) for loss in re.findall(r"Step .* Loss: (\S+),", folder.with_suffix(".log").read_text())]


def assert_close(folder, other):
    """Losses of each step (as printed, and their exact mean) and weights after them."""
    assert len(losses(folder)) == 10
    assert losses(folder) == pytest.approx(losses(other), abs=1.01e-4)
    rows = [json.loads((path / "metrics.jsonl").read_text()) for path in (folder, other)]
    for key in ("train_loss", "train_acc", "grad_norm", "val_loss", "val_ema_loss"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=1e-5), key
    states = [checkpoint.read(path / "latest.pdparams") for path in (folder, other)]
    for part in ("model", "ema"):
        for name, value in states[1][part].items():
            assert np.abs(states[0][part][name] - value).max() <= 1e-5, name


def test_two_processes_distil_a_pit_like_one(ten_steps, tmp_path):
    words = ten_steps[0][ten_steps[0].index("AUG.SCALE") :]  # without the sizes of a T2T-ViT
    words += ["--config", "configs/lit_data_pit.yaml", "NAME", "lit_data", "MODEL.NAME", "pit_ti_distilled",
              "MODEL.PIT.BASE_DIMS", "[8, 8]", "MODEL.PIT.DEPTH", "[1, 1]", "DISTILL.TYPE", "hard",
              "DISTILL.TEACHER", "output/pretrained/lit_data/config.yaml",
              # The keys' bias has a gradient of nothing but rounding, which Adam would scale up.
              "TRAIN.EPSILON", 1e-4]  # fmt: skip
    train(tmp_path / "one", "--batch-size", 64, *words)
    launched(tmp_path / "launch", "train", "--output", tmp_path / "two", "--batch-size", 32, *words)
    assert_close(tmp_path / "two/lit_data", tmp_path / "one/lit_data")


def test_two_processes_fine_tune_unbalanced_classes_like_one(ten_steps, tmp_path):
    lines = (ROOT / "lit_data/train.txt").read_text().splitlines(keepends=True)
    few = [line for digit in "56789" for line in [line for line in lines if line[0] == digit][:12]]
    (tmp_path / "train.txt").write_text("".join(few + [line for line in lines if line[0] in "01234"][: 640 - len(few)]))
    words = [*ten_steps[0], "TRAIN.OPTIMIZER", "sgd", "TRAIN.BASE_LR", 0.05, "TRAIN.LAYER_DECAY", 0.7,
             "TRAIN.CLIP_NORM", 1.0, "DATA.TRAIN_LIST", tmp_path / "train.txt", "TRAIN.CLASS_WEIGHTS", "auto",
             "TRAIN.FREEZE", "['tokens_to_token.*', 'blocks.0.attn.*', 'cls_token']"]  # fmt: skip
    train(tmp_path / "one", "--batch-size", 64, *words)
    launched(tmp_path / "launch", "train", "--output", tmp_path, "--batch-size", 32, *words)
    assert_close(tmp_path / "lit_data", tmp_path / "one/lit_data")


def test_accumulated_steps_train_like_whole_ones(ten_steps, tmp_path):
    words, one = ten_steps
    train(tmp_path / "one", "--batch-size", 16, *words, "TRAIN.ACCUM_STEPS", 4)
    assert_close(tmp_path / "one/lit_data", one)
    # Also with recomputed activations: DataParallel's hooks allow a parameter only once.
    words = ["--output", tmp_path / "two", "--batch-size", 16, *words, "TRAIN.ACCUM_STEPS", 2, "TRAIN.RECOMPUTE", True]
    launched(tmp_path / "launch", "train", *words)
    assert_close(tmp_path / "two/lit_data", one)


def test_two_processes_train_in_16_bits_like_one(in_two, monkeypatch):
    test_amp.stand_in(monkeypatch)
    initial = test_amp.arrays(test_amp.make_step(test_amp.config("O2", in_ranks.DTYPE)).weights("raw"))
    one, first, second = in_ranks.amp_weights(8), in_two[0][1], in_two[1][1]
    for name, value in one.items():
        moved = np.abs(value - initial[name]).max()
        assert np.abs(first[name] - value).max() <= 0.1 * moved, name  # 16-bit gradients, whose sums cancel
        assert (first[name] == second[name]).all(), name
    assert np.abs(one["norm.weight"] - initial["norm.weight"]).max() > 1e-4


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


def test_two_nodes_train_like_one_process(ten_steps, tmp_path):
    words, one = ten_steps
    for node in start_nodes(tmp_path, "--batch-size", 32, *words):
        assert node.wait(200) == 0
    assert_close(tmp_path / "node0/lit_data", one)
    assert not (tmp_path / "node1").exists()  # only the main process writes
    assert list((tmp_path / "launch1").glob("workerlog.*"))


def test_all_processes_skip_a_step_that_diverges_in_one(in_two):
    first, second = (results["diverging"] for results, _ in in_two)
    assert first == second
    assert [ok for ok, _ in first] == [True, False, True]
    weights = [value for _, value in first]
    assert weights[0] == weights[1] != weights[2]


# --- One fails, all stop ---


def assert_all_stopped(launchers, log, reason):
    """All stop within a minute with a status other than 0, and the main log says which process failed and why."""
    for launcher in launchers:
        assert launcher.wait(60) != 0
    assert re.search(rf"error: rank 1 of 2: .*{reason}.*--resume auto continues", log.read_text()), log.read_text()


def test_killed_process_stops_all_and_the_run_resumes(tmp_path):
    words = ["--device", "cpu", "--output", tmp_path, "--batch-size", 32, *LONG]
    log = tmp_path / "lit_data.log"
    launcher = start(tmp_path / "launch", ROOT / "tools/train.py", *words)
    wait_for(lambda: has_step(log, 5), launcher)
    os.kill(rank_of(launcher, 1), signal.SIGKILL)
    assert_all_stopped([launcher], log, "killed")

    # End it another way: signal the launcher, which passes it on. Then resume on one process, which gives a warning.
    launcher = start(tmp_path / "launch", ROOT / "tools/train.py", *words)
    wait_for(lambda: re.search(r"resumed .*Step \[", log.read_text(), flags=re.DOTALL), launcher)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    assert re.search(r"stopped by SIGTERM after \d+ epochs? and \d+ steps?, saved in", log.read_text())
    state = checkpoint.read(tmp_path / "lit_data/latest.pdparams")
    assert state["images"] == state["meter"]["step"] * 64
    done = train(tmp_path, *words, "TRAIN.TIME_LIMIT", "1s")
    assert "warning: number of processes was 2 and is now 1: the run is no longer bit-exact" in done.stderr
    assert "warning: a step had 64 images and now has 32; TRAIN.GLOBAL_BATCH 64 keeps the old number" in done.stderr
    first = re.search(r"Epoch \[(\d+)/500\], Step \[(\d+)/(\d+)\]", done.stdout)
    epoch, step, left = state["epoch"], state["meter"]["step"], (1437 - state["images"]) // 32
    if left == 0:  # cut after the last step of an epoch
        epoch, step, left = epoch + 1, 0, 1437 // 32
    assert first.groups() == (str(epoch + 1), str(step + 1), str(step + left))


def test_other_settings_on_one_machine_stop_all(tmp_path):
    for node in start_nodes(tmp_path, *LONG, own=(("SEED", 0), ("SEED", 1))):
        assert node.wait(60) != 0
    line = "error: rank 1 has other settings than rank 0: SEED was 0, is 1"
    assert line in (tmp_path / "launch1/launcher.txt").read_text()
    assert "rank 1 of 2: rank 1 has other settings" in (tmp_path / "launch0/launcher.txt").read_text()


def test_failed_start_of_the_main_process_gives_no_traceback_elsewhere(tmp_path):
    for node in start_nodes(tmp_path, *LONG, own=(("--data-path", tmp_path / "absent"), ())):
        assert node.wait(60) != 0
    assert f"error: data folder {tmp_path}/absent not found" in (tmp_path / "launch0/launcher.txt").read_text()
    other = (tmp_path / "launch1/workerlog.0").read_text()
    assert "error: the main process has stopped; its log has the reason" in other and "Traceback" not in other


def test_lost_machine_stops_the_others(tmp_path):
    launchers = start_nodes(tmp_path, "--batch-size", 32, *LONG)
    log = tmp_path / "node0/lit_data.log"
    wait_for(lambda: has_step(log, 3), launchers[0])
    worker = rank_of(launchers[1], 1)
    launchers[1].kill()
    os.kill(worker, signal.SIGKILL)
    assert_all_stopped(launchers, log, "killed")


def test_broken_image_of_one_process_stops_all(tmp_path):
    shutil.copytree(ROOT / "lit_data", tmp_path / "data")
    words = ["--device", "cpu", "--output", tmp_path, "--batch-size", 32, "--data-path", tmp_path / "data", *LONG]
    # An image that is left out of the first epoch and read by the second process in the second.
    from t2t_vit.config import load_config
    from t2t_vit.data.dataset import load_data
    from t2t_vit.data.loader import TrainOrder

    cfg = load_config(
        ROOT / "configs/lit_data.yaml", [("DATA.PATH", str(tmp_path / "data")), ("TRAIN.BATCH_SIZE", "32")]
    )
    orders = [TrainOrder(np.zeros(1437, int), cfg, rank, world_size=2, epochs=2) for rank in (0, 1)]
    samples = [{sample for order in some for batch in order for sample in batch} for some in (orders, orders[1:])]
    first = {index for epoch, index, _ in samples[0] if epoch == 0}
    second = {index for epoch, index, _ in samples[1] if epoch == 1}
    broken = Path(load_data(cfg)[1]["train"].paths[min(second - first)])
    broken.write_bytes(broken.read_bytes()[:40])
    launcher = start(tmp_path / "launch", ROOT / "tools/train.py", *words)
    log = tmp_path / "lit_data.log"
    wait_for(lambda: log.is_file() and "Epoch [" in log.read_text(), launcher)
    assert_all_stopped([launcher], log, f"image {broken} cannot be read")
