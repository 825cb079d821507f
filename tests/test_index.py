"""The images below a folder, and the cache of a scan."""

import os
import random
import time

import numpy as np
import pytest
from conftest import ROOT
from test_data import settings

from t2t_vit.common.errors import UserError
from t2t_vit.data import index
from t2t_vit.data.dataset import load_data
from t2t_vit.data.index import scan
from t2t_vit.data.paths import Paths


@pytest.fixture
def tree(tmp_path):
    """12 classes x 3 empty files, old enough to be cached."""
    for number in range(12):
        (tmp_path / f"data/train/c{number:02d}").mkdir(parents=True)
        for i in range(3):
            (tmp_path / f"data/train/c{number:02d}/{i}.jpg").touch()
    age(tmp_path / "data/train")
    return tmp_path / "data/train"


def age(folder):
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            os.utime(path, (time.time() - 120,) * 2)


@pytest.fixture
def walks(monkeypatch):
    """Class folders that are read."""
    seen, walk = [], index._walk
    monkeypatch.setattr(index, "_walk", lambda folder: seen.append(folder) or walk(folder))
    return seen


def names(result):
    found, paths, class_of = result
    return [(found[number], os.path.basename(path)) for number, path in zip(class_of, paths)]


def cached(folder, spare):
    """`scan` of a folder that is cached however small it is."""
    return scan(folder, spare, cached_from=1)


def test_paths_are_a_list():
    rng = random.Random(0)
    words = ["a", "b c", "é", "日本", "\udcff", "x" * 40]
    names = ["/".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(200)]
    paths, compact = [f"/data/{name}" for name in names], Paths.of(names, "/data")
    assert len(compact) == 200 and list(compact) == paths == list(Paths.of(paths))
    assert compact[-1] == paths[-1] and compact[5:9] == paths[5:9]
    assert list(Paths.of([])) == []
    for wrong in (200, -201):
        with pytest.raises(IndexError):
            compact[wrong]


def test_memory_of_a_million_paths():
    names = Paths.of(f"n{i // 1300:08d}/n{i // 1300:08d}_{i % 1300}.JPEG" for i in range(20_000)).names
    assert names.nbytes / len(names) < 40  # bytes a path: 51 MB for ImageNet


def test_second_scan_reads_no_folder(tree, tmp_path, walks):
    first = cached(tree, tmp_path)
    assert len(walks) == 12 and len(first[1]) == 36
    assert (tree.parent / ".index_of_train.npz").is_file()
    second = cached(tree, tmp_path)
    assert len(walks) == 12
    assert list(first[1]) == list(second[1]) and (first[2] == second[2]).all() and first[0] == second[0]


@pytest.mark.parametrize("change", ["new file", "lost file", "new class", "lost class", "renamed", "nested"])
def test_a_changed_folder_is_read_again(tree, tmp_path, change):
    (tree / "c03/more").mkdir()
    (tree / "c03/more/deep.jpg").touch()
    age(tree)
    before = names(cached(tree, tmp_path))
    assert ("c03", "deep.jpg") in before
    expected = {
        "new file": lambda: (tree / "c05/new.jpg").touch(),
        "lost file": lambda: (tree / "c05/1.jpg").unlink(),
        "new class": lambda: (tree / "c99").mkdir(),
        "lost class": lambda: [path.unlink() for path in (tree / "c05").iterdir()] + [(tree / "c05").rmdir()],
        "renamed": lambda: (tree / "c05/1.jpg").rename(tree / "c05/9.jpg"),
        "nested": lambda: (tree / "c03/more/new.jpg").touch(),
    }
    expected[change]()
    after = cached(tree, tmp_path)
    on_disk = {(path.relative_to(tree).parts[0], path.name) for path in tree.rglob("*.jpg")}
    assert set(names(after)) == on_disk and len(after[1]) == len(on_disk)
    assert after[0] == sorted(path.name for path in tree.iterdir())


def test_a_moved_data_set_is_read_again(tree, tmp_path):
    cached(tree, tmp_path)
    tree.parent.rename(tmp_path / "moved")
    assert {path.split("/")[-4] for path in cached(tmp_path / "moved/train", tmp_path)[1]} == {"moved"}


