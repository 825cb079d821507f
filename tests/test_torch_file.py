"""PyTorch files that are read without PyTorch, compared with its own reading bit for bit."""

import collections
import io
import zipfile

import numpy as np
import pytest

from t2t_vit.common.errors import UserError
from t2t_vit.common.unpickle import Refused
from t2t_vit.weights import torch_file
from t2t_vit.weights.formats import read_tree

torch = pytest.importorskip("torch", reason="PyTorch, which reads PyTorch files, is not installed")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool]  # fmt: skip
both_forms = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(tree, path, is_zip):
    torch.save(tree, path, _use_new_zipfile_serialization=is_zip)


def bits(array):
    """The bytes of an array or tensor in the order of its elements, and its shape. bfloat16 is read as uint16."""
    if isinstance(array, torch.Tensor):
        array = array.detach().contiguous()
        array = (array.view(torch.int16) if array.dtype == torch.bfloat16 else array).numpy()
    return np.ascontiguousarray(array).tobytes(), tuple(np.shape(array))


def all_values(dtype):
    """Every bit pattern of a type of 8 or 16 bits, random bits of a larger one: with NaN and subnormal numbers."""
    if dtype == torch.bool:
        return torch.tensor([True, False, True])
    size = torch.empty(0, dtype=dtype).element_size()
    count = 256**size if size <= 2 else 1000
    raw = np.arange(count, dtype=f"u{size}").tobytes() if size <= 2 else np.random.default_rng(0).bytes(count * size)
    return torch.frombuffer(bytearray(raw), dtype=dtype)


@both_forms
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_read_bit_for_bit(tmp_path, dtype, is_zip):
    values = all_values(dtype)
    save({"w": values, "scalar": values[1], "empty": values[:0].reshape(0, 3)}, tmp_path / "w.pth", is_zip)
    theirs, ours = torch.load(tmp_path / "w.pth", weights_only=True), torch_file.read(tmp_path / "w.pth")
    assert list(ours) == list(theirs)
    for name in theirs:
        assert bits(ours[name]) == bits(theirs[name]), name


@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_views_of_one_storage_are_read_as_pytorch_does(tmp_path, dtype, is_zip):
    table = torch.arange(60, dtype=torch.float32).to(dtype).reshape(3, 4, 5)
    tree = {
        "whole": table, "transposed": table.permute(2, 0, 1), "part": table[1:, ::2, 3],
        "repeated": table[0, 0].expand(4, 5), "row": table[2, 3], "parameter": torch.nn.Parameter(table.float()),
    }  # fmt: skip
    save(collections.OrderedDict(state_dict=tree, epoch=3, lr=0.5), tmp_path / "w.pth", is_zip)
    theirs, ours = torch.load(tmp_path / "w.pth", weights_only=True), torch_file.read(tmp_path / "w.pth")
    assert (ours["epoch"], ours["lr"]) == (3, 0.5)
    for name, tensor in theirs["state_dict"].items():
        assert bits(ours["state_dict"][name]) == bits(tensor), name


@both_forms
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_types_that_weights_do_not_have_are_refused(tmp_path, dtype, is_zip):
    save({"w": torch.zeros(3).to(dtype)}, tmp_path / "w.pth", is_zip)
    with pytest.raises(UserError, match="w.pth refused: it contains "):
        read_tree(tmp_path / "w.pth")


@both_forms
def test_a_file_that_ends_anywhere_is_an_error(tmp_path, is_zip):
    save({"w": torch.arange(50, dtype=torch.float16)}, tmp_path / "w.pth", is_zip)
    content = (tmp_path / "w.pth").read_bytes()
    for size in range(30, len(content), 7):
        (tmp_path / "cut.pth").write_bytes(content[:size])
        with pytest.raises(UserError):
            read_tree(tmp_path / "cut.pth")


def test_a_negative_length_of_an_old_storage_is_refused(tmp_path):
    save({"w": torch.arange(3, dtype=torch.float32)}, tmp_path / "w.pth", False)
    content = bytearray((tmp_path / "w.pth").read_bytes())
    assert content[-20:-12] == (3).to_bytes(8, "little")
    content[-20:-12] = (-3).to_bytes(8, "little", signed=True)
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(Refused, match="a storage of another size than its data"):
        torch_file.read(tmp_path / "w.pth")


@pytest.mark.parametrize("fault, message", [
    (lambda entries: {**entries, "other/data.pkl": entries["w/data.pkl"]}, "no data.pkl in the zip archive"),
    (lambda entries: {name: data for name, data in entries.items() if name != "w/data/0"}, "no item named 'w/data/0'"),
    (lambda entries: {**entries, "w/data/0": entries["w/data/0"] + b"more"}, "a storage of another size than its data"),
    (lambda entries: {**entries, "w/code/constants.pkl": b"", "w/constants.pkl": b""}, "a TorchScript program"),
], ids=["two models", "no storage", "long storage", "program"])  # fmt: skip
def test_forged_archives_are_refused(tmp_path, fault, message):
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6, dtype=torch.bfloat16)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {f"w/{name.partition('/')[2]}": archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert torch_file.read(tmp_path / "w.pth")["w"].shape == (6,)  # as it is, the archive is read
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name, data in fault(entries).items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match=message):
        read_tree(tmp_path / "w.pth")
