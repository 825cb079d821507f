"""How many threads the user wants. No paddle: engines that start without it ask too."""

import os

from errors import UserError


def asked_threads():
    """OMP_NUM_THREADS, of "4,2" the first; 0 if it is not set. Raises UserError if it is no number of 1 or more."""
    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = value.split(",")[0].strip()
    if value and not (first.isascii() and first.isdigit() and int(first) >= 1):
        raise UserError(f"the environment has OMP_NUM_THREADS={value}, which must be 1 or more")
    return int(first or 0)


def usable_cores():
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
