"""Program that watches one of several processes, and kills it if another one fails. Started by failure_monitor.py.

It is a separate process, because the watched process may be stopped, dead, or hold Python's lock in a Paddle call.
The monitors of ranks 1, 2, ... connect to the monitor of rank 0, which writes the reason of a failure. All messages are
JSON lines:
  between monitors: {} at least once a second while the process runs, {"rank": N, "reason": text}, {"done": true}
  from the watched process, on stdin: {"log": path}, {"hint": text}, {"reason": text}, {"done": true}
"""

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time

_TICK_SECONDS = 0.25
_BEAT_TICKS = 4  # ticks between two {} messages (heartbeats)
_DONE_TICKS = 240  # rank 0 waits this long for the others to be done
_KILLED = "crashed, or was killed (by a user, or because memory ran out)"
_LOST = "disconnected: its machine or its monitor was lost"


class Link:
    """Reads JSON lines in a thread and puts them into `inbox` as (link, message). (link, None) means disconnected."""

    def __init__(self, lines, inbox, connection=None, rank=None):
        self.lines, self.inbox, self.connection = lines, inbox, connection
        self.rank = rank  # rank at the other end; None: not known yet
        self.done, self.silent = False, 0  # ticks since the last line
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError, TypeError, ValueError):  # connection reset; or garbage from another program
            for line in self.lines:
                self.inbox.put((self, dict(json.loads(line))))
        self.inbox.put((self, None))

    def send(self, **message):
        with contextlib.suppress(OSError):  # disconnected
            self.connection.sendall((json.dumps(message) + "\n").encode())


class Monitor:
    """Monitor of one process.

    Args:
        pid: the watched process, which is the parent of this one.
        rank: rank of the watched process.
        world_size: number of processes.
        address: (host, port) at which the monitor of rank 0 listens.
        job: text that identifies the job. Connections of other programs are ignored.
        limits: (seconds until all must have connected, seconds of silence after which a process counts as lost).
    """

    def __init__(self, pid, rank, world_size, address, job, limits):
        self.pid, self.rank, self.world_size, self.address, self.job = pid, rank, world_size, tuple(address), job
        self.start_limit, self.silence_limit = limits
        self.inbox = queue.SimpleQueue()
        self.process, self.links = Link(sys.stdin.buffer, self.inbox), []
        self.log, self.hint, self.reason = "", "", None
        self.ticks = self.gone = self.finished = 0  # ticks with the process running; dead; done

    def run(self):
        if self.rank == 0:
            threading.Thread(target=self._accept, args=[self._listen()], daemon=True).start()
        while True:
            time.sleep(_TICK_SECONDS)
            if self.rank and not self.links and not self.process.done:
                self._connect()
            while not self.inbox.empty():
                self._receive(*self.inbox.get())
            self._tick()

    # --- Messages ---

    def _listen(self):
        with contextlib.suppress(OSError):
            return socket.create_server(self.address)
        try:  # listen everywhere: this machine may not have that address (NAT, a published port)
            return socket.create_server(("", self.address[1]))
        except OSError as error:
            self._fail(0, "{}:{}: {}".format(*self.address, os.strerror(error.errno or 0)))

    def _accept(self, server):
        while True:
            self._add(server.accept()[0])

    def _connect(self):
        with contextlib.suppress(OSError):  # rank 0 does not listen yet
            connection = socket.create_connection(self.address, 1)
            if connection.getsockname() == connection.getpeername():  # TCP may connect to itself if nobody listens
                connection.close()
                return
            self._add(connection, rank=0)
            self.links[0].send(job=self.job, rank=self.rank)

    def _add(self, connection, rank=None):
        connection.settimeout(None)
        self.links.append(Link(connection.makefile("rb"), self.inbox, connection, rank))

    def _receive(self, link, message):
        if link is self.process:
            message = message or {}
            self.log = message.get("log", self.log)
            self.hint = message.get("hint", self.hint)
            self.reason = self.reason or message.get("reason")
        elif link.rank is None:
            if message and message.get("job") == self.job:
                link.rank = message["rank"]
        elif message is None and not link.done:
            self._fail(link.rank, _LOST)
        elif message and "reason" in message:
            self._fail(message["rank"], message["reason"])
        link.done = link.done or message == {"done": True}
        link.silent = 0

    # --- The watched process and time ---

    def _tick(self):
        state = self._state()
        self.gone += state == "dead"
        is_dead = self.gone > 1  # by now, its last messages have arrived
        if self.process.done:
            self._finish()
        elif self.reason and self.rank == 0:  # the process has reported its own failure
            os._exit(1)
        elif is_dead and self.rank == 0:
            self._fail(0, _KILLED)
        elif (is_dead or self.reason) and self.rank and (self.links or self._over(self.gone, self.start_limit)):
            self._report(self.rank, self.reason or _KILLED)
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
                place = "{}:{}".format(*self.address)
                self._fail(rank, f"no answer in {self.start_limit:.0f} s: not started, or {place} cannot be reached")
            if link and not link.done:
                link.silent += 1
                if self._over(link.silent, self.silence_limit):
                    self._fail(rank, f"no answer for {self.silence_limit:.0f} s: stopped, or its machine was lost")
            if link and self.ticks % _BEAT_TICKS == 0:
                link.send()

    @staticmethod
    def _over(ticks, seconds):
        return ticks * _TICK_SECONDS > seconds

    # --- The end ---

    def _finish(self):
        """The process is done. The monitor of rank 0 waits for the others."""
        self.finished += 1
        for link in self.links:
            link.send(**{"done": True} if self.rank else {})  # {}: otherwise rank 0 counts as lost
        are_done = sum(link.done for link in self.links) == self.world_size - 1
        if self.rank or are_done or self.finished > _DONE_TICKS:
            os._exit(0)  # do not wait for the threads

    def _fail(self, rank, reason):
        """Kill the watched process because `rank` has failed, and write the reason."""
        if os.getppid() == self.pid:
            os.kill(self.pid, signal.SIGKILL)  # before writing, which may block
        message = f"error: rank {rank} of {self.world_size}: {reason}"
        if self.rank and reason == _LOST:
            message = "error: the main process has stopped; its log has the reason"
        self._write(f"{message}; {self.hint}" if self.hint and self.rank == 0 else message)
        self._report(rank, reason)

    def _report(self, rank, reason):
        """Report a failure to the monitor of rank 0 and exit."""
        for link in self.links if self.rank else ():
            link.send(rank=rank, reason=reason)
        os._exit(1)

    def _write(self, line):
        """Write a line to stderr and, in the main process, to the log."""
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        if self.log:
            with contextlib.suppress(OSError), open(self.log, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{line}\n")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # only the watched process handles them
        signal.signal(number, signal.SIG_IGN)
    Monitor(**json.loads(sys.argv[1])).run()
