"""Read pickles of arrays, numbers and text without running code from the file.

Python's own unpickler is unsafe even with a restricted `find_class`: it hashes every key that a file gives (nested
tuples overflow the C stack, shared ones take forever) and sets any state. This one has only the opcodes that data
needs, checks keys and states, calls only the functions of an allow-list, and takes at most a million steps.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import numpy as np

_OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND",
    "APPENDS", "EMPTY_DICT", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL",
    "BINPERSID",
)  # fmt: skip
_MOST_AXES, _LONGEST_AXIS = 8, 2**31
_MOST_STEPS = 1_000_000  # opcodes of a file; a training state of t2t_vit_24 has 40,000 objects


class Refused(Exception):
    """The file contains something other than data. The message says what."""


class Name:
    """A class that a pickle may mention but not call, such as torch.FloatStorage."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, *_: object) -> NoReturn:
        raise Refused(f"a call of {self.title}")


class Namespace:
    """Stands for an argparse.Namespace. The dict `attributes` holds its attributes."""

    attributes = {}


class _Steps(dict):
    """{opcode: method that executes it}."""

    def __missing__(self, code):
        raise ValueError(f"opcode {chr(code)!r}")


def _counted(step):
    def count_and_take(reader):
        reader.steps_left -= 1
        if reader.steps_left < 0:
            raise Refused(f"more than {_MOST_STEPS:,} objects")
        step(reader)

    return count_and_take


class Unpickler(pickle._Unpickler):
    """Reads the pickles in `data`, one after the other.

    `load()` returns the next object. It raises Refused if the object is not data. If the pickle is damaged or forged,
    it may raise any other exception.

    Args:
        data: bytes.
        allowed: {"module.name": function to call in its place, or None if it may be named but not called}.
        persistent_load: function that returns the object for a persistent id.
    """

    def __init__(
        self, data: bytes, allowed: dict[str, Callable | None] | None = None, persistent_load: Callable | None = None
    ) -> None:
        self.file = io.BytesIO(data)
        super().__init__(self.file, encoding="latin1")
        self.allowed = ALLOWED if allowed is None else allowed
        self.steps_left = _MOST_STEPS
        # Limit for the characters, bytes and entries that calls take and return and BUILD sets: 3 x the file size.
        self.items_left = 3 * len(data)
        if persistent_load:
            self.persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 calls numpy.core numpy._core; Python 2 called builtins __builtin__.
        title = f"{module}.{name}".replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if title not in self.allowed:
            raise Refused(title[:200])
        return self.allowed[title] or Name(title)

    def count(self, values: Collection) -> None:
        """Count the data in `values`. Refuses a file whose calls produce far more data than the file contains."""
        sizes = (len(value) for value in values if type(value) in (str, bytes, list, tuple, dict))
        self.items_left -= len(values) + sum(sizes)
        if self.items_left < 0:
            raise Refused("more data than the file has")

    def load_reduce(self) -> None:
        if type(self.stack[-1]) is not tuple:
            raise Refused(f"a call with a {type(self.stack[-1]).__name__} of arguments")
        self.count(self.stack[-1])
        super().load_reduce()
        self.count(self.stack[-1:])

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(state) not in (tuple, dict):
            raise Refused(f"a state that is a {type(state).__name__}")
        self.count(state)
        if isinstance(target, np.dtype):
            _set_byte_order(target, state)
        elif isinstance(target, np.ndarray):
            _set_array(target, state)
        elif isinstance(target, Namespace):
            target.attributes = state if type(state) is dict else {}
        elif type(target) is not dict:  # attributes of a dict, such as PyTorch's _metadata, are ignored
            raise Refused(f"a change of a {type(target).__name__}")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [(key, value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], zip(items[::2], items[1::2]))

    dispatch = {
        **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)},
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }
    dispatch = _Steps({code: _counted(step) for code, step in dispatch.items()})


def _set_items(target, pairs):
    if type(target) is not dict:
        raise Refused(f"entries of a {type(target).__name__}")
    for key, value in pairs:
        # Numbers of more than 64 bits could be chosen so that their hashes collide.
        if type(key) not in (str, int, float, bool, type(None)) or (type(key) is int and key.bit_length() > 64):
            raise Refused(f"a {type(key).__name__} as a key")
        target[key] = value


# --- The functions that a pickle may call, and the states that it may set ---


def _make_dtype(code, *_):
    if type(code) is not str:
        raise Refused(f"an array of a {type(code).__name__}")
    if not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
        raise Refused(f"an array of {'objects' if code.startswith('O') else code[:20]}")
    return np.dtype(code, False, True)  # a copy, because BUILD sets its byte order


def _set_byte_order(dtype, state):
    """State: (version, byte order, five values that describe records, flags[, metadata])."""
    _, order, *rest = state
    if len(state) > 9 or order not in ("<", ">", "|", "=") or any(value not in (None, -1, 0) for value in rest):
        raise Refused("an array of records")
    dtype.__setstate__((3, order, None, None, None, -1, -1, 0))


def _make_array(subtype, *_):
    if not isinstance(subtype, Name) or subtype.title != "numpy.ndarray":
        raise Refused("an array of another class than numpy.ndarray")
    return np.empty(0, np.int8)


def _set_array(array, state):
    """Set the state of an array: (version, shape, dtype, is Fortran order, bytes)."""
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, np.dtype) or not isinstance(data, (bytes, str)):
        raise Refused("an array of objects")
    data = _to_bytes(data)
    if array.size or array.base is not None:
        raise Refused("an array that is set twice")
    check_shape(shape)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise Refused("an array of another size than its data")
    array.__setstate__((1, tuple(shape), dtype, bool(fortran), data))


def check_shape(shape: Sequence[int]) -> None:
    """Raise Refused for a shape that no weights have. NumPy 1 crashes on some of these."""
    if len(shape) > _MOST_AXES or any(type(n) is not int or not 0 <= n <= _LONGEST_AXIS for n in shape):
        raise Refused("an array of an impossible shape")


def _make_scalar(dtype, data):
    data = _to_bytes(data)
    if not isinstance(dtype, np.dtype) or len(data) != dtype.itemsize:
        raise Refused("an object that is not a number")
    return np.frombuffer(data, dtype)[0].item()


def _to_bytes(data):
    return data if isinstance(data, bytes) else data.encode("latin1")  # Python 2 has only one type for both


def _encode(text, encoding):
    # How pickle protocol 2 stores bytes.
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("an encoding other than latin1")
    return text.encode("latin1")


def _make_dict(items=(), *_):
    made = {}
    _set_items(made, items)
    return made


def _make_tuple(pair):
    # paddle.save stores a nested tensor as tuple((name, array)).
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], np.ndarray):
        raise Refused("a tuple that is not a named array")
    return pair[1]


ALLOWED = {
    "_codecs.encode": _encode,
    "argparse.Namespace": lambda *_: Namespace(),
    "builtins.tuple": _make_tuple,
    "collections.Counter": _make_dict,
    "collections.OrderedDict": _make_dict,
    "collections.defaultdict": lambda *_: {},
    "numpy.core.multiarray._reconstruct": _make_array,
    "numpy.core.multiarray.scalar": _make_scalar,
    "numpy.dtype": _make_dtype,
    "numpy.ndarray": None,
    **{f"builtins.{name}": None for name in ("dict", "list", "int", "float")},
}
