"""The images below a folder."""

import os
import random

import pytest

from t2t_vit.common.errors import UserError
from t2t_vit.data.index import scan
from t2t_vit.data.paths import Paths


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


def test_images_of_each_class_folder_are_found(tmp_path):
    for name in ("b/1.jpg", "b/0.PNG", "a/more/deep.jpeg", "a/notes.txt", "a/.hidden.jpg", "empty/x.txt", "loose.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, paths, class_of = scan(tmp_path)
    assert found == ["a", "b", "empty"] and class_of.tolist() == [0, 1, 1]
    assert [os.path.relpath(path, tmp_path) for path in paths] == ["a/more/deep.jpeg", "b/0.PNG", "b/1.jpg"]
    assert scan(tmp_path / "a/more")[0] == []


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("c07"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "c07").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"folder {tmp_path}/c07 cannot be read: Permission denied"):
        scan(tmp_path)


@pytest.mark.parametrize("place", ["dog", "cat/more"])
def test_a_link_that_cannot_be_followed_is_named(tmp_path, place):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.jpg").touch()
    (tmp_path / "cat/loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    assert scan(tmp_path)[0] == ["cat"] and len(scan(tmp_path)[1]) == 1
    (tmp_path / place).symlink_to("x" * 300)  # a name that no file system has
    with pytest.raises(UserError, match=f"folder {tmp_path}/{place} cannot be read: File name too long"):
        scan(tmp_path)
