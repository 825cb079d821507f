"""The device of a process, and the collective operations between processes.

One process uses one device. `python -m paddle.distributed.launch` starts several processes on one or more machines and
sets the variables that common/ranks.py reads.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import paddle
from paddle import distributed
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, counted
from t2t_vit.common.ranks import is_main, rank, world_size  # noqa: F401 (callers use processes.rank)
from t2t_vit.models import cpu_ops, tf32
from t2t_vit.parallel import gpu


def setup(cfg: CfgNode) -> str:
    """Set the device of this process, choose the operations for it, and connect to the other processes.

    Returns the name of the device. Raises UserError if DEVICE cannot be used.
    """
    device = cfg.DEVICE
    gpus = gpu.require(f"DEVICE is {device}") if device.startswith("gpu") else gpu.count()
    name = device or ("gpu" if gpus else "cpu")
    if name == "gpu" and gpus:
        name = f"gpu:{distributed.ParallelEnv().device_id}"
    if name.startswith("gpu:") and int(name[4:]) >= gpus:
        raise UserError(f"DEVICE is {name} but this machine has {counted(gpus, 'GPU')}, gpu:0 to gpu:{gpus - 1}")
    tf32.allow(False)  # TrainStep turns it on for TRAIN.TF32
    if not cfg.TRAIN.TF32:
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # read by cuBLAS and cuDNN when they are loaded
    paddle.set_device(name)
    if name.startswith("gpu"):
        gpu.try_out()
    elif not device:
        gpu.warn_of_idle_cards()
    cpu_ops.enable(cfg.CPU.FAST_OPS and name == "cpu")
    if world_size() > 1:
        # gloo aborts when it loses another process. C's sleep is set as the handler of SIGABRT. It gets the number of
        # the signal, 6, so the process waits 6 s and its monitor learns the reason. A Python handler runs too late.
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGABRT, libc.sleep)
        distributed.init_parallel_env()
    return name


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def from_main(value: Any) -> Any:
    """Broadcast the `value` of the main process, which can be any picklable object."""
    if world_size() == 1:
        return value
    values = [value if is_main() else None]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def same_everywhere(model: paddle.nn.Layer) -> None:
    """Copy the parameters and buffers of the main process's model to all processes."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, src=0)


def sum_over_processes(tensor: paddle.Tensor) -> paddle.Tensor:
    """Sum a tensor over all processes, element-wise."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def max_over_processes(values: Sequence[float]) -> list[float]:
    """Take the element-wise maximum of a list of numbers over all processes. Waits for the device."""
    if world_size() == 1:
        return list(values)
    tensor = paddle.to_tensor(values, dtype="float32")
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor.tolist()


def gather(tensor: paddle.Tensor) -> np.ndarray:
    """Gather the (n,) tensors of all processes in an array (world_size, n). Waits for the device."""
    if world_size() == 1:
        return tensor.numpy()[None]
    tensors = []
    distributed.all_gather(tensors, tensor)
    return np.stack([tensor.numpy() for tensor in tensors])


def gather_objects(value: Any) -> list:
    """Gather the values of all processes, any picklable objects, in a list."""
    if world_size() == 1:
        return [value]
    values = []
    distributed.all_gather_object(values, value)
    return values


def data_parallel(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Wrap a model, so that its gradients are averaged over the processes."""
    return paddle.DataParallel(model) if world_size() > 1 else model


def local_gradients(model: paddle.nn.Layer) -> AbstractContextManager:
    """Context manager: gradients of a `data_parallel` model accumulate in each process without being averaged."""
    return model.no_sync() if world_size() > 1 else contextlib.nullcontext()
