"""Pickled arrays, numbers and names, read without running code of the file.

Python's unpickler is not safe with a `find_class` of our own: it hashes whatever a file makes a key (nested tuples
overflow the C stack, shared ones take for ever) and reserves memory for lengths that a file only claims. This one
knows the opcodes that weights need, makes only what `makers` list, and never takes more than the file's size allows.
"""

import math
import re
import struct

import numpy as np

MOST_OBJECTS = 1_000_000  # and opcodes; a training state of t2t_vit_24 has 40,000


class Refused(Exception):
    """Names what a file holds besides data."""


class Maker:
    """A name in a pickle that may be called: `make(*arguments)`; `title` is for messages."""

    def __init__(self, make, title):
        self.make, self.title = make, title


class Namespace:
    """Attributes of an argparse.Namespace, as a dict."""

    def __init__(self):
        self.values = {}

    def build(self, state):
        self.values = state if type(state) is dict else {}


class _Dtype:
    """A number type, from dtype("f4", False, True) and the byte order that follows."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
            code = str(code)[:20] if isinstance(code, str) else f"a {type(code).__name__}"
            raise Refused(f"an array of {'objects' if code.startswith('O') else code}")
        self.dtype = np.dtype(code)

    def build(self, state):
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(type(value) not in (type(None), int) for value in rest) \
                or any(value not in (None, -1, 0) for value in rest):  # fmt: skip
            raise Refused("an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class Array:
    """An array, from (version, shape, dtype, is Fortran order, bytes)."""

    def __init__(self):
        self.value = None

    def build(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise Refused("an array of objects")
        if any(type(length) is not int or length < 0 for length in shape):
            raise Refused("an array of another size than its data")
        size = math.prod(shape) * dtype.dtype.itemsize
        if len(data) != size:
            raise Refused("an array of another size than its data")
        flat = np.frombuffer(data, dtype.dtype) if size else np.empty(0, dtype.dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _make_array(subtype, *_):
    if not isinstance(subtype, Maker) or subtype.title != "ndarray":
        raise Refused("an array of a type of its own")
    return Array()


def _make_scalar(dtype, data):
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise Refused("an object that is no number")
    return np.frombuffer(data, dtype.dtype)[0].item()


def _make_nothing(*_):
    raise Refused("an array without a value")


def _make_bytes(text, encoding):
    # How pickle protocol 2 stores the bytes of an array.
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("an encoding other than latin1")
    return text.encode("latin1")


def _make_dict(items=(), *_):
    made = {}
    for key, value in items if type(items) in (list, tuple) else ():
        _set_item(made, key, value)
    return made


MAKERS = {
    ("_codecs", "encode"): Maker(_make_bytes, "encode"),
    ("collections", "OrderedDict"): Maker(_make_dict, "OrderedDict"),
    ("numpy", "ndarray"): Maker(_make_nothing, "ndarray"),
    ("numpy", "dtype"): Maker(_Dtype, "dtype"),
    ("numpy.core.multiarray", "_reconstruct"): Maker(_make_array, "_reconstruct"),
    ("numpy.core.multiarray", "scalar"): Maker(_make_scalar, "scalar"),
}


class Unpickler:
    """Reads the pickles in `data`, one `load` after the other.

    Args:
        data: bytes.
        makers: {(module, name): Maker or plain value} for the names that a file may use.
        persistent: what makes an object of the persistent id that a program stores instead of it.

    Raises:
        Refused: the file holds anything else.
        Exception: nearly any, for a torn or crafted file.
    """

    def __init__(self, data, makers, persistent=None):
        self.data, self.position = memoryview(data), 0
        self.makers, self.persistent = makers, persistent
        self.allowance = len(data)  # bytes that calls may still make
        self.entries = MOST_OBJECTS  # of containers, that calls may still read and make

    def load(self):
        self.stack, self.marks, self.memo = [], [], {}
        for _ in range(MOST_OBJECTS):
            opcode = bytes(self.take(1))
            if opcode == b".":
                return self.stack.pop()
            if opcode in _REFUSED:
                raise Refused(_REFUSED[opcode])
            if opcode not in _STEPS:
                raise ValueError(f"opcode {opcode[0]} at byte {self.position - 1}")
            _STEPS[opcode](self)
        raise Refused(f"more than {MOST_OBJECTS:,} objects")

    def take(self, length):
        """The next bytes."""
        start, self.position = self.position, self.position + length
        if length < 0 or self.position > len(self.data):
            raise EOFError("it ends too early")
        return self.data[start : self.position]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self):
        """The text up to the end of a line."""
        length = bytes(self.data[self.position : self.position + 1000]).index(b"\n")
        return str(self.take(length + 1)[:-1], "utf-8")

    def push(self, value):
        self.stack.append(value)

    def mark(self):
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self):
        """What was pushed since the last mark, which is removed."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def last(self, count):
        """The last values of the stack, as a tuple."""
        if len(self.stack) < count:
            raise IndexError("nothing to take")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def named(self, module, name):
        # numpy.core until NumPy 1, numpy._core since NumPy 2; __builtin__ in protocol 2.
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if (module, name) not in self.makers:
            raise Refused(f"{module}.{name}"[:200])
        self.push(self.makers[module, name])

    def call(self):
        maker, arguments = self.last(2)
        if not isinstance(maker, Maker) or type(arguments) is not tuple:
            raise Refused("a call of something that is no function")
        self._charge(arguments)
        made = maker.make(*arguments)
        if isinstance(made, bytes):
            self.allowance -= len(made)
            if self.allowance < 0:
                raise Refused("more bytes than the file has")
        self._charge([made])
        self.push(made)

    def _charge(self, values):
        """Count what containers hold: a few calls could read or copy a large one many times."""
        self.entries -= sum(len(value) for value in values if type(value) in (list, tuple, dict))
        if self.entries < 0:
            raise Refused(f"more than {MOST_OBJECTS:,} objects")

    def build(self):
        target, state = self.last(2)
        if isinstance(target, Maker):
            raise Refused(f"a change of {target.title}")
        if hasattr(target, "build"):
            target.build(state)
        elif type(target) is not dict:  # whose attributes, such as PyTorch's _metadata, are of no use here
            raise Refused(f"a change of a {type(target).__name__}")
        self.push(target)

    def set_items(self, values):
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise Refused(f"entries of a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2]):
            _set_item(target, key, value)

    def append(self, values):
        if type(self.stack[-1]) is not list:
            raise Refused(f"entries of a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def load_persistent(self):
        if self.persistent is None:
            raise Refused("a reference to another file")
        self.push(self.persistent(self.stack.pop()))


def _set_item(target, key, value):
    # Numbers of more than 64 bits could be chosen to have the same hash.
    if type(key) not in (str, int, float, bool, type(None)) or (type(key) is int and key.bit_length() > 64):
        raise Refused(f"a {type(key).__name__} as a key")
    target[key] = value


def _text(data):
    return str(data, "utf-8", "surrogatepass")


def _ascii(data):
    return str(data, "ascii")


def _integer(data):
    return int.from_bytes(data, "little", signed=True)


def _constant(value):
    return lambda reader: reader.push(value)


def _fixed(form):
    return lambda reader: reader.push(reader.number(form))


def _sized(form, convert):
    return lambda reader: reader.push(convert(reader.take(reader.number(form))))


def _get(form):
    return lambda reader: reader.push(reader.memo[reader.number(form)])


def _put(form):
    return lambda reader: reader.memo.__setitem__(reader.number(form), reader.stack[-1])


def _tuple_of(count):
    return lambda reader: reader.push(reader.last(count))


_STEPS = {
    b"\x80": lambda reader: reader.take(1),  # number of the protocol
    b"\x95": lambda reader: reader.take(8),  # length of a frame
    b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False), b")": _constant(()),
    b"}": lambda reader: reader.push({}),
    b"]": lambda reader: reader.push([]),
    b"K": _fixed("<B"), b"M": _fixed("<H"), b"J": _fixed("<i"), b"G": _fixed(">d"),
    b"\x8a": _sized("<B", _integer),
    b"X": _sized("<I", _text), b"\x8c": _sized("<B", _text), b"\x8d": _sized("<Q", _text),
    b"T": _sized("<i", _ascii), b"U": _sized("<B", _ascii),
    b"B": _sized("<I", bytes), b"C": _sized("<B", bytes), b"\x8e": _sized("<Q", bytes),
    b"h": _get("<B"), b"j": _get("<I"), b"q": _put("<B"), b"r": _put("<I"),
    b"\x94": lambda reader: reader.memo.__setitem__(len(reader.memo), reader.stack[-1]),
    b"(": Unpickler.mark,
    b"t": lambda reader: reader.push(tuple(reader.since_mark())),
    b"\x85": _tuple_of(1), b"\x86": _tuple_of(2), b"\x87": _tuple_of(3),
    b"0": lambda reader: reader.last(1),
    b"s": lambda reader: reader.set_items(reader.last(2)),
    b"u": lambda reader: reader.set_items(reader.since_mark()),
    b"a": lambda reader: reader.append(reader.last(1)),
    b"e": lambda reader: reader.append(reader.since_mark()),
    b"c": lambda reader: reader.named(reader.line(), reader.line()),
    b"\x93": lambda reader: reader.named(*reader.last(2)),
    b"R": Unpickler.call, b"\x81": Unpickler.call,
    b"b": Unpickler.build,
    b"Q": Unpickler.load_persistent,
}  # fmt: skip
# Of other opcodes, those that a file of data may hold, by what they make.
_REFUSED = {b"\x8f": "a set", b"\x91": "a frozenset", b"\x8b": "a huge number", b"\x96": "a bytearray"}
