"""Where the page listens, and the names that it answers to."""

import errno
import ipaddress
import os
import socket
import urllib.parse

from t2t_vit.common.errors import UserError, one_line

PORTS = range(7860, 7960)  # tried if no port is given; the first is the usual one of Gradio


def address(args):
    """(host, port or None) of the options, else of Gradio's environment variables, which AI Studio sets.

    Raises UserError if GRADIO_SERVER_PORT is not a number.
    """
    host = args.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = os.environ.get("GRADIO_SERVER_PORT") or None
    if args.port is not None or port is None:
        return host, args.port
    if not port.isdecimal():
        raise UserError(f"GRADIO_SERVER_PORT is {port!r} but must be a number")
    return host, int(port)


def listen(host, port, ports=PORTS):
    """Listen at `host` and `port`; if `port` is None, at the first free one of `ports`. Returns the socket.

    Raises UserError if the port is taken or not allowed, or `host` is not an address of this machine.
    """
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"the port is {port} but must be 0 (any free one) to 65535")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host {host!r} is not an address: {one_line(error)}") from None
    for number in ports if port is None else [port]:
        try:
            return socket.create_server((place[0], number), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"cannot listen at {host}, port {number}: {one_line(error)}") from None
    if port is None:
        raise UserError(f"all ports from {ports[0]} to {ports[-1]} of {host} are taken: give one with --port")
    raise UserError(f"port {port} of {host} is taken: give another with --port, or 0 for any free one")


def url_of(listener):
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener):
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def names_of(listener, host, allowed):
    """Names that the page answers to: `host`, which the user gave, `allowed` of --allow-host, and the usual ones.

    None: any name, because other machines reach the page and --allow-host is not given.
    """
    if not allowed and not is_local(listener):
        return None
    root = urllib.parse.urlsplit(os.environ.get("GRADIO_ROOT_PATH") or "").netloc
    given = (*allowed, host, listener.getsockname()[0])
    names = (host_name(f"[{name}]" if name.count(":") > 1 else name) for name in given)
    return {"localhost", "127.0.0.1", "::1", host_name(root), *names} - {""}


def host_name(netloc):
    """Host name in lower case of "Name:port", "[::1]:port" or similar; "" if invalid."""
    try:
        return (urllib.parse.urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""
