"""How clients are served: what the door was told, and what it does in one turn of the event loop."""

from __future__ import annotations

from dataclasses import dataclass

from api.http.access import Access
from api.http.sockets import HEAD_TIMEOUT_S, KEEP_ALIVE_S, LINGER_S

TURN_MAX = 128
"""Connections that are looked at in one turn of the event loop; how long they may take is in turns.py."""

CLOCK_EVERY = 8
"""Connections of which each does a request before it is seen whether the turn is over."""


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """How clients are served.

    Attributes:
        access: who may speak to the server.
        head_timeout_s: from the first byte of a head to its last, and from the connection to the first byte.
        body_timeout_s: from the end of a head to the end of its body.
        send_timeout_s: without any progress, while a client does not read: its side acknowledges nothing.
        keep_alive_s: how long a connection may be idle.
        linger_s: how long a client may take to close behind the last answer.
        grace_s: how long answers may take to reach their clients once the shutdown began.
        tick_s: how exact these are.
    """

    access: Access
    head_timeout_s: float = HEAD_TIMEOUT_S
    body_timeout_s: float = 60.0
    send_timeout_s: float = 30.0
    keep_alive_s: float = KEEP_ALIVE_S
    linger_s: float = LINGER_S
    grace_s: float = 3.0
    tick_s: float = 0.25
