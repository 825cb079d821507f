"""serve.py: the answers of its API, its refusals, and how it starts and ends."""

import argparse
import asyncio
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from conftest import ROOT, Page, error_line, tool
from PIL import Image
from test_image_files import png

import t2t_vit
from t2t_vit.config import load_config
from t2t_vit.data.images import VISITORS_BYTES
from t2t_vit.deploy import open_model as open_module
from t2t_vit.deploy.engines import Predictor
from t2t_vit.deploy.open_model import open_model
from t2t_vit.deploy.predict import predict_batch, read_images
from t2t_vit.options import port_number
from t2t_vit.serve.classifier import Classifier

for library in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(library, reason="the server needs it: pip install fastapi uvicorn python-multipart")

import uvicorn  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from t2t_vit.serve import api, connections  # noqa: E402
from t2t_vit.serve.running import run_until_signal  # noqa: E402

SHIPPED = ROOT / "output/pretrained/lit_data/best.pdparams"
DIGITS = sorted((ROOT / "lit_data/val/3").glob("*.png"))[:4]
NAMES = {"localhost"}


def opened_with(path=SHIPPED, engine=None, *pairs):
    args = argparse.Namespace(engine=engine, pretrained=str(path), weights_named=True, opts=[])
    return open_model(args, load_config(ROOT / "configs/lit_data.yaml", pairs), parallel=True)


@pytest.fixture(scope="module")
def opened():
    return opened_with()


@contextlib.contextmanager
def server_of(opened, wait=0.0):
    with Classifier(opened, wait) as classify:
        yield TestClient(api.build_api(opened, classify, NAMES), base_url="http://localhost")


@pytest.fixture(scope="module")
def server(opened):
    with server_of(opened) as server:
        yield server


def form(*files):
    return [("files", file) for file in files]


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GREY = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
PICTURES = {
    "digit": DIGITS[0].read_bytes(),
    "animated": saved(GREY, "GIF", save_all=True, append_images=[GREY.rotate(90)]),
    "16 bit": saved(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160), "PNG"),
    "transparent": saved(Image.new("RGBA", (20, 20), (9, 99, 9, 99)), "PNG"),
    "rotated": saved(GREY, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    "cut off": DIGITS[0].read_bytes()[:90],
    "text": b"not a picture",
    "empty": b"",
    "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
    "heic": b"\0\0\0\x18ftypheic" + bytes(12),
    "too many pixels": png(12_000, 12_000, 8, 2),
    "of two million rows": png(1, 2_000_000_000, 8, 0),
}


# --- Answers ---


def test_answers_are_those_of_predict(server, opened):
    reply = server.post("/predict", files=form(*((path.name, path.read_bytes()) for path in DIGITS)))
    expected = predict_batch(opened.predictor, list(map(str, DIGITS)), opened.cfg, 5)
    assert reply.status_code == 200 and list(reply.json()) == ["results"]
    for result, path in zip(reply.json()["results"], DIGITS):
        assert result.pop("file") == path.name
        assert list(result) == list(expected[str(path)])
        assert [entry["class_id"] for entry in result["top"]] == [
            entry["class_id"] for entry in expected[str(path)]["top"]
        ]
        assert result["probability"] == pytest.approx(expected[str(path)]["probability"], abs=2e-6)


def test_views_of_a_picture_are_averaged_as_in_predict():
    opened = opened_with(SHIPPED, None, ("VAL.TTA", "flip"))
    with server_of(opened) as server:
        (result,) = server.post("/predict", files=form(("3", PICTURES["digit"]))).json()["results"]
    expected = predict_batch(opened.predictor, [str(DIGITS[0])], opened.cfg, 5)[str(DIGITS[0])]
    assert result["top"] == [
        {**entry, "probability": pytest.approx(entry["probability"], abs=2e-6)} for entry in expected["top"]
    ]


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_file_is_read_or_refused_as_from_the_disk(server, opened, tmp_path, kind):
    path = tmp_path / "picture"
    path.write_bytes(PICTURES[kind])
    pixels, errors = read_images([str(path)], opened.cfg, VISITORS_BYTES)
    reply = server.post("/predict", files=form(("picture", PICTURES[kind])))
    (result,) = reply.json()["results"]
    if errors:
        assert kind not in ("digit", "animated", "16 bit", "transparent", "rotated")
        assert (reply.status_code, result) == (422, {"file": "picture", "error": result["error"]})
        assert result["error"] == errors[str(path)].replace(str(path), "picture")
    else:
        top = predict_batch(opened.predictor, [str(path)], opened.cfg, 5)[str(path)]
        assert reply.status_code == 200 and result["class_id"] == top["class_id"] and len(pixels) == 1
        assert result["probability"] == pytest.approx(top["probability"], abs=2e-6)


