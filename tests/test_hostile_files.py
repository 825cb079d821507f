"""Damaged and forged weights are read or refused in one line: no crash, no hang, no traceback."""

import json
import pickle
import time
import zipfile

import numpy as np
import paddle
import pytest

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.unpickle import Refused, Unpickler
from t2t_vit.weights import checkpoint, torch_file
from t2t_vit.weights.formats import read_weights

# Pickles by their opcodes: a dict of ten shared dicts, in another, and so on; a key of 300,000 nested tuples; a list
# that contains itself; a number and a bytearray that claim more bytes than there are; a memo of four billion places.
_TEN = [b"X\x01\0\0\0" + bytes([97 + number]) + b"h" for number in range(10)]
MEMO_BOMB = b"\x80\x02}q\x00" + b"".join(
    b"}q" + bytes([i]) + b"(" + b"".join(name + bytes([i - 1]) for name in _TEN) + b"u" for i in range(1, 60)
) + b"."  # fmt: skip
PICKLES = {
    "memo_bomb": MEMO_BOMB,
    "tuple_key": b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.",
    "shared_tuple_key": b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",
    "endless_list": b"\x80\x02]q\x00h\x00a.",
    "deep": b"\x80\x02" + b"}X\x01\0\0\0a" * 100_000 + b"N" + b"s" * 100_000 + b".",
    "many": b"\x80\x02" + b"}" * 3_000_000 + b".",
    "huge_number": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 100 + b".",
    "huge_bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"1.",
    "huge_bytes": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"1.",
    "huge_memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "many_bytes": b"\x80\x02c_codecs\nencode\nq\x00X\xff\0\0\0"
    + b"a" * 255
    + b"q\x01X\x06\0\0\0latin1\x86q\x02"
    + b"h\x00h\x02R0" * 9999
    + b"}.",  # noqa: E501
    "no_stop": b"\x80\x02}",
    "no_newline": b"\x80\x02c" + b"a" * 1_000_000,
}


def torch_zip(path, data, compression=zipfile.ZIP_STORED, **storages):
    """An archive as torch.save writes it, of a ready pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key[1:]}", content)


def small_torch_pickle(shape=(2, 3), strides=(3, 1), length=6):
    """{"w": tensor} as torch.save pickles it, of a storage of `length` numbers."""

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def numbers(values):
        return b"(" + b"".join(b"J" + value.to_bytes(4, "little", signed=True) for value in values) + b"t"

    identity = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage = identity + b"J" + length.to_bytes(4, "little", signed=True) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + numbers(shape) + numbers(strides)
    return b"\x80\x02}" + text("w") + tensor + b"\x89ccollections\nOrderedDict\n)RtRs."


@pytest.mark.parametrize("form", ["pdparams", "pth"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_crash_or_hang_python_are_refused(tmp_path, name, form):
    path = tmp_path / f"w.{form}"
    if form == "pth":
        torch_zip(path, PICKLES[name])
    else:
        path.write_bytes(PICKLES[name])
    start = time.monotonic()
    with pytest.raises(UserError, match="w.p.* (refused|damaged|contains)"):
        read_weights(path)
    assert time.monotonic() - start < 30


def test_a_dict_may_be_saved_twice(tmp_path):
    weights = {"w": np.ones((2, 3), "f4")}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"model": weights, "same": weights}, 4))
    assert list(checkpoint.read(tmp_path / "w.pdparams")) == ["model", "same"]


@pytest.mark.parametrize("shape, strides, length", [
    ((2, 3), (3, 1), 5), ((10**5, 10**5), (0, 0), 6), ((2, 3), (3, 2), 6), ((2, 3), (3,), 6), ((2, -3), (3, 1), 6),
    ((-2, -3), (3, 1), 6), ((2, 3), (-3, 1), 6), ((2, 3), (3, 1), -6), ((1,) * 100, (1,) * 100, 6),
])  # fmt: skip
def test_tensors_stay_within_their_storage(tmp_path, shape, strides, length):
    torch_zip(tmp_path / "w.pth", small_torch_pickle(), _0=np.arange(6, dtype="<f4").tobytes())
    assert np.array_equal(read_weights(tmp_path / "w.pth").tensors["w"], np.arange(6).reshape(2, 3))
    torch_zip(tmp_path / "w.pth", small_torch_pickle(shape, strides, length), _0=np.zeros(6, "<f4").tobytes())
    with pytest.raises(UserError, match="w.pth (refused|is damaged)"):
        read_weights(tmp_path / "w.pth")


def test_archives_are_not_unpacked_beyond_their_size(tmp_path):
    torch_zip(tmp_path / "w.pth", small_torch_pickle(), zipfile.ZIP_DEFLATED, _0=bytes(10**7))
    with pytest.raises(UserError, match=r"more bytes than the file has \(compressed\?\)"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("maker", ["_rebuild_qtensor", "_rebuild_meta_tensor_no_storage", "_rebuild_sparse_tensor"])
def test_tensors_of_other_kinds_are_named(tmp_path, maker):
    torch_zip(tmp_path / "w.pth", small_torch_pickle().replace(b"_rebuild_tensor_v2", maker.encode()), _0=bytes(24))
    with pytest.raises(UserError, match=f"w.pth refused: it contains torch._utils.{maker}"):
        read_weights(tmp_path / "w.pth")


def damaged(data, random):
    """`data` with some bytes changed, cut off or repeated."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        data[random.integers(len(data))] = random.integers(256)
    kind, place = random.integers(4), random.integers(len(data))
    return bytes(data[:place] if kind == 0 else data[place:] + data[:place] if kind == 1 else data)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """{name: content} of small files of each form."""
    folder = tmp_path_factory.mktemp("small")
    torch_zip(folder / "w.pth", small_torch_pickle(), _0=bytes(24))
    legacy = (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    )
    legacy += small_torch_pickle().replace(b"tQ", b"NtQ") + pickle.dumps(["0"], 2) + b"\6" + bytes(7) + bytes(24)
    checkpoint.save(folder / "w.pdparams", {"w": np.ones((2, 3), "f4"), "epoch": 3, "arch": "x"})
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["v2.pdparams"] = pickle.dumps({"w": np.ones((2, 3), "f4"), "n": np.float64(3)}, 2)
    return {**files, "old.pth": legacy, "w.safetensors": len(header).to_bytes(8, "little") + header + bytes(24)}


