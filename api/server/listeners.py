"""The sockets that clients connect to, and who may be let in by them."""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket

from api.http import refusals
from api.http.sockets import BACKLOG, tune
from api.server.settings import ServerSettings, StartError

_logger = logging.getLogger("holdfast.server")


def listen(settings: ServerSettings) -> list[socket.socket]:
    """Takes the port on every address the host name has.

    Args:
        settings: host, port, and whether all the world may come in.

    Returns:
        Sockets that listen and do not block.

    Raises:
        StartError: it is not allowed to listen there, or cannot.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
        raise StartError(f"cannot listen on {settings.host}: {getattr(error, 'strerror', error)} (--bind)") from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    _check_exposure(settings, [str(address[0]) for _, address in addresses])
    listeners: list[socket.socket] = []
    try:
        for family, address in addresses:
            listeners.append(_listener(family, address, both=settings.host == "::"))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror} (--bind)") from None
    return listeners


def _listener(family: int, address: tuple[object, ...], *, both: bool) -> socket.socket:
    """Listens on one address; `both` has [::] take IPv4 as well, whatever the system's `bindv6only` says."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        listener.bind(address)
        tune(listener)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _check_exposure(settings: ServerSettings, addresses: list[str]) -> None:
    """Beyond loopback, everybody who reaches the port could read and write: that takes a token, and the door."""
    exposed = [address for address in addresses if not ipaddress.ip_address(address.split("%")[0]).is_loopback]
    if exposed and not settings.door:
        raise StartError(
            f"--no-door listens on loopback only, and {settings.host} is not: it is there for looking into things,"
            " not for serving clients; leave it out"
        )
    if not exposed or settings.token is not None:
        return
    if not settings.insecure:
        raise StartError(
            f"{settings.host} is not a loopback address: set --token so that only clients who know it get in,"
            " or --insecure to let everybody in"
        )
    _logger.warning("INSECURE: no token: everybody who can reach this machine may read and write all data")


def url_of(listener: socket.socket) -> str:
    """Where a listener is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def raise_descriptor_limit() -> None:
    """Takes as many descriptors as the system lets us have: each parked client needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def complain_seldom() -> None:
    """Has what clients can bring about again and again be said now and then, and on one line.

    By itself trio says ten times a second that it cannot accept for want of descriptors, each time with a traceback.
    """
    logging.getLogger("trio.serve_listeners").addFilter(_on_one_line)
    refusals.complain_seldom()


def _on_one_line(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = "cannot accept connections: %s", (record.exc_info[1],)
        record.exc_info = None
    return True
