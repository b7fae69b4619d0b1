"""HTTP for clients, in one of two ways that answer alike: the door before Hypercorn, or Hypercorn alone."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence

import hypercorn.trio
import trio

from api.app.application import HttpApp
from api.app.hypercorn_fixes import hypercorn_config, mended
from api.door.door import Door
from api.door.relay import Relay
from api.door.settings import DoorSettings
from api.http.sockets import HEAD_TIMEOUT_S, KEEP_ALIVE_S

GRACE_S = 3.0
"""How long answers may take to reach their clients once the shutdown began."""


async def serve_hypercorn(
    app: HttpApp,
    listeners: Sequence[socket.socket],
    stop: Callable[[], Awaitable[None]],
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
    grace_s: float = GRACE_S,
) -> None:
    """Serves clients by Hypercorn alone.

    Args:
        app: the application.
        listeners: bound, tuned, not blocking; closed in the end.
        stop: returns when the shutdown begins.
        keep_alive_s: how long a connection may be idle.
        grace_s: how long answers may take to reach their clients from then on.
    """
    fds = [listener.detach() for listener in listeners]
    config = hypercorn_config(fds, graceful_timeout_s=grace_s, keep_alive_s=keep_alive_s)
    with mended(app.refusals):
        await hypercorn.trio.serve(app, config, shutdown_trigger=stop)


async def serve_door(
    app: HttpApp,
    listeners: Sequence[socket.socket],
    stop: Callable[[], Awaitable[None]],
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
    grace_s: float = GRACE_S,
) -> None:
    """Serves clients by the door, and Hypercorn behind it. Arguments as for `serve_hypercorn`."""
    settings = DoorSettings(
        access=app.settings.access,
        head_timeout_s=HEAD_TIMEOUT_S,
        body_timeout_s=app.settings.body_timeout_s,
        linger_s=app.settings.linger_s,
        keep_alive_s=keep_alive_s,
        grace_s=grace_s,
    )
    relay = Relay()
    try:
        door = Door(app.service, relay, settings)
        app.traffic = door.traffic
        served = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_application, app, relay, served)
            nursery.start_soon(_shut_down, door, stop)
            await door.serve(listeners)
            served.set()
    finally:
        for listener in listeners:
            listener.close()
        relay.close()


async def _serve_application(
    app: HttpApp, relay: Relay, served: trio.Event, task_status: trio.TaskStatus[list[str]]
) -> None:
    await hypercorn.trio.serve(app, relay.config, shutdown_trigger=served.wait, task_status=task_status)


async def _shut_down(door: Door, stop: Callable[[], Awaitable[None]]) -> None:
    await stop()
    door.shut_down()
