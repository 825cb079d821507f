"""Unpack CIFAR-10 and CIFAR-100 from small versions of the authors' four archives."""

import io
import pickle
import re
import struct

import numpy as np
import pytest
from conftest import error_line, tool
from PIL import Image
from test_unpack import make_tar, marks, tree

NAMES = ["airplane", "aquarium_fish", "cat"]
BATCHES = {
    10: {**{f"data_batch_{i}": ("train", 10_000 * (i - 1)) for i in range(1, 6)}, "test_batch": ("test", 0)},
    100: {"train": ("train", 0), "test": ("test", 0)},
}


class Python2Pickle:
    """Pickle protocol 2 as Python 2 wrote it: byte strings (opcode U or T) for texts and for the bytes of arrays."""

    def dump(self, value):
        return b"\x80\x02" + self.of(value) + b"."

    def of(self, value):
        if isinstance(value, dict):
            return b"}(" + b"".join(self.of(key) + self.of(item) for key, item in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.of, value)) + b"e"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, bytes):
            return b"T" + struct.pack("<I", len(value)) + value
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(map(self.of, value.shape)) + b"t"
        return array + b"(K\x01" + shape + dtype + b"\x89" + self.of(value.tobytes()) + b"tb"


def images_of(kind):
    """{batch: (labels, pixels uint8 (N, 3, 32, 32))}"""
    rng = np.random.default_rng(kind)
    return {name: (rng.integers(0, 3, 4).tolist(), rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8))
            for name in BATCHES[kind]}  # fmt: skip


def binary(kind, change=None):
    """{file name in the archive: content}"""
    folder, meta = {
        10: ("cifar-10-batches-bin", "batches.meta.txt"),
        100: ("cifar-100-binary", "fine_label_names.txt"),
    }[kind]
    files = {}
    for name, (labels, pixels) in images_of(kind).items():
        front = [bytes([label]) if kind == 10 else bytes([7, label]) for label in labels]
        files[f"{folder}/{name}.bin"] = b"".join(one + image.tobytes() for one, image in zip(front, pixels))
    files |= {f"{folder}/{meta}": ("\n".join(NAMES) + "\n\n").encode(), f"{folder}/readme.html": b"<html>"}
    return {**files, **(change or {})}


def python2(kind, change=None):
    folder, meta, entry = {10: ("cifar-10-batches-py", "batches.meta", "label_names"),
                           100: ("cifar-100-python", "meta", "fine_label_names")}[kind]  # fmt: skip
    files = {f"{folder}/{meta}": Python2Pickle().dump({entry: NAMES, "num_vis": 3072})}
    for name, (labels, pixels) in images_of(kind).items():
        batch = {"batch_label": "one", "data": pixels.reshape(4, -1), "labels": labels, "filenames": ["x.png"] * 4}
        if kind == 100:
            batch["fine_labels"], batch["coarse_labels"] = batch.pop("labels"), [9] * 4
        files[f"{folder}/{name}"] = Python2Pickle().dump(batch)
    return {**files, **(change or {})}


def batch_of(labels):
    """Batch file of the Python form with these labels and two images."""
    return Python2Pickle().dump({"data": np.zeros((2, 3072), np.uint8), "labels": labels})


def expected(kind):
    """{path: pixels (32, 32, 3)}"""
    found = {}
    for name, (split, first) in BATCHES[kind].items():
        for i, (label, image) in enumerate(zip(*images_of(kind)[name])):
            found[f"{split}/{NAMES[label]}/{first + i:05d}.png"] = image.transpose(1, 2, 0)
    return found


def pixels_of(folder):
    return {name: np.asarray(Image.open(io.BytesIO(content))) for name, content in tree(folder).items()}


@pytest.mark.parametrize("kind", [10, 100])
@pytest.mark.parametrize("form", [binary, python2])
def test_all_four_archives_become_the_same_pictures(tmp_path, kind, form):
    archive = make_tar(tmp_path / f"any-name-{kind}.tar.gz", form(kind), "w:gz")
    done = tool("unpack", archive, "--output", tmp_path / "out")
    found = pixels_of(tmp_path / "out")
    assert found.keys() == expected(kind).keys()
    for name, image in expected(kind).items():
        assert (found[name] == image).all()
    number = len(found)
    assert done.stdout.startswith(f"{archive}: {number} images written, 0 already there, ")
    assert (
        "train: " in done.stdout
        and f"test: 4 images in {len({n.split('/')[1] for n in found if n[:4] == 'test'})}" in done.stdout
    )
    assert re.search(r"check:  python tools/check_data.py --data-path \S+/out\n$", done.stdout)
    assert marks(tmp_path / "out") == {archive.name: "done"}


