"""The door: owns the listening sockets, answers commands itself, and hands everything else to the application.

Theory of operation. One task, the porter, waits for one epoll of the door's own that holds all sockets, and does what
became possible: it accepts clients, and has each `Connection` read, start commands and send. That is all synchronous;
answers come back synchronously as well, by a call from the engine. So a connection costs no task, and a turn of the
event loop serves all clients that are ready at once, whose commands go to the engine together.

    clients ==> porter: accept, read, start ----> engine ----> deliver, send ==> clients
                         |
                         +--> errands, a task each: long bodies, and what the application answers

A second task, the clock, looks at deadlines four times a second.

Who knows whom, each only what stands further down:

    door          the porter, the clock, the shutdown
    acceptor      listening sockets, want of descriptors
    connection    one client: when to read, when to send, how it ends   (channel: its socket)
    incoming      what is read: heads and bodies                        (request: their bytes)
    outgoing      what is answered, in order                            (outbox: bytes on their way to the kernel)
    exchange      one request: its work, its answer
    shared        what all connections have in common: timers, unsent bytes, responses, the relay to the application

A defect costs one connection, never the process; a defect of the door itself ends the process.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio

from api.door.acceptor import Acceptor
from api.door.connection import Connection
from api.door.relay import Relay
from api.door.settings import TURN_MAX, DoorSettings
from api.door.shared import Shared
from api.http.service import Service


class Door:
    """Serves clients.

    Args:
        service: answers bodies; its engine is the door's as well.
        relay: to the application.
        settings: access and deadlines.
    """

    def __init__(self, service: Service, relay: Relay, settings: DoorSettings) -> None:
        self._shared = Shared(service, relay, settings)
        self._connections: dict[int, Connection] = {}
        self._forget_it = self._forget  # one for all connections: each time it is asked for, it is another object
        self._acceptor: Acceptor
        self._closing = False
        self._empty = trio.Event()

    def traffic(self) -> dict[str, int]:
        """Counts clients, idle ones included, requests whose answer is not sent yet, and refusals; for `/stats`."""
        requests = sum(connection.requests_open for connection in self._connections.values())
        counted = {"connections": len(self._connections), "requests_open": requests}
        return counted | self._shared.refusals.statistics()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serves clients until `shut_down`, and until those who were being served have their answers.

        Args:
            listeners: bound, tuned, not blocking; closed in the end.
        """
        self._acceptor = Acceptor(listeners, self._shared, self._connections, self._admit)
        try:
            async with trio.open_nursery() as nursery:
                self._shared.nursery = nursery
                self._acceptor.open()
                nursery.start_soon(self._serve_ready)
                nursery.start_soon(self._keep_time)
                await self._empty.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._close_all()

    def shut_down(self) -> None:
        """Accepts nobody any more, and closes each connection behind its last answer, all of them after a while."""
        self._closing = True
        self._acceptor.close()
        for connection in list(self._connections.values()):
            connection.shut_down()
        self._shared.nursery.start_soon(self._end_grace)
        if not self._connections:
            self._empty.set()

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
        epoll, timers, acceptor, connections = (
            self._shared.epoll,
            self._shared.timers,
            self._acceptor,
            self._connections,
        )
        descriptor = epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            timers.start_turn()
            knocked_at = []
            for fd, events in epoll.poll(0, TURN_MAX):
                connection = connections.get(fd)
                if connection is not None:
                    connection.on_ready(events)
                elif acceptor.listens_on(fd):
                    knocked_at.append(fd)
            # Not before: a new client could get the descriptor of one that was closed in this turn, and its events.
            for fd in knocked_at:
                acceptor.accept(fd)

    async def _keep_time(self) -> None:
        """The clock."""
        shared = self._shared
        while True:
            shared.responses.forget_date()
            await trio.sleep(shared.settings.tick_s)
            shared.timers.start_turn()
            self._acceptor.open()
            await shared.timers.look()

    def _admit(self, client: socket.socket) -> None:
        self._connections[client.fileno()] = Connection(self._shared, client, self._forget_it)

    def _forget(self, fd: int) -> None:
        """Takes a connection out that is about to close its socket."""
        del self._connections[fd]
        if self._closing and not self._connections:
            self._empty.set()
