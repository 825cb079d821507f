"""scripts/env.sh with stand-ins for pip and nvidia-smi, the choice of a wheel, and what the scripts start."""

import os
import shutil
import subprocess
import sys

import paddle
import pytest
from conftest import ROOT

from t2t_vit.common import wheels
from t2t_vit.common.errors import UserError
from t2t_vit.parallel import gpu

INDEX = "https://www.paddlepaddle.org.cn/packages/stable"
V100, T4, A100 = (("Tesla V100-SXM2-16GB", (7, 0)), ("Tesla T4", (7, 5)), ("NVIDIA A100-SXM4-40GB", (8, 0)))
H100, RTX_4090 = (("NVIDIA H100 80GB HBM3", (9, 0)), ("NVIDIA GeForce RTX 4090", (8, 9)))
RTX_5090, GTX_980 = (("NVIDIA GeForce RTX 5090", (12, 0)), ("NVIDIA GeForce GTX 980", (5, 2)))


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


# --- Which wheel ---


@pytest.mark.parametrize(
    "driver, cards, build",
    [
        ((470, 82), [V100], "cu118"),
        ((550, 90), [V100], "cu118"),
        ((550, 54), [T4], "cu126"),
        ((535, 129), [T4], "cu118"),
        ((550, 90), [A100], "cu126"),
        ((550, 90), [H100], "cu126"),
        ((535, 129), [H100], "cu126"),
        ((550, 90), [RTX_4090], "cu126"),
        ((525, 60), [RTX_4090], "cu118"),
        ((570, 86), [RTX_5090], "cu129"),
        ((570, 86), [("NVIDIA B200", (10, 0))], "cu129"),
        ((535, 129), [("Tesla P100", (6, 0))], "cu118"),
        ((550, 90), [V100, T4], "cu118"),
        ((550, 90), [V100, H100], "cu126"),
        ((575, 57), [T4, RTX_5090], "cu129"),
        ((470, 82), [("Tesla V100", None)], "cu118"),  # its nvidia-smi does not know compute_cap
        ((550, 90), [("Some card", None)], "cu126"),
        (None, [A100], "cu126"),
        ((470, 223), [("NVIDIA GeForce GTX 750 Ti", None)], "cu118"),
    ],
)
def test_wheel_of_a_machine(driver, cards, build):
    chosen, note = wheels.choose(wheels.Machine([wheels.Card(*card) for card in cards], driver))
    assert (chosen.name, note) == (build, "")


