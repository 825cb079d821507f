"""The choice of a PaddlePaddle wheel for the GPUs of a machine, and the trial of a GPU before its use."""

import os
import sys

import paddle
import pytest
from conftest import ROOT
from test_environment import INDEX, write_script

from t2t_vit.common import wheels
from t2t_vit.common.errors import UserError
from t2t_vit.parallel import gpu

V100, T4, A100 = (("Tesla V100-SXM2-16GB", (7, 0)), ("Tesla T4", (7, 5)), ("NVIDIA A100-SXM4-40GB", (8, 0)))
H100, RTX_4090 = (("NVIDIA H100 80GB HBM3", (9, 0)), ("NVIDIA GeForce RTX 4090", (8, 9)))
RTX_5090, GTX_980 = (("NVIDIA GeForce RTX 5090", (12, 0)), ("NVIDIA GeForce GTX 980", (5, 2)))


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
    ],
)
def test_wheel_of_a_machine(driver, cards, build):
    chosen, note = wheels.choose(wheels.Machine([wheels.Card(*card) for card in cards], driver))
    assert (chosen.name, note) == (build, "")


def test_reason_without_a_wheel(monkeypatch):
    def said(driver, *cards, trouble=""):
        build, note = wheels.choose(wheels.Machine([wheels.Card(*card) for card in cards], driver, trouble))
        assert build is None
        return note

    assert said(None) == ""
    assert said(None, trouble="nvidia-smi failed: x") == "nvidia-smi failed: x; the CPU build is used"
    assert said((418, 87), V100).startswith("NVIDIA driver 418.87 is older than 450.80, update it; ")
    for driver, card in (((470, 82), H100), ((550, 90), GTX_980)):
        expected = f"no wheel of PaddlePaddle runs on {wheels.Card(*card)} with this NVIDIA driver; "
        assert said(driver, card).startswith(expected)
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
    """Function that puts a fake nvidia-smi on PATH, which prints `text` for a query with compute_cap."""

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
    """Make the CPU look like a GPU of compute capability 9.0, and PaddlePaddle like a GPU build."""
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


@pytest.mark.usefixtures("card")
def test_run_on_the_cpu_warns_if_there_is_a_gpu(warned, monkeypatch):
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        gpu.warn_of_idle_cards()
    assert not warned.messages
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    gpu.warn_of_idle_cards()
    assert "although nvidia-smi lists NVIDIA H100 80GB HBM3 (compute capability 9.0): this PaddlePaddle" in warned.text
    assert (
        f"is a CPU build; install with: {sys.executable} -m pip uninstall" in warned.text and "/cu126/" in warned.text
    )
    warned.clear()
    monkeypatch.setattr(wheels, "look", lambda: wheels.Machine([], None, "nvidia-smi lists no card: no driver"))
    gpu.warn_of_idle_cards()
    assert warned.messages == ["warning: on the CPU: nvidia-smi lists no card: no driver"]
