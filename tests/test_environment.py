"""scripts/env.sh with fake pip and nvidia-smi, and what the scripts start."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

INDEX = "https://www.paddlepaddle.org.cn/packages/stable"


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


PIP = """case "$*" in
*"-m pip"*)
  echo "$* | user=$PIP_USER target=$PIP_TARGET venv=$PIP_REQUIRE_VIRTUALENV" >>"$PIP_LOG"
  test -z "$PIP_SAYS" || { echo "$PIP_SAYS" >&2; exit 1; };;
*) PYTHONPATH="$STUBS" exec "$REAL" "$@";;
esac
"""
BASE = """case "$*" in
"-m venv"*)
  for folder; do :; done
  case "$*" in *--clear*) rm -rf "$folder";; esac
  mkdir -p "$folder/bin"; touch "$folder/pyvenv.cfg"; cp "$STANDINS/pip-python" "$folder/bin/python";;
*) exec "$REAL" "$@";;
esac
"""


SYSTEM = "bash dash zsh sh dirname cmp cat mkdir grep df awk tail cut rm id flock ls mktemp cp touch"


class Clone:
    """A repository in a folder with a space, on a machine whose python3.11 creates environments with a fake pip."""

    def __init__(self, folder):
        self.root = folder / "a clone"
        (self.root / "scripts").mkdir(parents=True)
        (self.root / "tools/t2t_vit/common").mkdir(parents=True)
        for name in ("scripts/env.sh", "tools/t2t_vit/common/wheels.py", "requirements.txt"):
            shutil.copy(ROOT / name, self.root / name)
        self.standins, self.log, self.conda = folder / "bin", folder / "pip.log", folder / "conda envs"
        write_script(self.standins / "pip-python", PIP)
        write_script(self.standins / "python3.11", BASE)
        write_script(self.standins / "python", "exit 1\n")
        system = folder / "system"  # what env.sh calls, without an nvidia-smi of this machine
        system.mkdir()
        for name in SYSTEM.split():
            if path := shutil.which(name):
                (system / name).symlink_to(path)
        self.stub(folder / "stubs", "3.3.1", "yacs yaml numpy PIL tqdm scipy")
        self.environment = {
            "PATH": f"{self.standins}:{system}",
            "HOME": str(folder / "home"),
            "REAL": sys.executable,
            "STANDINS": str(self.standins),
            "STUBS": str(folder / "stubs"),
            "PIP_LOG": str(self.log),
            "T2T_CONDA": str(self.conda),
            "T2T_AISTUDIO": str(folder / "no such home"),
        }

    @staticmethod
    def stub(folder, version, others):
        (folder / "paddle/version").mkdir(parents=True)
        (folder / "paddle/__init__.py").touch()
        (folder / "paddle/version/__init__.py").write_text(f"full_version     = '{version}'\n")
        for name in others.split():
            (folder / f"{name}.py").touch()

    def python_with(self, bin_folder, version, others="yacs yaml numpy PIL tqdm scipy"):
        """A fake Python with PaddlePaddle `version` and only these packages."""
        stubs = bin_folder.parent / "stubs"
        self.stub(stubs, version, others)
        shown = '*"-m pip"*) exec "$STANDINS/pip-python" "$@";; *)'
        write_script(bin_folder / "python", f'case "$*" in {shown} PYTHONPATH="{stubs}" exec "$REAL" -S "$@";; esac\n')

    def run(
        self,
        command='source scripts/env.sh && echo "python: $(command -v python)"',
        status=0,
        shell="bash",
        **variables,
    ):
        words = [shell, "-c", f"set -eu; {command}"]
        done = subprocess.run(
            words, cwd=self.root, env={**self.environment, **variables}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == status, done
        return done

    def asked(self):
        """Return the calls of pip since the last time, one per line."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_environment_is_created_once_with_its_own_pip_settings(clone):
    hostile = {"PIP_USER": "1", "PIP_TARGET": "/elsewhere", "PIP_REQUIRE_VIRTUALENV": "1"}
    done = clone.run(**hostile)
    assert done.stdout == f"python: {clone.root}/.venv/bin/python\n"
    assert done.stderr == (
        f"creating {clone.root}/.venv with paddlepaddle>=2.6.2,<3.4 (downloads about 250 MB once) ...\n"
    )
    first, second = clone.asked()
    assert " install paddlepaddle>=2.6.2,<3.4 | user=0 target= venv=0" in first
    assert f" install -r {clone.root}/.venv/requirements.txt | user=0" in second and "--no-cache-dir" not in second
    assert clone.run().stderr == "" and clone.asked() == []
    # First its base Python is removed, then the requirements change, then the PaddlePaddle.
    write_script(clone.root / ".venv/bin/python", "exit 127\n")
    clone.run()
    assert len(clone.asked()) == 2
    with open(clone.root / "requirements.txt", "a") as file:
        file.write("more\n")
    clone.run()
    assert len(clone.asked()) == 2
    (clone.root / ".venv/old").touch()
    clone.run(PADDLE_PACKAGE="paddlepaddle-gpu==3.0.0 -i mirror")
    assert " install paddlepaddle-gpu==3.0.0 -i mirror |" in clone.asked()[0]
    assert not (clone.root / ".venv/old").exists()  # another PaddlePaddle replaces the first
    assert clone.run(PADDLE_PACKAGE="paddlepaddle-gpu==3.0.0 -i mirror").stderr == "" and clone.asked() == []


