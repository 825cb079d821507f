"""Published weights by name, and models created with weights."""

import re
from pathlib import Path

import numpy as np
import official
import peers
import pytest
from conftest import ROOT, tool
from documents import prose

import t2t_vit
from t2t_vit.common.errors import UserError
from t2t_vit.models.zoo import list_models
from t2t_vit.weights import checkpoint, download, published
from t2t_vit.weights.download import local_file
from t2t_vit.weights.published import meaning, table

PIT = "PaddleViT/pit_ti_224"


@pytest.fixture(autouse=True)
def empty_place(tmp_path, monkeypatch):
    """A current folder and a cache without files, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    published._warn.cache_clear()


def in_cache(row):
    """Put weights of pit_ti where a download of the row would."""
    with pytest.raises(UserError) as error:
        local_file(row)
    path = Path(str(error.value).rpartition("save it as ")[2])
    peers.save_paddle(path, peers.peer_tensors(PIT))
    return path


# --- The table ---


def test_the_model_zoo_links_to_the_files_of_the_table():
    text = prose(ROOT / "docs/zoo.md")
    links = re.findall(r"\]\((https://(?:github\.com/[^)]*/releases/download/|drive|pan)[^)]*)\)", text)
    rows = [row for name, row in table().items() if name == row.name]
    assert len(links) == 50 and sorted(links) == sorted(row.url for row in rows)
    for row in rows:
        shown = row.url.rpartition("/")[2] if row.name.endswith(".timm") else row.top1
        remark = f" ({row.remark})" if row.remark else ""
        assert f"[{shown}]({row.url}){remark}" in text, row.name


def test_rows_have_a_model_a_config_and_a_number():
    for name, row in table().items():
        assert row.model in list_models() and row.name.startswith(name)
        assert (ROOT / f"configs/{row.config}.yaml").is_file()
        assert all(0 < float(number) < 100 for number in row.top1.split(" / "))
    bare = [name for name in table() if "." not in name]
    assert len(bare) == 18 and {"t2t_vit_14_resnext", "t2t_vit_14_wide"} <= set(list_models()) - set(bare)
    assert not any(table()[name].needs_browser for name in bare)
    assert table()["pit_ti"].name == "pit_ti.timm" and table()["t2t_vit_24"].name == "t2t_vit_24.official"


# --- Names in commands and settings ---


def test_a_page_for_a_browser_is_named_with_the_place_for_its_file(tmp_path):
    place = tmp_path / "cache/t2t_vit_7.t2t_paddle"
    message = (
        "t2t_vit_7.t2t_paddle needs a browser: download the file of https://pan.baidu.com/s/1A2az_B51ywsUbDCAFvXTvQ "
        f"(code 6ib9) and save it as {place}"
    )
    with pytest.raises(UserError) as error:
        local_file("t2t_vit_7.t2t_paddle")
    assert str(error.value) == message
    place.write_bytes(b"its file")
    assert local_file("t2t_vit_7.t2t_paddle") == place


def test_a_file_wins_over_a_name_and_a_warning_says_so(tmp_path, warned):
    assert meaning("pit_ti", tmp_path) == "pit_ti"
    file = tmp_path / "pit_ti.pdparams"
    file.write_bytes(b"its file")
    assert meaning("./pit_ti", tmp_path) == str(tmp_path / "pit_ti") and not warned.messages
    assert local_file(meaning("pit_ti", tmp_path)) == file
    warning = "warning: the file pit_ti.pdparams is used, not the published weights pit_ti; name those pit_ti.timm"
    assert warned.messages == [warning]
    assert meaning("pit_ti.timm", tmp_path) == "pit_ti.timm"
    assert meaning("https://host/pit_ti", tmp_path) == "https://host/pit_ti"


def test_a_folder_wins_over_a_name_and_is_an_error(tmp_path):
    (tmp_path / "pit_ti").mkdir()
    with pytest.raises(UserError, match=r"are a folder; name the file in it.*; the published .* are pit_ti.timm"):
        local_file(meaning("pit_ti", tmp_path))


@pytest.mark.parametrize("word, near", [
    ("t2t-vit-14", "t2t_vit_14"), ("PiT_Ti", "pit_ti"), ("t2t_vit_14.oficial", "t2t_vit_14.official"),
])  # fmt: skip
def test_a_near_miss_suggests_names(tmp_path, word, near):
    with pytest.raises(UserError, match=rf"weights {tmp_path}/{word} not found; did you mean {near}(, .*)?\?$"):
        local_file(meaning(word, tmp_path))


def test_a_model_without_published_weights_is_named(tmp_path):
    message = rf"weights {tmp_path}/t2t_vit_14_se not found, and no weights of t2t_vit_14_se are published: train first"
    with pytest.raises(UserError, match=message):
        local_file(meaning("t2t_vit_14_se", tmp_path))


@pytest.mark.parametrize("word, remedy", [
    ("t2t_vit_7#sha256=00000000", "#sha256= is for URLs only"), ("HTTP://host/w", "that start with http://"),
    ("ftp://host/w.pth", "start with http://, https:// or file://"),
])  # fmt: skip
def test_what_is_no_url_is_named(tmp_path, word, remedy):
    with pytest.raises(UserError, match=remedy):
        local_file(meaning(word, tmp_path))


def test_commands_take_a_name_and_find_its_config(tmp_path):
    in_cache("pit_ti.paddlevit")
    words = ("predict", ROOT / "lit_data/val/3/0045.png", "--pretrained")
    by_name = tool(*words, "pit_ti.paddlevit", cwd=tmp_path, timeout=300)
    assert "class_id is: " in by_name.stdout
    line = tool(*words, "pit_ti.oficial", cwd=tmp_path, status=1).stderr.splitlines()[-1]
    assert line.startswith(f"error: weights {tmp_path}/pit_ti.oficial not found; did you mean pit_ti.official, ")
    page = tool(
        *words[:2], "MODEL.PRETRAINED", "pit_s.official", "--config", "configs/pit_s.yaml", cwd=tmp_path, status=1
    )
    assert page.stderr.splitlines()[-1].startswith("error: pit_s.official needs a browser: ")


# --- create_model ---


def test_a_model_is_created_with_weights():
    path = in_cache("pit_ti.paddlevit")
    expected = official.set_weights(t2t_vit.create_model("pit_ti")).state_dict()
    for pretrained in ("pit_ti.paddlevit", path, path.as_uri(), "cache/pit_ti.paddlevit"):
        model = t2t_vit.create_model("pit_ti", pretrained=pretrained)
        assert all(np.array_equal(value.numpy(), expected[name].numpy()) for name, value in model.state_dict().items())
    ten = t2t_vit.create_model("pit_ti", pretrained=path, num_classes=10, image_size=64)
    assert ten.head.weight.shape == [256, 10] and ten.pos_embed.shape == [1, 64, 7, 7]
    assert np.array_equal(ten.norm.weight.numpy(), expected["norm.weight"].numpy())


def test_a_name_is_looked_for_in_one_folder(tmp_path, monkeypatch):
    path = in_cache("pit_ti.paddlevit")
    monkeypatch.setattr(download, "ROOT", tmp_path / "repository")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/pit_ti.paddlevit").write_bytes(b"not read, because the current folder is another one")
    model = t2t_vit.create_model("pit_ti", pretrained="pit_ti.paddlevit")
    assert np.array_equal(model.norm.weight.numpy(), checkpoint.read(path)["norm.weight"])


@pytest.mark.parametrize("name", ["t2t_vit_7", "pit_ti_distilled"])
def test_a_model_without_head_takes_weights_with_one_and_back(tmp_path, name):
    path, headless = tmp_path / "w.pdparams", tmp_path / "headless.pdparams"
    checkpoint.save(path, official.set_weights(t2t_vit.create_model(name, num_classes=7, image_size=64)).state_dict())
    seven = t2t_vit.create_model(name, pretrained=path, image_size=64)  # as many classes as the file
    assert seven.head.bias.shape == [7]
    model = t2t_vit.create_model(name, pretrained=path, num_classes=0, image_size=64)
    checkpoint.save(headless, model.state_dict())
    for other in (model, t2t_vit.create_model(name, pretrained=headless, image_size=64)):
        assert not any(key.startswith("head") for key in other.state_dict())
        assert all(
            np.array_equal(value.numpy(), seven.state_dict()[key].numpy()) for key, value in other.state_dict().items()
        )
    assert t2t_vit.create_model(name, pretrained=headless, num_classes=3, image_size=64).head.bias.shape == [3]


def test_true_means_the_published_weights(tmp_path):
    (tmp_path / "pit_ti").write_bytes(b"not read, because True is no file")
    with pytest.raises(UserError, match="/v0.1-pit-weights/pit_ti_730.pth cannot be downloaded"):
        t2t_vit.create_model("pit_ti", pretrained=True)
    with pytest.raises(UserError, match="no weights of t2t_vit_14_wide are published: give pretrained a file or a URL"):
        t2t_vit.create_model("t2t_vit_14_wide", pretrained=True)


def test_mistakes_of_create_model():
    with pytest.raises(ValueError, match="unknown model 'T2T-ViT-7'; did you mean t2t_vit_7"):
        t2t_vit.create_model("T2T-ViT-7")
    for wrong in ({"num_classes": -1}, {"in_chans": 0}):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"^{name} is {value} but must be {value + 1} or more$"):
            t2t_vit.create_model("pit_ti", image_size=32, **wrong)
    with pytest.raises(ValueError, match="unknown model 'pit_tiny'; did you mean pit_ti"):
        t2t_vit.create_model("pit_tiny", pretrained=True)
    in_cache("pit_ti.paddlevit")
    with pytest.raises(UserError, match="contains weights of pit_ti, not of pit_s"):
        t2t_vit.create_model("pit_s", pretrained="pit_ti.paddlevit")
    with pytest.raises(UserError, match="not found; give pretrained a file, a URL or a published name"):
        t2t_vit.create_model("pit_s", pretrained="w.pth")
    with pytest.raises(UserError, match="pretrained is empty; give it a file, a URL or a published name"):
        t2t_vit.create_model("pit_s", pretrained="")
