"""Save and read weights and training states (.pdparams, .pdopt).

A file has the format of `paddle.save`, followed by a checksum, which `paddle.load` ignores. It is written atomically.
It is read without `paddle.load`, because that would run any code in the file: see common/unpickle.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import paddle

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.files import atomic_path
from t2t_vit.common.unpickle import Refused, Unpickler
from t2t_vit.models.layers import in_head
from t2t_vit.weights.download import remedy_for

_SEAL = b"\nsha256:"  # marks the checksum (32 bytes) at the end of a file


def save(path: str | Path, tree: dict) -> None:
    """Write nested dicts of tensors, arrays, numbers and strings. `paddle.load` can read the file."""
    buffer = io.BytesIO()
    paddle.save(_to_numpy(tree), buffer)
    data = buffer.getbuffer()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.writelines([data, _SEAL, hashlib.sha256(data).digest()])


def read(path):
    """Read a .pdparams or .pdopt file: nested dicts of NumPy arrays, numbers and strings. Runs no code from the file.

    Raises UserError if it is missing, damaged, not a Paddle file, or contains anything else.
    """
    with naming_faults(path, "Paddle"):
        data = Path(path).read_bytes()
        _check_seal(memoryview(data))
        tree = Unpickler(data).load()
        _check(tree)
    if not isinstance(tree, dict):
        raise UserError(f"{path} contains a {type(tree).__name__}, not a state dict")
    return tree


@contextlib.contextmanager
def naming_faults(path, program):
    """Turn the errors of reading a missing, damaged or hostile file of `program` into UserErrors."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except Refused as error:
        raise UserError(
            f"{path} refused: it contains {error}, but weights are only arrays, numbers and names"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: the file contains a negative offset
            raise
        reason = one_line(error).split(". ")[0][:200]
        raise UserError(f"{path} is damaged or not a {program} weights file ({reason}){remedy_for(path)}") from None


def _check_seal(data):
    """Raise ValueError if the checksum at the end of `data` is wrong. Files of other programs have none."""
    content, end = data[: -len(_SEAL) - 32], data[-len(_SEAL) - 32 :]
    if bytes(end).startswith(_SEAL) and not bytes(end).endswith(hashlib.sha256(content).digest()):
        raise ValueError("wrong checksum")


def is_own(path: str | Path) -> bool:
    """Whether a file was written by `save`, which adds a checksum."""
    with open(path, "rb") as file:
        file.seek(-min(os.path.getsize(path), len(_SEAL) + 32), os.SEEK_END)
        return file.read().startswith(_SEAL)


def load_state(model: paddle.nn.Layer, weights: dict[str, np.ndarray], path: Path) -> None:
    """Copy `weights`, {name: array}, into `model`. Raises UserError if tensors are missing, unknown or do not fit."""
    own = model.state_dict()
    wrong = [f"no {name}" for name in own if name not in weights]
    for name, value in weights.items():
        if name not in own:
            wrong.append(f"{name} is unknown to the model")
        elif not isinstance(value, np.ndarray):
            wrong.append(f"{name} is not an array")
        elif list(value.shape) != list(own[name].shape):
            wrong.append(f"{name} is {list(value.shape)}, the model's is {list(own[name].shape)}")
    if wrong:
        rest = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        head, expected = (list(np.shape(tensors.get("head.bias"))) for tensors in (weights, own))
        only_head = all(in_head(line) for line in wrong)  # each line begins with a name
        other = only_head and len(head) == 1 and head != expected
        classes = f"; it was trained for {head[0]} classes: set MODEL.NUM_CLASSES {head[0]}?" if other else ""
        raise UserError(f"{path} does not fit the model: {'; '.join(wrong[:3])}{rest}{classes}")
    with paddle.no_grad():
        for name, tensor in own.items():
            tensor.set_value(paddle.to_tensor(to_float32(weights[name], name, path)).astype(tensor.dtype))


def to_float32(value, name, path):
    """Convert a float array (also bfloat16) to float32. Raises UserError for another type or non-finite values."""
    if value.dtype == np.uint16:  # Paddle stores bfloat16 as the upper half of a float32
        value = (value.astype(np.uint32) << 16).view(np.float32)
    if value.dtype.kind != "f":
        raise UserError(f"{path} does not fit the model: {name} has type {value.dtype}, not floating-point numbers")
    if not np.isfinite(value).all():
        raise UserError(f"{path} cannot be used: {name} contains NaN or infinity")
    return value.astype(np.float32)


def _to_numpy(tree):
    if isinstance(tree, dict):
        return {key: _to_numpy(value) for key, value in tree.items()}
    return to_array(tree) if isinstance(tree, paddle.Tensor) else tree


def to_array(tensor: paddle.Tensor) -> np.ndarray:
    """Copy a tensor to an array."""
    # Without clone(), numpy() of a slice (flat.py) copies the whole tensor (Paddle 2.6.2 and 3.3.1).
    return tensor.clone().numpy()


def _check(tree):
    """Raise Refused if nested dicts contain anything but arrays, numbers and strings."""
    rest, seen = [tree], set()
    while rest:
        value = rest.pop()
        if type(value) is dict and all(isinstance(key, str) for key in value):
            if id(value) not in seen:
                seen.add(id(value))
                rest.extend(value.values())
        elif not isinstance(value, (np.ndarray, bool, int, float, str, type(None))):
            raise Refused(f"a {type(value).__name__}")