@pytest.mark.parametrize("name", ["Tesla K80", "Quadro K620", "GRID K520", "GeForce GTX 780 Ti", "GTX Titan Black"])
def test_kepler_cards_are_recognised_by_name(name, tmp_path, monkeypatch):
    script = f'case "$1" in *compute_cap*) exit 1;; esac\necho "470.223.02, {name}"\n'
    write_script(tmp_path / "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    build, note = wheels.choose(wheels.look())
    assert build is None and f"{name} (compute capability 3.5); the CPU build is taken" in note


def test_reason_without_a_wheel(monkeypatch):
    def said(driver, *cards, trouble=""):
        build, note = wheels.choose(wheels.Machine([wheels.Card(*card) for card in cards], driver, trouble))
        assert build is None
        return note

    assert said(None) == ""
    assert said(None, trouble="nvidia-smi failed: x") == "nvidia-smi failed: x; the CPU build is taken"
    assert said((418, 87), V100).startswith("the NVIDIA driver 418.87 is older than 450.80; update it.")
    assert said((470, 82), H100).startswith(
        "driver 470.82 is too old for NVIDIA H100 80GB HBM3 (compute capability 9.0)"
    )
    assert said((550, 90), GTX_980).startswith("no wheel of PaddlePaddle runs on NVIDIA GeForce GTX 980")
    monkeypatch.setattr(wheels.platform, "machine", lambda: "aarch64")
    assert "for x86_64 only, not aarch64" in said((550, 90), H100)


def test_card_without_machine_code_is_named():
    cards = [wheels.Card("GTX 1080", (6, 1)), wheels.Card(*RTX_5090), wheels.Card(*RTX_5090)]
    build, note = wheels.choose(wheels.Machine(cards, (575, 57)))
    assert build.name == "cu129" and "does not run on GTX 1080 (compute capability 6.1)" in note


def test_requirements_allow_the_wheel():
    from packaging.requirements import Requirement

    line = next(
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("paddlepaddle")
    )
    assert Requirement(line).specifier.contains(wheels.VERSION)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Function that puts a stand-in nvidia-smi on PATH, which says `text` to a query that names compute_cap."""

    def put(text, status=0, to_old_query=""):
        query = f'*compute_cap*) printf "{text}"; exit {status};; *) printf "{to_old_query}"; test -n "{to_old_query}"'
        write_script(tmp_path / "smi/nvidia-smi", f'case "$*" in {query};; esac\n')
        monkeypatch.setenv("PATH", f"{tmp_path}/smi:{os.environ['PATH']}")
        return wheels.look()

    return put


def test_output_of_nvidia_smi(nvidia_smi):
    assert nvidia_smi("550.54.14, 7.0, Tesla V100\\n550.54.14, 9.0, NVIDIA H100\\n") == wheels.Machine(
        [wheels.Card("Tesla V100", (7, 0)), wheels.Card("NVIDIA H100", (9, 0))], (550, 54)
    )
    unknown = nvidia_smi("[N/A], [N/A], Some card\\n")
    assert unknown == wheels.Machine([wheels.Card("Some card", None)], None)
    old = nvidia_smi("Field is not valid\\n", status=2, to_old_query="470.82.01, Tesla V100\\n")
    assert old == wheels.Machine([wheels.Card("Tesla V100", None)], (470, 82))
    failed = nvidia_smi("NVIDIA-SMI has failed because it could not talk\\n", status=9)
    assert failed.trouble == "nvidia-smi lists no card: exit status 1" and not failed.cards


# --- The card at the start of a run ---


@pytest.fixture
def card(monkeypatch):
    """The CPU stands in for a card of compute capability 9.0 and PaddlePaddle for a GPU build."""
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(wheels, "look", lambda: wheels.Machine([wheels.Card(*H100)], (550, 90)))


@pytest.mark.usefixtures("card")
def test_gpu_is_tried_before_use(monkeypatch):
    gpu.try_out()
    monkeypatch.setattr(paddle.version, "full_version", "2.6.2")
    monkeypatch.setattr(paddle.version, "cuda", lambda: "12.0")  # a build that is not PyPI's
    gpu.try_out()
    monkeypatch.setattr(paddle.version, "cuda", lambda: "11.8")
    install = f"-m pip install paddlepaddle-gpu==3.3.1 -i {INDEX}/cu126/$"
    with pytest.raises(UserError, match=rf"has no code for NVIDIA H100 .compute capability 9.0.; .*{install}"):
        gpu.try_out()
    monkeypatch.setattr(paddle.version, "full_version", "3.3.1")

    error = RuntimeError("Cannot load cudnn\nshared library")

    def broken(*_):
        raise error

    monkeypatch.setattr(paddle.nn.functional, "conv2d", broken)
    message = f"cannot compute on the GPU .RuntimeError: Cannot load cudnn shared library.; .*{install}"
    with pytest.raises(UserError, match=message):
        gpu.try_out()
    error = MemoryError("ResourceExhaustedError: Out of memory error on GPU 0.")
    with pytest.raises(UserError, match=r"^cpu is in use by other processes .nvidia-smi lists them.: .*Out of memory"):
        gpu.try_out()
    monkeypatch.setattr(paddle.nn.functional, "conv2d", lambda *_: paddle.zeros([1]))
    with pytest.raises(UserError, match="computes wrong results on the GPU .192.0 instead of 300."):
        gpu.try_out()


@pytest.mark.usefixtures("card")
def test_run_on_the_cpu_warns_if_there_is_a_gpu(told, monkeypatch):
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        gpu.warn_of_idle_cards()
    assert not told.messages
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    gpu.warn_of_idle_cards()
    assert "although nvidia-smi lists NVIDIA H100 80GB HBM3 (compute capability 9.0): this PaddlePaddle" in told.text
    assert f"is a CPU build; install with: {sys.executable} -m pip uninstall" in told.text and "/cu126/" in told.text
    told.clear()
    monkeypatch.setattr(wheels, "look", lambda: wheels.Machine([], None, "nvidia-smi lists no card: no driver"))
    gpu.warn_of_idle_cards()
    assert told.messages == ["warning: on the CPU: nvidia-smi lists no card: no driver"]


# --- scripts/env.sh ---

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
    """A repository in a folder with a blank, on a machine whose python3.11 makes environments with a stand-in pip."""

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
        """A Python that has PaddlePaddle `version` and no other packages than those."""
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
        """What pip was asked since the last time, a line each."""
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
        f"making {clone.root}/.venv with paddlepaddle>=2.6.2,<3.4 (a download of about 250 MB, once) ...\n"
    )
    first, second = clone.asked()
    assert " install paddlepaddle>=2.6.2,<3.4 | user=0 target= venv=0" in first
    assert f" install -r {clone.root}/.venv/requirements.txt | user=0" in second and "--no-cache-dir" not in second
    assert clone.run().stderr == "" and clone.asked() == []
    # Its base Python is gone, then other requirements, then another PaddlePaddle.
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
    assert not (clone.root / ".venv/old").exists()  # another PaddlePaddle does not go beside the first
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
    assert "a download of about 4 GB" in done.stderr
    assert "the package index cannot be reached" in done.stderr and "needs CUDA 11.8 and cuDNN 8" in done.stderr
    write_script(clone.standins / "nvidia-smi", 'echo "NVIDIA-SMI has failed"; exit 9\n')
    done = clone.run("bash scripts/env.sh --dry-run")
    assert "pip install paddlepaddle>=" in done.stdout
    assert done.stderr == "warning: nvidia-smi lists no card: NVIDIA-SMI has failed; the CPU build is taken\n"


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


def test_no_space_and_no_place_for_an_environment(clone, tmp_path):
    write_script(clone.standins / "df", "echo; echo '/dev/x 9999999 9000000 500000 95% /'\n")
    message = f"error: {clone.root}/.venv has 488 MB free of the 1500 MB that the environment needs; set T2T_ENV=FOLDER"
    assert clone.run(status=1).stderr.startswith(message)
    (clone.standins / "df").unlink()
    (tmp_path / "file").touch()
    done = clone.run(T2T_ENV=f"{tmp_path}/file/env", status=1)
    assert done.stderr.startswith(
        f"error: {tmp_path}/file/env cannot be written or is another user's; set T2T_ENV=FOLDER"
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    done = clone.run(T2T_ENV="../photos", status=1)
    assert "photos has other files in it; set T2T_ENV=FOLDER" in done.stderr
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
    assert done.stderr == f"adding yacs scipy to {tmp_path}/own/bin/python ...\n".replace(f"{tmp_path}/own/bin/", "")
    (asked,) = clone.asked()
    assert " install --quiet -r /dev/stdin -c " in asked
    done = clone.run(**path, PIP_SAYS="error: externally-managed-environment", status=1)
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "error: yacs scipy cannot be added to python: error: externally-managed-environment. Install"
    )
    assert "T2T_ENV=FOLDER" in line
    clone.asked()
    clone.run(**path, T2T_ENV=str(tmp_path / "another"))
    assert len(clone.asked()) == 2 and (tmp_path / "another/installed.txt").is_file()
    clone.run(**path, PADDLE_PACKAGE="paddlepaddle==3.0.0")
    assert " install paddlepaddle==3.0.0 | user=0" in clone.asked()[0]
    with open(clone.root / "requirements.txt", "a") as file:
        file.write("# of a later version\n")
    clone.run(**path, T2T_ENV=f"{clone.root}/.venv")  # what was chosen once stays
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
        assert f"error: {ours} cannot be written or is another user's" in done.stderr and clone.asked() == []
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
