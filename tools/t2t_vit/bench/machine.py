"""The machine, and how fast it multiplies matrices at best."""

import contextlib
import importlib.metadata
import math
import platform
import re
from pathlib import Path

import paddle

from t2t_vit.bench.rounds import Timed, finished
from t2t_vit.common.runtime import cores

CORES = cores()
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 512, 2048))  # of the products among which the best is found
ENGINE_PACKAGES = ("onnxruntime", "openvino")


def describe_machine(packages):
    """Processor, cores, device, and the versions of Paddle and of some packages (None: not installed)."""

    def version(package):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    versions = {"paddle": paddle.__version__, **{package: version(package) for package in packages}}
    return {"cpu": cpu, "cores": CORES, "device": paddle.get_device(), "versions": versions}


def machine_lines(machine):
    versions = (f"{package} {version or 'not installed'}" for package, version in machine["versions"].items())
    yield f"machine: {machine['cpu']}, {machine['cores']} cores, device {machine['device']}"
    yield f"versions: {', '.join(versions)}"


class MatmulLimit:
    """float32 products of large matrices in Paddle, by the fastest of `SHAPES`."""

    def __init__(self):
        self.operations, self.timed = max(map(self._timed, SHAPES), key=lambda pair: pair[0] / pair[1].seconds())

    def _timed(self, shape):
        rows, inner, columns = shape
        x, y = paddle.rand([rows, inner]), paddle.rand([inner, columns])
        return 2 * math.prod(shape), Timed(lambda: finished(paddle.matmul(x, y)))

    def round(self):
        """GFLOP/s; an addition and a multiplication are two."""
        return self.operations / self.timed.seconds() / 1e9
