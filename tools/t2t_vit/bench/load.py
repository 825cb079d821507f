"""Load on a server: clients that each send a picture, wait for the answer, and send the next.

The clients share the cores with the server, so they do little: requests are made before, answers are not parsed.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time

import numpy as np

from t2t_vit.common.errors import UserError

_BOUNDARY = "picture-of-the-benchmark"


def request_of(picture: bytes) -> bytes:
    """Return the HTTP request that sends the contents of an image file as a form."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="picture"\r\n\r\n'
    body = head.encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()
    kind = f"multipart/form-data; boundary={_BOUNDARY}"
    lines = ("POST /predict HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def measure_load(port: int, requests: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Return {"rate": answers per second, "median", "p95": seconds of a request} of a port of this machine.

    The first quarter of the `seconds` is not counted. Raises UserError if an answer has another status than 200.
    """
    answers = asyncio.run(_load(port, requests, clients, seconds))
    if len({moment for moment, _ in answers}) < 2:
        raise UserError(f"the server gave {len(answers)} answers in {seconds:.0f} seconds")
    moments, times = np.array(answers).T
    # A slope, because answers come in batches: their number would depend on which batches just fit into the time.
    rate = np.polyfit(moments - moments[0], np.arange(len(moments)), 1)[0]
    return {"rate": float(rate), "median": float(np.median(times)), "p95": float(np.quantile(times, 0.95))}


async def _load(port, requests, clients, seconds):
    """Return [(time of the answer, seconds that it took)] of the answers that are counted, in their order."""
    start = time.perf_counter()
    end, answers = start + seconds, []
    turns = [itertools.islice(itertools.cycle(requests), first, None) for first in range(clients)]
    await asyncio.gather(*(_client(port, turn, end, answers) for turn in turns))
    return [answer for answer in answers if start + seconds / 4 <= answer[0] < end]


async def _client(port, requests, end, answers):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for request in requests:
            sent = time.perf_counter()
            if sent >= end:
                return
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length))
            if b" 200 " not in head.splitlines()[0]:
                raise UserError(f"the server answered {head.splitlines()[0].decode()}: {body[:200].decode()}")
            now = time.perf_counter()
            answers.append((now, now - sent))
    finally:
        writer.close()
