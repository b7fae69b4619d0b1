"""The door: owns the listening sockets, answers commands itself, and hands everything else to the application.

Theory of operation. One task, the porter, waits for one epoll of the door's own that holds all sockets, and does what
became possible: it accepts clients, and has each `Connection` read, start commands and send. That is all synchronous;
answers come back synchronously as well, by a call from the engine. So a connection costs no task, and a turn of the
event loop serves all clients that are ready at once, whose commands go to the engine together.

    clients ==> porter: accept, read, start ----> engine ----> deliver, send ==> clients
                         |
                         +--> errands, a task each: long bodies, and what the application answers

A second task goes on with connections that have more to do than a share of a turn (turns.py). A third, the clock, looks
at deadlines four times a second.

Clients can come before there is an engine: while the server starts, probes are answered, and all other requests wait.

Who knows whom, each only what stands further down:

    door          the porter, the clock, the shutdown
    acceptor      listening sockets, want of descriptors
    guests        clients beyond those that there are descriptors for
    connection    one client: when to read, when to send, how it ends   (channel: its socket)
    incoming      what is read: heads and bodies                        (request: their bytes)
    outgoing      what is answered, in order                            (outbox: bytes on their way to the kernel)
    exchange      one request: its work, its answer
    shared        what all connections have in common: timers, turns, held bytes, the relay to the application
    early         requests that came before there was an engine

A defect costs one connection, never the process; a defect of the door itself ends the process.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence

import trio

from api.dialects.answers import failure
from api.door.acceptor import Acceptor, descriptors_for_clients
from api.door.connection import Connection
from api.door.guests import Guests
from api.door.relay import Relay
from api.door.settings import CLOCK_EVERY, TURN_MAX, DoorSettings
from api.door.shared import Shared
from api.http.probes import Probes
from api.http.service import Service
from engine.replies import Error

_logger = logging.getLogger("holdfast.http")


class Door:
    """Serves clients.

    Args:
        service: answers bodies; its engine is the door's as well.
        probes: answers probes.
        settings: access and deadlines.
    """

    def __init__(self, service: Service, probes: Probes, settings: DoorSettings) -> None:
        self._shared = Shared(service, probes, settings)
        self._connections: dict[int, Connection] = {}
        self._forget_it = self._forget  # one for all connections: each time it is asked for, it is another object
        self._guests = Guests(self._shared)
        self._acceptor: Acceptor
        self._closing = False
        self._empty = trio.Event()

    def traffic(self) -> dict[str, int]:
        """Counts clients, idle ones included, requests whose answer is not sent yet, and refusals; for `/stats`."""
        requests = sum(connection.requests_open for connection in self._connections.values())
        counted = {"connections": len(self._connections), "requests_open": requests}
        return counted | self._shared.refusals.statistics()

    async def open(self, relay: Relay) -> None:
        """Has all requests done, those first that came before; until then only probes are answered, the others wait.

        Args:
            relay: to the application; the service has its engine.
        """
        await self._shared.open(relay)

    async def serve(
        self, listeners: Sequence[socket.socket], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves clients until `shut_down`, and until those who were being served have their answers.

        Args:
            listeners: bound, tuned, not blocking; closed in the end.
            task_status: told when clients can come, and `open` may be called.
        """
        self._acceptor = Acceptor(listeners, self._shared, self._admit)
        try:
            async with trio.open_nursery() as nursery:
                self._shared.nursery = nursery
                self._acceptor.open()
                nursery.start_soon(self._serve_ready)
                nursery.start_soon(self._shared.turns.work_off, self._shared.timers.start_turn)
                nursery.start_soon(self._keep_time)
                task_status.started()
                await self._empty.wait()
                await self._in_turns(Connection.close)
                nursery.cancel_scope.cancel()
        finally:
            self._close_all()

    def shut_down(self) -> None:
        """Accepts nobody any more, and closes each connection behind its last answer, all of them after a while."""
        self._closing = True
        self._acceptor.close()
        self._shared.nursery.start_soon(self._shut_down)
        self._shared.nursery.start_soon(self._end_grace)
        if not self._connections:
            self._empty.set()

    async def _shut_down(self) -> None:
        await self._in_turns(Connection.shut_down)
        if self._shared.early is not None:
            await self._shared.early.turn_away(failure(503, Error.UNAVAILABLE.value, "shutting down"))

    async def _in_turns(self, do: Callable[[Connection], None]) -> None:
        """Does something with each connection that is there now, as many in a turn of the event loop as it has time."""
        turns, timers = self._shared.turns, self._shared.timers
        timers.start_turn()
        over_at = turns.begin(1)
        for connection in list(self._connections.values()):
            do(connection)
            if turns.clock() >= over_at:
                await trio.lowlevel.checkpoint()
                timers.start_turn()
                over_at = turns.begin(1)

    async def _end_grace(self) -> None:
        await trio.sleep(self._shared.settings.grace_s)
        self._empty.set()

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            connection.close()
        trio.lowlevel.notify_closing(self._shared.epoll.fileno())
        self._shared.epoll.close()

    async def _serve_ready(self) -> None:
        """The porter."""
        shared, acceptor, connections = self._shared, self._acceptor, self._connections
        epoll, timers, turns = shared.epoll, shared.timers, shared.turns
        clock = turns.clock
        while True:
            await self._wait_until_ready()
            timers.start_turn()
            ready = epoll.poll(0, TURN_MAX)
            over_at = turns.begin(len(ready))
            knocked_at = []
            for start in range(0, len(ready), CLOCK_EVERY):  # to look at it each time would cost 0.3 % of a request
                for fd, events in ready[start : start + CLOCK_EVERY]:
                    connection = connections.get(fd)
                    if connection is not None:
                        connection.on_ready(events)
                    elif acceptor.listens_on(fd):
                        knocked_at.append(fd)
                if clock() >= over_at:
                    await trio.lowlevel.checkpoint()
                    timers.start_turn()
                    over_at = turns.begin(len(ready))
            # Not before: a new client could get the descriptor of one that was closed in this turn, and its events.
            for fd in knocked_at:
                acceptor.accept(fd)

    async def _wait_until_ready(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._shared.epoll.fileno())
        except OSError as error:  # the event loop has an epoll of its own, and the kernel no memory for it
            _logger.warning("cannot wait for connections, trying again: %s", error)
            await trio.sleep(self._shared.settings.tick_s)

    async def _keep_time(self) -> None:
        """The clock."""
        shared = self._shared
        while True:
            shared.responses.forget_date()
            await trio.sleep(shared.settings.tick_s)
            shared.timers.start_turn()
            self._acceptor.open()
            await shared.timers.look()

    def _admit(self, client: socket.socket) -> bool:
        clients_max, guests_max = descriptors_for_clients()
        is_guest = len(self._connections) >= clients_max
        if is_guest:
            self._guests.admit(client, guests_max)
        else:
            self._connections[client.fileno()] = Connection(self._shared, client, self._forget_it)
        return not is_guest

    def _forget(self, fd: int) -> None:
        """Takes a connection out that is about to close its socket."""
        del self._connections[fd]
        if self._closing and not self._connections:
            self._empty.set()
