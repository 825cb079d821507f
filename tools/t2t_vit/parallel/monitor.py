"""Watches one of several processes and ends it when another one fails; the monitor of rank 0 writes why.

A process of its own, started by lifeline.py, because the one that it watches may hold Python's lock in a call of
Paddle, be stopped, or be dead. The monitors of the other ranks keep a connection to that of rank 0, which each second
carries {} in both directions while the sender's process runs, and at the end {"rank": N, "reason": text} or
{"done": true}. The watched process sends {"reason": text}, {"done": true}, {"log": path} and {"hint": text} to stdin.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time

_TICK_SECONDS = 0.25
_BEAT_TICKS = 4  # between two lines
_DONE_TICKS = 240  # 60 s for the others to be done
_FIRST_TICKS = 4  # 1 s in which the failure may arrive because of which the watched process ended
_LATE_SECONDS = 5  # without a line that are worth telling with a failure
_STUCK_SECONDS = 10  # for the reason to be written
_KILLED = "killed, by hand or for lack of memory, or crashed"
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Link:
    """Lines from a descriptor that never blocks: a connection to another monitor, or the pipe from the process."""

    def __init__(self, file):
        self.file, self.buffer, self.ended, self.silent, self.done = file, b"", False, 0, False

    def fileno(self):
        return self.file.fileno()

    def messages(self):
        """What has arrived, as dicts; sets `ended` at the end."""
        try:
            data = os.read(self.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        except OSError:  # the connection was reset
            data = b""
        self.ended, self.silent = not data, 0
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [message for message in map(_decoded, lines) if message is not None]

    def send(self, message):
        with contextlib.suppress(OSError):  # it is gone, or does not read
            self.file.sendall((json.dumps(message) + "\n").encode())


class Monitor:
    """What `main` runs.

    Args:
        pid: of the watched process, which started this one.
        rank: its number.
        world_size: how many there are.
        address: (host, port) of the monitor of rank 0.
        job: text that all monitors of this job know, and no other does.
        log: file to which rank 0 adds its last line, or None.
        limits: [seconds for the monitors to find each other, seconds without a line that mean a stopped process].
    """

    def __init__(self, pid, rank, world_size, address, job, log, limits):
        self.start_limit, self.silence_limit = limits
        self.pid, self.rank, self.world_size, self.address, self.job = pid, rank, world_size, tuple(address), job
        self.log, self.hint = [log] if log and rank == 0 else [], ""
        self.own = Link(sys.stdin.buffer)
        os.set_blocking(self.own.fileno(), False)
        self.unknown, self.links = [], {}  # connections that have not said their rank; by rank
        self.expected = range(1, world_size) if rank == 0 else [0]
        self.failure = None  # why the watched process ends
        self.ticks = self.gone = self.finished = 0  # since the start, the end of the process, its being done

    def run(self):
        """Until the watched process has ended, with the others told or heard."""
        try:
            self.server = _listen(*self.address) if self.rank == 0 else None
        except OSError as error:
            self._end(0, "{}:{}: {}".format(*self.address, os.strerror(error.errno)))
        while True:
            before = time.monotonic()
            if self.rank and not self.links and not self.own.done:
                self._connect()
            self._read()
            time.sleep(max(0.0, before + _TICK_SECONDS - time.monotonic()))
            self._tick(overdue=time.monotonic() > before + 8 * _TICK_SECONDS)

    # --- What arrives ---

    def _read(self):
        open_links = [link for link in [self.own, *self.unknown, *self.links.values()] if not link.ended]
        ready, _, _ = select.select([*open_links, *([self.server] if self.server else [])], [], [], _TICK_SECONDS)
        for source in ready:
            if source is self.server:
                self.unknown.append(_connection(source.accept()[0]))
            elif source is self.own:
                self._hear_process()
            elif source in self.unknown:
                self._meet(source)
            else:
                self._hear(source, source.messages())

    def _hear_process(self):
        for message in self.own.messages():
            self.hint = message.get("hint", self.hint)
            if "log" in message:  # of a run that has begun to write it
                self.log.insert(0, message["log"])
            self.own.done = self.own.done or message.get("done", False)
            self.failure = self.failure or message.get("reason")

    def _meet(self, link):
        hello, *messages = link.messages() or [{}]
        if hello.get("job") == self.job and hello.get("rank") in self.expected:
            self.unknown.remove(link)
            self.links[hello["rank"]] = link
            self._hear(link, messages)
        elif hello or link.ended:
            self.unknown.remove(link)

    def _hear(self, link, messages):
        rank = next(rank for rank in self.links if self.links[rank] is link)
        for message in messages:
            link.done = link.done or message.get("done", False)
            if "reason" in message:
                self._end(message["rank"], message["reason"])
        if link.ended and not link.done:
            self._end(rank, "disconnected: its machine or its monitor was lost")

    def _connect(self):
        try:
            link = _connection(socket.create_connection(self.address, 1))
        except OSError:  # it starts later
            return
        if link.file.getsockname() == link.file.getpeername():  # TCP meets itself where nobody listens yet
            link.file.close()
            return
        link.send({"job": self.job, "rank": self.rank})
        self.links[0] = link

    # --- What is noticed ---

    def _tick(self, overdue):
        running = self._running()
        if running is None:
            self._process_gone()
        if self.failure and self.rank == 0:  # which has told it itself
            for line in self._silent():
                self._write(f"error: {line}")
            sys.exit(1)
        if self.failure and (self.links or self.gone * _TICK_SECONDS > self.start_limit):
            self._leave(self.rank, self.failure)
        if self.own.done:
            self._process_done()
        if not running or overdue:  # stopped, perhaps with all others, or this machine slept
            return
        self.ticks += 1
        if self.ticks % _BEAT_TICKS == 0:
            for link in self.links.values():
                link.send({})
        for rank in self.expected:
            self._check(rank)

    def _check(self, rank):
        link = self.links.get(rank)
        if link is None:
            if self.ticks * _TICK_SECONDS > self.start_limit and not self.own.done:
                where = "{}:{}".format(*self.address)
                self._end(rank, f"no answer in {self.start_limit} s: not started, or {where} cannot be reached")
            return
        link.silent += 1
        if link.silent * _TICK_SECONDS > self.silence_limit and not link.done and not self.own.done:
            self._end(rank, f"no answer for {self.silence_limit} s: stopped, or its machine was lost")

    def _silent(self, known=None):
        """What to say of other processes that do not answer, for which gloo waits less long than this monitor."""
        links = [(rank, link) for rank, link in self.links.items() if rank != known and not link.done]
        silent = [(rank, link.silent * _TICK_SECONDS) for rank, link in links]
        return [f"rank {rank}: no answer for {time:.0f} s" for rank, time in silent if time > _LATE_SECONDS]

    def _running(self):
        """None: the process has ended; False: it is stopped, by SIGSTOP or Ctrl-Z; True."""
        if os.getppid() != self.pid:
            return None
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] != b"T"
        except OSError:  # no Linux
            return True

    def _process_gone(self):
        self.gone += 1
        self._hear_process()
        if self.own.done:
            return
        if self.rank:
            self.failure = self.failure or _KILLED
        elif self.gone > _FIRST_TICKS and not self.failure:
            self._end(0, _KILLED)

    def _process_done(self):
        self.finished += 1
        if self.rank:
            for link in self.links.values():
                link.send({"done": True})
            sys.exit()
        others = len(self.links) == self.world_size - 1 and all(link.done for link in self.links.values())
        if others or self.finished > _DONE_TICKS:
            sys.exit()

    # --- The end ---

    def _leave(self, rank, reason):
        """Rank 1 and on: tell rank 0 which process has failed, and why."""
        for link in self.links.values():
            link.send({"rank": rank, "reason": reason})
        os._exit(1)

    def _end(self, rank, reason):
        """End the process because of what happened to `rank`."""
        threading.Timer(_STUCK_SECONDS, self._kill).start()  # should the log be stuck as well
        message = "; ".join([f"error: rank {rank} of {self.world_size}: {reason}", *self._silent(rank)])
        if self.rank == 0:
            self._write(f"{message}; {self.hint}" if self.hint else message)
        elif self.links.get(rank) and self.links[rank].ended:
            self._write("error: the main process has stopped; its log has the reason")
        else:
            self._write(message)
        self._kill()
        if self.rank:
            self._leave(rank, reason)
        os._exit(1)

    def _kill(self):
        if os.getppid() == self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def _write(self, line):
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            path = next((path for path in self.log if os.path.isfile(path)), (self.log or [None])[-1])
            if path:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{line}\n")


def _listen(host, port):
    try:
        return socket.create_server((host, port))
    except OSError:  # the name by which the others know this machine is none of its own
        return socket.create_server(("", port))


def _connection(connection):
    connection.settimeout(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Link(connection)


def _decoded(line):
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the watched process decides
        signal.signal(number, signal.SIG_IGN)
    Monitor(**json.loads(sys.argv[1])).run()
