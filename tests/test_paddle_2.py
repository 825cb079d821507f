"""The commands run on PaddlePaddle 2.6.2, PyPI's newest build for GPUs such as the V100.

They run with the Python that $PADDLE_2_PYTHON names, whose environment has that version; .ci/run makes one.
"""

import os
import subprocess

import pytest
from conftest import ENVIRONMENT, ROOT, few_digits

PYTHON = os.environ.get("PADDLE_2_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="$PADDLE_2_PYTHON names no Python with PaddlePaddle 2.6.2")

SHORT = "TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 TRAIN.COOLDOWN_EPOCHS 0 MODEL.T2T.DEPTH 1 DATA.NUM_WORKERS 0"
PLAIN = "CPU.MICRO_BATCH 0 CPU.FAST_OPS False"  # what a GPU runs


def tool(folder, *words):
    """Last line of what a command prints."""
    done = subprocess.run([PYTHON, *words, "--output", folder], capture_output=True, text=True, timeout=300, cwd=ROOT,
                          env=ENVIRONMENT)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        "",
        f"{PLAIN} TRAIN.AMP O1 TRAIN.AMP_DTYPE bfloat16 TRAIN.RECOMPUTE True MODEL.FUSED_ATTENTION True "
        "TRAIN.CLASS_WEIGHTS auto",
        f"{PLAIN} TRAIN.TO_STATIC True TRAIN.OPTIMIZER sgd TRAIN.FREEZE ['tokens_to_token*']",
    ],
)
def test_training_continues_and_ends(tmp_path, words):
    words = [*f"tools/train.py {SHORT} {words}".split(), *few_digits(tmp_path)]
    assert tool(tmp_path, *words).startswith("done: ")
    words[words.index("TRAIN.EPOCHS") + 1] = "2"
    assert tool(tmp_path, *words, "--force").startswith("done: ")


@pytest.mark.parametrize("words", ["", PLAIN])
def test_the_shipped_model_is_read(tmp_path, words):
    assert (
        tool(tmp_path, "tools/predict.py", "--config", "output/pretrained/lit_data/config.yaml", *words.split())
        == "class_id is: 3"
    )
    line = tool(tmp_path, "tools/val.py", "--config", "output/pretrained/lit_data/config.yaml", *words.split())
    assert line == "lit_data final val acc is:0.9917"


def test_export(tmp_path):
    target = tmp_path / "digits.pdmodel"
    words = [
        "--config",
        "output/pretrained/lit_data/config.yaml",
        "--format",
        "paddle",
        "--file",
        target,
        "--images",
        "20",
    ]
    assert "top-1 agreement 1.0000" in tool(tmp_path, "tools/export.py", *words)
    assert tool(tmp_path, "tools/predict.py", "--pretrained", target) == "class_id is: 3"
    for words in ([], ["onednn"]):  # which 2.6 leaves off by default
        command = [PYTHON, ROOT / "tests/programs/plain_inference.py", target, ROOT / "lit_data/val", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
        assert done.stdout.splitlines()[-1] == "0.9917", done.stdout + done.stderr


def test_updates_and_16_bits():
    tests = [
        "tests/test_amp.py",
        "tests/test_update.py",
        "tests/test_train_step.py",
        "tests/test_trainer.py",
        "-k",
        "not visualdl",
    ]
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
