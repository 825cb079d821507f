"""The commands run on PaddlePaddle 2.6.2, PyPI's newest build for GPUs such as the V100.

They run with the Python that $PADDLE_2_PYTHON names, whose environment has that version; .ci/run makes one.
"""

import json
import os
import subprocess

import pytest
from conftest import ENVIRONMENT, ROOT, few_digits

PYTHON = os.environ.get("PADDLE_2_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="$PADDLE_2_PYTHON names no Python with PaddlePaddle 2.6.2")

SHORT = "TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 TRAIN.COOLDOWN_EPOCHS 0 MODEL.T2T.DEPTH 1 DATA.NUM_WORKERS 0"
PLAIN = "CPU.MICRO_BATCH 0 CPU.FAST_OPS False"  # what a GPU runs


@pytest.fixture(scope="module")
def commands():
    """Function that runs a command of tools/ and returns the last line it prints. One process runs them all: it takes
    longer to start than most of them to run."""
    pipe = os.pipe()
    command = [PYTHON, "tests/programs/commands.py", str(pipe[1])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT, pass_fds=pipe[1:]
    ) as process:
        os.close(pipe[1])

        def run(*words):
            print(json.dumps(words, default=str), file=process.stdin, flush=True)
            status, out, error = json.loads(answers.readline())
            assert status == 0, out + error
            return out.splitlines()[-1]

        with open(pipe[0]) as answers:
            yield run
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        "",
        f"{PLAIN} TRAIN.AMP O1 TRAIN.AMP_DTYPE bfloat16 TRAIN.RECOMPUTE True MODEL.FUSED_ATTENTION True "
        "TRAIN.CLASS_WEIGHTS auto",
        f"{PLAIN} TRAIN.TO_STATIC True TRAIN.OPTIMIZER sgd TRAIN.FREEZE ['tokens_to_token*']",
    ],
)
def test_training_continues_and_ends(commands, tmp_path, words):
    words = [*f"tools/train.py {SHORT} {words}".split(), *few_digits(tmp_path), "--output", tmp_path]
    assert commands(*words).startswith("done: ")
    words[words.index("TRAIN.EPOCHS") + 1] = "2"
    assert commands(*words, "--force").startswith("done: ")


@pytest.mark.parametrize("words", ["", PLAIN])
def test_the_shipped_model_is_read(commands, tmp_path, words):
    words = ["--config", "output/pretrained/lit_data/config.yaml", "--output", tmp_path, *words.split()]
    assert commands("tools/predict.py", *words) == "class_id is: 3"
    assert commands("tools/val.py", *words) == "lit_data final val acc is:0.9917"


def test_export(commands, tmp_path):
    target = tmp_path / "digits.pdmodel"
    words = ["--config", "output/pretrained/lit_data/config.yaml", "--format", "paddle", "--file", target]
    assert "top-1 agreement 1.0000" in commands("tools/export.py", *words, "--images", 20)
    command = [PYTHON, "tools/predict.py", "--pretrained", target]  # as a user starts it
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "class_id is: 3", done.stdout + done.stderr
    # 2.6 leaves oneDNN off by default.
    command = [PYTHON, ROOT / "tests/programs/plain_inference.py", target, ROOT / "lit_data/val", "default", "onednn"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-2:] == ["0.9917", "0.9917"], done.stdout + done.stderr


def test_updates_and_16_bits():
    tests = [
        "tests/test_amp.py",
        "tests/test_update.py",
        "tests/test_train_step.py",
    ]
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
