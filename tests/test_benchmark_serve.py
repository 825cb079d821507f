"""`benchmark.py serve`: the load that it makes, and its figures."""

import asyncio
import contextlib
import json
import sys
import threading
from unittest.mock import Mock

import pytest
from conftest import tool

from t2t_vit.bench import serve
from t2t_vit.bench.load import measure_load, request_of
from t2t_vit.common.errors import UserError

for library in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(library, reason="the server needs it: pip install fastapi uvicorn python-multipart")

TAKES = 0.05  # seconds of a request


class Server:
    """Answers each request after a time with a status. Notes the bodies, and how many run at a time."""

    def __init__(self, status=b"200 OK"):
        self.status, self.bodies, self.running, self.most = status, set(), 0, 0
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        assert ready.wait(10)

    def _run(self, ready):
        listening = self.loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.port = listening.sockets[0].getsockname()[1]
        self.loop.call_soon(ready.set)
        self.loop.run_forever()

    async def _answer(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):  # the client is done
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                self.bodies.add(await reader.readexactly(length))
                self.running += 1
                self.most = max(self.most, self.running)
                await asyncio.sleep(TAKES)
                self.running -= 1
                writer.write(b"HTTP/1.1 " + self.status + b"\r\ncontent-length: 2\r\n\r\n{}")


def test_every_client_waits_for_its_answer():
    server = Server()
    found = measure_load(server.port, [request_of(b"a"), request_of(b"b")], 4, 1.0)
    assert server.most == 4 and len(server.bodies) == 2
    assert TAKES <= found["median"] <= found["p95"]
    assert found["rate"] * found["median"] == pytest.approx(4, rel=0.3)


def test_answers_in_batches_do_not_change_the_rate(monkeypatch):
    async def answered(*_):
        return [(0.7 * batch, 0.1) for batch in range(1, 5) for _ in range(16)]

    monkeypatch.setattr("t2t_vit.bench.load._load", answered)
    assert measure_load(0, [], 16, 3.5)["rate"] == pytest.approx(16 / 0.7)


def test_an_error_of_the_server_is_one_line():
    with pytest.raises(UserError, match="the server answered HTTP/1.1 503 Busy: {}"):
        measure_load(Server(b"503 Busy").port, [request_of(b"a")], 2, 0.5)


def test_every_library_is_asked_for_before_measuring(monkeypatch):
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(UserError, match="not installed: pip install fastapi uvicorn python-multipart"):
        serve.benchmark_serve(None, [], None)


@pytest.mark.parametrize("engine, size", [("paddle", 4), ("onnxruntime", 1)])
def test_server_and_engine_are_compared(tmp_path, monkeypatch, engine, size):
    for library in ("onnx", "paddle2onnx", "onnxruntime") if engine != "paddle" else ():
        pytest.importorskip(library, reason="an optional library of the engines")
    monkeypatch.setattr("t2t_vit.bench.serve.SECONDS", 0.5)
    monkeypatch.setattr("t2t_vit.bench.serve.BATCHES", 3)
    measured = Mock(wraps=serve._measure)
    monkeypatch.setattr(serve, "_measure", measured)
    file = tmp_path / "speed.json"
    words = ["serve", "--engines", engine, "--batch-sizes", size, "--threads", 1, "--clients", 3, "--rounds", 1]
    done = tool("benchmark", *words, "--json", file, "MODEL.T2T.DEPTH", 1, "VAL.TTA", "ten", fresh=False)
    assert measured.call_args.args[1].VAL.TTA == ""  # the engine alone computes one view
    (row,) = json.loads(file.read_text())["serve"]
    assert (row["model"], row["engine"], row["batch_size"], row["clients"]) == ("lit_data", engine, size, 3)
    alone, served = row["engine_images_per_second"]["median"], row["requests_per_second"]["median"]
    assert row["ratio"]["median"] == pytest.approx(served / alone) and served > 0
    assert 0 < row["milliseconds"]["median"] <= row["milliseconds_p95"]["median"]
    *_, line, note = done.stdout.splitlines()
    assert line.split()[:6] == ["lit_data", "16", str(size), "1", engine, "fp32"]
    assert f"{row['ratio']['median']:.2f}" in line.split() and note.startswith("3 clients, ")
