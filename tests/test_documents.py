"""The documents agree with each other and with the code; every link leads somewhere."""

import re

import pytest
from conftest import ROOT
from documents import ALL, ENGLISH, TRANSLATED, anchor, blocks, prose, rows, sections
from test_spellings import COMMANDS

from t2t_vit.config import all_keys, load_config
from t2t_vit.spellings import KEYS

DOCS, README = ROOT / "docs", ROOT / "README.md"
both = pytest.mark.parametrize("english, chinese", TRANSLATED, ids=[path.name for path, _ in TRANSLATED])
every = pytest.mark.parametrize("path", ALL, ids=[path.name for path in ALL])


# --- Shape ---


@pytest.mark.parametrize("path", [README, README.with_name("README_cn.md")], ids=str)
def test_the_readme_is_three_screens(path):
    assert len(path.read_text("utf-8").splitlines()) <= 200
    assert len(path.read_bytes()) <= 12 * 1024


def test_the_readme_and_the_index_link_to_every_page():
    for index, folder in ((README, "docs/"), (DOCS / "README.md", "")):
        pages = {f"{folder}{path.name}" for path in ENGLISH if path.parent.name == "docs" and path.name != "README.md"}
        assert pages <= set(re.findall(r"\]\(([^)#]+)", index.read_text("utf-8"))), index


@every
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in target:
            continue
        file, _, place = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), target
        assert not place or place in map(anchor, sections(other)), target


@every
def test_lines_fit_and_pictures_exist(path):
    for line in prose(path).splitlines():
        assert len(line) <= 130 or line.startswith("|") or "http" in line or "](" in line, line


# --- Two languages ---


@both
def test_both_languages_show_the_same_code(english, chinese):
    for language in ("bash", "python", "yaml", "bibtex", "text"):
        assert blocks(english, language) == blocks(chinese, language)


def numbers(text):
    """The numbers of two or more characters, outside code and links."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " ", text)
    found = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)
    return {number.replace(",", "") for number in found if len(number) > 1}


@both
def test_both_languages_give_the_same_numbers(english, chinese):
    theirs, ours = sections(english), sections(chinese)
    assert len(theirs) == len(ours)
    for (heading, one), other in zip(theirs.items(), ours.values()):
        assert numbers(one) == numbers(other), heading


@both
def test_both_languages_have_the_same_code_in_their_tables(english, chinese):
    code = [
        [re.findall(r"`([^`]+)`", " ".join(row).replace("<配置名>", "<config name>")) for row in rows(prose(path))]
        for path in (english, chinese)
    ]
    assert code[0] == code[1]


# --- Facts ---


@every
def test_keys_and_options_exist(path):
    """Config keys, options and files that the text names; in docs/migrating.md those of the right column."""
    text = prose(path)
    if path.name.startswith("migrating"):
        text = "\n".join(row[-1] for row in rows(text))
    options = {option for module in COMMANDS.values() for option in module.parser()._option_string_actions}
    for span in re.findall(r"`([^`\n]+)`", text):
        first = span.split()[0]
        if re.fullmatch(r"[A-Z]+(\.[A-Z0-9_]+)+", first):
            assert first in all_keys(), span
        if re.fullmatch(r"(tools|configs|scripts|tests|docs)/[\w/.]+", first):
            assert (ROOT / first).exists(), span
        if path.name.startswith("migrating") and first.startswith("--"):
            assert first in options, span


def test_old_names_have_the_keys_of_the_table():
    lefts = []
    for left, right in (row for row in rows(prose(DOCS / "migrating.md")) if len(row) == 2):
        old, new = re.findall(r"`([^`]+)`", left), re.findall(r"`([^`]+)`", right)
        lefts += old
        named = {key: KEYS[key] for key in old if key in KEYS}
        if len(old) == len(new) == len(named) and not any(" " in key for key in named.values()):
            assert list(named.values()) == new
    assert len(lefts) > 50
    assert not {key for key in KEYS if re.match("[a-z]|DATA_PATH|SCHEDULER|MODEL_PATH|TRAIN.*TRAIN", key)} - set(lefts)


def test_peers_are_evaluated_as_they_did():
    text = (DOCS / "migrating.md").read_text(encoding="utf-8")
    rules = {"t2t_paddle_t2t_vit_7": ("squash", "bilinear", 0.9), "paddle_pit_pit_ti": ("center", "bicubic", 0.9)}
    for name, rule in rules.items():
        val = load_config(f"configs/{name}.yaml").VAL
        assert rule == (val.CROP_MODE, val.INTERPOLATION, val.CROP_PCT)
        evaluations = re.findall(rf"`(?:bash scripts/val\.sh|python tools/predict\.py) [^`]*{name}[^`]*`", text)
        assert len(evaluations) == 2 and all("-pretrained" in command for command in evaluations)


def test_settings_of_troubleshooting_are_read():
    spans = re.findall(r"`([^`]+)`", prose(DOCS / "troubleshooting.md"))
    settings = [re.sub(r"^--batch-size \d+ ", "", span) for span in spans if re.search(r"[A-Z]\.[A-Z]", span)]
    pairs = [setting.split(maxsplit=1) for setting in settings if re.match(r"[A-Z.]+_?[A-Z_.]* \S+$", setting)]
    assert len(pairs) >= 8
    for key, value in pairs:
        amp = [("TRAIN.AMP", "O1")] * key.endswith("DTYPE")
        load_config("configs/t2t_vit_7.yaml", [*amp, (key, value.strip('"'))])
