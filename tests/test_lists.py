"""List files and class lists in the forms that other programs write."""

import json
import os

import pytest
from test_data import folder_config, make_folders

from t2t_vit.common.errors import UserError
from t2t_vit.data.classes import read_classes
from t2t_vit.data.dataset import load_data


def listed(root, content, name="val", **keys):
    """Split of a list file with that content (text or bytes)."""
    (root / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    keys[f"DATA__{name.upper()}_LIST"] = "list.txt"
    return load_data(folder_config(root, **keys), [name])[1][name]


@pytest.fixture
def pictures(tmp_path):
    make_folders(tmp_path, {"val/a, b": 2, "val/cafe\u0301": 1})
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    return tmp_path


# --- Lists of images ---


FORMS = {
    "blank": "a, b/0.png 0\na, b/1.png 1\n",
    "tab": "a, b/0.png\t0\na, b/1.png\t1\n",
    "comma": "a, b/0.png,0\na, b/1.png, 1\n",
    "header and quotes": 'image,label\n"a, b/0.png",0\n"a, b/1.png",1\n',
    "class names": "a, b/0.png ant\na, b/1.png,bee\n",
    "no last line break": "a, b/0.png 0\r\n\r\na, b/1.png 1",
    "old Mac": "a, b/0.png 0\ra, b/1.png 1\r",
    "UTF-8 with BOM": "\ufeffa, b/0.png 0\na, b/1.png 1\n",
    "UTF-16": "a, b/0.png 0\r\na, b/1.png 1\r\n".encode("utf-16"),
    "UTF-16 big-endian": b"\xfe\xff" + "a, b/0.png 0\r\na, b/1.png 1\r\n".encode("utf-16-be"),
    "Windows": "val\\a, b\\0.png 0\r\nval\\a, b\\1.png 1\r\n",
    "one absolute": "{root}/val/a, b/0.png 0\nval/a, b/1.png 1\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_list_files(pictures, form):
    content = FORMS[form]
    content = content if isinstance(content, bytes) else content.replace("{root}", str(pictures))
    split = listed(pictures, content)
    assert list(split.paths) == [f"{pictures}/val/a, b/{i}.png" for i in range(2)] and split.labels.tolist() == [0, 1]


def test_kaggle_list_of_the_imagenet_validation(tmp_path):
    make_folders(tmp_path, {"val": 0})
    names = [f"ILSVRC2012_val_0000000{i}" for i in (1, 2)]
    for name in names:
        (tmp_path / f"val/{name}.JPEG").touch()
    text = f"ImageId,PredictionString\n{names[0]},n01443537 1 2 3 4 n01443537 5 6 7 8 \n{names[1]},n01440764 1 2 3 4 \n"
    split = listed(tmp_path, text, classes=1000, DATA__CLASSES="imagenet1k")
    assert list(split.paths) == [f"{tmp_path}/val/{name}.JPEG" for name in names] and split.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "content, message",
    [
        ("a, b/0.png -1\n", r"line 1: .* \(a number from 0, or the name of a class\) but found 'a, b/0.png -1'"),
        ("a, b/0.png wasp\n", "line 1: expected"),
        ("image,label\na, b/0.png,wasp\n", "line 2: expected"),
        ("a, b/0.png,2\n", "line 1: label 2 is out of range, the last of 2 classes is 1"),
        ("a, b/0.png 0\na, b/0.png 1\n", r"list.txt gives a, b/0.png two labels, 0 and 1"),
        ("C:\\data\\0.png 0\n", r"list.txt names C:\\data\\0.png, which is in none of \S+/val, \S+$"),
        ("image,label\n", "is empty"),
        ("ImageId,PredictionString\nx\n", "line 2: expected"),
        ("a, b/0.png 0\n".encode("utf-16-le"), "list.txt is not a text file in UTF-8"),
        ("caf\u00e9/0.png 0\n".encode("latin-1"), "list.txt is not a text file in UTF-8"),
    ],
)  # fmt: skip
def test_invalid_lines_are_named(pictures, content, message):
    with pytest.raises(UserError, match=message):
        listed(pictures, content)


def test_repeated_lines_are_a_warning(pictures, warned):
    assert len(listed(pictures, "a, b/0.png 0\na, b/1.png 1\na, b/0.png 0\n")) == 3
    assert "1 lines of" in warned.text and "repeat an earlier line" in warned.text


# --- Class lists ---


@pytest.mark.parametrize(
    "text",
    [
        "cat\nold dog\n", "0: cat\n1: old dog\n", "1 old dog\n0 cat\n", "cat 0\nold dog 1\n", "cat,0\r\nold dog,1\r\n",
        "0\tcat\n1\told dog\n", "cat\t0\nold dog\t1\n", "index\tfolder\tname\n0\tcat\tcat\n1\told dog\told dog\n",
        '["cat", "old dog"]', '{"0": "cat",\n "1": "old dog"}', '{"old dog": 1, "cat": 0}',
    ],
)  # fmt: skip
def test_forms_of_class_lists(tmp_path, text):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "classes.txt").write_text(text, encoding=encoding)
        assert read_classes(tmp_path / "classes.txt").folders == ("cat", "old dog")


@pytest.mark.parametrize(
    "text",
    ["n01440764 tench, Tinca tinca\nn01443537 goldfish\n", "0: n01440764 tench, Tinca tinca\n1: n01443537 goldfish\n",
     json.dumps({"0": ["n01440764", "tench, Tinca tinca"], "1": ["n01443537", "goldfish"]})],
)  # fmt: skip
def test_class_lists_of_imagenet(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    classes = read_classes(tmp_path / "classes.txt")
    assert classes.folders == ("n01440764", "n01443537") and classes.names == ("tench, Tinca tinca", "goldfish")


@pytest.mark.parametrize(
    "text",
    ["1 cat\n2 dog\n", "0 cat\ndog\n", "0\n1\n", "cat 0\ndog 0\n", "{curly\nx\n", "9" * 5000 + " a\nb\n", "[" * 10**5],
)
def test_other_lines_are_used_as_names(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    assert read_classes(tmp_path / "classes.txt").folders == tuple(text.splitlines())


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"0": "cat", "2": "dog"}', "has no class '1'; number them from 0"),
        ('{"cat": 0, "dog": 0}', "has no class '1'; number them from 0"),
        ('{"0": "cat", "1": ["a", "b", "c"]}', r"class 1: expected a name, or \[folder, name\]"),
        ('{"0": "cat", "1": 7}', "class 1: expected a name"),
        ("\n \n", "is empty"),
        ("i\tfolder\tname\n1\tcat\tcat\n", "line 2: expected '0<tab>folder<tab>name'"),
        (b"\x89PNG\r\n\x1a\n\0", "is not a text file in UTF-8"),
    ],
)
def test_invalid_class_lists_are_named(tmp_path, text, message):
    (tmp_path / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_pipes_and_devices_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, fault in (
        (tmp_path / "pipe", "is not a file"),
        ("/dev/zero", "is not a file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=f"class list {path} {fault}"):
            read_classes(path)
