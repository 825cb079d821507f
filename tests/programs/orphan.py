"""Fork a process that calls `end_with_parent` after its parent died, while another process keeps the parent's pipes."""

import multiprocessing
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../tools"))
from t2t_vit.data.workers import end_with_parent  # noqa: E402


def start_late(parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent(signal.SIGKILL)
    print("outlives its parent")


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    fork.Process(target=start_late, args=(os.getpid(),)).start()
    fork.Process(target=time.sleep, args=(2,)).start()
    os._exit(0)
