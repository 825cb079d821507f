"""The GPUs that Paddle can use, and what to install if it cannot use them."""

import os
import re

import paddle

from t2t_vit.common import wheels
from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.logger import log


def count():
    """Number of GPUs that this PaddlePaddle can use."""
    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


def require(action: str) -> int:
    """Return `count()`. If it is 0, raises UserError with a message that starts with `action`."""
    found = count()
    if not found:
        build = "finds none" if paddle.is_compiled_with_cuda() else f"is a CPU build; {wheels.advice()}"
        raise UserError(f"{action} but no GPU is available: this PaddlePaddle {paddle.__version__} {build}")
    return found


def try_out():
    """Test the current GPU with a matrix product and a convolution, which load cuBLAS and cuDNN.

    Raises UserError if other processes occupy the GPU, or if this Paddle does not work on it. The message then says
    what to install.
    """
    capability = paddle.device.cuda.get_device_capability()
    # Without machine code for the GPU, 3.3.1 raises an error below; 2.6.2 may abort (PaddlePaddle/Paddle#70902).
    is_of_pypi = paddle.version.full_version.startswith("2.") and paddle.version.cuda() == "11.8"
    if is_of_pypi and not wheels.runs_on(wheels.PYPI_ARCHS, capability):
        name, version = paddle.device.cuda.get_device_name(), ".".join(map(str, capability))
        raise _unusable(f"has no code for {name} (compute capability {version})")
    try:
        images = paddle.ones([1, 3, 4, 4])
        filtered = paddle.nn.functional.conv2d(images, paddle.ones([1, 3, 2, 2]))
        float(paddle.matmul(images, images).sum() + filtered.sum())  # waits for the GPU
    except Exception as error:  # RuntimeError, OSError, MemoryError, ...
        if re.search("out of memory|busy or unavailable", str(error), flags=re.IGNORECASE):
            taken = f"{paddle.device.get_device()} is in use by other processes (nvidia-smi lists them)"
            raise UserError(f"{taken}: {one_line(error)[:300]}") from error
        raise _unusable(f"cannot compute on the GPU ({one_line(error)[:300]})") from error


def _unusable(reason):
    """Return a UserError that says what is wrong with this PaddlePaddle and what to install."""
    return UserError(f"this PaddlePaddle {paddle.__version__} {reason}; {wheels.advice()}")


def warn_of_idle_cards():
    """Warn if a run without DEVICE uses the CPU although nvidia-smi lists GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    machine = wheels.look()
    if machine.cards:
        build = "finds no GPU" if paddle.is_compiled_with_cuda() else "is a CPU build"
        log.warning(
            "warning: on the CPU, although nvidia-smi lists %s: this PaddlePaddle %s %s; %s (--device cpu hides this)",
            ", ".join(map(str, machine.cards)), paddle.__version__, build, wheels.advice(machine),
        )  # fmt: skip
    elif machine.trouble:
        log.warning("warning: on the CPU: %s", machine.trouble)
