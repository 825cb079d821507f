"""Chooses the PaddlePaddle wheel for the NVIDIA cards of this machine.

Run as a program, it prints the arguments for `pip install`, or nothing for the CPU build. It uses only the standard
library, because scripts/env.sh runs it before anything is installed.
"""

import platform
import re
import shutil
import subprocess
import sys
from typing import NamedTuple, Optional

VERSION = "3.3.1"
INDEX = "https://www.paddlepaddle.org.cn/packages/stable"


class Build(NamedTuple):
    """A GPU build of PaddlePaddle."""

    name: str  # folder in Paddle's index
    driver: tuple  # oldest NVIDIA driver that runs it
    archs: tuple  # compute capabilities that it has machine code for


# The first build that fits is used. The wheels contain CUDA and cuDNN, so a machine only needs the driver.
# Drivers: Paddle requires 450.80.02 (CUDA 11.8) and 550.54.14 (12.6): paddleocr.ai, paddlepaddle_installation. NVIDIA
# supports any CUDA 12 with driver 525: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html.
# Compute capabilities: cu118 of 3.0.0 lists 60 61 70 75 80 86 (PaddlePaddle/Paddle#74088), works on a GTX 1080
# (PaddleX#4682) and fails on an H100 (PaddleHelix#369). CUDA 12 builds list 61 70 75 80 86 90 (PaddleMIX#836), but 6.x
# and 7.0 get cu118, because its list comes from a release. RTX 50 needs cu129 (Paddle#75016), which fails on 6.1
# (PaddleX#4682).
BUILDS = (
    Build("cu126", (550, 54), ((7, 5), (8, 0), (8, 6), (9, 0))),
    Build("cu118", (450, 80), ((6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6))),
    Build("cu126", (525, 60), ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0))),
    Build("cu129", (525, 60), ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))),
)
# PyPI's newest GPU wheel is 2.6.2 for CUDA 11.8, without CUDA itself. The list is read from its machine code.
PYPI_ARCHS = ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6))


class Card(NamedTuple):
    """A GPU that nvidia-smi lists."""

    name: str
    capability: Optional[tuple]  # compute capability (major, minor); None: unknown

    def __str__(self) -> str:
        known = f" (compute capability {'.'.join(map(str, self.capability))})" if self.capability else ""
        return f"{self.name}{known}"


class Machine(NamedTuple):
    """Output of nvidia-smi."""

    cards: list
    driver: Optional[tuple]  # (550, 54); None: unknown
    trouble: str = ""  # why nvidia-smi exists but lists no card


def look() -> Machine:
    """Return the `Machine` that this runs on."""
    if not shutil.which("nvidia-smi"):
        return Machine([], None)
    for fields in ("driver_version,compute_cap,name", "driver_version,name"):  # drivers before 510 lack compute_cap
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Machine([], None, f"nvidia-smi failed: {error}")
        rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if "," in line]
        if done.returncode == 0 and rows:
            cards = [Card(row[-1], _numbers(row[1]) if len(row) == 3 else None) for row in rows]
            return Machine(cards, _numbers(rows[0][0]))
    said = " ".join((done.stdout + done.stderr).split()) or f"exit status {done.returncode}"
    return Machine([], None, f"nvidia-smi lists no card: {said[:200]}")


def _numbers(text):
    """Return the first two numbers of "550.54.14" or "8.6"; None if there are none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def runs_on(archs: tuple, capability: Optional[tuple]) -> bool:
    """True if machine code for `archs` runs on a card: code for 8.6 runs on 8.9, but not on 8.0 or 9.0."""
    return capability is None or any(major == capability[0] and minor <= capability[1] for major, minor in archs)


def choose(machine):
    """Return (the `Build` to install, note for the user). None stands for the CPU build."""
    cards, driver = machine.cards, machine.driver
    if machine.trouble:
        return None, f"{machine.trouble}; the CPU build is used"
    if not cards:
        return None, ""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None, f"PaddlePaddle has GPU wheels for x86_64 only, not {platform.machine()}; the CPU build is used"
    builds = [build for build in BUILDS if driver is None or driver >= build.driver]
    if not builds:
        return None, f"NVIDIA driver {driver[0]}.{driver[1]} is older than 450.80, update it; the CPU build is used"
    # max returns the first of equal items.
    best = max(builds, key=lambda build: sum(runs_on(build.archs, card.capability) for card in cards))
    left = [card for card in cards if not runs_on(best.archs, card.capability)]
    names = ", ".join(map(str, left))
    if len(left) == len(cards):
        return None, f"no wheel of PaddlePaddle runs on {names} with this NVIDIA driver; the CPU build is used"
    return best, f"the {best.name} build does not run on {names}; choose the other cards with GPUS" if left else ""


def words(build):
    """Return the arguments of `pip install`."""
    return f"paddlepaddle-gpu=={VERSION} -i {INDEX}/{build.name}/"


def advice(machine: Optional[Machine] = None) -> str:
    """Return a clause for a message: what to install for the cards of a `Machine` (default: this one)."""
    build, note = choose(machine or look())
    if build is None:
        return note or "nvidia-smi lists no card"
    pip = f"{sys.executable} -m pip"
    return f"install with: {pip} uninstall -y paddlepaddle paddlepaddle-gpu && {pip} install {words(build)}"


if __name__ == "__main__":
    build, note = choose(look())
    if note:
        print(f"warning: {note}", file=sys.stderr)
    if build:
        print(words(build))
