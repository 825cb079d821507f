"""The address that a server listens on, and the host names that it accepts."""

from __future__ import annotations

import errno
import ipaddress
import socket
import urllib.parse
from collections.abc import Iterable

from t2t_vit.common.errors import UserError, one_line


def listen(host: str, ports: Iterable[int]) -> socket.socket:
    """Listen on `host` and the first free one of `ports`. Returns the socket.

    Raises UserError if the ports are in use or not allowed, or `host` is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in ports:
        try:
            return socket.create_server((host, number), family=family)
        except (OSError, UnicodeError, OverflowError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                raise UserError(f"cannot listen at {host}, port {number}: {one_line(error)}") from None
    raise UserError(f"port {number} of {host} is in use: choose another with --port, or 0 for any free port")


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def names_of(listener: socket.socket, host: str, allowed: Iterable[str]) -> set[str] | None:
    """Return the host names that a server accepts: `host`, those of --allow-host (`allowed`), and localhost.

    Returns None (any name) if other machines can reach it and --allow-host is not given.
    """
    if not allowed and not is_local(listener):
        return None
    given = (*allowed, host, listener.getsockname()[0])
    names = (host_name(f"[{name}]" if name.count(":") > 1 and name[0] != "[" else name) for name in given)
    return {"localhost", "127.0.0.1", "::1", *names} - {""}


def host_name(netloc: str) -> str:
    """Return the lower-case host name in "Name:port", "[::1]:port" or similar; "" if invalid."""
    try:
        return (urllib.parse.urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""