def test_a_path_through_a_link_is_the_same_the_second_time(tree, tmp_path, walks):
    (tmp_path / "far/away").mkdir(parents=True)
    tree.parent.rename(tmp_path / "far/data")  # so data/link/.. is far/, not data/
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "far/away")
    folder = tmp_path / "data/link/../data/train"
    first, second = (list(cached(folder, tmp_path)[1]) for _ in range(2))
    assert len(walks) == 12 and first == second and all(os.path.isfile(path) for path in second)


def test_a_folder_that_cannot_be_listed_is_named(tree, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("c07"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"folder {tree}/c07 cannot be read: Permission denied"):
        cached(tree, tmp_path)
    assert not list(tree.parent.glob(".index*"))


def test_a_folder_that_changes_while_it_is_listed_is_read_again(tree, tmp_path, monkeypatch, walks):
    listed = index._listed

    def late(folder):
        found = listed(folder)
        if str(folder).endswith("c05"):
            (tree / "c05/late.jpg").touch()
        return found

    monkeypatch.setattr(index, "_listed", late)
    cached(tree, tmp_path)
    monkeypatch.setattr(index, "_listed", listed)
    assert len(cached(tree, tmp_path)[1]) == 37 and len(walks) == 24


def test_a_folder_that_has_just_changed_is_not_cached(tree, tmp_path):
    (tree / "c00/new.jpg").touch()
    cached(tree, tmp_path)
    assert not list(tree.parent.glob(".index*"))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + b"x" * 100, "cut", "other arrays"])
def test_a_damaged_cache_is_replaced(tree, tmp_path, walks, content):
    expected = names(cached(tree, tmp_path))
    file = tree.parent / ".index_of_train.npz"
    if content == "cut":
        content = file.read_bytes()[: file.stat().st_size // 2]
    if content == "other arrays":
        np.savez(file, header=np.zeros(3))
    else:
        file.write_bytes(content)
    assert names(cached(tree, tmp_path)) == expected and len(walks) == 24
    assert names(cached(tree, tmp_path)) == expected and len(walks) == 24  # mended


@pytest.mark.parametrize("change", [
    lambda names, class_of: (np.ndarray(10**9, np.dtype("S0"), buffer=b""), class_of),  # a billion names in no bytes
    lambda names, class_of: (names[:-1], class_of),
    lambda names, class_of: (names, class_of + 1),
    lambda names, class_of: (names, class_of.astype(np.int64)),
    lambda names, class_of: (names.reshape(2, -1), class_of.reshape(2, -1)),
])  # fmt: skip
def test_a_forged_cache_is_replaced(tree, tmp_path, walks, change):
    expected = names(cached(tree, tmp_path))
    file = tree.parent / ".index_of_train.npz"
    with np.load(file) as content:
        header, forged = content["header"], change(content["names"], content["class_of"])
    np.savez(file, header=header, names=forged[0], class_of=forged[1])
    assert names(cached(tree, tmp_path)) == expected and len(walks) == 24


def test_one_changed_byte_of_a_large_cache_is_noticed(tmp_path):
    """zipfile compares no checksum of an array that NumPy does not read to its end."""
    for number in range(2):
        (tmp_path / f"data/train/c{number}").mkdir(parents=True)
        for i in range(1500):
            (tmp_path / f"data/train/c{number}/{i}.jpg").touch()
    age(tmp_path / "data/train")
    expected = names(cached(tmp_path / "data/train", tmp_path))
    file = tmp_path / "data/.index_of_train.npz"
    content = file.read_bytes()
    assert b"'<i4'" in content
    for old, new in ((b"'<i4'", b"'<i1'"), (b"'|S11'", b"'|S10'"), (b"(3000,)", b"(2900,)")):
        file.write_bytes(content.replace(old, new))
        assert names(cached(tmp_path / "data/train", tmp_path)) == expected


def test_cache_lies_elsewhere_if_the_data_folder_cannot_be_written(tree, tmp_path, walks, monkeypatch):
    def refuse(path, _open=index.atomic_path):
        if str(path).startswith(str(tree.parent)):
            raise PermissionError(13, "read-only", str(path))
        return _open(path)

    monkeypatch.setattr(index, "atomic_path", refuse)
    for _ in range(2):
        cached(tree, tmp_path / "output")
    assert len(walks) == 12 and len(list((tmp_path / "output").glob(".index_*.npz"))) == 1


def test_small_data_sets_leave_no_file(tree, tmp_path):
    scan(tree, tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
    load_data(settings())
    assert not list(ROOT.glob("lit_data/.*"))