def test_a_broken_picture_among_several_has_its_own_entry(server):
    files = form(("a.png", PICTURES["digit"]), ("b.png", b"x"), ("a.png", PICTURES["digit"]))
    reply = server.post("/predict?top_k=2", files=files, data={"note": "no file"})
    first, broken, last = reply.json()["results"]
    assert reply.status_code == 200 and first == last and first["name"] == "three" and len(first["top"]) == 2
    assert broken == {"file": "b.png", "error": "image b.png cannot be read: not an image"}


@pytest.mark.parametrize("kind", ["image/png", "application/x-www-form-urlencoded", None])
def test_a_body_may_be_one_picture(server, kind):
    headers = {"content-type": kind} if kind else {}
    reply = server.post("/predict", content=PICTURES["digit"], headers=headers)
    assert reply.status_code == 200 and reply.json()["results"][0]["file"] == "body"
    assert reply.json()["results"][0]["name"] == "three"


def test_the_model_is_described_without_its_path(server):
    model = server.get("/model").json()
    assert model["model"] == "t2t_vit_7" and model["classes"][3] == "three" and model["image_size"] == 16
    assert model["batch_size"] == 128 and str(ROOT) not in json.dumps(model)
    assert server.get("/health").json() == {"status": "ok"}
    schema = server.get("/openapi.json").json()
    assert list(schema["paths"]) == ["/predict", "/model", "/health"]
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert "/openapi.json" in server.get("/docs").text and server.get("/", follow_redirects=False).is_redirect


def test_the_document_has_the_version_of_the_package(server):
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[1]
    assert server.get("/openapi.json").json()["info"]["version"] == version == t2t_vit.__version__


def test_requests_share_batches(opened):
    sizes = []

    def run(images):
        sizes.append(len(images))
        return opened.predictor.run(images)

    counted = dataclasses.replace(opened, predictor=Predictor(run, opened.predictor.metadata))

    async def ask(classify):
        return await asyncio.gather(*(classify(path.name, path.read_bytes(), 1) for path in DIGITS))

    with Classifier(counted, 1.0) as classify:
        results = asyncio.run(ask(classify))
    assert sizes == [4] and [result["file"] for result in results] == [path.name for path in DIGITS]


