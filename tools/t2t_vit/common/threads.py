"""How many threads there are to use, and the user wants. No paddle: engines that start without it ask too."""

import contextlib
import math
import os
from pathlib import Path

from t2t_vit.common.errors import UserError


def cores():
    """Cores that this process may keep busy: those it may run on, or fewer by the quota of a container."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(here, _quota(Path("/")))))


def _quota(root):
    """Cores' worth of time that cgroups (v2 and v1) leave to this process; infinity without a limit.

    A container often sees its own limit at the top of /sys/fs/cgroup, wherever the host has put it.
    """
    quota = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            folder = top / path.strip("/")
            for place in (folder, *folder.parents):
                if place.is_relative_to(top):
                    quota = min(quota, _quota_in(place))
    return quota


def _quota_in(folder):
    """The limit that one cgroup sets."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # v2: "150000 100000", or "max 100000"
        with contextlib.suppress(OSError, ValueError):
            share, period = " ".join((folder / name).read_text() for name in names).split()
            if share != "max" and int(share) > 0:  # v1 has -1 for no limit
                return int(share) / int(period)
    return math.inf


def asked_threads():
    """OMP_NUM_THREADS, of "4,2" the first; 0 if it is not set. Raises UserError if it is not 1 to 1024."""
    value = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = value.split(",")[0].strip()
    if value and not (first.isascii() and first.isdigit() and 1 <= int(first[:9]) <= 1024):
        raise UserError(f"the environment has OMP_NUM_THREADS={value}, which must be 1 to 1024")
    return int(first or 0)
