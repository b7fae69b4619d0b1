"""The door: owns the listening sockets, answers commands itself, and hands everything else to the application.

Theory of operation. One task, the porter, waits for one epoll of the door's own that holds all sockets, and does what
became possible: it accepts clients, and has each `Connection` read, start commands and send. That is all synchronous;
answers come back synchronously as well, by a call from the engine. So a connection costs no task, and a turn of the
event loop serves all clients that are ready at once, whose commands go to the engine together.

    clients ==> porter: accept, read, start ----> engine ----> deliver, send ==> clients
                         |
                         +--> errands, a task each: long bodies, and what the application answers

A second task, the clock, looks at deadlines four times a second. The order of answers, limits and deadlines are the
business of a connection; here is what concerns all of them:

- Heads that were judged are remembered by their bytes: clients send the same ones again and again.
- All unsent bytes together are bounded (F5): beyond it the client that has read least loses its connection.
- Out of descriptors, no new clients are accepted for a while; the others are served (B6).
- A defect costs one connection, never the process; a defect of the door itself ends the process.
"""

from __future__ import annotations

import email.utils
import errno
import functools
import logging
import math
import os
import resource
import select
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import trio

from api.dialects import answers
from api.dialects.answers import Answer
from api.dialects.request import Request
from api.door.connection import Connection
from api.door.exchange import DEFECT, Exchange
from api.door.relay import Relay
from api.door.request import RequestHead, read_head
from api.http.access import Access
from api.http.body import HeldBody
from api.http.service import Service
from api.http.sockets import HEAD_TIMEOUT_S, KEEP_ALIVE_S, LINGER_S, spread_probes
from engine.limits import MIB
from engine.replies import Reply

_logger = logging.getLogger("holdfast.http")

READY_MAX = 128
"""Sockets served in one turn of the event loop: some 3 ms of work."""

ACCEPT_MAX = 64
"""Clients accepted in one turn."""

DESCRIPTORS_KEPT = 256
"""That clients do not get: the log needs some, and each relayed request two, `GET /livez` among them."""

HEADS_REMEMBERED = 256

UNSENT_BYTES_MAX = 256 * MIB
"""Answers in memory that the kernel does not take, over all connections."""

SELDOM_S = 30.0
"""Between two lines about the same lasting trouble."""

