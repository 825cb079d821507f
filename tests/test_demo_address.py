"""Where the page listens, how it ends, and its mistakes."""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, Page, command_of, error_line

import demo
from t2t_vit.common.errors import UserError
from t2t_vit.page.server import PORTS, ports_of
from t2t_vit.serve.address import listen, url_of

PROGRAMS = ROOT / "tests/programs"
needs_gradio = pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="needs gradio: pip install gradio")


# --- Where it listens ---


def listening(port):
    """Hexadecimal addresses that listen at a port of this machine."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port]


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