@pytest.mark.parametrize("name", ["w.pth", "old.pth", "w.pdparams", "v2.pdparams", "w.safetensors"])
def test_flipped_and_cut_weights_are_read_or_refused(tmp_path, small_files, name):
    random = np.random.default_rng(0)
    path = tmp_path / name
    path.write_bytes(small_files[name])
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    assert read_weights(path).tensors["w"].shape == (2, 3)
    for _ in range(300):
        path.write_bytes(damaged(small_files[name], random))
        try:
            read_weights(path)
        except UserError as error:
            assert one_line(error).isprintable()


def counted(value):
    return b"X" + len(value).to_bytes(4, "little") + value


DTYPE = b"cnumpy\ndtype\n" + counted(b"f4") + b"\x85R"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\0\x85C\x01b\x87R"
# Pickles of a few bytes for each use of one large value in the memo.
REPEATING = {
    "an array of a list": b"]q\0" + b"".join(
        b"](" + 10 * (b"h" + bytes([n])) + b"eq" + bytes([n + 1]) for n in range(30)
    ) + b"cnumpy\ndtype\nh\x1e\x85R",
    "more than 1,000,000 objects": b"}0" * 600_000,
    "arguments": b"(" + b"N" * 9999 + b"tq\0cargparse\nNamespace\nq\1" + b"h\1h\0R0" * 999,
    "a call with a str of arguments": counted(b"a" * 9999) + b"q\0cargparse\nNamespace\nq\1" + b"h\1h\0R0" * 999,
    "results": counted(b"a" * 9999) + b"q\0" + counted(b"latin1") + b"\x86q\1c_codecs\nencode\nq\2" + b"h\2h\1R0" * 2,
    "states": DTYPE + b"q\0(K\1M\xc4\x09\x85h\0\x89" + counted(b"a" * 10_000) + b"tq\1" + (EMPTY + b"h\1b0") * 99,
    "an array of records": DTYPE + b"(K\3" + counted(b"<") + b"N" * 8 + b"tb",
    "a state that is a list": DTYPE + b"]b",
    "a size of a ndarray": b"ctorch\nSize\n" + EMPTY + b"\x85R",
}  # fmt: skip


@pytest.mark.parametrize("fault", REPEATING)
def test_pickles_that_repeat_large_values_are_refused(fault):
    start = time.monotonic()
    found = fault if " " in fault else "more data than the file has"
    with pytest.raises(Refused, match=found):
        Unpickler(b"\x80\x02" + REPEATING[fault] + b".", torch_file.ALLOWED).load()
    assert time.monotonic() - start < 10


def test_big_endian_numbers_are_refused(tmp_path):
    torch_zip(tmp_path / "w.pth", small_torch_pickle(), _0=bytes(24))
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match="w.pth refused: it contains big-endian numbers"):
        read_weights(tmp_path / "w.pth")


def test_long_references_to_storages_are_refused(tmp_path):
    torch_zip(tmp_path / "w.pth", small_torch_pickle().replace(b"tQ", b"NNtQ"), _0=bytes(24))
    with pytest.raises(UserError, match="w.pth refused: it contains a reference to something that is not a storage"):
        read_weights(tmp_path / "w.pth")


def test_many_storages_of_an_old_file_are_read_in_linear_time(tmp_path):
    identity = b"(" + counted(b"storage") + b"q\0ctorch\nFloatStorage\nq\x01" + b"00"
    storages = b"".join(b"(h\0h\1" + counted(b"%d" % number) + b"NK\0tQ" for number in range(50_000))
    tree = b"\x80\x02](" + identity[1:] + storages + b"e."
    (tmp_path / "w.pth").write_bytes(torch_file.LEGACY + b"\x80\x02M\xe9\3." + b"\x80\x02}." + tree + b"\x80\x02].")
    start = time.monotonic()
    assert len(torch_file.read(tmp_path / "w.pth")) == 50_000
    assert time.monotonic() - start < 15


def test_the_number_of_classes_is_only_guessed_from_a_head_of_another_length():
    model = paddle.nn.Layer()
    model.head = paddle.nn.Linear(2, 3)
    for shape, hint in ((4,), "; it was trained for 4 classes"), ((3,), ""), ((3, 1), ""), ((), ""):
        weights = {"head.weight": np.ones((2, 4), "f4"), "head.bias": np.ones(shape, "f4")}
        with pytest.raises(UserError, match="w does not fit the model: head.weight is ") as raised:
            checkpoint.load_state(model, weights, "w")
        assert ("it was trained for" in str(raised.value)) == bool(hint) and hint in str(raised.value)
