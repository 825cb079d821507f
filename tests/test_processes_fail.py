"""If one of several processes fails, all of them stop, and the log has the reason."""

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
from conftest import ROOT
from launching import LONG, nothing_is_left_running, rank_of, start, start_nodes, train, wait_for  # noqa: F401

from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainOrder
from t2t_vit.weights import checkpoint


def has_step(log, count=1):
    return log.is_file() and log.read_text().count("Step [") >= count


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