_EXTRA_FIELDS = {401: b"www-authenticate: Bearer\r\n", 503: b"retry-after: 1\r\n"}


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """How clients are served.

    Attributes:
        access: who may speak to the server.
        head_timeout_s: from the first byte of a head to its last.
        body_timeout_s: from the end of a head to the end of its body.
        send_timeout_s: without any progress, while a client does not read.
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


class Door:
    """Serves clients.

    Args:
        service: answers bodies; its engine is the door's as well.
        relay: to the application.
        settings: access and deadlines.

    Attributes:
        now: the time in the turn of the event loop that is running, by trio's clock.
        idle_deadline: of connections that become idle in it.
        epoll: where connections register their sockets.
    """

    def __init__(self, service: Service, relay: Relay, settings: DoorSettings) -> None:
        self.service = service
        self.engine = service.engine
        self.settings = settings
        self.epoll = select.epoll()
        self._start_turn()
        self.read_head = functools.lru_cache(HEADS_REMEMBERED)(self._read_head)
        self._relay = relay
        self._connections: dict[int, Connection] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._timers: dict[int, set[Connection]] = {}
        self._unsent_bytes = 0
        self._unread: set[Connection] = set()
        self._wording = trio.CapacityLimiter(1)
        self._next_complaint_s = -math.inf
        self._accepting = False
        self._closing = False
        self._empty = trio.Event()
        self._begins: dict[int, bytes] = {}  # of responses
        self._nursery: trio.Nursery

    def traffic(self) -> dict[str, int]:
        """Counts clients, idle ones included, and requests whose answer is not sent yet; for `/stats`."""
        requests = sum(connection.requests_open for connection in self._connections.values())
        return {"connections": len(self._connections), "requests_open": requests}

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serves clients until `shut_down`, and until those who were being served have their answers.

        Args:
            listeners: bound, tuned, not blocking; closed in the end.
        """
        self._listeners = {listener.fileno(): listener for listener in listeners}
        try:
            async with trio.open_nursery() as self._nursery:
                self._open_up()
                self._nursery.start_soon(self._serve_ready)
                self._nursery.start_soon(self._keep_time)
                await self._empty.wait()
                self._nursery.cancel_scope.cancel()
        finally:
            self._close_all()

    def shut_down(self) -> None:
        """Accepts nobody any more, and closes each connection behind its last answer, all of them after a while."""
        self._closing = True
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections.values()):
            connection.shut_down()
        self._nursery.start_soon(self._end_grace)
        if not self._connections:
            self._empty.set()

    async def _end_grace(self) -> None:
        await trio.sleep(self.settings.grace_s)
        self._empty.set()

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            connection.close()
        trio.lowlevel.notify_closing(self.epoll.fileno())
        self.epoll.close()

    # The porter

    async def _serve_ready(self) -> None:
        descriptor = self.epoll.fileno()
        connections = self._connections
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            self._start_turn()
            knocked_at = []
            for fd, events in self.epoll.poll(0, READY_MAX):
                connection = connections.get(fd)
                if connection is not None:
                    connection.on_ready(events)
                elif fd in self._listeners:
                    knocked_at.append(self._listeners[fd])
            # Not before: a new client could get the descriptor of one that was closed in this turn, and its events.
            for listener in knocked_at:
                if self._accepting:
                    self._accept(listener)

    def _start_turn(self) -> None:
        self.now = trio.current_time()
        self.idle_deadline = self.now + self.settings.keep_alive_s

    def _open_up(self) -> None:
        self._accepting = True
        for fd in self._listeners:
            self.epoll.register(fd, select.EPOLLIN)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_MAX):
            try:
                self._check_descriptors()
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._rest(error)
                return
            try:
                client.setblocking(False)
                spread_probes(client)
                self._connections[client.fileno()] = Connection(self, client)
            except OSError:
                client.close()  # it is gone already

    def _check_descriptors(self) -> None:
        """Raises OSError when clients have all that they may have: half of them, where there are few."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if len(self._connections) >= max(most - DESCRIPTORS_KEPT, most // 2):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _rest(self, error: OSError) -> None:
        """Accepts nobody until the next tick: nothing else would take the error away."""
        self._accepting = False
        for fd in self._listeners:
            self.epoll.unregister(fd)
        if self.now >= self._next_complaint_s:
            self._next_complaint_s = self.now + SELDOM_S
            _logger.error("cannot accept connections: %s", error)

    # The clock

    async def _keep_time(self) -> None:
        while True:
            self._begins.clear()  # they hold the date
            await trio.sleep(self.settings.tick_s)
            self._start_turn()
            if not self._accepting:
                self._open_up()
            await self._look_at_deadlines()

    async def _look_at_deadlines(self) -> None:
        tick = int(self.now / self.settings.tick_s)
        due = [connection for at in list(self._timers) if at <= tick for connection in self._timers.pop(at)]
        for number, connection in enumerate(due):
            connection.timer = math.inf
            if connection.deadline <= self.now:
                connection.on_deadline()
            elif connection.deadline < math.inf:
                self.arm(connection, connection.deadline)
            if number % READY_MAX == READY_MAX - 1:
                await trio.lowlevel.checkpoint()

    # For connections

    def arm(self, connection: Connection, deadline: float) -> None:
        """Has a connection looked at when a deadline has passed.

        It is not told of later ones: deadlines move with each request, and what is looked at too early is put back.

        Args:
            connection: open.
            deadline: in trio's time.
        """
        self._disarm(connection)
        connection.timer = deadline
        self._timers.setdefault(self._tick_behind(deadline), set()).add(connection)

    def _disarm(self, connection: Connection) -> None:
        if connection.timer < math.inf:
            self._timers.get(self._tick_behind(connection.timer), set()).discard(connection)

    def _tick_behind(self, deadline: float) -> int:
        return int(deadline / self.settings.tick_s) + 1

    def forget(self, connection: Connection) -> None:
        """Takes a connection out that is about to close its socket."""
        self._disarm(connection)
        self.epoll.unregister(connection.fd)
        del self._connections[connection.fd]
        self._unread.discard(connection)
        self._unsent_bytes -= connection.held_bytes
        if self._closing and not self._connections:
            self._empty.set()

    def note_unsent(self, connection: Connection, change_bytes: int) -> None:
        """Counts unsent bytes, and makes room when they are too many.

        Args:
            connection: whose they are; its `held_bytes` is up to date.
            change_bytes: since the last time.
        """
        self._unsent_bytes += change_bytes
        if connection.held_bytes:
            self._unread.add(connection)
        else:
            self._unread.discard(connection)
        while self._unsent_bytes > UNSENT_BYTES_MAX:
            max(self._unread, key=lambda unread: unread.held_bytes).close()

    def send_on_errand(self, exchange: Exchange, body: HeldBody) -> None:
        """Has a task work on a request and answer it.

        Args:
            exchange: of an open connection.
            body: of the request; released by the task.
        """
        self.start_errand(exchange, partial(self._answer_body, exchange, body))

    async def word(self, request: Request, reply: Reply) -> Answer:
        """Makes a long answer; one of all clients' in a turn of the event loop.

        Args:
            request: what was asked.
            reply: what the engine answered.
        """
        async with self._wording:
            return answers.answer(request, reply)

    def start_errand(self, exchange: Exchange, errand: Callable[[], Awaitable[Answer | bytes]]) -> None:
        """Has a task answer a request.

        Args:
            exchange: of an open connection.
            errand: makes the answer; cancelled when the client is gone.
        """
        exchange.errand = trio.CancelScope()
        self._nursery.start_soon(self._run_errand, exchange, exchange.errand, errand)

    async def _run_errand(
        self, exchange: Exchange, scope: trio.CancelScope, errand: Callable[[], Awaitable[Answer | bytes]]
    ) -> None:
        with scope:
            try:
                answer = await errand()
            except Exception:
                _logger.exception("a request failed")
                exchange.take_back()
                answer = DEFECT if exchange.head.method != b"HEAD" else Answer(DEFECT.status, b"")
            exchange.finish(answer)

    async def _answer_body(self, exchange: Exchange, body: HeldBody) -> Answer | bytes:
        head = exchange.head
        try:
            if head.path is not None:
                return await self.service.answer(head.path, body, exchange.keep)
            return await self._relay.request(head, body.data)
        finally:
            body.release()

    def render(self, answer: Answer, *, closes: bool) -> bytes:
        """Makes the bytes of a response.

        Args:
            answer: status and body.
            closes: no other answer follows it.
        """
        body = answer.body
        kind = answer.status if body else -answer.status
        begin = self._begins.get(kind)
        if begin is None:
            begin = self._begins[kind] = _begin_of(answer)
        if closes:
            begin += b"connection: close\r\n"
        return b"%bcontent-length: %d\r\n\r\n%b" % (begin, len(body), body)

    def _read_head(self, data: bytes) -> RequestHead:
        return read_head(data, self.settings.access, self.service.limits.body_bytes_max)


def _begin_of(answer: Answer) -> bytes:
    """Status line, date, and the fields that belong to a status; what hundreds of answers a tick have in common."""
    date = email.utils.formatdate(time.time(), usegmt=True).encode()
    line = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (answer.status, HTTPStatus(answer.status).phrase.encode(), date)
    content_type = b"content-type: application/json\r\n" if answer.body else b""
    return line + content_type + _EXTRA_FIELDS.get(answer.status, b"")
