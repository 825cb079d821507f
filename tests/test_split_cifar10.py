"""scripts/split_cifar10.sh: CIFAR-10 in two parts, by links."""

import os
import re
import subprocess

from conftest import ENVIRONMENT, ROOT

SEVEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog"]
THREE = ["horse", "ship", "truck"]


def split(*words):
    command = ["bash", str(ROOT / "scripts/split_cifar10.sh"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


def make_cifar10(folder, names):
    for name in SEVEN + THREE:
        for part, number in (("train", len(names)), ("test", 2)):
            (folder / part / name).mkdir(parents=True)
            for file in names[:number]:
                (folder / part / name / file).write_text(f"{part} {name} {file}")


def tree(folder):
    """{path: content} of all files, through links."""
    found = {}
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            path = os.path.join(parent, file)
            found[os.path.relpath(path, folder)] = open(path).read()  # noqa: SIM115
    return found


def test_parts_are_links_to_the_right_images(tmp_path):
    names = [f"{number:04d} x.png" for number in range(53)]
    make_cifar10(tmp_path / "cifar 10", names[::-1])  # made in another order than that of their names
    for _ in range(2):
        done = split(tmp_path / "cifar 10", tmp_path / "parts")
        assert done.returncode == 0, done.stderr
    assert "three/train: 150 images in 3 classes\n" in done.stdout
    expected = {}
    for part, classes, number in (("seven", SEVEN, 53), ("three", THREE, 50)):
        for name in classes:
            expected |= {f"{part}/train/{name}/{file}": f"train {name} {file}" for file in names[:number]}
            expected |= {f"{part}/test/{name}/{file}": f"test {name} {file}" for file in names[::-1][:2]}
    assert tree(tmp_path / "parts") == expected
    assert not [path for path in (tmp_path / "parts").rglob("*.png") if not path.is_symlink()]


def test_another_cifar10_takes_the_place_of_the_first(tmp_path):
    for folder, names in (("a", ["1.png", "2.png"]), ("b", ["2.png", "3.png"])):
        make_cifar10(tmp_path / folder, names)
        assert split(tmp_path / folder, tmp_path / "parts").returncode == 0
    assert sorted(os.listdir(tmp_path / "parts/three/train/ship")) == ["2.png", "3.png"]
    assert len(tree(tmp_path / "a")) == 10 * 4  # nothing of the first was removed


def test_wrong_folders_are_one_line(tmp_path):
    make_cifar10(tmp_path / "cifar10", ["1.png"])
    (tmp_path / "parts/seven/train/cat").mkdir(parents=True)
    os.rename(tmp_path / "cifar10/test/truck", tmp_path / "cifar10/test/lorry")
    for words, status, text in (
        ([tmp_path / "cifar10"], 2, "usage: "),
        ([tmp_path / "absent", tmp_path / "x"], 1, "error: .*absent is not a folder"),
        ([tmp_path / "cifar10", tmp_path / "x"], 1, "error: .*cifar10 has no test/truck"),
    ):
        done = split(*words)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert re.match(text, done.stderr)
    assert not (tmp_path / "x").exists()
    os.rename(tmp_path / "cifar10/test/lorry", tmp_path / "cifar10/test/truck")
    done = split(tmp_path / "cifar10", tmp_path / "parts")
    assert done.returncode == 1
    assert "parts/seven/train/cat exists and is not a link" in done.stderr
