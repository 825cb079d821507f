"""Random pickles and metadata of exported models are read or refused in one line, fast and with little memory."""

import json
import tracemalloc

import pytest

pytest.importorskip("hypothesis", reason="it makes the random files: pip install hypothesis")
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_hostile_files import torch_zip
from test_hostile_text import metadata_entries

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.deploy.metadata import Metadata
from t2t_vit.weights import torch_file
from t2t_vit.weights.formats import read_weights


def _text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _name(name):
    module, _, rest = name.rpartition(".")
    return f"c{module}\n{rest}\n".encode()


# A pickle is any sequence of these: values, containers, the memo, calls of every allowed name.
PIECES = [
    b"N", b"\x88", b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"0", b"s", b"u", b"a", b"e", b"R", b"\x81",
    b"b", b"Q", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"\x94", b"K\x00", b"K\x02", b"J\xff\xff\xff\xff", b"\x93",
    b"J\xff\xff\xff\x7f", b"G?\xf0\0\0\0\0\0\0", b"C\x04abcd",
    *map(_text, ("a", "latin1", "f4", "<", ">", "storage", "0")),
    *map(_name, torch_file.ALLOWED), _name("os.system"),
    # np.ones(1, "f4"), and the storage of torch.ones(2)
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\nX\x02\0\0\0"
    b"f4\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x04\0\0\x80?tb",
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x02tQ",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read_or_refuse(path):
    """Read a weights file; every exception but a UserError of one line, or much memory, is a failure."""
    tracemalloc.start()
    try:
        read_weights(path)
    except UserError as error:
        assert one_line(error).isprintable() and len(one_line(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**24


@settings(max_examples=100, deadline=2000)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
@example([b"}", _text("w"), PIECES[-2], b"s"])
def test_random_pickles_are_read_or_refused(folder, pieces):
    data = b"\x80\x02" + b"".join(pieces) + b"."
    (folder / "w.pdparams").write_bytes(data)
    torch_zip(folder / "w.pth", data, _0=bytes(8))
    for name in ("w.pdparams", "w.pth"):
        read_or_refuse(folder / name)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([1, 3, "fp32", "a"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)


@settings(max_examples=100, deadline=2000)
@given(st.dictionaries(st.sampled_from(sorted(metadata_entries())), JSON, max_size=3))
@example({"mean": [10**400]})
def test_random_metadata_is_read_or_refused(values):
    entries = metadata_entries() | {name: json.dumps(value) for name, value in values.items()}
    try:
        metadata = Metadata.from_entries(entries, "x.onnx")
    except UserError as error:
        assert one_line(error).isprintable() and len(one_line(error)) < 1000
    else:
        assert len(metadata.classes) == len(metadata.folders) and len(metadata.mean) == metadata.channels
