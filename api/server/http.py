"""HTTP for clients, in one of two ways that answer alike: the door before the application, or Hypercorn before it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence

import hypercorn.trio
import trio

from api.app.application import HttpApp, HttpSettings
from api.app.hypercorn_fixes import hypercorn_config, mended
from api.door.door import Door
from api.door.relay import Relay
from api.door.settings import DoorSettings
from api.http.probes import Probes
from api.http.service import Service
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


class ByHypercorn:
    """Serves clients by Hypercorn alone, when there is an application; until then they wait to be accepted.

    Args:
        listeners: bound, tuned, not blocking; closed in the end.
        keep_alive_s: how long a connection may be idle.
    """

    def __init__(self, listeners: Sequence[socket.socket], keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._listeners = listeners
        self._keep_alive_s = keep_alive_s
        self._app: HttpApp | None = None
        self._opened = trio.Event()

    async def serve(
        self, stop: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """As `ByDoor.serve`."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_for_app, nursery.cancel_scope)
            await stop()
            nursery.cancel_scope.cancel()
        if self._app is not None:
            await serve_hypercorn(self._app, self._listeners, stop, keep_alive_s=self._keep_alive_s)

    async def _wait_for_app(self, waiting: trio.CancelScope) -> None:
        await self._opened.wait()
        waiting.cancel()

    async def open(self, app: HttpApp) -> None:
        """As `ByDoor.open`."""
        self._app = app
        self._opened.set()


class ByDoor:
    """Serves clients by the door: probes from the beginning, everything else when there is an application.

    Args:
        service: answers commands; it has its engine when `open` is called.
        probes: answers probes.
        settings: access and deadlines.
        listeners: bound, tuned, not blocking; closed in the end.
        keep_alive_s: how long a connection may be idle.
        grace_s: how long answers may take to reach their clients once the shutdown began.
    """

    def __init__(
        self,
        service: Service,
        probes: Probes,
        settings: HttpSettings,
        listeners: Sequence[socket.socket],
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._listeners = listeners
        self._door = Door(
            service,
            probes,
            DoorSettings(
                access=settings.access,
                head_timeout_s=HEAD_TIMEOUT_S,
                body_timeout_s=settings.body_timeout_s,
                linger_s=settings.linger_s,
                keep_alive_s=keep_alive_s,
                grace_s=grace_s,
            ),
        )

    async def serve(
        self, stop: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves clients until `stop` returns, and until those who were being served have their answers.

        Args:
            stop: returns when the shutdown begins.
            task_status: told when clients can come.
        """
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._door.serve, self._listeners)
                task_status.started()
                await stop()
                self._door.shut_down()
        finally:
            for listener in self._listeners:
                listener.close()

    async def open(self, app: HttpApp) -> None:
        """Has all requests done, those first that came before.

        Args:
            app: the application.
        """
        app.traffic = self._door.traffic
        await self._door.open(Relay(app))


async def serve_door(
    app: HttpApp,
    listeners: Sequence[socket.socket],
    stop: Callable[[], Awaitable[None]],
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
    grace_s: float = GRACE_S,
) -> None:
    """Serves clients by the door, when there is an application already. Arguments as for `serve_hypercorn`."""
    door = ByDoor(app.service, app.probes, app.settings, listeners, keep_alive_s=keep_alive_s, grace_s=grace_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(door.serve, stop)
        await door.open(app)
