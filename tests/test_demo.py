"""The page in a real browser: what a visitor sees, and its messages."""

import functools
import io
import json
import os
import re
import struct
import urllib.request
import zlib

import numpy as np
import pytest
from browser import Recorder, Visitor, driver, first_word  # noqa: F401
from conftest import ROOT, Page
from PIL import Image
from test_demo_address import listening

from t2t_vit.config import load_config
from t2t_vit.deploy.open_model import open_weights
from t2t_vit.deploy.predict import predict_batch
from t2t_vit.page import shelf
from t2t_vit.page.shelf import METHODS

EXAMPLES = sorted((ROOT / "docs/figures/examples/CIFAR-10").glob("*/*.jpg"))
THREE, SEVEN = ROOT / "lit_data/val/3/0103.png", ROOT / "lit_data/val/7/0081.png"


@pytest.fixture(scope="module")
def recorder():
    return Recorder()


@pytest.fixture(scope="module")
def page(recorder, tmp_path_factory):
    """The page as a user starts it, but on any free port; requests to other machines are recorded."""
    pytest.importorskip("gradio", reason="the page is made with it: pip install gradio")
    uploads = tmp_path_factory.mktemp("uploads")
    asked = {name: recorder.url for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
    with Page("--port", 0, TMPDIR=str(uploads), NO_PROXY="", no_proxy="", **asked) as page:
        yield page
        page.stop()
    assert not list(uploads.iterdir()), "uploads are left"


@pytest.fixture
def visitor(page, driver):  # noqa: F811
    return Visitor(driver, page.url).visit()


def expected(path, name="lit_data"):
    """{class: percent} that predict.py would print."""
    opened = opened_run(name)
    found = predict_batch(opened.predictor, [path], opened.cfg, 5)[path]
    return {entry["name"]: entry["probability"] for entry in found["top"]}


@functools.cache
def opened_run(name):
    run = ROOT / "output/pretrained" / name
    return open_weights(load_config(run / "config.yaml"), str(run / "best.pdparams"))


def test_answer_is_that_of_predict(visitor):
    visitor.upload(THREE)
    source = visitor.wait(visitor.attention)
    right = expected(THREE)
    assert visitor.top_class() == "three" == next(iter(right))
    assert visitor.top() == {name: round(100 * share) for name, share in right.items()}
    assert visitor.note() == ""
    with urllib.request.urlopen(source) as answer:
        seen = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), np.float32)
    model = opened_run("lit_data")
    ((pixels, _),), _ = shelf.look(model, [THREE])
    own = np.asarray(shelf.attention(model, pixels, "gradient", "three"), np.float32)
    assert seen.shape == own.shape and np.abs(seen - own).mean() < 6  # of 255, by the page's WebP


def test_several_pictures_one_of_them_unreadable(visitor, tmp_path):
    bad = tmp_path / "<b>notes.png"
    bad.write_text("no picture")
    visitor.upload(THREE, SEVEN, bad)
    visitor.wait(lambda: len(visitor.captions()) == 2)
    assert [caption.split()[-1] for caption in visitor.captions()] == ["three", "seven"]
    assert re.fullmatch(r"image \S*notes.png cannot be read: not an image", visitor.wait(visitor.note))
    first = visitor.wait(visitor.attention)
    visitor.all("#answers button.thumbnail-item")[1].click()
    visitor.wait(lambda: visitor.top_class() == "seven")
    assert visitor.wait(lambda: visitor.attention() != first and visitor.attention())


def test_pictures_can_be_removed(visitor):
    visitor.upload(THREE, SEVEN)
    visitor.wait(lambda: len(visitor.captions()) == 2)
    visitor.all("#files button[aria-label='Remove this file']")[0].click()
    visitor.wait(lambda: [caption.split()[-1] for caption in visitor.captions()] == ["seven"])
    visitor.wait(lambda: visitor.top_class() == "seven")
    visitor.all("#files button[aria-label='Clear']")[0].click()
    visitor.wait(lambda: not visitor.captions() and not visitor.top() and not visitor.attention())


def test_unreadable_file_alone(visitor, tmp_path):
    bad = tmp_path / "notes.png"
    bad.write_text("no picture")
    visitor.upload(bad)
    assert visitor.wait(visitor.note) == "image notes.png cannot be read: not an image"
    assert visitor.top() == {} and not visitor.attention()
    assert "Traceback" not in visitor.driver.page_source
    visitor.visit().upload(SEVEN)
    visitor.wait(lambda: visitor.top_class() == "seven")


def test_very_large_pictures(visitor, tmp_path):
    pixels = Image.open(THREE).convert("L").resize((6000, 6000))
    pixels.save(tmp_path / "large.jpg")
    small = THREE.read_bytes()
    header = small[12:16] + struct.pack(">II", 30000, 30000) + small[24:29]  # of width and height
    (tmp_path / "bomb.png").write_bytes(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:])
    visitor.upload(tmp_path / "large.jpg", tmp_path / "bomb.png")
    assert "bomb.png cannot be read" in visitor.wait(visitor.note)
    visitor.wait(lambda: visitor.top_class() == "three")
    for image in visitor.all("#answers img"):
        assert visitor.driver.execute_script("return arguments[0].naturalWidth", image) <= 512


