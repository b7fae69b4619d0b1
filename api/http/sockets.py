"""Client connections: their deadlines, and what their sockets are told. For the door and for Hypercorn alike."""

from __future__ import annotations

import random
import socket
from typing import Any, Protocol

from engine.limits import KIB, MIB

HEAD_TIMEOUT_S = 5.0
"""From the first byte of a head to its last. A head is one packet, or a person at telnet."""

KEEP_ALIVE_S = 75.0
"""Longer than the 60 s after which common proxies drop their side, so that they are the ones who close."""

READ_AHEAD_BYTES_MAX = 64 * KIB
"""Pipelined bytes that are kept while a request waits, beside the one packet that was read anyway."""

LINGER_S = 1.0
LINGER_BYTES_MAX = 1 * MIB
"""How long and how much is thrown away behind an error before the connection closes: closing over unread
bytes sends a reset, and a reset takes the answer back that the client has not read yet."""

_USER_TIMEOUT_S = 55
_KEEPALIVE_IDLE_S, _KEEPALIVE_INTERVAL_S, _KEEPALIVE_PROBES = (15, 40), (3, 7), 4
"""Shortest and longest, drawn for each connection: the probes of thousands that came together would all be sent in
one tick of the kernel's, overflow the loopback's queue, and the clients be taken for gone (4,388 of 10,000 were)."""

BACKLOG = 4096


class Socket(Protocol):
    """What a socket of the stdlib and one of trio's have in common here."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """As the stdlib has it."""

    def getpeername(self) -> Any:
        """As the stdlib has it."""


def tune(listener: socket.socket, user_timeout_s: float = _USER_TIMEOUT_S) -> None:
    """Sets on a listening socket what every connection it accepts shall have: Linux lets them inherit it.

    TCP_USER_TIMEOUT bounds how long bytes may be under way, keep-alive probes included: it ends a connection whose
    peer vanished, and one whose client does not read; the time counts from when its window closed, and starts
    again when it reads. When the probes are sent is drawn for each connection, see `spread_probes`.

    Args:
        listener: a TCP socket.
        user_timeout_s: longest time without progress towards the client.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S[1])
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S[1])
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_s * 1000))


def end_stalled(connection: Socket, *, by_kernel: bool) -> None:
    """Says who looks whether a client makes progress: the kernel, or we.

    To the kernel, a window that is smaller than a packet is closed, and packets of the loopback have 64 KiB. So
    TCP_USER_TIMEOUT ends clients with small receive buffers in the middle of a long answer, however steadily they read.

    Args:
        connection: of the client.
        by_kernel: whether the kernel does.
    """
    user_timeout_s = _USER_TIMEOUT_S if by_kernel else 0
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_s * 1000)


def peer_of(connection: Socket) -> str:
    """Says who is at the other end, for the log; who has left is a client like any other."""
    try:
        return str(connection.getpeername()[0])
    except OSError:
        return "a client"


def spread_probes(connection: Socket) -> None:
    """Draws when a connection's keep-alive probes are sent, so that those of a crowd do not come in one burst."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, random.randint(*_KEEPALIVE_IDLE_S))  # noqa: S311  # no secret
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, random.randint(*_KEEPALIVE_INTERVAL_S))  # noqa: S311  # no secret
