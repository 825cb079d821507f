"""A fresh clone used as in the README: tracked files stay unchanged, and a user's own run is preferred."""

import shutil
import signal
import subprocess

import pytest
from conftest import ENVIRONMENT, ROOT, few_digits, signalled


def in_folder(folder, *words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=folder, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the tracked files as a repository of its own, in a folder with a blank in its name."""
    if not shutil.which("git") or subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("not a git repository")
    folder = tmp_path_factory.mktemp("clone") / "my t2t"
    names = in_folder(ROOT, "git", "ls-files", "-z").stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    in_folder(folder, "git", "init", "-q")
    in_folder(folder, "git", "add", "-A")
    in_folder(folder, "git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "all")
    return folder


def test_interrupted_training_leaves_the_clone_clean_and_is_preferred(clone, tmp_path):
    words = ["bash", str(clone / "scripts/train.sh"), *map(str, few_digits(tmp_path)), "MODEL.T2T.DEPTH", "1"]
    words += ["TRAIN.BATCH_SIZE", "20", "TRAIN.LOG_EVERY", "1"]
    lines = signalled(words, "Epoch [2/40], Step", signal.SIGINT, clone)
    assert lines[-2].startswith("stopped by SIGINT after 1 epoch and ")
    assert lines[-1] == f"continue with: {' '.join(words)} --resume auto".replace("my t2t", r"my\ t2t")
    which = "t2t_vit_7 with output/lit_data/best.pdparams"
    on = f" on 100 images of {tmp_path}/val.txt\n"
    assert in_folder(clone, "bash", "scripts/val.sh").stdout.startswith(which + on)
    assert in_folder(clone, "bash", "scripts/predict.sh").stderr == f"note: {which}\n"
    done = in_folder(clone, "python", "tools/export.py", "--format", "paddle")
    assert done.stdout.startswith(f"{which}\n") and (clone / "output/lit_data/export/lit_data.yml").is_file()
    assert f"note: {which}\n" in in_folder(clone, "python", "tools/visualize.py", "attention").stdout
    assert in_folder(clone, "git", "status", "--porcelain").stdout == ""


def test_scripts_started_by_sh_continue_in_bash():
    if not shutil.which("dash"):
        pytest.skip("no dash, which sh is on Debian")
    scripts = {path.name: path for path in (ROOT / "scripts").glob("*.sh") if path.name != "env.sh"}  # it is sourced
    assert {"train.sh", "val.sh", "eval.sh"} < set(scripts)
    for path in scripts.values():
        first = next(line for line in path.read_text().splitlines() if not line.startswith("#"))
        assert first.startswith('[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"'), path
    assert "--resume" in in_folder("/", "dash", scripts["train.sh"], "--help").stdout
    for option in ("--config=", "-cfg="):
        words = [f"{option}{ROOT}/configs/lit_data.yaml", "--help"]
        assert "--split" in in_folder("/", "dash", scripts["eval.sh"], *words).stdout
        assert "--resume" in in_folder("/", "dash", scripts["aistudio.sh"], *words).stdout


def test_checkout_on_windows_keeps_the_scripts(clone):
    done = in_folder(clone, "git", "check-attr", "eol", "scripts/train.sh", "lit_data/train.txt")
    assert done.stdout.splitlines() == ["scripts/train.sh: eol: lf", "lit_data/train.txt: eol: lf"]
