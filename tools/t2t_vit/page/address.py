"""The address that the page listens on, and the host names that it accepts."""

import errno
import ipaddress
import os
import socket
import urllib.parse

from t2t_vit.common.errors import UserError, one_line

PORTS = range(7860, 7960)  # tried if no port is given; 7860 is Gradio's default


def port_of(args):
    """The port of --port, else of GRADIO_SERVER_PORT, which AI Studio sets; None if neither is given."""
    port = os.environ.get("GRADIO_SERVER_PORT")
    if args.port is not None or not port:
        return args.port
    try:
        return int(port)
    except ValueError:
        raise UserError(f"GRADIO_SERVER_PORT is {port[:80]!r} but must be a number") from None


def listen(host, port=None):
    """Listen on `host` and `port`; if `port` is None, on the first free one of PORTS. Returns the socket.

    Raises UserError if the port is in use or not allowed, or `host` is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in PORTS if port is None else [port]:
        try:
            return socket.create_server((host, number), family=family)
        except (OSError, UnicodeError, OverflowError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                raise UserError(f"cannot listen at {host}, port {number}: {one_line(error)}") from None
    raise UserError(f"port {number} of {host} is in use: choose another with --port, or 0 for any free port")


def url_of(listener):
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener):
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def names_of(listener, host, allowed):
    """Return the host names that the page accepts: `host`, those of --allow-host (`allowed`), and localhost.

    Returns None (any name) if other machines can reach the page and --allow-host is not given.
    """
    if not allowed and not is_local(listener):
        return None
    given = (*allowed, host, listener.getsockname()[0])
    names = (host_name(f"[{name}]" if name.count(":") > 1 and name[0] != "[" else name) for name in given)
    return {"localhost", "127.0.0.1", "::1", *names} - {""}


def host_name(netloc):
    """Return the lower-case host name in "Name:port", "[::1]:port" or similar; "" if invalid."""
    try:
        return (urllib.parse.urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""
