"""TensorFloat-32: Ampere and newer GPUs may round the inputs of float32 products and convolutions to 10 bits.

Paddle allows it by default. It reads its two switches at every call (3.3.1: phi/backends/gpu/gpu_context.cc,
phi/kernels/gpudnn/conv_cudnn_v7.h), so they may change while a process runs, but not inside a compiled graph.
"""

from paddle.base import core


def allow(flag: bool) -> None:
    """Allow or forbid TF32 from now on."""
    for name in ("set_cublas_switch", "set_cudnn_switch"):
        if hasattr(core, name):  # CPU builds of 2.6.2 have neither
            getattr(core, name)(flag)


class _Forbidden:
    """Context manager that turns TF32 off. It is a class, because to_static cannot convert a generator."""

    def __init__(self):
        self.before = []

    def __enter__(self):
        self.before.append(hasattr(core, "get_cublas_switch") and core.get_cublas_switch())
        allow(False)

    def __exit__(self, *_):
        allow(self.before.pop())


FORBIDDEN = _Forbidden()
