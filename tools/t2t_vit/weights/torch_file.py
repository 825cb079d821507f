"""Read files of torch.save without PyTorch, whose reader can crash, hang or use all memory on a forged file.

A file is a zip archive with a pickle (data.pkl) and the bytes of each storage. Before PyTorch 1.6, it was several
pickles followed by the storages. A tensor is a view of a storage: offset, shape and strides.
"""

import math
import struct
import zipfile

import numpy as np

from t2t_vit.common import unpickle
from t2t_vit.common.unpickle import Name, Refused, Unpickler, check_shape

# First bytes of a file: a zip archive, or a pickle of the magic number.
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_STORAGES = {  # bfloat16 is read as uint16, as Paddle stores it
    "torch.FloatStorage": "f4", "torch.DoubleStorage": "f8", "torch.HalfStorage": "f2", "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8", "torch.IntStorage": "i4", "torch.ShortStorage": "i2", "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1", "torch.BoolStorage": "b1",
}  # fmt: skip
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32")


def read(path):
    """Return the object in a file of torch.save, with arrays in place of tensors.

    Raises:
        Refused: the file contains something other than data.
        Exception: the file is damaged or forged.
    """
    with open(path, "rb") as file:
        return _read_zip(file) if file.read(4) == ZIP else _read_legacy(file)


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > file.seek(0, 2):
            raise Refused("more bytes than the file has (compressed?)")
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise Refused("a TorchScript program")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no data.pkl in the zip archive")
        folder = pickles[0].partition("/")[0]
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") == b"big":
            raise Refused("big-endian numbers")
        storages = {}

        def load_storage(identity):
            dtype, key, length = _parse_storage(identity)
            if key not in storages:
                data = archive.read(f"{folder}/data/{key}")
                if len(data) != length * dtype.itemsize:
                    raise Refused("a storage of another size than its data")
                storages[key] = np.frombuffer(data, dtype)
            return storages[key]

        return Unpickler(archive.read(pickles[0]), ALLOWED, load_storage).load()


def _read_legacy(file):
    file.seek(0)
    data = file.read()
    storages, total = {}, 0

    def load_storage(identity):  # the bytes come after the last pickle
        nonlocal total
        dtype, key, length = _parse_storage(identity)
        if type(identity[-1]) is tuple:
            raise Refused("views of storages, which PyTorch 0.3 wrote")
        if key not in storages:
            total += length * dtype.itemsize
            if total > len(data):
                raise Refused("more bytes than the file has")
            storages[key] = np.zeros(length, dtype)
        return storages[key]

    reader = Unpickler(data, ALLOWED, load_storage)
    _, _, _, tree, keys = (reader.load() for _ in range(5))
    for key in keys:
        (length,) = struct.unpack("<q", reader.file.read(8))
        storage = storages[key]
        if length != len(storage):
            raise Refused("a storage of another size than its data")
        storage[:] = np.frombuffer(reader.file.read(storage.nbytes), storage.dtype)  # always little-endian
    return tree


def _parse_storage(identity):
    """Parse ("storage", type, key, device, number of values[, view]): (dtype, key, number of values)."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Refused("a reference to something that is not a storage")
    _, kind, key, _, length = identity[:5]
    if not isinstance(kind, Name) or kind.title not in _STORAGES or type(key) is not str or type(length) is not int:
        raise Refused("a storage of an unknown kind")
    return np.dtype(_STORAGES[kind.title]), key, length


def _make_tensor(storage, offset, shape, strides, *_):
    """Return a view of `storage`, after checking that it stays inside."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise Refused("a tensor of an unknown kind")
    check_shape(shape)
    if len(shape) != len(strides) or any(type(number) is not int or number < 0 for number in (offset, *strides)):
        raise Refused("a tensor of an impossible shape")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    count = math.prod(shape)
    if offset > len(storage) or count > len(storage) or (count and last >= len(storage)):
        raise Refused("a tensor larger than its data")
    strides = [stride * storage.itemsize if length > 1 else 0 for length, stride in zip(shape, strides)]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)


def _make_size(sizes=()):
    if type(sizes) not in (tuple, list):
        raise Refused(f"a size of a {type(sizes).__name__}")
    return tuple(sizes)


ALLOWED = {
    **unpickle.ALLOWED,
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": _make_size,
    "torch.device": lambda *_: None,
    **dict.fromkeys([*_STORAGES, *(f"torch.{name}" for name in _DTYPES)]),
}
