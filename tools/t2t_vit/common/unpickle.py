"""Read pickles of arrays, numbers and text without running code from the file.

Python's own unpickler is unsafe even with a restricted `find_class`: it hashes every key that a file gives (nested
tuples overflow the C stack, shared ones take forever) and allocates the memory that a file asks for. This one handles
only the opcodes that data needs, calls only the functions of an allow-list, and makes at most a million objects.
"""

import io
import math
import pickletools
import re

import numpy as np

MOST_OBJECTS = 1_000_000  # also limits the opcodes; a training state of t2t_vit_24 has 40,000 objects
_MOST_AXES, _LONGEST_AXIS = 8, 2**31


class Refused(Exception):
    """The file holds something other than data; the message names it."""


class Name:
    """A function or class that a pickle names, such as numpy.dtype; `make(*arguments)` stands for a call of it."""

    def __init__(self, title, make):
        self.title, self.make = title, make


class Namespace(dict):
    """The attributes of an argparse.Namespace."""


class Unpickler:
    """Reads the pickles in `data`, one after the other.

    Args:
        data: bytes.
        allowed: {"module.name": function that stands for it, or None if the name may only be mentioned}.
        persistent_load: function that returns the object of a persistent id.
    """

    def __init__(self, data, allowed=None, persistent_load=None):
        self.file = io.BytesIO(data)
        self.allowed = ALLOWED if allowed is None else allowed
        self.persistent_load = persistent_load
        self.bytes_left = len(data)  # that calls may still return
        self.entries_left = MOST_OBJECTS  # of containers that calls may still take and return

    def load(self):
        """The next object.

        Raises:
            Refused: it holds something other than data.
            Exception: the pickle is damaged or forged.
        """
        self.stack, self.marks, self.memo = [], [], {}
        for _ in range(MOST_OBJECTS):
            code = self.read(1)
            if code not in _OPCODES:
                raise ValueError(f"opcode {code!r} at byte {self.file.tell() - 1}")
            name, read_argument = _OPCODES[code]
            if name == "STOP":
                return self.stack.pop()
            if name in _REFUSED:
                raise Refused(_REFUSED[name])
            _STEPS[name](self, read_argument(self.file) if read_argument else None)
        raise Refused(f"more than {MOST_OBJECTS:,} objects")

    def read(self, length):
        """The next bytes. Raises EOFError if there are fewer."""
        data = self.file.read(length)
        if len(data) < length:
            raise EOFError("the file ends too early")
        return data

    def pop_many(self, count):
        """The last `count` values of the stack, as a tuple."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def pop_mark(self):
        """The values since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def push(self, value):
        self.stack.append(value)

    def push_mark(self):
        self.marks.append(self.stack)
        self.stack = []

    def push_name(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is not text")
        # numpy._core is NumPy 2's name of numpy.core; __builtin__ is Python 2's of builtins.
        title = f"{module}.{name}".replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if title not in self.allowed:
            raise Refused(title[:200])
        self.stack.append(Name(title, self.allowed[title]))

    def call(self):
        name, arguments = self.pop_many(2)
        if not isinstance(name, Name) or name.make is None or type(arguments) is not tuple:
            raise Refused(f"a call of {_kind(name)}")
        self._count(arguments)
        result = name.make(*arguments)
        self._count([result])
        self.stack.append(result)

    def _count(self, values):
        """Count entries and bytes, because a few opcodes could copy a large object many times."""
        for value in values:
            if type(value) in (list, tuple, dict):
                self.entries_left -= len(value)
            elif type(value) is bytes:
                self.bytes_left -= len(value)
        if self.entries_left < 0:
            raise Refused(f"more than {MOST_OBJECTS:,} objects")
        if self.bytes_left < 0:
            raise Refused("more bytes than the file has")

    def build(self):
        target, state = self.pop_many(2)
        if isinstance(target, np.dtype):
            _set_byte_order(target, state)
        elif isinstance(target, np.ndarray):
            _set_array(target, state)
        elif isinstance(target, Namespace):
            self._count([state])
            target.update(state if type(state) is dict else {})
        elif type(target) is not dict:  # attributes of a dict, such as PyTorch's _metadata, are ignored
            raise Refused(f"a change of {_kind(target)}")
        self.stack.append(target)

    def set_items(self, values):
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise Refused(f"entries of {_kind(target)}")
        for key, value in zip(values[::2], values[1::2]):
            _set_item(target, key, value)

    def append(self, values):
        if type(self.stack[-1]) is not list:
            raise Refused(f"entries of {_kind(self.stack[-1])}")
        self.stack[-1].extend(values)

    def push_persistent(self):
        if self.persistent_load is None:
            raise Refused("a reference to another file")
        self.stack.append(self.persistent_load(self.stack.pop()))


def _kind(value):
    return value.title if isinstance(value, Name) else f"a {type(value).__name__}"


def _set_item(target, key, value):
    # Numbers of more than 64 bits could be chosen to have the same hash.
    if type(key) not in (str, int, float, bool, type(None)) or (type(key) is int and key.bit_length() > 64):
        raise Refused(f"a {type(key).__name__} as a key")
    target[key] = value


# --- The functions that a pickle may call ---


def _make_dtype(code, *_):
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
        code = code[:20] if isinstance(code, str) else f"a {type(code).__name__}"
        raise Refused(f"an array of {'objects' if code.startswith('O') else code}")
    return np.dtype(code, False, True)  # a copy, because BUILD sets its byte order


def _set_byte_order(dtype, state):
    _, order, *rest = state
    if order not in ("<", ">", "|", "=") or any(
        type(value) not in (int, type(None)) or value not in (None, -1, 0) for value in rest
    ):
        raise Refused("an array of records")
    dtype.__setstate__((3, order, None, None, None, -1, -1, 0))


def _make_array(subtype, *_):
    if not isinstance(subtype, Name) or subtype.title != "numpy.ndarray":
        raise Refused("an array of another class than numpy.ndarray")
    return np.empty(0, np.int8)


def _set_array(array, state):
    """Set the value of an empty array from (version, shape, dtype, is Fortran order, bytes)."""
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


def check_shape(shape):
    """Raise Refused for a shape that no weights have; NumPy 1 crashes at some of them."""
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
    for key, value in items if type(items) in (list, tuple) else ():
        _set_item(made, key, value)
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

# --- Opcodes, by their names in pickletools ---

_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
           "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_STEPS = {
    "PROTO": lambda reader, _: None,
    "FRAME": lambda reader, _: None,
    **dict.fromkeys(_VALUES, lambda reader, value: reader.push(value)),
    **{name: lambda reader, _, value=value: reader.push(value) for name, value in _CONSTANTS.items()},
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda reader, index: reader.push(reader.memo[index])),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda reader, index: reader.memo.__setitem__(index, reader.stack[-1])),
    "MEMOIZE": lambda reader, _: reader.memo.__setitem__(len(reader.memo), reader.stack[-1]),
    "MARK": lambda reader, _: reader.push_mark(),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.pop_mark())),
    **{f"TUPLE{n}": lambda reader, _, n=n: reader.push(reader.pop_many(n)) for n in (1, 2, 3)},
    "POP": lambda reader, _: reader.pop_many(1),
    "SETITEM": lambda reader, _: reader.set_items(reader.pop_many(2)),
    "SETITEMS": lambda reader, _: reader.set_items(reader.pop_mark()),
    "APPEND": lambda reader, _: reader.append(reader.pop_many(1)),
    "APPENDS": lambda reader, _: reader.append(reader.pop_mark()),
    "GLOBAL": lambda reader, names: reader.push_name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda reader, _: reader.push_name(*reader.pop_many(2)),
    "REDUCE": lambda reader, _: reader.call(),
    "NEWOBJ": lambda reader, _: reader.call(),
    "BUILD": lambda reader, _: reader.build(),
    "BINPERSID": lambda reader, _: reader.push_persistent(),
}
_REFUSED = {"EMPTY_SET": "a set", "FROZENSET": "a frozenset", "LONG4": "a huge number", "BYTEARRAY8": "a bytearray"}
_OPCODES = {
    opcode.code.encode("latin1"): (opcode.name, opcode.arg and opcode.arg.reader)
    for opcode in pickletools.opcodes
    if opcode.name in (*_STEPS, *_REFUSED, "STOP")
}
