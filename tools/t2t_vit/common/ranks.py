"""Rank and number of processes, from the variables of Paddle's launcher. Does not import paddle."""

import os

from t2t_vit.common.errors import UserError

NAMES = ("PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID", "PADDLE_TRAINER_ENDPOINTS", "PADDLE_CURRENT_ENDPOINT",
         "PADDLE_LOCAL_SIZE")  # fmt: skip


def rank() -> int:
    """Index of this process, 0 to world_size() - 1."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def local_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("PADDLE_LOCAL_SIZE", world_size()))


def is_main() -> bool:
    """True in the process that prints and writes files."""
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


def main_endpoint() -> tuple[str, int]:
    """Return (host, port) on the machine of rank 0. Paddle does not use this port."""
    first = _endpoints()[0]
    host, _, port = first.rpartition(":")
    # If PADDLE_MASTER is not set (--ips of paddle 2.6.2), Paddle's own store uses the first endpoint.
    taken = os.environ.get("PADDLE_MASTER", first) == first
    return host, int(port) + (world_size() if taken else 0)


def _endpoints():
    return os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")


def forget() -> None:
    """Remove the launcher's variables, because this is the only process."""
    for name in NAMES:
        os.environ.pop(name, None)


def check() -> None:
    """Raise UserError if the launcher's variables are inconsistent, because another program has set some of them."""
    try:
        fit = 0 <= rank() < world_size() and local_size() >= 1
        if world_size() > 1:
            main_endpoint()
            fit = fit and len(_endpoints()) == world_size()
            fit = fit and os.environ.get("PADDLE_CURRENT_ENDPOINT") == _endpoints()[rank()]
    except ValueError:  # from int()
        fit = False
    if not fit:
        values = ", ".join(f"{name} is {os.environ.get(name, 'not set')}" for name in NAMES)
        raise UserError(
            f"the variables of Paddle's launcher in the environment are inconsistent: {values}; start several "
            "processes with python -m paddle.distributed.launch, or unset the PADDLE_* variables"
        )
