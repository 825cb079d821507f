"""Unpacking ImageNet's archives: each kind, interruptions, damage and hostile names."""

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import types

import pytest
from conftest import ENVIRONMENT, ROOT, error_line, tool

from t2t_vit.data import archives
from t2t_vit.data.unpacker import DamagedArchive, Unpacker

CATS, DOGS = "n01440764", "n01443537"  # classes 0 and 1 of imagenet1k_classes.tsv
DIGITS = [path.read_bytes() for path in sorted((ROOT / "lit_data/val").glob("*/*.png"))]


def make_tar(path, files, mode="w"):
    """Archive of {name: bytes, or a TarInfo to be added as it is}."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def tar_bytes(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def train_archive(folder, images=5, content=lambda i: DIGITS[i]):
    """ILSVRC2012_img_train.tar with two classes, and the tree that it must unpack to."""
    classes = {wnid: {f"{wnid}_{i}.JPEG": content(i) for i in range(images)} for wnid in (CATS, DOGS)}
    path = make_tar(folder / "ILSVRC2012_img_train.tar", {f"{w}.tar": tar_bytes(f) for w, f in classes.items()})
    return path, {f"train/{wnid}/{name}": data for wnid, files in classes.items() for name, data in files.items()}


def tree(folder):
    """{relative path: content} of all files but the marks."""
    files = [path for path in folder.rglob("*") if not path.is_dir() and path.name != ".unpacked.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def marks(folder):
    return {name: mark[2] for name, mark in json.loads((folder / ".unpacked.json").read_text()).items()}


# --- Kinds of archives ---


def test_official_train_archive(tmp_path):
    archive, expected = train_archive(tmp_path)
    done = tool("unpack", archive, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == expected
    assert done.stdout.splitlines() == [
        f"{archive}: 10 images written, 0 already there, 0 other files skipped",
        f"{tmp_path}/out/train: 10 images in 2 classes",
        f"check:  python tools/check_data.py --data-path {tmp_path}/out",
    ]
    assert done.stderr == ""


def test_official_val_archive_needs_the_list_of_its_classes(tmp_path):
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in (1, 2)]
    archive = make_tar(tmp_path / "ILSVRC2012_img_val.tar", dict(zip(names, DIGITS)))
    line = error_line("unpack", archive, "--output", tmp_path / "out")
    assert "ILSVRC2012_val_00000001.JPEG is not known; give a list of the classes with --val-list FILE" in line
    listed = tmp_path / "val list.txt"
    for text, fault in (
        ("490\n361\n", "line 1: expected 'ILSVRC2012_val_00000001.JPEG 65', the class from 0 to 999"),  # the devkit's
        (f"{names[0]} 1000\n", f"but found '{names[0]} 1000'"),
        (f"{names[0]} 0\n", f"the class of {names[1]} is not known; it is not in the list"),
    ):
        listed.write_text(text)
        assert fault in error_line("unpack", archive, "--output", tmp_path / "out", "--val-list", listed)
    shutil.rmtree(tmp_path / "out")
    listed.write_text(f"val/{names[0]} 1\n{names[1]} 0\n")
    done = tool("unpack", archive, "--output", tmp_path / "out", "--val-list", listed)
    assert tree(tmp_path / "out") == {f"val/{DOGS}/{names[0]}": DIGITS[0], f"val/{CATS}/{names[1]}": DIGITS[1]}
    assert "val: 2 images in 2 classes" in done.stdout


def test_light_imagenet_in_two_parts(tmp_path):
    parts = [
        {"Light_ILSVRC2012/train_list.txt": b"train/x 0\n", f"Light_ILSVRC2012/train/{CATS}/a.JPEG": DIGITS[0]},
        {f"Light_ILSVRC2012/val/{CATS}/b.JPEG": DIGITS[1], f"./Light_ILSVRC2012/train/{DOGS}/c.JPEG": DIGITS[2],
         "./Light_ILSVRC2012/val_list.txt": b"val/x 0\n"},
    ]  # fmt: skip
    archives = [make_tar(tmp_path / f"Light_ILSVRC2012_part_{i}.tar", files) for i, files in enumerate(parts)]
    done = tool("unpack", *archives, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == {
        f"train/{CATS}/a.JPEG": DIGITS[0], f"train/{DOGS}/c.JPEG": DIGITS[2], f"val/{CATS}/b.JPEG": DIGITS[1],
    }  # fmt: skip
    assert "/train: 2 images in 2 classes\n" in done.stdout and "/val: 1 images in 1 classes\n" in done.stdout


@pytest.mark.parametrize("name, mode", [("w.tar", "w"), ("w.tar.gz", "w:gz"), ("w.tgz", "w:gz")])
def test_folders_below_any_prefix(tmp_path, name, mode):
    archive = make_tar(tmp_path / name, {
        f"data/ILSVRC2012_w/train/{CATS}/a.JPEG": DIGITS[0], f"data/ILSVRC2012_w/validation/{DOGS}/b.JPEG": DIGITS[1],
        f"data/ILSVRC2012_w/train/{CATS}/._a.JPEG": b"macOS", f"data/ILSVRC2012_w/train/{CATS}/notes.xml": b"<a/>",
        "data/ILSVRC2012_w/test/c.JPEG": DIGITS[2], "data/ILSVRC2012_w/far.txt": b"too deep",
    }, mode)  # fmt: skip
    done = tool("unpack", archive, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == {f"train/{CATS}/a.JPEG": DIGITS[0], f"val/{DOGS}/b.JPEG": DIGITS[1]}
    assert "2 images written, 0 already there, 4 other files skipped" in done.stdout


def test_script_and_one_class_of_the_train_archive(tmp_path):
    archive = make_tar(tmp_path / f"{CATS}.tar", {f"{CATS}_1.JPEG": DIGITS[0]})
    words = ["bash", str(ROOT / "scripts/unpack.sh"), archive.name, "--output", "out put"]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out put") == {f"train/{CATS}/{CATS}_1.JPEG": DIGITS[0]}
    assert "check:  python tools/check_data.py --data-path 'out put'" in done.stdout


# --- Interrupted, and continued ---


def test_killed_again_and_again_it_ends_with_the_same_tree(tmp_path):
    big = os.urandom(3_000_000)
    archive, expected = train_archive(tmp_path, 12, content=lambda i: bytes([i]) + big)
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools/unpack.py"), str(archive), "--output", str(out)]
    halves = 0
    for kill in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        # Until it writes an image that is not there yet.
        while len(list(out.glob("train/*/*"))) < 3 * kill + 1 or not list(out.glob("train/*/.*.part")):
            assert process.poll() is None and time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = tree(out)
        halves += sum(name.endswith(".part") for name in there)
        images = {name: data for name, data in there.items() if not name.endswith(".part")}
        assert images.items() <= expected.items() and len(images) < len(expected)
        assert marks(out) == {archive.name: "begun"}
    assert halves  # it was cut within a file
    done = tool("unpack", archive, "--output", out)
    assert tree(out) == expected
    assert "already there" in done.stdout and ": 24 images written" not in done.stdout
    assert marks(out) == {archive.name: "done"}


def test_empty_val_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    archive, _ = train_archive(tmp_path)
    line = error_line("unpack", archive, "--output", tmp_path / "out", "--val-list", tmp_path / "list.txt")
    assert line == f"error: {tmp_path}/list.txt (--val-list) is empty"


def test_another_archive_of_the_same_name_replaces_the_images(tmp_path):
    for letter in (b"A", b"B"):
        make_tar(tmp_path / "d.tar", {f"train/{CATS}/x.JPEG": 10 * letter})
        os.utime(tmp_path / "d.tar", (ord(letter), ord(letter)))
        tool("unpack", tmp_path / "d.tar", "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == {f"train/{CATS}/x.JPEG": b"BBBBBBBBBB"}


def test_second_run_reads_no_archive_that_is_done(tmp_path):
    archive, expected = train_archive(tmp_path)
    tool("unpack", archive, "--output", tmp_path / "out")
    status = archive.stat()
    archive.write_bytes(bytes(status.st_size))
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = tool("unpack", archive, "--output", tmp_path / "out")
    assert f"{archive}: already unpacked" in done.stdout and "train: 10 images in 2 classes" in done.stdout
    assert tree(tmp_path / "out") == expected
    os.utime(archive)  # another archive of that name is read
    assert "contains no images" in error_line("unpack", archive, "--output", tmp_path / "out")


def test_image_of_another_size_is_replaced_and_no_other_is_touched(tmp_path):
    archive, expected = train_archive(tmp_path)
    out = tmp_path / "out"
    tool("unpack", archive, "--output", out)
    (out / ".unpacked.json").write_text("damaged")
    (out / f"train/{CATS}/{CATS}_1.JPEG").write_bytes(b"half")
    before = {name: (out / name).stat().st_ino for name in expected}
    assert ": 1 images written, 9 already there" in tool("unpack", archive, "--output", out).stdout
    assert tree(out) == expected
    changed = [name for name, inode in before.items() if (out / name).stat().st_ino != inode]
    assert changed == [f"train/{CATS}/{CATS}_1.JPEG"]


def test_two_processes_at_a_time_are_refused(tmp_path):
    archive, _ = train_archive(tmp_path)
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    line = error_line("unpack", archive, "--output", tmp_path / "out")
    os.close(descriptor)
    assert line == f"error: another process is unpacking to {tmp_path}/out"
    assert not list((tmp_path / "out").iterdir())


# --- Damaged and hostile archives ---


def damaged(archive, change):
    data = bytearray(archive.read_bytes())
    archive.write_bytes(change(data))
    return archive


def no_checksum(data):
    """Spoil the header of the second class."""
    at = data.index(f"{DOGS}.tar".encode())
    data[at : at + 3] = b"XXX"
    return data


@pytest.mark.parametrize(
    "change, kept",
    [
        (lambda data: data[:70_000], 3),  # within the first class
        (lambda data: data[: data.index(f"{DOGS}.tar".encode())], 5),  # where a header should be
        (lambda data: data[: data.index(f"{DOGS}.tar".encode()) + 300], 5),  # within a header
        (no_checksum, 5),
    ],
)
def test_damaged_archive_keeps_complete_images(tmp_path, change, kept):
    archive, expected = train_archive(tmp_path, content=lambda i: bytes([i]) * 20_000)
    whole = archive.read_bytes()
    damaged(archive, change)
    line = error_line("unpack", archive, "--output", tmp_path / "out")
    assert line.startswith(f"error: {archive} is damaged, incomplete or not a tar or zip archive (")
    assert f"; {kept} of its images are unpacked; download it again" in line
    there = tree(tmp_path / "out")
    assert len(there) == kept and there.items() <= expected.items()
    archive.write_bytes(whole)
    tool("unpack", archive, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == expected


def test_truncated_gzip_archive_keeps_complete_images(tmp_path):
    expected = {f"train/{CATS}/{i}.JPEG": os.urandom(20_000) for i in range(10)}
    archive = damaged(make_tar(tmp_path / "w.tar.gz", expected, "w:gz"), lambda data: data[:100_000])
    assert f"{archive} is damaged" in error_line("unpack", archive, "--output", tmp_path / "out")
    there = tree(tmp_path / "out")
    assert 3 <= len(there) < 10 and there.items() <= expected.items()


def test_files_of_a_gzip_archive_with_a_wrong_checksum_are_not_trusted(tmp_path):
    expected = {f"train/{CATS}/{i}.JPEG": os.urandom(20_000) for i in range(10)}
    archive = make_tar(tmp_path / "w.tar.gz", expected, "w:gz")
    whole = archive.read_bytes()
    damaged(archive, lambda data: data[:100_000] + b"x" * 9 + data[100_009:])
    assert f"{archive} is damaged" in error_line("unpack", archive, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") != expected
    archive.write_bytes(whole)
    tool("unpack", archive, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a tar or zip archive (file could not be opened successfully); 0 of its images"),
        (
            b"PK\3\4 a zip file" * 100,
            "not a tar or zip archive (File is not a zip file); 0 of its images",
        ),
        (tar_bytes({}), "contains no images in train/ or val/ folders"),
        (tar_bytes({"cats/a.JPEG": DIGITS[0]}), "contains no images in train/ or val/ folders"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "x.tar").write_bytes(content)
    assert message in error_line("unpack", tmp_path / "x.tar", "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == {} and marks(tmp_path / "out")["x.tar"] != "done"


def test_missing_archive_is_an_error_before_anything_is_done(tmp_path):
    archive, _ = train_archive(tmp_path)
    line = error_line("unpack", archive, tmp_path / "absent.tar", "--output", tmp_path / "out")
    assert line == f"error: {tmp_path}/absent.tar: No such file or directory"
    assert error_line("unpack", tmp_path, "--output", tmp_path / "out") == f"error: {tmp_path} is not a file"
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_outside_the_folder(tmp_path):
    def special(name, kind, linkname=""):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, linkname
        return member

    place = tmp_path / "deep/er"
    place.mkdir(parents=True)
    archive = make_tar(tmp_path / "evil.tar", {
        f"/{tmp_path}/train/{CATS}/absolute.JPEG": b"x", f"train/../../train/{CATS}/up.JPEG": b"x",
        "s": special(f"train/{DOGS}", tarfile.SYMTYPE, "../.."), "h": special("val/x/h.JPEG", tarfile.LNKTYPE, "train"),
        "d": special("val/x/d.JPEG", tarfile.CHRTYPE), "f": special("val/x/f.JPEG", tarfile.FIFOTYPE),
        f"train/{DOGS}/good.JPEG": DIGITS[0],
    })  # fmt: skip
    done = tool("unpack", archive, "--output", place / "out", cwd=place)
    assert tree(tmp_path) == {
        f"deep/er/out/train/{DOGS}/good.JPEG": DIGITS[0],
        "evil.tar": archive.read_bytes(),
    }
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"warning: {archive}: skipped 6 links, devices and unsafe names: ")


def test_full_disk_is_one_line(tmp_path):
    archive, expected = train_archive(tmp_path)
    folder = tmp_path / f"out/train/{CATS}"
    folder.mkdir(parents=True)
    (folder / ".unpack.part").symlink_to("/dev/full")
    line = error_line("unpack", archive, "--output", tmp_path / "out")
    assert line == (f"error: the disk is full at {folder}/{CATS}_0.JPEG; free some space and repeat the command")
    assert tree(tmp_path / "out") == {}
    tool("unpack", archive, "--output", tmp_path / "out")
    assert tree(tmp_path / "out") == expected


def test_unreadable_archive_is_named(tmp_path, monkeypatch):
    def read(_):
        raise OSError(errno.EIO, "Input/output error")

    entry = archives.Entry("train/cat/1.jpg", 9, True, lambda: contextlib.nullcontext(types.SimpleNamespace(read=read)))
    monkeypatch.setattr(archives, "entries", lambda file: [entry])
    (tmp_path / "x.tar").touch()
    with pytest.raises(DamagedArchive, match=r"x.tar is damaged, .*\(Input/output error\); 0 of its images"):
        Unpacker(tmp_path / "out", None, True, True).unpack(tmp_path / "x.tar")
    assert tree(tmp_path / "out") == {}


def test_archive_that_does_not_fit_is_refused_at_once(tmp_path):
    archive, _ = train_archive(tmp_path)
    with open(archive, "r+b") as file:
        file.truncate(min(2 * shutil.disk_usage(tmp_path).total, 15 * 2**40))  # sparse
    line = error_line("unpack", archive, "--output", tmp_path / "out")
    assert " MB free but the archives need " in line
    assert not list((tmp_path / "out").iterdir())


def test_folder_that_cannot_be_made_is_one_error_line(tmp_path):
    archive, _ = train_archive(tmp_path)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in error_line("unpack", archive, "--output", tmp_path / "file/out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train").write_text("")
    assert f"{tmp_path}/out/train" in error_line("unpack", archive, "--output", tmp_path / "out")


def test_usage(tmp_path):
    assert "required: ARCHIVE, --output" in tool("unpack", status=2).stderr
    text = tool("unpack", "--help").stdout
    for word in ("--val-list", "ILSVRC2012_validation_ground_truth.txt", "Exit status", "--output", "--debug"):
        assert word in text
    assert "Traceback" in tool("unpack", tmp_path, "--output", tmp_path, "--debug", status=1).stderr


def test_a_file_that_was_there_is_not_replaced(tmp_path):
    archive = make_tar(tmp_path / "x.tar", {"train/cat/1.png": DIGITS[0]})
    (tmp_path / "out/train/cat").mkdir(parents=True)
    (tmp_path / "out/train/cat/1.png").write_bytes(b"mine")
    for _ in range(2):  # also where the command is repeated
        line = error_line("unpack", archive, "--output", tmp_path / "out")
        assert line.endswith("1.png exists and differs from the file in the archive; give another --output")
    assert (tmp_path / "out/train/cat/1.png").read_bytes() == b"mine"


def test_names_may_be_as_long_as_the_disk_allows(tmp_path):
    name = f"train/cat/{'x' * 251}.png"
    done = tool("unpack", make_tar(tmp_path / "x.tar", {name: DIGITS[0]}), "--output", tmp_path / "out")
    assert "1 images written" in done.stdout and (tmp_path / "out" / name).is_file()
