"""One process fails, all stop: without this the others would wait for it in their next collective operation.

Paddle's launcher ends the processes of its own machine, but not those of others, and not before the reason is lost
that the failed process alone knows. So each process holds a connection to the main one until it is done. Whatever ends
a process, the connection ends with it.
"""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time

from engine import parallel
from engine.logger import log
from errors import UserError, one_line

_WAIT_SECONDS = 60  # for a connection, and for the others to be done
_LAST_WORD_SECONDS = 5  # for the reason of a failure to reach the main log
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a machine that vanished is noticed in 35 s


class Lifeline:
    """Context of what several processes do together; alone it does nothing.

    If a process leaves it by an exception, or dies, the main process logs why and all exit with status 1.
    """

    def __init__(self):
        self.hint = lambda: ""  # what to tell with a failure
        self._done = threading.Event()
        self._links = []

    def __enter__(self):
        if parallel.world_size() == 1:
            return self
        if parallel.is_main():
            # gloo aborts the process when it loses another one: as its handler, sleep(SIGABRT) leaves six seconds to
            # say which. Python's own handlers would come too late.
            libc = ctypes.CDLL(None)
            libc.signal(signal.SIGABRT, libc.sleep)
        server = _listen(parallel.main_host()) if parallel.is_main() else None
        token = secrets.token_hex(16)
        port, token = parallel.from_main((server.getsockname()[1] if server else 0, token))
        if server:
            self._accept(server, token)
        else:
            self._connect(port, token)
        return self

    def __exit__(self, kind, error, _traceback):
        if parallel.world_size() == 1:
            return
        is_fault = error is not None and not isinstance(error, (UserError, OSError, KeyboardInterrupt))
        if not parallel.is_main():
            if is_fault:  # or a collective operation that failed because the main process is gone, which ends this one
                time.sleep(_LAST_WORD_SECONDS)
            self._done.set()
            self._send({"done": True} if error is None else {"reason": one_line(error)})
            if error is not None:
                with contextlib.suppress(OSError):  # the main process ends the connection when it has logged it
                    self._link.settimeout(_LAST_WORD_SECONDS)
                    self._link.recv(1)
            return
        if error is None:
            for thread in self._links:
                thread.join(_WAIT_SECONDS)
        elif is_fault:  # or a collective operation that failed: who failed first then ends this process meanwhile
            time.sleep(_LAST_WORD_SECONDS)
        self._done.set()

    def _accept(self, server, token):
        server.settimeout(_WAIT_SECONDS)
        while len(self._links) < parallel.world_size() - 1:
            link, _ = server.accept()
            link.settimeout(_WAIT_SECONDS)
            messages = _keep_alive(link).makefile("r", encoding="utf-8")
            hello = _message(messages)
            if hello.get("token") == token:
                link.settimeout(None)
                thread = threading.Thread(target=self._listen_to, args=(hello["rank"], messages), daemon=True)
                thread.start()
                self._links.append(thread)
        server.close()

    def _listen_to(self, rank, messages):
        """Main process: wait for the last word of another."""
        last = _message(messages)
        if not last.get("done") and not self._done.is_set():
            reason = last.get("reason", "gone without a word: killed, or its machine was lost")
            self._end(f"error: rank {rank} of {parallel.world_size()}: {reason}")

    def _connect(self, port, token):
        self._link = _keep_alive(socket.create_connection((parallel.main_host(), port), _WAIT_SECONDS))
        self._link.settimeout(None)
        self._send({"token": token, "rank": parallel.rank()})
        threading.Thread(target=self._wait_for_main, daemon=True).start()

    def _wait_for_main(self):
        with contextlib.suppress(OSError):
            self._link.recv(1)
        if not self._done.is_set():
            self._end("error: the main process has stopped; its log has the reason")

    def _send(self, message):
        with contextlib.suppress(OSError):  # the main process is gone already
            self._link.sendall((json.dumps(message) + "\n").encode())

    def _end(self, message):
        """End this process although its main thread waits for another one, in C++."""
        threading.Timer(10, os._exit, [1]).start()  # should the log be stuck as well
        if parallel.is_main():
            hint = self.hint()
            log.error("%s", f"{message}; {hint}" if hint else message)
        else:
            print(message, file=sys.stderr, flush=True)
        os._exit(1)


def _listen(host):
    try:
        return socket.create_server((host, 0))
    except OSError:  # the name by which the others know this machine is none of its own
        return socket.create_server(("", 0))


def _keep_alive(link):
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _message(messages):
    """Next line of a connection as a dict; {} at its end."""
    try:
        message = json.loads(messages.readline() or "{}")
    except (OSError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}
