"""Start a command on the GPUs of the variable GPUS, and on several machines if NNODES, MASTER and NODE_RANK are set.

scripts/*.sh run `python tools/launch.py tools/train.py [OPTION ...]` if GPUS or NNODES is set.
"""

import argparse
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from pathlib import Path

from t2t_vit.cli import exit_with
from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.runtime import import_quietly

_SEVERAL = ("train", "val")  # commands that may run as several processes
# Variables that would silently override the options of Paddle's launcher below.
_OVERRIDES = ("POD_IP", "PADDLE_MASTER", "PADDLE_NNODES", "PADDLE_RANK", "PADDLE_DEVICES", "PADDLE_LOG_DIR")
_SIOCGIFADDR = 0x8915  # of ioctl(2): the address of an interface (Linux)


def main(args):
    """Replace this process with the command, or start it through Paddle's launcher."""
    words, environment = args.words, os.environ
    if not words:
        raise UserError("give a command: python tools/launch.py tools/train.py ...")
    is_several = Path(words[0]).stem in _SEVERAL
    options = nodes(environment) if is_several and environment.get("NNODES") else []
    if environment.get("GPUS"):
        gpus = chosen_gpus(environment["GPUS"])
        if is_several:
            options += ["--gpus", gpus]
        else:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
    if not options:
        os.execv(sys.executable, [sys.executable, *words])
    for name in _OVERRIDES:
        environment.pop(name, None)
    import_quietly()
    from paddle.distributed.launch.main import launch  # after import_quietly, and only if several processes start

    logs = Path(__file__).resolve().parent.parent / "log/launch"
    sys.argv = ["paddle.distributed.launch", "--log_dir", str(logs), *options, *words]
    launch()


def chosen_gpus(text):
    """Return the GPUs that GPUS names ("0,1" or "all"), for Paddle's launcher. Raises UserError if one is unusable."""
    import_quietly()
    from t2t_vit.parallel import gpu  # imports paddle, whose warnings import_quietly hides

    count = gpu.require(f"GPUS is {text}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    cards = [str(card) for card in range(count)] if visible == "all" else [card.strip() for card in visible.split(",")]
    named = cards if text.strip() == "all" else [card.strip() for card in text.split(",")]
    if len(set(named)) < len(named) or not set(named) <= set(cards):
        raise UserError(f"GPUS is {text} but must be all, or some of {','.join(cards)}, separated by commas")
    return ",".join(named)


def nodes(environment):
    """Build the options of Paddle's launcher from NNODES, MASTER and NODE_RANK."""
    count = _number(environment, "NNODES", 1)
    if count == 1:
        return ["--nnodes", "1"]
    if not (environment.get("MASTER") and environment.get("NODE_RANK")):
        raise UserError(
            f"NNODES is {count}: set MASTER to HOST:PORT of the first machine, and NODE_RANK to 0 on it, "
            "1, 2, ... on the others"
        )
    master, node_rank = environment["MASTER"].strip(), _number(environment, "NODE_RANK", 0)
    if node_rank >= count:
        raise UserError(f"NODE_RANK is {node_rank} but must be below NNODES, {count}: 0 on the first machine, 1, ...")
    host, _, port = master.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"MASTER is {master!r} but must be HOST:PORT of the first machine, such as 10.0.0.1:8090")
    first, own = addresses(host, node_rank)
    print(f"node {node_rank} of {count}: address {own}, master {first}:{port}", file=sys.stderr)
    # The launchers use HTTP, which would go through a proxy if HTTP_PROXY is set.
    named = environment.get("no_proxy") or environment.get("NO_PROXY")
    environment["no_proxy"] = f"{named},{first}" if named else first
    if interface := _interface(own):  # by default gloo resolves the name of this machine too
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    return ["--nnodes", str(count), "--master", f"{first}:{port}", "--rank", str(node_rank), "--host", own]


def addresses(host, node_rank):
    """Return the IPv4 addresses at which the first machine and this one can reach each other.

    By default, Paddle's launcher resolves the name of this machine, which Debian maps to 127.0.1.1. The launcher is the
    master only if this address equals the text of MASTER (launch/context/node.py and controllers/master.py, paddle
    2.6.2 and 3.3.1).
    """
    try:
        first = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"MASTER names {host}, which has no IPv4 address here ({one_line(error)})") from None
    if ipaddress.ip_address(first).is_loopback and host not in (first, "localhost"):
        first = _own_address("192.0.2.1")  # the name is this machine's, as in Debian's /etc/hosts
        if not first:
            raise UserError(
                f"MASTER names {host}, which resolves to a loopback address here; give the machine's network address"
            )
    if node_rank > 0:
        return first, _own_address(first) or first
    try:
        socket.create_server((first, 0)).close()
    except OSError:
        raise UserError(
            f"NODE_RANK is 0 here, but MASTER {host} ({first}) is not an address of this machine; set NODE_RANK=0 "
            "only on the machine that MASTER names"
        ) from None
    return first, first


def _own_address(other):
    """Return the address of this machine on the route to `other`, or None if there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other, 9))  # sends nothing
        except OSError:
            return None
        return probe.getsockname()[0]


def _interface(address):
    """Name of the network interface with this IPv4 address; None if unknown."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))[20:24]
            except OSError:  # no address, or not Linux
                continue
            if socket.inet_ntoa(found) == address:
                return name
    return None


def _number(environment, name, least):
    value = environment.get(name, "").strip()
    if not (value.isascii() and value.isdigit() and int(value) >= least):
        raise UserError(f"{name} is {value!r} but must be a whole number, {least} or more")
    return int(value)


if __name__ == "__main__":
    exit_with(lambda: argparse.Namespace(words=sys.argv[1:], debug=False), main)
