"""The end of a process, which one more Ctrl-C must not disturb."""

import signal
import sys
import threading
from pathlib import Path


def ignore_interrupts():
    """Make nothing of Ctrl-C from now on, where the process is a command's own; a notebook or a test lives on."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    is_command = main and Path(main).absolute().parent == Path(__file__).absolute().parents[2]
    if is_command and "IPython" not in sys.modules and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
