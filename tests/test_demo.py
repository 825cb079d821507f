"""The page in a real browser: what a visitor sees, where it listens, and its messages."""

import contextlib
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
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Page, command_of, error_line
from PIL import Image

import demo
from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.deploy.open_model import open_weights
from t2t_vit.deploy.predict import predict_batch
from t2t_vit.page import shelf
from t2t_vit.page.server import PORTS, ports_of
from t2t_vit.page.shelf import METHODS
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


# --- Mistakes ---


def test_missing_gradio_is_one_line(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS / "missing"))
    message = "error: the page needs gradio, which is not installed: pip install gradio"
    assert error_line("demo", "--port", 0, fresh=True) == message


@needs_gradio
def test_missing_weights_are_an_error_before_the_page_is_up(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", "http")  # Gradio must not see it, and --port overrides it
    line = error_line("demo", "--port", 0, "--pretrained", tmp_path / "absent.pdparams", fresh=True)
    assert "absent.pdparams" in line