def test_wheel_for_the_cards_of_this_machine(clone):
    rows = "470.82.01, 7.0, Tesla V100\\n"
    write_script(clone.standins / "nvidia-smi", f'printf "{rows}"\n')
    done = clone.run("bash scripts/env.sh --dry-run")
    install = f"pip install paddlepaddle-gpu==3.3.1 -i {INDEX}/cu118/\n"
    assert done.stdout == f"environment: {clone.root}/.venv\npython: {clone.standins}/python3.11\n{install}"
    assert clone.asked() == [] and not (clone.root / ".venv").exists()
    done = clone.run(PIP_SAYS="ReadTimeoutError", status=1)
    assert f" install paddlepaddle-gpu==3.3.1 -i {INDEX}/cu118/ |" in clone.asked()[0]
    assert "downloads about 4 GB" in done.stderr
    assert "the package index cannot be reached" in done.stderr
    assert "docs/troubleshooting.md names a last resort" in done.stderr
    write_script(clone.standins / "nvidia-smi", 'echo "NVIDIA-SMI has failed"; exit 9\n')
    done = clone.run("bash scripts/env.sh --dry-run")
    assert "pip install paddlepaddle>=" in done.stdout
    assert done.stderr == "warning: nvidia-smi lists no card: NVIDIA-SMI has failed; the CPU build is used\n"


@pytest.mark.parametrize(
    "said, why",
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("WARNING: Retrying after NameResolutionError(...)", "the package index cannot be reached (set PIP_INDEX_URL"),
        ("ERROR: No matching distribution found for x", "ERROR: No matching distribution found for x"),
    ],
)
def test_failed_installation_is_one_line_and_can_be_repeated(clone, said, why):
    done = clone.run(PIP_SAYS=said, status=1)
    assert done.stdout == ""
    assert done.stderr.splitlines()[1:] == [
        line
        for line in done.stderr.splitlines()
        if line.startswith(f"error: {clone.root}/.venv is not complete: {why}")
    ]
    assert said in (clone.root / ".venv/install.log").read_text()
    assert clone.run().stdout.startswith("python: ")


def test_full_disk_and_unusable_folder_for_an_environment(clone, tmp_path):
    write_script(clone.standins / "df", "echo; echo '/dev/x 9999999 9000000 500000 95% /'\n")
    message = f"error: {clone.root}/.venv has 488 MB free, but the environment needs 1500 MB; set T2T_ENV=FOLDER"
    assert clone.run(status=1).stderr.startswith(message)
    (clone.standins / "df").unlink()
    (tmp_path / "file").touch()
    done = clone.run(T2T_ENV=f"{tmp_path}/file/env", status=1)
    assert done.stderr.startswith(
        f"error: {tmp_path}/file/env is not writable or belongs to another user; set T2T_ENV=FOLDER"
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    done = clone.run(T2T_ENV="../photos", status=1)
    assert "photos contains other files; set T2T_ENV=FOLDER" in done.stderr
    write_script(clone.standins / "python3.11", "exit 1\n")
    for name in ("python3.12", "python3.10", "python3.9", "python3"):
        write_script(clone.standins / name, "exit 1\n")
    done = clone.run(status=1)
    assert done.stderr == (
        "error: no Python 3.9 to 3.12 with the venv module found; install one (Debian: apt install python3-venv)\n"
    )


def test_environment_with_paddle_is_used_as_it_is(clone, tmp_path):
    clone.python_with(tmp_path / "own/bin", "2.6.2")
    path = {"PATH": f"{tmp_path}/own/bin:{clone.environment['PATH']}"}
    assert clone.run(**path).stdout == f"python: {tmp_path}/own/bin/python\n"
    shutil.rmtree(tmp_path / "own")
    clone.python_with(tmp_path / "own/bin", "3.3.1", "yaml numpy PIL tqdm")
    done = clone.run(**path)
    assert done.stderr == f"installing yacs scipy into {tmp_path}/own/bin/python ...\n".replace(
        f"{tmp_path}/own/bin/", ""
    )
    (asked,) = clone.asked()
    assert " install --quiet -r /dev/stdin -c " in asked
    done = clone.run(**path, PIP_SAYS="error: externally-managed-environment", status=1)
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "error: yacs scipy cannot be installed into python: error: externally-managed-environment. Install"
    )
    assert "T2T_ENV=FOLDER" in line
    clone.asked()
    clone.run(**path, T2T_ENV=str(tmp_path / "another"))
    assert len(clone.asked()) == 2 and (tmp_path / "another/installed.txt").is_file()
    clone.run(**path, PADDLE_PACKAGE="paddlepaddle==3.0.0")
    assert " install paddlepaddle==3.0.0 | user=0" in clone.asked()[0]
    with open(clone.root / "requirements.txt", "a") as file:
        file.write("# of a later version\n")
    clone.run(**path, T2T_ENV=f"{clone.root}/.venv")  # the choice is kept
    assert " install paddlepaddle==3.0.0 | user=0" in clone.asked()[0]


