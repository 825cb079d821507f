"""Unreadable images during training: one error line or a replacement, never a hang or a wrong result."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, error_line, tool

# Long enough to be disturbed; two loader processes.
WORDS = ["MODEL.T2T.EMBED_DIM", 32, "MODEL.T2T.DEPTH", 1, "MODEL.T2T.TOKEN_DIM", 8, "DATA.NUM_WORKERS", 2]
# Such a small model takes several times as long in parts of a batch.
WORDS += ["CPU.MICRO_BATCH", 0, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.EMA_DECAY", 0.9]
WORDS += ["TRAIN.EPOCHS"]


def copy_of_digits(data):
    """A copy of the digits with a few of the validation images, which no test here damages."""
    shutil.copytree(ROOT / "lit_data/train", data / "train")
    for name in ("classes.txt", "train.txt"):
        shutil.copy(ROOT / "lit_data" / name, data)
    for digit in "0123456789":
        (data / "val" / digit).mkdir(parents=True)
        for path in sorted((ROOT / "lit_data/val" / digit).iterdir())[:2]:
            shutil.copy(path, data / "val" / digit)
    return data


@pytest.fixture
def data(tmp_path):
    return copy_of_digits(tmp_path / "data")


def some_images(data):
    """Options that train on 90 images of each digit, 14 steps of 64."""
    listed = [f"{number}/{path.name} {number}\n" for number in range(10) for path in images(data, number)[:90]]
    (data / "some.txt").write_text("".join(listed))
    return ["DATA.TRAIN_LIST", "some.txt"]


def images(data, number):
    return sorted((data / "train" / str(number)).iterdir())


def make_link(path):
    path.unlink()
    path.symlink_to("nowhere")


FAULTS = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read: not an image"),
    "text": (lambda path: path.write_text("no picture"), "cannot be read: not an image"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot be read: "),
    "link to nothing": (make_link, "is a broken link"),
    "bomb": (lambda path: path.write_bytes(b"P5 60000 60000 255\n"), "decompression bomb"),
}


def test_skip_replaces_and_lists_each_file_once(data, tmp_path):
    broken = images(data, 3)[: len(FAULTS)]
    for path, (damage, _) in zip(broken, FAULTS.values()):
        damage(path)
    words = ["--data-path", data, "--output", tmp_path, *WORDS, 2, "DATA.ON_ERROR", "skip", *some_images(data)]
    done = tool("train", *words)
    for path, (_, reason) in zip(broken, FAULTS.values()):
        assert len(re.findall(f"^warning: replaced: image {path} .*{reason}", done.stderr, re.MULTILINE)) == 1
    totals = re.findall(r"^warning: (\d+) unreadable images replaced in this epoch$", done.stderr, re.MULTILINE)
    rows = [json.loads(line) for line in (tmp_path / "lit_data/metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_images"] for row in rows] == [int(total) for total in totals]
    assert len(rows) == 2 and all(4 <= row["skipped_images"] <= 8 for row in rows)  # an epoch drops 4
    again = tool("train", *words, "NAME", "again", "DATA.NUM_WORKERS", 0)
    assert again.stderr == done.stderr
    assert (tmp_path / "again/metrics.jsonl").read_text() == (tmp_path / "lit_data/metrics.jsonl").read_text()


def test_an_unreadable_image_with_any_name_ends_the_training(data, tmp_path):
    path = os.fsencode(data / "train/3") + b"/\xff.png"
    with open(path, "w") as file:
        file.write("no picture")
    line = error_line("train", "--data-path", data, "--output", tmp_path, *WORDS, 2)
    assert "3/\\udcff.png cannot be read" in line
    assert line in (tmp_path / "lit_data.log").read_text()


def test_folder_named_like_an_image_is_not_one(data, tmp_path):
    (data / "train/3/x.jpg").mkdir()
    words = ["--data-path", data, "--output", tmp_path, *WORDS, 1, "DATA.NUM_WORKERS", 0]
    assert "1,437 images to train" in tool("train", *words).stdout
    (data / "train.txt").write_text((data / "train.txt").read_text() + "3/x.jpg 3\n")
    line = error_line("train", *words, "DATA.TRAIN_LIST", "train.txt", "NAME", "list")
    assert "train/3/x.jpg cannot be read" in line


def test_more_than_one_percent_unreadable_images_stop_the_run(data, tmp_path):
    for path in images(data, 4)[:20]:
        path.write_text("no picture")
    line = error_line("train", "--data-path", data, "--output", tmp_path, *WORDS, 3, "DATA.ON_ERROR", "skip")
    assert re.search(
        r"\d\d images could not be read, but DATA.ON_ERROR skip allows only 14 of the 1408 in .*check_data.py", line
    )


def test_three_images_of_a_small_data_set_may_be_replaced(data, tmp_path):
    listed = [f"{number}/{path.name} {number}\n" for number in range(10) for path in images(data, number)[:6]]
    (data / "few.txt").write_text("".join(listed[:59]))
    words = ["--data-path", data, "--output", tmp_path, *WORDS, 1, "DATA.TRAIN_LIST", "few.txt", "DATA.NUM_WORKERS", 0,
             "TRAIN.BATCH_SIZE", 59, "DATA.ON_ERROR", "skip"]  # fmt: skip
    for path in images(data, 3)[:3]:
        path.write_text("no picture")
    assert tool("train", *words).stderr.endswith("warning: 3 unreadable images replaced in this epoch\n")
    images(data, 3)[3].write_text("no picture")
    line = error_line("train", *words, "NAME", "four")
    assert "4 images could not be read, but DATA.ON_ERROR skip allows only 3 of the 59 in an epoch" in line


def disturbed(data, output, disturb):
    """stderr of a long training that `disturb(process)` ends after its first line."""
    command = [sys.executable, ROOT / "tools/train.py", "--data-path", data, "--output", output, *WORDS, 500]
    process = subprocess.Popen([str(word) for word in [*command, "TRAIN.SAVE_MINUTES", 0.002]], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
    while not process.stdout.readline().startswith("Epoch [1/"):
        assert process.poll() is None
    disturb(process)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    return stderr


def test_file_that_is_deleted_during_a_run_is_named(data, tmp_path):
    stderr = disturbed(data, tmp_path, lambda _: [path.unlink() for path in images(data, 3)])
    assert re.fullmatch(r"error: image \S+/train/3/\d+.png not found; \S+ contains .*--resume auto continues .*\n",
                        stderr)  # fmt: skip


def test_killed_loader_process_ends_the_run_in_one_line(data, tmp_path):
    def kill_a_loader(process):
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        os.kill(int(children.stdout.split()[0]), signal.SIGKILL)

    start = time.monotonic()
    stderr = disturbed(data, tmp_path, kill_a_loader)
    assert re.fullmatch(
        r"error: a data loader process ended \(.*\); if the machine ran out of memory, .*\n",
        stderr,
    )
    assert time.monotonic() - start < 40
    done = tool("train", "--data-path", data, "--output", tmp_path, *WORDS, 500, "TRAIN.SAVE_MINUTES", 0.002,
                "TRAIN.TIME_LIMIT", "1s")  # fmt: skip
    assert "resumed" in done.stdout
