"""Run a command of tools/ inside the test process, to save the start of Python and Paddle."""

import contextlib
import gc
import io
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import paddle

_PACKAGE = "t2t_vit"


def run(script, words, cwd):
    """Run a Python script as `subprocess.run([python, script, *words], cwd=cwd)` would.

    Returns a `subprocess.CompletedProcess`.
    """
    command = [str(script), *map(str, words)]
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with _unchanged_process(), contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        sys.argv = command
        os.chdir(cwd)
        try:
            runpy.run_path(command[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
    out, error = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in streams)
    return subprocess.CompletedProcess([sys.executable, *command], status, out, error)


@contextlib.contextmanager
def _unchanged_process():
    """Context manager: undo the process-wide settings of a command."""
    argv, folder, environment = sys.argv, Path.cwd(), dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    log = logging.getLogger("t2t")
    log_state = {"handlers": list(log.handlers), "level": log.level, "propagate": log.propagate}
    device, random_state = paddle.get_device(), paddle.get_rng_state()
    switches = _switches()
    try:
        yield
    finally:
        sys.argv = argv
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for process in multiprocessing.active_children():  # as the end of a process would
            process.kill()
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for handler in set(log.handlers) - set(log_state["handlers"]):
            handler.close()
        vars(log).update(log_state)
        log.manager._clear_cache()  # of which levels are enabled
        paddle.set_device(device)
        paddle.set_rng_state(random_state)
        for (module, name), value in switches.items():
            setattr(sys.modules[module], name, value)
        gc.collect()  # closes files, and with them the lock of a run folder


def _switches():
    """{(module, name): value} of the package's global variables that are True or False."""
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == _PACKAGE}
    return {
        (module, name): value
        for module, content in modules.items()
        for name, value in vars(content).items()
        if isinstance(value, bool)
    }
