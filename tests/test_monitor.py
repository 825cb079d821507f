"""The failure monitor: if one process ends, fails or hangs, all stop, and the log has the reason."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from launching import free_port


class Job:
    """Processes of tests/programs/monitored.py, started with the launcher's variables."""

    def __init__(self, tmp_path, *actions, world_size=2, host="127.0.0.1", port=None, limits=(2, 2)):
        self.log, self.processes = tmp_path / "run.log", []
        port = port or free_port()
        endpoints = self.endpoints = ",".join(f"{host}:{port + rank}" for rank in range(world_size))
        for rank, action in enumerate(actions):
            names = {"TRAINERS_NUM": world_size, "TRAINER_ID": rank, "TRAINER_ENDPOINTS": endpoints}
            environment = {**os.environ, **{f"PADDLE_{name}": str(value) for name, value in names.items()}}
            command = [sys.executable, "tests/programs/monitored.py", str(self.log), *map(str, limits), action]
            self.processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                                   cwd=ROOT, env=environment))  # fmt: skip
        for process in self.processes:
            assert process.stdout.readline() == "begun\n"

    def signal(self, rank, number):
        self.processes[rank].send_signal(number)

    def ended(self, seconds=15):
        """[(status, stderr)] of all; they must end by themselves."""
        try:
            errors = [process.communicate(timeout=seconds)[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, error) for process, error in zip(self.processes, errors)]


def test_normal_exit_of_all_processes_is_not_a_failure(tmp_path):
    job = Job(tmp_path, "end", "slow")  # takes longer than the silence limit
    assert job.ended() == [(0, ""), (0, "")] and not job.log.exists()


def test_killed_process_is_reported_while_the_main_process_holds_the_gil(tmp_path):
    job = Job(tmp_path, "stuck", "stuck")
    job.signal(1, signal.SIGKILL)
    (status, stderr), _ = job.ended()
    line = (
        "error: rank 1 of 2: crashed, or was killed (by a user, or because memory ran out); latest.pdparams is there\n"
    )
    assert (status, stderr, job.log.read_text()) == (-signal.SIGKILL, line, line)


def test_monitor_reports_the_death_of_the_main_process(tmp_path):
    job = Job(tmp_path, "stuck", "stuck")
    job.signal(0, signal.SIGKILL)
    _, (status, stderr) = job.ended()
    assert (status, stderr) == (-signal.SIGKILL, "error: the main process has stopped; its log has the reason\n")
    assert job.log.read_text().startswith("error: rank 0 of 2: crashed, or was killed ")


@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_process_is_named(tmp_path, rank):
    job = Job(tmp_path, "stuck", "stuck")
    job.signal(rank, signal.SIGSTOP)
    assert [status for status, _ in job.ended()] == [-signal.SIGKILL] * 2
    assert job.log.read_text().startswith(f"error: rank {rank} of 2: no answer for 2 s: stopped, ")


def test_suspended_job_continues(tmp_path):
    job = Job(tmp_path, "wait", "wait")
    for number, wait in ((signal.SIGSTOP, 4), (signal.SIGCONT, 0)):
        for rank in (0, 1):
            job.signal(rank, number)
        time.sleep(wait)
    assert job.ended() == [(0, ""), (0, "")]


@pytest.mark.parametrize("host", ["192.0.2.1", "::1"])  # of another machine; not an IPv4 address
def test_address_that_only_other_machines_know(tmp_path, host):
    port = free_port()
    job = Job(tmp_path, "wait", host=host, port=port)
    with socket.socket() as rank_1:
        while rank_1.connect_ex(("127.0.0.1", port + 2)) and job.processes[0].poll() is None:
            time.sleep(0.1)
        for message in ({"job": job.endpoints, "rank": 1}, {"done": True}):
            rank_1.sendall((json.dumps(message) + "\n").encode())
        assert job.ended() == [(0, "")]


def test_used_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        job = Job(tmp_path, "stuck", port=port - 2)
        assert job.ended()[0] == (-signal.SIGKILL, f"error: rank 0 of 2: 127.0.0.1:{port}: Address already in use\n")


def test_process_that_never_starts_is_named(tmp_path):
    job = Job(tmp_path, "stuck")
    assert job.ended()[0][0] == -signal.SIGKILL
    assert re.match(r"error: rank 1 of 2: no answer in 2 s: not started, or 127.0.0.1:\d+ cannot be reached; ",
                    job.log.read_text())  # fmt: skip


def test_failure_reaches_the_log_of_the_main_process(tmp_path):
    job = Job(tmp_path, "stuck", "image")
    assert [status for status, _ in job.ended()] == [-signal.SIGKILL, 1]
    assert job.log.read_text() == "error: rank 1 of 2: image x cannot be read; latest.pdparams is there\n"


def test_failed_collective_does_not_hide_the_first_failure(tmp_path):
    job = Job(tmp_path, "gloo", "disk")
    job.ended()
    assert job.log.read_text().startswith("error: rank 1 of 2: disk full; ")
