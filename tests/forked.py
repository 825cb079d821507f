"""Processes that start as copies of one that has imported Paddle, which saves the 2 s of the import.

The copied process is forked off before the first test and computes nothing, so its copies know nothing of other tests.
Variables that Python and Paddle read when they start, such as FLAGS_... and OMP_NUM_THREADS, have no effect on a copy,
except PYTHONPATH. Destructors of C++ do not run at its end.
"""

import atexit
import contextlib
import ctypes
import os
import pickle
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import types

_SET_CHILD_SUBREAPER = 36  # of prctl(2)
_NUMBER = struct.Struct("Q")
_lock = threading.Lock()
_template = None  # socket to the process that is copied


class Forked(subprocess.Popen):
    """Like `subprocess.Popen([sys.executable, SCRIPT, *words], ...)`, or with Paddle's launcher in place of SCRIPT."""

    def _execute_child(self, args, _executable, preexec, _close, _pass, cwd, env, *others):
        descriptors = others[3:9]  # p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        streams = [own if given == -1 else given for own, given in enumerate(descriptors[0:1] + descriptors[3::2])]
        is_session = others[14] or preexec is os.setsid
        request = pickle.dumps(([os.fsdecode(word) for word in args], cwd, dict(env or os.environ), is_session))
        with _lock, _adopting():
            socket.send_fds(_template, [_NUMBER.pack(len(request))], streams)
            _template.sendall(request)
            self.pid = _NUMBER.unpack(_template.recv(_NUMBER.size + 1, socket.MSG_WAITALL)[:-1])[0]
        self._child_created = True
        self._close_pipe_fds(*descriptors)


def run(command, timeout=300, **options):
    """Run such a command to its end. Returns a `subprocess.CompletedProcess` with what it printed."""
    with Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            output, error = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, output, error)


@contextlib.contextmanager
def _adopting():
    """Meanwhile a process whose parent ends becomes a child of this process, which can wait for it."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def start_template():
    """Fork the process that `Forked` copies. Call it after the import of Paddle, before anything computes."""
    global _template
    _template, other = socket.socketpair()
    if not os.fork():
        _template.close()
        try:
            _serve(other)
        finally:
            os._exit(0)
    other.close()


def _serve(connection):
    """Fork a process for each request, until the tests end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import t2t_vit.training.run  # noqa: F401  which most commands import

    while True:
        header, streams, _, _ = socket.recv_fds(connection, _NUMBER.size, 3)
        if not header:
            return
        words, *settings = pickle.loads(connection.recv(_NUMBER.unpack(header)[0], socket.MSG_WAITALL))
        if not (between := os.fork()):  # ends at once, for the tests to adopt its child
            if child := os.fork():
                connection.sendall(_NUMBER.pack(child))
                os._exit(0)
            _become(words, *settings, streams)
        os.waitpid(between, 0)
        connection.sendall(b"!")  # it is adopted
        for stream in streams:
            os.close(stream)


def _become(words, folder, environment, is_session, streams):
    """Run `[python, *words]` in this process as in a new one, and end."""
    if is_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 4096)
    os.chdir(folder or ".")
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # to be found again
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = _status_of(words[1:])
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def _status_of(words):
    """Run `[SCRIPT, *words]` or `["-m", MODULE, *words]`; the exit status."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    try:
        if is_module:
            _fork_ranks()
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            own = os.path.dirname(os.path.abspath(sys.argv[0]))
            sys.path[:0] = [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _fork_ranks():
    """Let Paddle's launcher, which runs in this process, start its processes as copies too."""
    from paddle.distributed.launch.utils import process_context

    start_template()
    process_context.subprocess = types.SimpleNamespace(Popen=Forked)