def test_any_name_and_any_top_k_will_do(server):
    """A form may choose the coding of its names, and with it make characters that JSON cannot hold."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="+2AA-\x07"\r\n\r\ny\r\n--x\r\n'
    body += b'Content-Disposition: form-data; name="files"; filename="n"\r\n\r\n' + PICTURES["digit"] + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x; charset=utf-7"}
    reply = server.post(f"/predict?top_k={10**30}", content=body, headers=headers)
    (strange, digit), status = reply.json()["results"], reply.status_code
    assert status == 200 and strange["file"].startswith("\\ud800") and len(digit["top"]) == 10


# --- Refusals ---


def test_names_of_files_are_never_opened(server, tmp_path):
    """Pillow maps a file of this name into memory, if an image has one."""
    secret = tmp_path / "secret.bmp"
    Image.new("L", (64, 64), 255).save(secret)
    black = saved(Image.new("L", (64, 64), 0), "BMP")
    answers = [
        server.post("/predict", files=form((name, black))).json()["results"][0]["top"]
        for name in ("x", str(secret), f"file://{secret}", "/dev/zero")
    ]
    white = server.post("/predict", files=form(("x", secret.read_bytes()))).json()["results"][0]["top"]
    assert all(answer == answers[0] for answer in answers) and white != answers[0]
    reply = server.post("/predict", files=form((str(secret), b"x"), ("/etc/passwd", b"")))
    assert all("not an image" in result["error"] for result in reply.json()["results"])
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/docs/../../etc/passwd", "/static/x"):
        assert server.get(path).status_code == 404


@pytest.mark.parametrize(
    "request_, status, words",
    [
        ({"files": form(*[("x", b"x")] * 65)}, 400, "64"),
        ({"files": {"x": (None, "y")}}, 422, "no picture: send files"),
        ({"content": b"", "headers": {"content-length": "0"}}, 422, "no picture"),
        ({"content": iter([b"x"])}, 411, "Content-Length"),
        ({"content": b"x", "headers": {"content-length": str(65 << 20)}}, 413, "at most 65,536 KB"),
        ({"content": b"x", "headers": {"content-length": "9" * 5000}}, 413, "at most"),
        ({"content": b"x", "params": {"top_k": 0}}, 422, "top_k"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "oundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, ""),
        ({"content": b"x", "headers": {"host": "evil.example"}}, 403, "--allow-host NAME"),
        ({"content": b"x", "headers": {"origin": "https://evil.example"}}, 403, "cross-site"),
    ],
)
def test_bad_requests_are_refused(server, request_, status, words):
    reply = server.post("/predict", **request_)
    assert reply.status_code == status and words in json.dumps(reply.json()["detail"])


def test_other_paths_and_methods_are_refused(server):
    assert [server.get("/predict").status_code, server.put("/predict").status_code] == [405, 405]
    assert server.post("/health", content=b"x").status_code == 405 and server.get("/redoc").status_code == 404


def test_bytes_under_way_are_limited(server, monkeypatch):
    monkeypatch.setattr(api, "MAX_COMING", 1000)
    reply = server.post("/predict", content=bytes(1001))
    assert reply.status_code == 503 and "try again" in reply.json()["detail"]
    assert server.post("/predict", content=bytes(999)).status_code == 422  # read, but not an image
    assert server.app.coming == 0


def test_slow_bodies_are_given_up(server, monkeypatch):
    async def forever(_request):
        await asyncio.sleep(60)

    monkeypatch.setattr(api, "UPLOAD_TIME", 0.1)
    monkeypatch.setattr(api, "_read", forever)
    assert server.post("/predict", content=b"x").status_code == 408


def test_connections_without_a_request_are_closed(monkeypatch):
    servers = []

    class Kept(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    async def answer(scope, _, send):
        if scope["type"] == "http":
            await asyncio.sleep(0.8)  # longer than HEAD_SECONDS: a request that runs is not cut off
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    monkeypatch.setattr(uvicorn, "Server", Kept)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        thread = threading.Thread(target=run_until_signal, args=(answer, listener, "the server", False))
        thread.start()
        starts = (b"", whole[:9], whole, whole + whole[:9])
        clients = [stack.enter_context(socket.create_connection(listener.getsockname(), timeout=3)) for _ in starts]
        for client, start in zip(clients, starts):
            client.sendall(start)
        received = [b"".join(iter(lambda: client.recv(4096), b"")) for client in clients]  # noqa: B023  until closed
        servers[0].should_exit = True
        thread.join(10)
    assert [data.count(b"200 OK") for data in received] == [0, 0, 1, 1] and not thread.is_alive()


def test_a_failing_engine_is_logged_and_says_nothing_about_the_machine(opened, warned):
    def run(_images):
        raise RuntimeError(f"{SHIPPED} broke")

    broken = dataclasses.replace(opened, predictor=Predictor(run, opened.predictor.metadata))
    with server_of(broken) as server:
        reply = server.post("/predict", content=PICTURES["digit"])
    assert (reply.status_code, reply.json()) == (500, {"detail": "the model failed: the server's log says why"})
    assert f"{SHIPPED} broke" in warned.text


def test_an_output_that_is_not_finite_is_logged(opened, warned):
    classes = len(opened.predictor.metadata.classes)
    broken = Predictor(lambda images: np.full((len(images), classes), np.nan, np.float32), opened.predictor.metadata)
    with server_of(dataclasses.replace(opened, predictor=broken)) as server:
        reply = server.post("/predict", content=PICTURES["digit"])
    assert (reply.status_code, reply.json()) == (500, {"detail": "the model failed: the server's log says why"})
    lines = [each.message for each in warned.records if each.name == "t2t"]
    assert lines == ["error: the model's output contains NaN or infinity"]


# --- Engines ---


@pytest.mark.parametrize("engine, form_of, dynamic", [("inference", "paddle", False), ("onnxruntime", "onnx", False),
                         ("openvino", "openvino", False), ("onnxruntime", "onnx", True)])  # fmt: skip
def test_every_engine_answers(opened, tmp_path, monkeypatch, engine, form_of, dynamic):
    for library in ("onnx", "paddle2onnx", engine.replace("inference", "paddle")):
        pytest.importorskip(library, reason="an optional library of the engines")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    words = ["--pretrained", SHIPPED, "--format", form_of, "--images", 10] + ["--dynamic-batch"] * dynamic
    suffix = {"paddle": ".json", "onnx": ".onnx", "openvino": ".xml"}[form_of]
    tool("export", *words, "--file", tmp_path / f"x{suffix}")
    opens = Mock(wraps=open_module.open_predictor)
    monkeypatch.setattr(open_module, "open_predictor", opens)
    exported = opened_with(tmp_path / f"x{suffix}")
    assert opens.call_count == (2 if dynamic else 1)
    assert exported.predictor.parallel == (2 if engine != "inference" and not dynamic else 1)
    with server_of(exported) as server:
        reply = server.post("/predict", files=form(*((path.name, path.read_bytes()) for path in DIGITS)))
        assert server.get("/model").json()["batch_size"] == (128 if dynamic else 1)
    expected = predict_batch(opened.predictor, list(map(str, DIGITS)), opened.cfg, 5).values()
    for result, other in zip(reply.json()["results"], expected):
        assert result["name"] == other["name"]
        assert result["probability"] == pytest.approx(other["probability"], abs=2e-6)


# --- The command ---


def test_running_requests_are_finished_after_sigterm():
    with Page("--port", 0, "--wait-ms", 0, script="tools/serve.py") as page:
        assert page.lines[-2:] == [
            "note: t2t_vit_7 with output/pretrained/lit_data/best.pdparams\n", f"{page.url} is ready; Ctrl-C stops it\n"
        ]  # fmt: skip
        files = form(*((path.name, path.read_bytes()) for path in DIGITS[:2]))
        results = httpx.post(f"{page.url}/predict", files=files, timeout=60).json()["results"]
        assert [result["name"] for result in results] == ["three", "three"]
        running = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
        running.putrequest("POST", "/predict")
        running.putheader("Content-Length", str(len(PICTURES["digit"])))
        running.endheaders(PICTURES["digit"][:50])
        time.sleep(0.5)
        page.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", page.port))
        running.send(PICTURES["digit"][50:])
        with running.getresponse() as reply:
            assert reply.status == 200 and json.load(reply)["results"][0]["name"] == "three"
        out, error = page.process.communicate(timeout=60)
        assert (page.process.returncode, out, error) == (0, "", "")


def test_mistakes_are_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = f"error: port {port} of 127.0.0.1 is in use: choose another with --port, or 0 for any free port"
        assert error_line("serve", "--port", port) == line
    assert "absent.onnx not found" in error_line("serve", "--port", 0, "--pretrained", tmp_path / "absent.onnx")
    done = tool("serve", "--port", "99999", status=2)
    assert "argument --port: '99999' must be a number from 0 to 65535" in done.stderr
    assert "must be a number from 0 to 1000" in tool("serve", "--wait-ms", "soon", status=2).stderr


def test_ports():
    assert [port_number(word) for word in ("0", "8000", "65535")] == [0, 8000, 65535]
    for word in ("65536", "-1", "8e3", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 65535"):
            port_number(word)


def test_a_missing_library_is_one_line_with_the_command_to_install_all(tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('gone', name='fastapi')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tools/serve.py"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    message = "the server needs fastapi, which is not installed: pip install fastapi uvicorn python-multipart"
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")