@pytest.mark.parametrize(
    "form, name, content",
    [
        (binary, "cifar-100-binary/fine_label_names.txt", b"train\ntest\ncat\n"),
        (python2, "cifar-100-python/meta", Python2Pickle().dump({"fine_label_names": ["train", "test", "cat"]})),
    ],
)
def test_class_called_train_is_kept(tmp_path, form, name, content):
    archive = make_tar(tmp_path / "c.tar.gz", form(100, {name: content}), "w:gz")
    tool("unpack", archive, "--output", tmp_path / "out")
    new = dict(zip(NAMES, ("train", "test", "cat")))
    folders = (path.split("/") for path in expected(100))
    assert tree(tmp_path / "out").keys() == {f"{split}/{new[label]}/{file}" for split, label, file in folders}


def test_interrupted_command_continues_and_keeps_whole_pictures(tmp_path):
    archive = make_tar(tmp_path / "c.tar", binary(10))  # unzipped by someone
    out = tmp_path / "out"
    tool("unpack", archive, "--output", out)
    first, *rest = sorted(path for path in out.rglob("*.png"))
    kept = {path: path.stat().st_mtime_ns for path in rest}
    first.unlink()
    first.with_name(".unpack.part").write_bytes(b"half")
    mark = out / ".unpacked.json"
    mark.write_text(mark.read_text().replace("done", "begun"))
    done = tool("unpack", archive, "--output", out)
    assert "1 images written, 23 already there" in done.stdout
    assert first.is_file() and kept == {path: path.stat().st_mtime_ns for path in rest}
    assert not list(out.rglob("*.part"))
    assert "already unpacked" in tool("unpack", archive, "--output", out).stdout


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cifar-10-batches-py/data_batch_2": b"\x80\x02cos\nsystem\n(U\x04truetR."}, "Refused: os.system"),
        ({"cifar-10-batches-py/data_batch_2": pickle.dumps({"labels": [0], "data": 1})}, "AttributeError"),
        ({"cifar-10-batches-py/data_batch_2": b"\x80\x02}."}, "KeyError"),
        ({"cifar-10-batches-py/data_batch_2": b""}, "EOFError"),
        (
            {"cifar-10-batches-py/batches.meta": Python2Pickle().dump({"label_names": ["../x", "a", "b"]})},
            "classes named ['../x', 'a', 'b']",
        ),
        (
            {"cifar-10-batches-py/batches.meta": Python2Pickle().dump({"label_names": ["a"]})},
            "ValueError: test_batch has 4 images, but not a label from 1 classes for each",
        ),
        (
            {"cifar-10-batches-py/data_batch_2": batch_of([0, -1])},
            "data_batch_2 has 2 images, but not a label from 3 classes for each",
        ),
        (
            {"cifar-10-batches-py/data_batch_2": batch_of([0])},
            "data_batch_2 has 2 images, but not a label from 3 classes for each",
        ),
        (
            {"cifar-10-batches-py/data_batch_2": batch_of([0, 1, 2])},
            "data_batch_2 has 2 images, but not a label from 3 classes for each",
        ),
    ],
)
def test_pickles_run_nothing_and_damage_is_one_line(tmp_path, change, message):
    archive = make_tar(tmp_path / "c.tar.gz", python2(10, change), "w:gz")
    line = error_line("unpack", archive, "--output", tmp_path / "out")
    assert f"{archive} is damaged or not a CIFAR archive (" in line and message in line
    assert not (tmp_path.parent / "x").exists() and not (tmp_path / "x").exists()


def test_missing_and_broken_batches_are_one_line(tmp_path):
    files = binary(10)
    short = make_tar(tmp_path / "a.tar.gz", {**files, "cifar-10-batches-bin/data_batch_3.bin": b"\0" * 3074}, "w:gz")
    assert "is damaged or not a CIFAR archive (ValueError: " in error_line("unpack", short, "--output", tmp_path / "a")
    del files["cifar-10-batches-bin/data_batch_3.bin"]
    lacking = make_tar(tmp_path / "b.tar.gz", files, "w:gz")
    assert "KeyError: 'data_batch_3')" in error_line("unpack", lacking, "--output", tmp_path / "b")
    whole = make_tar(tmp_path / "c.tar.gz", binary(10), "w:gz").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("sum", whole[:-8] + b"\0\0\0\0" + whole[-4:])):
        (tmp_path / f"{name}.tar.gz").write_bytes(data)
        line = error_line("unpack", tmp_path / f"{name}.tar.gz", "--output", tmp_path / name)
        assert (
            "is damaged, incomplete or not a tar or zip archive (" in line and "; 0 of its images are unpacked;" in line
        )
        assert tree(tmp_path / name) == {}
