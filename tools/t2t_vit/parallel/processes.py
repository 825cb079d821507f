"""The device of a process, and the collective operations between processes.

One process trains on one device. `python -m paddle.distributed.launch` starts several, on one or more machines, and
sets what `paddle.distributed.ParallelEnv` reads; without it there is one.
"""

import contextlib
import ctypes
import os
import signal

import numpy as np
import paddle
from paddle import distributed

from t2t_vit.common.errors import UserError
from t2t_vit.common.ranks import rank, world_size
from t2t_vit.models import cpu_ops, tf32
from t2t_vit.parallel import gpu


def setup(cfg):
    """Choose this process's device, DEVICE, and the operations that suit it; join the other processes.

    Returns the device's name.
    """
    device = cfg.DEVICE
    gpus = gpu.require(f"DEVICE is {device}") if device.startswith("gpu") else gpu.count()
    name = device or ("gpu" if gpus else "cpu")
    if name == "gpu" and gpus:
        name = f"gpu:{distributed.ParallelEnv().device_id}"
    if name.startswith("gpu:") and int(name[4:]) >= gpus:
        raise UserError(f"DEVICE is {name} but there are {gpus} GPU(s), gpu:0 to gpu:{gpus - 1}")
    tf32.allow(False)  # TrainStep allows it where TRAIN.TF32 says so
    if not cfg.TRAIN.TF32:
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # read by cuBLAS and cuDNN when they are loaded
    paddle.set_device(name)
    if name.startswith("gpu"):
        gpu.try_out()
    elif not device:
        gpu.warn_of_idle_cards()
    cpu_ops.enable(cfg.CPU.FAST_OPS and name == "cpu")
    if world_size() > 1:
        # gloo aborts the process when it loses another one: as its handler, sleep(SIGABRT) leaves six seconds in which
        # the monitor of that one (failure_monitor.py) tells why. Python's own handlers would come too late.
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGABRT, libc.sleep)
        distributed.init_parallel_env()
    return name


def is_main():
    """True in the one process that prints and writes files."""
    return rank() == 0


def barrier():
    """Wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def from_main(value):
    """The main process's `value`, anything that pickles, in every process."""
    if world_size() == 1:
        return value
    values = [value if is_main() else None]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def same_everywhere(model):
    """Give the model of every process the main one's parameters and buffers."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, src=0)


def sum_over_processes(tensor):
    """Element-wise sum of every process's tensor."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def max_over_processes(values):
    """Element-wise maximum of every process's list of numbers. Waits for the device."""
    if world_size() == 1:
        return list(values)
    tensor = paddle.to_tensor(values, dtype="float32")
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor.tolist()


def gather(tensor):
    """Every process's (n,) tensor as one (world_size, n) array. Waits for the device."""
    if world_size() == 1:
        return tensor.numpy()[None]
    tensors = []
    distributed.all_gather(tensors, tensor)
    return np.stack([tensor.numpy() for tensor in tensors])


def gather_objects(value):
    """List of every process's `value`, anything that pickles."""
    if world_size() == 1:
        return [value]
    values = []
    distributed.all_gather_object(values, value)
    return values


def data_parallel(model):
    """Model whose gradients are averaged over the processes."""
    return paddle.DataParallel(model) if world_size() > 1 else model


def local_gradients(model):
    """Context in which the gradients of a `data_parallel` model add up in each process, without being averaged."""
    return model.no_sync() if world_size() > 1 else contextlib.nullcontext()
