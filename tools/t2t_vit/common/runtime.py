"""Set up the process: cores, threads, memory, required packages, and the import of Paddle."""

import contextlib
import ctypes
import importlib.util
import io
import math
import os
import re
import resource
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path

from t2t_vit.common import ranks
from t2t_vit.common.errors import UserError

# {name to import: name of the package}
_PACKAGES = {
    "paddle": "PaddlePaddle",
    "yacs": "yacs",
    "yaml": "PyYAML",
    "numpy": "NumPy",
    "PIL": "Pillow",
    "tqdm": "tqdm",
}
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt(3)


# --- Packages and the import of Paddle ---


def missing_packages() -> list[str]:
    """Names of the required packages that are not installed."""
    return [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]


def not_installed(names: list[str]) -> UserError:
    """Return a UserError that names the missing packages and says how to install them."""
    return UserError(
        f"{', '.join(names)} not installed in {sys.executable}; "
        "`source scripts/env.sh` creates and activates an environment with all packages"
    )


def import_paddle(device: str, several: bool = False) -> None:
    """Set the variables that Paddle reads at import, unless the user has set them, and import Paddle.

    OMP_NUM_THREADS is set to this process's share of the cores.

    Args:
        device: value of DEVICE.
        several: whether this may be one of several processes. Otherwise the variables of Paddle's launcher are removed.

    Raises:
        UserError: a package is missing, or OMP_NUM_THREADS is not a number of threads.
    """
    if missing := missing_packages():
        raise not_installed(missing)
    asked_threads()  # checked here, because OpenMP silently ignores an invalid number
    if not several:
        ranks.forget()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks.local_size())))
    os.environ.setdefault("GLOG_minloglevel", "2")
    if device == "cpu" or not (device or shutil.which("nvidia-smi")):
        # With strided views, every CPU matmul copies a transposed input: 5.3 instead of 8.7 images/s (t2t_vit_7).
        os.environ.setdefault("FLAGS_use_stride_kernel", "0")
        if needs_avx2_chosen(Path("/proc/cpuinfo")):
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
        # A matrix product with a result of 38 MB takes 9 ms in memory that was used before, 40 to 70 ms in new memory.
        keep_freed_memory(2048)
    import_quietly()


def import_quietly() -> None:
    """Import Paddle without its warnings and its signal handlers."""
    # Paddle warns about several OpenMP threads and a missing ccache at every import. Signals are blocked because the
    # import would turn Ctrl-C into an ImportError.
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import paddle  # here, after the options are parsed and the environment is set

        paddle.disable_signal_handler()  # it would print a C++ stack trace
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


# --- Cores, threads, memory ---


def needs_avx2_chosen(cpuinfo: Path) -> bool:
    """Tell whether Paddle's matrix products would leave the AVX2 of this CPU unused.

    The MKL in Paddle 2.6.2 and 3.3.1 is of 2019. On a CPU that Intel did not make it uses SSE, unless
    MKL_DEBUG_CPU_TYPE is 5 (AVX2): 23 instead of 74 GFLOP/s on one core of an AMD EPYC.

    Args:
        cpuinfo: /proc/cpuinfo of Linux. Elsewhere it does not exist, and the answer is no.
    """
    with contextlib.suppress(OSError):
        words = cpuinfo.read_text(errors="replace").split()
        return "GenuineIntel" not in words and {"avx2", "fma"} <= set(words)
    return False


def cores() -> int:
    """Number of cores that this process may use, given its CPU affinity and the quota of the container."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(available, _quota(Path("/sys/fs/cgroup")))))


def _quota(folder):
    """CPU limit of the container, in cores, from cgroup v2 or v1; infinity without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # v2: "150000 100000"
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):  # no limit
                return int(quota) / int(period)
    return math.inf


def asked_threads() -> int:
    """Return OMP_NUM_THREADS (the first number of "4,2"), 0 if unset. Raises UserError if it is not 1 to 1024."""
    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = value.split(",")[0].strip()
    if value and not (first.isascii() and first.isdigit() and 1 <= int(first[:9]) <= 1024):
        raise UserError(f"the environment has OMP_NUM_THREADS={value}, which must be 1 to 1024")
    return int(first or 0)


def keep_freed_memory(megabytes: int) -> None:
    """Let glibc keep up to this much freed memory for later use, instead of returning it to the system.

    Otherwise every large tensor or decoded image gets new memory, which the kernel has to clear first.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)  # allocate large blocks on the heap too: only the heap keeps freed memory
        libc.mallopt(_M_ARENA_MAX, 1)  # one heap for all threads
        libc.mallopt(_M_TRIM_THRESHOLD, min(megabytes * 2**20, 2**31 - 1))


def memory_mb() -> tuple[float, float]:
    """Return the main memory that this process uses now, and its peak, in MB; or twice the peak outside Linux.

    getrusage would not do: in a new process, its peak starts with the memory of the parent.
    """
    with contextlib.suppress(OSError, KeyError):  # gVisor has no VmHWM
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE))
        return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes or KiB
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20,) * 2


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from now on, while a command ends. Does nothing in a notebook or a test, which continues."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    is_command = main and Path(main).absolute().parent == Path(__file__).absolute().parents[2]
    if is_command and "IPython" not in sys.modules and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
