"""Files of torch.save, read without PyTorch, whose own reader can be made to crash, hang or take all memory.

A zip archive holds a pickle (data.pkl) and the bytes of each storage; before PyTorch 1.6 the pickles and storages of a
file followed each other. Tensors are views of a storage, by offset, shape and strides.
"""

import math
import struct
import zipfile

import numpy as np

from t2t_vit.weights.unpickle import MAKERS, Array, Maker, Namespace, Refused, Unpickler

# First bytes: a zip archive, or a pickle of the magic number.
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TYPES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "b1",
}  # fmt: skip
_MOST_AXES = 8  # from 33 on, as_strided of NumPy 1 crashes


class _StorageType:
    def __init__(self, code):
        self.dtype = np.dtype(code)


class _Storage:
    """Numbers that tensors view; `values` is filled in where they are read."""

    def __init__(self, dtype, length):
        self.dtype, self.length, self.values = dtype, length, None

    def fill(self, data, order):
        if len(data) != self.length * self.dtype.itemsize:
            raise Refused("a storage of another size than its data")
        self.values = np.frombuffer(data, self.dtype.newbyteorder(order))


class _Tensor(Array):
    """A view of a storage."""

    def __init__(self, storage, offset, shape, strides):
        numbers = [offset, *shape, *strides]
        if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
            raise Refused("a tensor of an unknown kind")
        if len(shape) != len(strides) or len(shape) > _MOST_AXES or max(shape, default=0) > 2**31:
            raise Refused("a tensor of an unknown shape")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        count = math.prod(shape)
        if count > storage.length or (count and last >= storage.length):
            raise Refused("a tensor larger than its data")
        self._view = storage, offset, shape, [stride if length > 1 else 0 for length, stride in zip(shape, strides)]

    @property
    def value(self):
        storage, offset, shape, strides = self._view
        start = storage.values[offset:]
        return np.lib.stride_tricks.as_strided(start, shape, [stride * storage.dtype.itemsize for stride in strides])


def _make_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, shape, strides)


def _make_parameter(tensor, *_):
    return tensor


def _make_device(*parts):
    return ":".join(str(part) for part in parts if type(part) in (str, int))


def _refuse(what):
    def make(*_):
        raise Refused(what)

    return Maker(make, what)


_MAKERS = {
    **MAKERS,
    ("torch._utils", "_rebuild_tensor"): Maker(_make_tensor, "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_make_tensor, "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"): Maker(_make_parameter, "_rebuild_parameter"),
    ("torch._utils", "_rebuild_qtensor"): _refuse("quantised tensors"),
    ("torch._utils", "_rebuild_sparse_tensor"): _refuse("sparse tensors"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _refuse("tensors without values (of the device meta)"),
    **{("torch", f"{name}Storage"): _StorageType(code) for name, code in _TYPES.items()},
    **{("torch", f"{kind}Storage"): _refuse("quantised tensors") for kind in ("QInt8", "QUInt8", "QInt32")},
    **{("torch", name): f"torch.{name}" for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32")},
    ("torch", "device"): Maker(_make_device, "device"),
    ("torch", "Size"): Maker(lambda sizes=(): tuple(sizes), "Size"),
    ("argparse", "Namespace"): Maker(Namespace, "Namespace"),
    ("collections", "Counter"): Maker(MAKERS["collections", "OrderedDict"].make, "Counter"),
    ("collections", "defaultdict"): Maker(lambda *_: {}, "defaultdict"),
    **{("builtins", name): f"builtins.{name}" for name in ("dict", "list", "int", "float")},
}  # fmt: skip


def read(path):
    """What a file of torch.save holds: dicts, with arrays for tensors (uint16 for bfloat16) in the first three levels.

    Raises:
        Refused: it holds anything but data.
        Exception: nearly any, if it is torn or crafted.
    """
    with open(path, "rb") as file:
        tree = _read_zip(file) if file.read(4) == ZIP else _read_legacy(file)
    return _arrays(tree, 3, {})


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        sizes = [entry.file_size for entry in archive.infolist()]
        if sum(sizes) > file.seek(0, 2):
            raise Refused("more bytes than the file has (compressed?)")
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise Refused("a TorchScript program")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no data.pkl in the zip archive")
        folder = pickles[0].partition("/")[0]
        order = "<"
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") == b"big":
            order = ">"
        storages = {}

        def load(identity):
            kind, key, length = _storage_of(identity)
            if key not in storages:
                storages[key] = _Storage(kind.dtype, length)
                storages[key].fill(archive.read(f"{folder}/data/{key}"), order)
            return storages[key]

        return Unpickler(archive.read(pickles[0]), _MAKERS, load).load()


def _read_legacy(file):
    file.seek(0)
    storages = {}

    def load(identity):
        kind, key, length = _storage_of(identity)
        if type(identity[-1]) is tuple:
            raise Refused("views of storages, which PyTorch 0.3 wrote")
        return storages.setdefault(key, _Storage(kind.dtype, length))

    reader = Unpickler(file.read(), _MAKERS, load)
    _, _, _, tree, keys = (reader.load() for _ in range(5))
    for key in keys:
        (length,) = struct.unpack("<q", reader.take(8))
        storage = storages[key]
        if length != storage.length:
            raise Refused("a storage of another size than its data")
        storage.fill(reader.take(length * storage.dtype.itemsize), "<")  # whatever machine wrote it
    return tree


def _storage_of(identity):
    """(type, key, number of values) of ("storage", type, key, device, number of values, ...)."""
    if type(identity) is not tuple or len(identity) < 5 or identity[0] != "storage":
        raise Refused("a reference to something that is no storage")
    _, kind, key, _, length, *_ = identity
    if isinstance(kind, Maker):
        kind.make()
    if not isinstance(kind, _StorageType) or type(key) is not str or type(length) is not int or length < 0:
        raise Refused("a storage of an unknown kind")
    return kind, key, length


def _arrays(tree, levels, done):
    """`tree` with arrays for tensors and text for keys in its first levels; `done` holds {id: result} of its dicts."""
    if isinstance(tree, Array):
        return tree.value
    if type(tree) is not dict or not levels:
        return tree
    if id(tree) not in done:
        done[id(tree)] = made = {}
        made.update((str(key), _arrays(value, levels - 1, done)) for key, value in tree.items())
    return done[id(tree)]
