"""Unpacking zip archives, class folders without splits, and archives with their own list of the validation images."""

import os
import shutil
import struct
import tarfile
import zipfile

import pytest
from conftest import error_line, tool
from test_unpack import CATS, DIGITS, DOGS, make_tar, tar_bytes, tree

VAL = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2)]


def make_zip(path, files):
    """Archive of {name or ZipInfo: bytes}."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpacked(archive, *words, status=0):
    """(tree, finished process)"""
    out = archive.parent / "out"
    done = tool("unpack", archive, "--output", out, *words, status=status)
    return tree(out), done


def test_kaggle_imagenet_with_its_own_list(tmp_path):
    base = "ILSVRC/Data/CLS-LOC"
    archive = make_zip(tmp_path / "imagenet-object-localization-challenge.zip", {
        f"ILSVRC/Annotations/CLS-LOC/train/{CATS}/a.xml": b"<a/>", f"{base}/train/{CATS}/a.JPEG": DIGITS[0],
        f"{base}/val/{VAL[0]}": DIGITS[1], f"{base}/val/{VAL[1]}": DIGITS[2], f"{base}/test/t.JPEG": DIGITS[3],
        "LOC_val_solution.csv": f"ImageId,PredictionString\n{VAL[0][:-5]},{DOGS} 1 2 3 4 {DOGS} 5 6 7 8 \n"
                                f"{VAL[1][:-5]},{CATS} 1 2 3 4 \n",
    })  # fmt: skip
    files, done = unpacked(archive)
    assert files == {f"train/{CATS}/a.JPEG": DIGITS[0], f"val/{DOGS}/{VAL[0]}": DIGITS[1],
                     f"val/{CATS}/{VAL[1]}": DIGITS[2]}  # fmt: skip
    assert f"classes of the validation images: {archive}: LOC_val_solution.csv\n" in done.stdout
    assert "3 images written, 0 already there, 3 other files skipped" in done.stdout
    (tmp_path / "out/.unpacked.json").unlink()
    listed = tmp_path / "LOC_val_solution.csv"  # a list given by the user has priority
    listed.write_text(f"ImageId,PredictionString\n{VAL[0][:-5]},{CATS} 1 2 3 4\n{VAL[1][:-5]},{CATS} 1 2 3 4\n")
    assert f"val/{CATS}/{VAL[0]}" in unpacked(archive, "--val-list", listed)[0]


def test_tar_with_its_validation_list_after_the_images(tmp_path):
    archive = make_tar(tmp_path / "ILSVRC2012_w.tar", {
        f"ILSVRC2012_w/train/{CATS}/a.JPEG": DIGITS[0], **{f"ILSVRC2012_w/val/{VAL[i]}": DIGITS[i] for i in (0, 1)},
        "ILSVRC2012_w/val_list.txt": f"val/{VAL[0]} 1\nval/{VAL[1]} 0\n".encode(),
    })  # fmt: skip
    files, _ = unpacked(archive)
    assert files[f"val/{DOGS}/{VAL[0]}"] == DIGITS[0] and files[f"val/{CATS}/{VAL[1]}"] == DIGITS[1]
    make_tar(archive, {f"ILSVRC2012_w/val/{VAL[0]}": DIGITS[0], "ILSVRC2012_w/val_list.txt": b"val/x 1000\n"})
    shutil.rmtree(tmp_path / "out")
    line = error_line("unpack", archive, "--output", tmp_path / "out")
    assert f"{archive}: ILSVRC2012_w/val_list.txt, line 1: expected 'ILSVRC2012_val_00000001.JPEG 65'" in line


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_class_folders_without_splits(tmp_path, make):
    archive = make(tmp_path / "flowers.bin", {
        "cover.jpg": b"x", "flowers/LICENSE.txt": b"text", "flowers/all.jpg": b"x", "flowers/daisy/1.jpg": DIGITS[0],
        "flowers/daisy/more/2.jpg": DIGITS[1], "flowers/tulip/1.jpg": DIGITS[2], "__MACOSX/flowers/tulip/1.jpg": b"x",
        "flowers/tulip/._1.jpg": b"x",
    })  # fmt: skip
    files, done = unpacked(archive)
    assert files == {"daisy/1.jpg": DIGITS[0], "daisy/more/2.jpg": DIGITS[1], "tulip/1.jpg": DIGITS[2]}
    assert "3 images written, 0 already there, 5 other files skipped\n" in done.stdout
    assert "/out: 3 images in 2 classes\n" in done.stdout


def test_names_of_splits_and_of_windows(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {
        "Training\\cat\\1.jpg": DIGITS[0], "seg_train/seg_train/dog/1.jpg": DIGITS[1], "valid/cat/1.jpg": DIGITS[2],
        "testing/cat/1.jpg": DIGITS[3],
    })  # fmt: skip
    data = archive.read_bytes()
    assert data.count(b"testing/cat/1.jpg") == 2
    archive.write_bytes(data.replace(b"testing/cat/1.jpg", b"testing/\xb9\xb7a/1.jpg"))
    assert unpacked(archive)[0] == {"train/cat/1.jpg": DIGITS[0], "train/dog/1.jpg": DIGITS[1],
                                    "val/cat/1.jpg": DIGITS[2], "test/\u72d7a/1.jpg": DIGITS[3]}  # fmt: skip


def test_nothing_of_a_zip_is_written_outside_the_folder(tmp_path):
    link = zipfile.ZipInfo("train/link.jpg")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    place = tmp_path / "deep/er"
    place.mkdir(parents=True)
    names = ["/train/a/1.jpg", "train/../../train/a/2.jpg", "C:/train/a/3.jpg", "..\\..\\train\\a\\4.jpg",
             "train/a\x1b[31m/5.jpg", "train/a\n/6.jpg"]  # fmt: skip
    archive = make_zip(
        place / "x.zip", {**dict.fromkeys(names, b"x"), link: b"/etc/passwd", "train/b/1.jpg": DIGITS[0]}
    )
    done = tool("unpack", archive, "--output", place / "out", cwd=place)
    assert {name for name in tree(tmp_path) if not name.endswith(".zip")} == {"deep/er/out/train/b/1.jpg"}
    (line,) = done.stderr.splitlines()
    assert "skipped 7 links, devices and unsafe names: '/train/a/1.jpg'" in line
    assert line.isprintable()


def test_two_files_with_one_target_are_a_warning(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a/train/cat/1.jpg": b"one", "b/train/cat/1.jpg": b"two"})
    files, done = unpacked(archive)
    assert files == {"train/cat/1.jpg": b"one"}
    assert done.stderr == f"warning: {archive}: skipped 1 files that would replace an earlier one\n"


def test_the_last_of_two_entries_of_one_name_is_kept(tmp_path):
    archive = make_tar(tmp_path / "x.tar", {"train/cat/1.jpg": b"old", "train/dog/1.jpg": b"dog"})
    make_tar(archive, {"train/cat/1.jpg": b"new", "./train/dog/1.jpg": b"DOG"}, "a")  # tar -r
    files, done = unpacked(archive)
    assert files == {"train/cat/1.jpg": b"new", "train/dog/1.jpg": b"DOG"} and done.stderr == ""
    assert ": 2 images written, 0 already there, 0 other files skipped\n" in done.stdout
    mark = tmp_path / "out/.unpacked.json"
    mark.write_text(mark.read_text().replace("done", "begun"))
    (tmp_path / "out/train/cat/1.jpg").write_bytes(b"old")  # the command was interrupted after the first
    assert unpacked(archive)[0] == files


def test_the_last_of_two_class_archives_of_one_name_is_kept(tmp_path):
    pair = [tar_bytes({f"{CATS}_1.JPEG": content}) for content in (b"one", b"two")]
    archive = make_tar(tmp_path / "ILSVRC2012_img_train.tar", {f"{CATS}.tar": pair[0]})
    make_tar(archive, {f"{CATS}.tar": pair[1]}, "a")
    assert unpacked(archive)[0] == {f"train/{CATS}/{CATS}_1.JPEG": b"two"}
    shutil.rmtree(tmp_path / "out")
    make_tar(archive, {f"a/{CATS}.tar": pair[0], f"b/{CATS}.tar": pair[1]})
    files, done = unpacked(archive)
    assert files == {f"train/{CATS}/{CATS}_1.JPEG": b"one"} and "skipped 1 files that would replace" in done.stderr


def set_in_headers(archive, local, central, value):
    """Overwrite two bytes of all headers: at `local` in the files' own, at `central` in the directory's."""
    data = bytearray(archive.read_bytes())
    for start, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = data.find(start)
        while at >= 0:
            struct.pack_into("<H", data, at + offset, value)
            at = data.find(start, at + 4)
    archive.write_bytes(data)


@pytest.mark.parametrize("fault", ["encrypted", "method", "cut", "content", "no zip"])
def test_zip_that_cannot_be_unpacked_is_one_line(tmp_path, fault):
    archive = make_zip(tmp_path / "x.zip", {f"train/{CATS}/{i}.jpg": DIGITS[i] for i in range(3)})
    data = archive.read_bytes()
    expected = "is damaged, incomplete or not a tar or zip archive ("
    if fault == "encrypted":
        set_in_headers(archive, 6, 8, 1)
        expected = "is encrypted, password required for extraction); 0 of its images"
    elif fault == "method":
        set_in_headers(archive, 8, 10, 9)
        expected += "That compression method is not supported)"
    elif fault == "cut":
        archive.write_bytes(data[:-30])
    elif fault == "content":
        archive.write_bytes(data.replace(DIGITS[1][30:60], bytes(30)))
        expected += "Bad CRC-32 for file 'train/n01440764/1.jpg'); 1 of its images are unpacked"
    else:
        archive.write_bytes(b"PK\3\4" + bytes(1000))
    assert expected in error_line("unpack", archive, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == ({f"train/{CATS}/0.jpg": DIGITS[0]} if fault == "content" else {})


def pax_of(size):
    """A pax header that says that it is so long."""
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


def test_tar_that_would_take_the_memory_or_the_disk_is_one_line(tmp_path):
    archive = tmp_path / "x.tar"
    for name in ("x.tar", "cifar-10-batches-py/x"):
        archive.write_bytes(pax_of(2**33).replace(b"x" + bytes(21), name.encode().ljust(22, b"\0"), 1) + bytes(1024))
        assert "is damaged, incomplete or not a tar" in error_line("unpack", archive, "--output", tmp_path / "out")
    sparse = tarfile.TarInfo(f"train/{CATS}/hole.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    buffer = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    buffer[483:495] = b"%011o\0" % 2**30  # size with its hole
    buffer[148:156] = b"%06o\0 " % (256 + sum(buffer[:148]) + sum(buffer[156:512]))
    archive.write_bytes(bytes(buffer) + bytes(1024))
    assert "contains no images" in error_line("unpack", archive, "--output", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jpg")) and os.path.getsize(archive) < 4096