def test_environments_of_ai_studio(clone, tmp_path):
    home = {"T2T_AISTUDIO": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "T2T_CONDA": str(tmp_path / "conda envs")}
    (tmp_path / "tmp").mkdir()
    clone.python_with(clone.conda / "a/bin", "2.4.0")
    done = clone.run(**home)
    ours = f"{tmp_path}/tmp/t2t_vit-{os.getuid()}"  # not in the home, which is kept
    assert done.stdout == f"python: {ours}/bin/python\n"
    assert f"note: {clone.conda}/a/bin/python has PaddlePaddle 2.4.0, below 2.6.2: not used\n" in done.stderr
    assert all("--no-cache-dir" in line for line in clone.asked())
    if not os.getuid():  # root can put a folder of another user there
        os.chown(ours, 65534, 65534)
        done = clone.run(**home, status=1)
        assert f"error: {ours} is not writable or belongs to another user" in done.stderr and clone.asked() == []
    shutil.rmtree(ours)
    clone.python_with(clone.conda / "b/bin", "3.0.0")
    assert clone.run(**home).stdout == f"python: {clone.conda}/b/bin/python\n" and clone.asked() == []


def test_environment_of_a_read_only_repository_is_in_the_cache(clone):
    if os.getuid():
        pytest.skip("mounts the repository read-only, which only root may")
    mount = f"mount --bind '{clone.root}' '{clone.root}' && mount -o remount,ro,bind '{clone.root}'"
    command = f"{mount} && cd '{clone.root}' && PATH=$STANDINS:$PATH && source scripts/env.sh && command -v python"
    clone.environment["PATH"] = os.environ["PATH"]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", command], env=clone.environment, capture_output=True, text=True, timeout=60
    )
    if "mount" in done.stderr:
        pytest.skip("mounts are not allowed here")
    assert done.stdout == f"{clone.environment['HOME']}/.cache/t2t_vit/venv/bin/python\n", done.stderr


def test_other_shells(clone):
    for shell in ("dash", "zsh"):
        if not shutil.which(shell):
            continue
        if shell == "zsh":
            done = clone.run("source scripts/env.sh && command -v python", shell=shell)
            assert done.stdout == f"{clone.root}/.venv/bin/python\n"
        else:
            done = clone.run(". scripts/env.sh", shell=shell, status=1)
            assert done.stderr.startswith("error: this shell is neither bash nor zsh: run scripts with bash")


# --- What the scripts start ---


@pytest.mark.parametrize(
    "line, started",
    [
        ("bash scripts/train.sh configs/x.yaml --output 'a b'", "train.py --config configs/x.yaml --output|a b"),
        ("GPUS=0,1 bash scripts/train.sh x.yml", "launch.py train.py --config x.yml"),
        ("NNODES=2 MASTER=h:1 NODE_RANK=0 bash scripts/train.sh", "launch.py train.py"),
        ("GPUS=0 NNODES=2 bash scripts/val.sh", "launch.py val.py"),
        ("NNODES=2 bash scripts/eval.sh --split train", "launch.py val.py --split train"),
        ("GPUS= bash scripts/predict.sh -cfg=x.yaml a.png", "predict.py -cfg=x.yaml a.png"),
        ("GPUS=0 bash scripts/unpack.sh a.tar --output d", "launch.py unpack.py a.tar --output d"),
    ],
)
def test_script_starts_its_command_or_the_launcher(clone, line, started):
    for path in (ROOT / "scripts").glob("*.sh"):
        shutil.copy(path, clone.root / "scripts")
    clone.run()  # makes the environment, whose python then prints its words
    write_script(clone.root / ".venv/bin/python", """test "$1" = -c || printf '%s\\n' "$T2T_COMMAND" "$@"\n""")
    command, *words = clone.run(line, T2T_COMMAND="").stdout.splitlines()
    names = [word.removeprefix(f"{clone.root}/tools/") for word in words]
    assert " ".join(names) == started.replace("|", " ") and ("a b" in words) == ("a b" in line)
    if "train.sh" in line:  # printed at the end of a training
        assert command == line.replace("'a b'", r"a\ b")
