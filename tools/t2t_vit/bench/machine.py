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

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 512, 2048))  # rows, inner, columns
PACKAGES = ("numpy", "pillow", "simplejpeg", "cykooz.resizer", "onnxruntime", "openvino")


def describe_machine():
    """Processor, cores, device, and the versions of Paddle and `PACKAGES` (None: not installed)."""
    cpu, versions = platform.processor() or platform.machine(), {"paddle": paddle.__version__}
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1] if found else cpu
    for package in PACKAGES:
        versions[package] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"cpu": cpu, "cores": cores(), "device": paddle.get_device(), "versions": versions}


def machine_lines(machine):
    versions = (f"{package} {version or 'not installed'}" for package, version in machine["versions"].items())
    yield f"machine: {machine['cpu']}, {machine['cores']} cores, device {machine['device']}"
    yield f"versions: {', '.join(versions)}"


class MatmulLimit:
    """float32 products of large matrices in Paddle, of the fastest of `shapes`."""

    def __init__(self, shapes=SHAPES):
        self.operations, self.timed = max(map(self._timed, shapes), key=lambda pair: pair[0] / pair[1].seconds())

    def _timed(self, shape):
        rows, inner, columns = shape
        x, y = paddle.rand([rows, inner]), paddle.rand([inner, columns])
        return 2 * math.prod(shape), Timed(lambda: finished(paddle.matmul(x, y)))

    def round(self):
        """GFLOP/s; a multiplication and its addition are two operations."""
        return self.operations / self.timed.seconds() / 1e9
