"""A browser that looks at the page of tools/demo.py, and a proxy that records what is asked of other machines."""

import contextlib
import re
import shutil
import socket
import threading

import pytest

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --window-size=1120,930"


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
