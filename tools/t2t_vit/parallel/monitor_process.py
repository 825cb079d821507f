"""Program that watches one of several processes, and kills it if another one fails. Started by failure_monitor.py.

It is a process of its own because the watched process may be stopped, dead, or hold Python's lock in a call of Paddle.
The monitors of ranks 1, 2, ... connect to the monitor of rank 0, which writes the reason of a failure. All messages are
JSON lines:
  between monitors: {} once a second while the watched process runs, {"rank": N, "reason": text}, {"done": true}
  from the watched process, on stdin: {"log": path}, {"hint": text}, {"reason": text}, {"done": true}
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

_TICK_SECONDS = 0.25
_BEAT_TICKS = 4  # ticks between two {}
_FIRST_TICKS = 4  # after the death of rank 0: time for another process to report the failure that caused it
_DONE_TICKS = 240  # rank 0 waits this long for the others to be done
_SILENT_SECONDS = 5  # silence of another process that is reported together with a failure
_WRITE_SECONDS = 10  # after this time a process is killed even if the reason could not be written
_KILLED = "killed, by hand or for lack of memory, or crashed"


class Link:
    """Reads JSON lines from a socket or pipe without blocking."""

    def __init__(self, file, rank=None):
        self.file, self.rank = file, rank  # rank at the other end; None: not known yet
        self.buffer, self.ended, self.done = b"", False, False
        self.silent = 0  # ticks since the last line

    def read(self):
        """The messages that have arrived."""
        try:
            data = os.read(self.file.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        except OSError:  # connection reset
            data = b""
        self.ended, self.silent = not data, 0
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                messages.append(json.loads(line))
        self.done = self.done or {"done": True} in messages
        return [message for message in messages if isinstance(message, dict)]

    def send(self, **message):
        with contextlib.suppress(OSError):  # disconnected
            self.file.sendall((json.dumps(message) + "\n").encode())


class Monitor:
    """Monitor of one process.

    Args:
        pid: the watched process, which is the parent of this one.
        rank: rank of the watched process.
        world_size: number of processes.
        address: (host, port) at which the monitor of rank 0 listens.
        job: text that identifies the job. Connections of other programs are ignored.
        limits: seconds until all must have connected; seconds of silence after which a process counts as lost.
    """

    def __init__(self, pid, rank, world_size, address, job, limits):
        self.pid, self.rank, self.world_size, self.address, self.job = pid, rank, world_size, tuple(address), job
        self.start_limit, self.silence_limit = limits
        self.process = Link(sys.stdin.buffer)
        os.set_blocking(self.process.file.fileno(), False)
        self.logs, self.hint, self.reason = [], "", None
        self.server, self.links = None, []
        self.ticks = self.gone = self.finished = 0  # ticks in which the process ran, was dead, was done

    def run(self):
        if self.rank == 0:
            self._listen()
        while True:
            time.sleep(_TICK_SECONDS)
            self._read_process()
            self._read_links()
            self._tick()

    def _listen(self):
        try:
            try:
                self.server = socket.create_server(self.address)
            except OSError:  # the host may be a name of this machine that only the other machines know
                self.server = socket.create_server(("", self.address[1]))
        except OSError as error:
            self._fail(0, "{}:{}: {}".format(*self.address, os.strerror(error.errno)))
        self.server.setblocking(False)

    def _connect(self):
        with contextlib.suppress(OSError):  # rank 0 does not listen yet
            connection = socket.create_connection(self.address, 1)
            if connection.getsockname() == connection.getpeername():  # TCP can connect to itself if nobody listens
                connection.close()
                return
            self.links.append(Link(connection, rank=0))
            self.links[0].send(job=self.job, rank=self.rank)

    # --- Messages ---

    def _read_process(self):
        for message in self.process.read():
            self.hint = message.get("hint", self.hint)
            self.reason = self.reason or message.get("reason")
            if "log" in message and self.rank == 0:
                self.logs.insert(0, message["log"])

    def _read_links(self):
        if self.server:
            with contextlib.suppress(BlockingIOError):
                connection, _ = self.server.accept()
                connection.settimeout(1)  # os.read does not block then
                self.links.append(Link(connection))
        elif not self.links and not self.process.done:
            self._connect()
        for link in list(self.links):
            for message in link.read():
                if link.rank is None and message.get("job") == self.job:
                    link.rank = message["rank"]
                elif link.rank is not None and "reason" in message:
                    self._fail(message["rank"], message["reason"])
            if link.ended and link.rank is None:
                self.links.remove(link)
            elif link.ended and not link.done:
                self._fail(link.rank, "disconnected: its machine or its monitor was lost")

    # --- The watched process and time ---

    def _tick(self):
        state = self._state()
        if state == "dead":
            self.gone += 1
            self._read_process()  # what it wrote before it died
        if self.process.done:
            self._finish()
        elif self.reason and self.rank == 0:  # the process has reported its own failure
            for line in self._silent():
                self._write(f"error: {line}")
            sys.exit(1)
        elif state == "dead" and self.rank == 0 and self.gone > _FIRST_TICKS:
            self._fail(0, _KILLED)
        elif (state == "dead" or self.reason) and self.rank and (self.links or self._over(self.gone, self.start_limit)):
            self._exit(self.rank, self.reason or _KILLED)
        elif state == "running":
            self._watch_others()

    def _state(self):
        """running, stopped (by SIGSTOP or Ctrl-Z) or dead."""
        if os.getppid() != self.pid:
            return "dead"
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return "stopped" if file.read().rpartition(b")")[2].split()[0] == b"T" else "running"
        except OSError:  # not Linux
            return "running"

    def _watch_others(self):
        self.ticks += 1
        links = {link.rank: link for link in self.links}
        for rank in range(1, self.world_size) if self.rank == 0 else [0]:
            link = links.get(rank)
            if link is None and self._over(self.ticks, self.start_limit):
                host, port = self.address
                self._fail(
                    rank, f"no answer in {self.start_limit:.0f} s: not started, or {host}:{port} cannot be reached"
                )
            elif link and not link.done:
                link.silent += 1
                if self._over(link.silent, self.silence_limit):
                    self._fail(rank, f"no answer for {self.silence_limit:.0f} s: stopped, or its machine was lost")
            if link and self.ticks % _BEAT_TICKS == 0:
                link.send()

    @staticmethod
    def _over(ticks, seconds):
        return ticks * _TICK_SECONDS > seconds

    def _silent(self, known=None):
        """Lines about processes that do not answer. Reported early, because gloo times out before this monitor."""
        links = [link for link in self.links if link.rank not in (None, known) and not link.done]
        return [f"rank {link.rank}: no answer for {link.silent * _TICK_SECONDS:.0f} s" for link in links
                if self._over(link.silent, _SILENT_SECONDS)]  # fmt: skip

    # --- The end ---

    def _finish(self):
        """The process is done. The monitor of rank 0 waits for the others."""
        self.finished += 1
        if self.rank:
            for link in self.links:
                link.send(done=True)
            sys.exit()
        if sum(link.done for link in self.links) == self.world_size - 1 or self.finished > _DONE_TICKS:
            sys.exit()

    def _fail(self, rank, reason):
        """End the watched process because of what happened to `rank`; write the reason."""
        threading.Timer(_WRITE_SECONDS, self._kill).start()  # in case writing blocks
        message = "; ".join([f"error: rank {rank} of {self.world_size}: {reason}", *self._silent(rank)])
        if self.rank == 0:
            self._write(f"{message}; {self.hint}" if self.hint else message)
        elif self.links and self.links[0].ended:
            self._write("error: the main process has stopped; its log has the reason")
        else:
            self._write(message)
        self._kill()
        self._exit(rank, reason)

    def _exit(self, rank, reason):
        if self.rank:  # report to rank 0
            for link in self.links:
                link.send(rank=rank, reason=reason)
        os._exit(1)

    def _kill(self):
        if os.getppid() == self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def _write(self, line):
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        # The newest log that exists: the log of a run changes its name at the first save.
        path = next(filter(os.path.isfile, self.logs), self.logs[-1] if self.logs else None)
        if path:
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{line}\n")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the watched process handles them
        signal.signal(number, signal.SIG_IGN)
    Monitor(**json.loads(sys.argv[1])).run()
