"""The page in a real browser: what a visitor sees, where it listens, and its messages."""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT, Page, command_of, error_line
from PIL import Image

import demo
from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.images import to_image
from t2t_vit.deploy.engines import to_input
from t2t_vit.deploy.open_model import open_weights
from t2t_vit.deploy.predict import predict_batch
from t2t_vit.explain.attention import attention_maps, on_grid, rollout, token_box
from t2t_vit.explain.overlay import overlay
from t2t_vit.page import shelf
from t2t_vit.page.server import PORTS, ports_of
from t2t_vit.page.shelf import METHODS, Shelf
from t2t_vit.serve.address import listen, url_of

EXAMPLES = sorted((ROOT / "docs/figures/examples/CIFAR-10").glob("*/*.jpg"))
THREE, SEVEN = ROOT / "lit_data/val/3/0103.png", ROOT / "lit_data/val/7/0081.png"
PROGRAMS = ROOT / "tests/programs"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --window-size=1120,930"
needs_gradio = pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="needs gradio: pip install gradio")


class Recorder:
    """A proxy that records requests and answers none."""

    def __init__(self):
        self.listener, self.asked = socket.create_server(("127.0.0.1", 0)), []
        threading.Thread(target=self._record, daemon=True).start()

    def _record(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                visitor, _ = self.listener.accept()
                self.asked.append(visitor.recv(200))
                visitor.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"


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


# --- In a browser ---


class Visitor:
    """A browser that looks at the page."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def visit(self):
        self.driver.get(self.url)
        self.wait(lambda: self.all("#files input[type=file]"))
        return self

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition):
        from selenium.common import exceptions
        from selenium.webdriver.support.ui import WebDriverWait

        # The page may draw an element again while it is looked at or clicked.
        passing = [exceptions.StaleElementReferenceException, exceptions.ElementClickInterceptedException]
        waiting = WebDriverWait(self.driver, 60, 0.05, ignored_exceptions=passing)
        return waiting.until(lambda _: condition())

    def text(self, name):
        return " ".join(element.text for element in self.all(f"#{name}"))

    def upload(self, *paths):
        self.all("#files input[type=file]")[0].send_keys("\n".join(map(str, paths)))

    def top(self):
        """{class: percent} of the bars."""
        return {name: int(percent) for name, percent in re.findall(r"^(\S+)\n(\d+)%$", self.text("top"), re.M)}

    def top_class(self):
        return next(iter(self.top()), None)

    def captions(self):
        return [element.text for element in self.all("#answers .caption-label")]

    def note(self):
        return " ".join(element.get_attribute("value") for element in self.all("#notes textarea"))

    def attention(self):
        """The address of the picture, once it is drawn."""
        images = self.all("#attention img")
        if images and self.driver.execute_script("return arguments[0].naturalWidth", images[0]):
            return images[0].get_attribute("src")
        return None

    def pick(self, name, choice):
        """Pick from a list the entry whose first word this is."""
        self.wait(lambda: self.all(f"#{name} input")[0].click() is None)

        def click_choice():
            found = [each for each in self.all("[role=option]") if first_word(each.text) == choice]
            return found and found[0].click() is None

        self.wait(click_choice)


def first_word(text):
    return next(iter(text.strip("✓ \n").split()), None)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="it drives the browser: pip install selenium")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def visitor(page, driver):
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


# --- Where it listens ---


def listening(port):
    """Hexadecimal addresses that listen at a port of this machine."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port]


def test_listens_only_on_loopback(page):
    assert page.url.startswith("http://127.0.0.1:")
    assert listening(page.port) == ["0100007F"]
    with urllib.request.urlopen(page.url) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self' ")


@needs_gradio
def test_gradio_file_listens_where_the_environment_says(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    environment = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "GRADIO_ROOT_PATH": "/below"}
    command_of("demo.md", "mkdir -p /path/to/page ", tmp_path)  # a folder that holds all it needs
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        page = Page(script=tmp_path / "page/demo.gradio.py", TMPDIR=str(tmp_path), **environment)
    finally:
        signal.signal(signal.SIGHUP, before)
    with page:
        assert page.lines[-2] == "the page has no password: everyone who can reach this machine can use it\n"
        assert page.port == port and listening(port) == ["00000000"]
        page.process.send_signal(signal.SIGHUP)
        with urllib.request.urlopen(page.url) as answer:
            html = answer.read().decode()
            assert f'"root":"{page.url}/below"' in html and "cifar10_augment" in html
        visitors = []  # who keep a connection open as the page in a browser does
        for path in ("/gradio_api/heartbeat/x", "/heartbeat/x"):  # of Gradio 5 and 6, of 4
            with contextlib.suppress(urllib.error.HTTPError):
                visitors.append(urllib.request.urlopen(page.url + path))
        assert visitors
        page.stop(signal.SIGTERM)
    assert not list(tmp_path.glob("t2t_demo_*"))


def test_gradio_file_in_the_repository():
    command = [sys.executable, "scripts/demo.gradio.py"]
    environment = {**os.environ, "GRADIO_SERVER_PORT": "a"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == "error: GRADIO_SERVER_PORT is 'a' but must be a number\n" and done.returncode == 1


def test_signals_clean_up_before_the_page_is_up(tmp_path):
    command = [sys.executable, str(ROOT / "tools/demo.py"), "--port", "0"]
    number = str(int(signal.SIGHUP))  # which is passed on as SIGTERM
    env = {**os.environ, "PYTHONPATH": str(PROGRAMS / "interrupting"), "SIGNAL": number, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_options_override_the_environment(monkeypatch):
    def found(*words):
        args = demo.parser().parse_args(list(words))
        return args.host, ports_of(args)

    assert found() == ("127.0.0.1", PORTS) and PORTS[0] == 7860
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7000")
    assert found() == ("0.0.0.0", [7000])
    assert found("--host", "127.0.0.2", "--port", "0") == ("127.0.0.2", [0])


def test_the_first_free_port_is_taken():
    with listen("127.0.0.1", [0]) as first:
        port = first.getsockname()[1]
        with listen("127.0.0.1", range(port, port + 100)) as second:
            assert port < second.getsockname()[1] < port + 100
        with pytest.raises(
            UserError, match=f"port {port} of 127.0.0.1 is in use: choose another with --port, or 0 for"
        ):
            listen("127.0.0.1", [port])


def test_addresses_of_version_6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with listen("::1", [0]) as listener:
        assert re.fullmatch(r"http://\[::1\]:\d+", url_of(listener))


@pytest.mark.parametrize(
    "host, port, message",
    [
        ("no.such.host.invalid", 7860, "cannot listen at no.such.host.invalid, port 7860: "),
        ("192.0.2.1", 7860, "cannot listen at 192.0.2.1, port 7860: "),
        ("127.0.0.1", 65536, "cannot listen at 127.0.0.1, port 65536: .*port must be 0-65535"),
        ("127.0.0.1", -1, "cannot listen at 127.0.0.1, port -1: .*port must be 0-65535"),
    ],
)
def test_impossible_addresses_are_errors(host, port, message):
    with pytest.raises(UserError, match=message):
        listen(host, [port])


# --- Models and mistakes ---


def test_missing_gradio_is_one_line(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS / "missing"))
    message = "error: the page needs gradio, which is not installed: pip install gradio"
    assert error_line("demo", "--port", 0, fresh=True) == message


@needs_gradio
def test_missing_weights_are_an_error_before_the_page_is_up(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", "http")  # Gradio must not see it, and --port overrides it
    line = error_line("demo", "--port", 0, "--pretrained", tmp_path / "absent.pdparams", fresh=True)
    assert "absent.pdparams" in line


def shelf_of(*words, **settings):
    args = argparse.Namespace(config=None, output=None, pretrained=None, weights_named=False, engine=None, opts=[])
    vars(args).update(settings)
    return Shelf(args, load_config(ROOT / "configs/lit_data.yaml", list(zip(words[::2], words[1::2]))))


@pytest.fixture(scope="module")
def models():
    return shelf_of()


@pytest.fixture
def layout():
    return pytest.importorskip("t2t_vit.page.layout", reason="the page is made with gradio: pip install gradio")


def test_models_are_those_of_the_command_line_and_the_runs(tmp_path):
    shipped = ["cifar10", "cifar10_augment", "cifar10_seven", "lit_data_pit"]
    names = shelf_of().names
    assert names[0] == "lit_data" and [name for name in names[1:] if name in shipped] == shipped
    assert names.count("lit_data") == 1
    best = tmp_path / "mine.pdparams"
    shutil.copy(ROOT / "output/pretrained/lit_data/best.pdparams", best)
    names = shelf_of(pretrained=str(best), weights_named=True).names
    assert names[0] == "lit_data: mine.pdparams" and "lit_data" in names[1:]
    run = tmp_path / "broken"
    run.mkdir()
    (run / "config.yaml").write_text("MODEL: {NAME: t2t}")
    (run / "best.pdparams").write_bytes(b"")
    models = shelf_of("OUTPUT", str(tmp_path), pretrained=str(best), weights_named=True)
    assert models.names == ["lit_data: mine.pdparams", "broken"]
    assert list(models.ask(models.names[0], shelf.examples))[3] == str(min((ROOT / "lit_data/val/3").iterdir()))
    with pytest.raises(UserError, match="is empty"):
        models.ask("broken", shelf.examples)


def test_examples_are_pictures_that_can_be_read(tmp_path):
    folder = tmp_path / "validation"
    for digit in "01234":
        (folder / digit).mkdir(parents=True)
    for name in ("0/.DS_Store", "0/Thumbs.db", "1/c.png", "2/notes.txt"):
        (folder / name).write_text("no picture")
    (folder / "0/a").mkdir()
    for name in ("0/b.JPEG", "3/d.png"):
        shutil.copy(THREE, folder / name)
    (folder / ".hidden").mkdir()
    models = shelf_of("DATA.PATH", str(tmp_path))
    found = models.ask("lit_data", shelf.examples)
    assert [str(Path(path).relative_to(folder)) for path in found] == ["0/b.JPEG", "3/d.png"]
    shutil.rmtree(folder)
    assert models.ask("lit_data", shelf.examples) == {}


def test_labels_say_the_data_and_the_accuracy(tmp_path):
    labels = shelf_of().labels
    assert labels["lit_data"] == "lit_data · 99.17%" and labels["cifar10"] == "cifar10 · CIFAR-10 · 70.97%"
    assert labels["cifar10_seven"] == "cifar10_seven · CIFAR-10 · 59.39%"  # VAL.BEST ema; the raw ones had 59.96%
    weights = ROOT / "output/pretrained/lit_data/best.pdparams"
    named = shelf_of(pretrained=str(weights), weights_named=True).labels
    assert named["lit_data"] == "lit_data · 99.17%"
    for name, metrics in (("new", '{"epoch": 1, "lr": 0.1}\n'), ("bad", "{}{}\n"), ("none", "")):
        shutil.copytree(weights.parent, tmp_path / name)
        (tmp_path / name / "metrics.jsonl").write_text(metrics)
    labels = shelf_of("OUTPUT", str(tmp_path), pretrained=str(weights), weights_named=True).labels
    assert list(labels.values()) == ["lit_data · 99.17%", *(f"{name} · lit_data" for name in ("bad", "new", "none"))]


def test_examples_are_shown_without_the_data():
    models = shelf_of()
    found = models.ask("cifar10", shelf.examples)
    assert list(map(Path, found)) == EXAMPLES and len(EXAMPLES) == 6
    assert "ship" in EXAMPLES[-1].parts and set(models.ask("cifar10_seven", shelf.examples)) == set(list(found)[:5])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_a_weak_answer_is_questioned(layout, models, path):
    _, (answer,), *_, notes = layout.Actions(models).answer("cifar10_augment", [str(path)], "gradient")
    is_weak = max(answer.top.values()) < layout.LIKELY
    assert is_weak == (path.parent.name == "dog")  # which it takes for a frog, at 0.35
    assert notes["visible"] == is_weak
    names = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
    line = f"no class reaches 50%: is this the model's kind of picture? It knows {names}"
    assert notes["value"] == (line if is_weak else "")


def test_attention_is_that_of_the_model_that_answered(layout, models):
    act = layout.Actions(models)
    _, answers, *_, expected, _ = act.answer("lit_data", [str(THREE)], "gradient")
    # The visitor has picked another model since, with pictures of another size and other classes.
    act.answer("cifar10_seven", [str(THREE)], "gradient")
    assert answers[0].model == "lit_data"
    assert act.draw(answers, 0, "gradient", "three")[0] == expected
    assert act.draw(answers, 0, "gradient", "airplane")[0] == expected
    *_, image, notes = act.choose(answers, "gradient", argparse.Namespace(index=0))
    assert image == expected and not notes["visible"]


def test_the_map_of_a_pit_covers_the_pixels_of_its_tokens():
    model = opened_run("lit_data_pit")
    pixels, _ = shelf.look(model, [THREE])[0][0]
    for method, block in (("rollout", 0), ("last block", -1)):
        drawn = shelf.attention(model, pixels, method, "three")
        images = paddle.to_tensor(to_input(pixels[None], model.predictor.metadata))
        maps = attention_maps(model.model, images)
        values = rollout(maps, model.model) if block == 0 else on_grid(maps[-1].mean(axis=1)[:, 0], model.model)
        box = token_box(model.model, block)
        assert drawn == overlay(to_image(pixels), values[0].numpy(), box=box)
    assert token_box(model.model, 0) == (1, 1, 15, 15) != box


def test_one_thread_computes_for_all_visitors():
    models, threads = shelf_of(), set()
    source = models.sources["lit_data"]
    opened = []
    models.sources["lit_data"] = lambda: opened.append(1) or source()

    def question(model, path):
        threads.add(threading.get_ident())
        return shelf.look(model, [path])[0][0][1]

    with ThreadPoolExecutor(8) as visitors:
        found = list(visitors.map(lambda path: models.ask("lit_data", question, path), [THREE, SEVEN] * 8))
    assert opened == [1] and len(threads) == 1
    for path, answers in ((THREE, found[::2]), (SEVEN, found[1::2])):
        right = pytest.approx(expected(path), abs=2e-6)
        assert all(top == right for top in answers)


def test_class_names_are_unique():
    metadata = argparse.Namespace(classes=["crane", "ox", "crane"])
    opened = argparse.Namespace(predictor=argparse.Namespace(metadata=metadata))
    assert shelf.class_names(opened) == ["crane (0)", "ox", "crane (2)"]


def test_exported_model_has_no_attention(layout):
    models = shelf_of()
    models.sources["lit_data"] = lambda: dataclasses.replace(opened_run("lit_data"), model=None)
    *_, bars, _, image, notes = layout.Actions(models).answer("lit_data", [str(THREE)], "gradient")
    assert next(iter(bars)) == "three" and image is None
    assert notes["value"] == "an exported model does not show its attention"


def test_engine_is_that_of_the_option(tmp_path):
    models = shelf_of("OUTPUT", str(tmp_path), engine="onnxruntime")
    with pytest.raises(UserError, match="lit_data.onnx not found for --engine onnxruntime"):
        models.ask("lit_data", shelf.examples)


def test_new_pictures_are_drawn_by_the_chosen_method(layout, models):
    images = []
    for method in METHODS:
        *_, image, _ = layout.Actions(models).answer("lit_data", [str(THREE)], method)
        pixels = models.look("lit_data", [THREE])[0][0].pixels
        assert image == models.ask("lit_data", shelf.attention, pixels, method, "three")
        assert image not in images
        images.append(image)


def test_too_many_pictures_are_reported(layout):
    most = layout.MAX_PICTURES
    paths = sorted(map(str, (ROOT / "lit_data/val").glob("*/*.png")))[: most + 3]
    _, answers, *_, notes = layout.Actions(shelf_of("VAL.BATCH_SIZE", "5")).answer("lit_data", paths, "gradient")
    assert len(answers) == most
    assert answers[-1].top == pytest.approx(expected(paths[most - 1]), abs=2e-6)
    assert notes["value"] == f"only the first {most} of {most + 3} pictures are shown"