def test_other_model_answers_about_the_same_picture(visitor):
    visitor.upload(THREE)
    visitor.wait(lambda: visitor.top_class() == "three")
    assert visitor.all("#examples img")
    visitor.pick("model", "lit_data_pit")
    right = {name: round(100 * share) for name, share in expected(THREE, "lit_data_pit").items()}
    visitor.wait(lambda: visitor.top() == right)
    visitor.pick("model", "cifar10_seven")
    visitor.wait(lambda: visitor.top_class() in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog"))
    visitor.wait(lambda: len(visitor.all("#examples img")) == 5)  # of the six from docs/figures, without the ship


def test_methods_and_classes_show_other_maps(visitor):
    visitor.upload(THREE)
    seen = {visitor.wait(visitor.attention)}
    for name in METHODS[1:]:
        visitor.pick("method", first_word(name))
        seen.add(visitor.wait(lambda: visitor.attention() not in seen and visitor.attention()))
    assert len(seen) == len(METHODS)
    visitor.pick("method", METHODS[0])
    visitor.wait(lambda: visitor.attention() in seen)
    visitor.pick("class", visitor.wait(lambda: list(visitor.top()))[1])
    assert visitor.wait(lambda: visitor.attention() not in seen and visitor.attention())


def test_examples_are_the_digits(visitor):
    visitor.wait(lambda: len(visitor.all("#examples button.thumbnail-item")) == 10)
    visitor.all("#examples button.thumbnail-item")[4].click()
    visitor.wait(lambda: visitor.top_class() == "four")


def boxes_of(visitor):
    """Show the examples of CIFAR-10 with its model. Returns {part: its box}."""
    visitor.pick("model", "cifar10_augment")
    visitor.wait(lambda: len(visitor.all("#examples img")) == 6)
    visitor.upload(*EXAMPLES[:5])
    visitor.wait(lambda: visitor.attention() and len(visitor.captions()) == 5)
    parts = ("model", "files", "examples", "method", "class", "original", "attention", "top", "answers")
    return {name: visitor.all(f"#{name}")[0].rect for name in parts}


def are_below_each_other(boxes, names):
    return all(boxes[a]["y"] + boxes[a]["height"] <= boxes[b]["y"] for a, b in zip(names, names[1:]))


def test_parts_of_the_page_do_not_overlap(visitor):
    boxes = boxes_of(visitor)
    left, right = ("model", "files", "examples"), ("method", "original", "answers")
    assert are_below_each_other(boxes, left) and are_below_each_other(boxes, right)
    edge = max(boxes[name]["x"] + boxes[name]["width"] for name in left)
    for name in ("original", "attention", "top"):  # side by side, as the picture beside its map
        assert edge <= boxes[name]["x"] and boxes[name]["y"] == boxes["original"]["y"]
        edge = boxes[name]["x"] + boxes[name]["width"]
    page = visitor.driver.execute_script("return [document.body.scrollWidth, innerWidth]")
    assert edge <= page[0] <= page[1]
    assert all(boxes[name]["y"] + boxes[name]["height"] <= 720 for name in (*left, "method", "class", "attention"))
    if os.environ.get("T2T_SCREENSHOT"):
        visitor.driver.save_screenshot(os.environ["T2T_SCREENSHOT"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_on_a_phone(visitor, scheme):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    try:
        visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        boxes = boxes_of(visitor.visit())
        assert are_below_each_other(boxes, ("model", "files", "examples", "method", "original", "top", "answers"))
        assert boxes["original"]["y"] == boxes["attention"]["y"]
        assert max(box["x"] + box["width"] for box in boxes.values()) <= 390
        shown = "const e = arguments[0]; return [e.scrollWidth, e.clientWidth, e.scrollHeight, e.clientHeight]"
        for caption in visitor.all("#answers .caption-label"):
            width, room, height, room_below = visitor.driver.execute_script(shown, caption)
            assert width <= room and height <= room_below, caption.text
        ink, paper = (
            visitor.driver.execute_script(f"return getComputedStyle(arguments[0]).{key}", visitor.all(where)[0])
            for key, where in (("color", "#answers .caption-label"), ("backgroundColor", "#answers .caption-label"))
        )
        ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ink, paper))
        assert ink + 100 < paper if scheme == "light" else paper + 100 < ink
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_no_requests_to_other_machines(visitor, recorder, page):
    visitor.upload(THREE)
    visitor.wait(visitor.attention)
    logged = [json.loads(entry["message"])["message"] for entry in visitor.driver.get_log("performance")]
    found = {name: [entry["params"] for entry in logged if entry["method"] == f"Network.{name}"]
             for name in ("requestWillBeSent", "loadingFailed")}  # fmt: skip
    unsent = {each["requestId"] for each in found["loadingFailed"] if each.get("blockedReason") == "csp"}
    asked = [each["request"]["url"] for each in found["requestWillBeSent"] if each["requestId"] not in unsent]
    assert len(asked) > 10
    assert {url.partition(":")[0] for url in asked} <= {"http", "data", "blob", "chrome"}
    assert [url for url in asked if url.startswith("http") and not url.startswith(page.url)] == []
    assert recorder.asked == []


def test_listens_only_on_loopback(page):
    assert page.url.startswith("http://127.0.0.1:")
    assert listening(page.port) == ["0100007F"]
    with urllib.request.urlopen(page.url) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self' ")
