"""What Hypercorn 0.18 on trio gets wrong for us, mended by three subclasses that `mended` puts in place.

Theory of operation. One connection is one `Connection` (Hypercorn's TCPServer): a reader task that feeds
an `H11` protocol, which feeds a `StrictParser` (h11). A request starts an application task; its answer
goes back through the protocol. What is mended; the codes group faults as in docs/testing.md:

- F1, F2, F3, F11: h11 takes bare LF, folded header lines, HTTP/2's preface, any number of fields when they
  come in one packet, and Hypercorn upgrades to h2c. `StrictParser` looks at each head before h11 does.
- F8: Hypercorn answers what it cannot parse with an empty body, then resets the connection under it.
  `H11` answers JSON, and reads on for a moment so that the answer arrives.
- E3: while pipelined bytes wait behind a request Hypercorn reads nothing, so it cannot see the client
  leave. `_Turn` reads ahead, up to a bound. Once the client is gone nothing more is parsed.
- F4: a head that comes in slowly had the whole keep-alive time; it gets `HEAD_TIMEOUT_S`.
- F5, H1: sends were shielded from cancellation, so that a client that does not read held the shutdown up
  for ever. Here the end of `graceful_timeout` ends them; before that `api.http.sockets.tune` bounds them.
- A connection its client had closed stayed open until the keep-alive time was over, because the timer
  was a task that was waited for. Now the timer is a deadline on reading, and costs no task per request.
- One answer is one write: head and body left in two packets and two system calls.

The rules that hold here:

- Names that Hypercorn or h11 document are used where there are any; each other one is marked "reaches".
  `pyproject.toml` pins Hypercorn to the line this was read against, and tests/api/app/test_http_stack.py shows
  every fault mended over a real socket.
- Only the reader task parses; only the task that answers sends; nothing here knows commands or engine.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from types import MethodType
from typing import ClassVar, cast
from weakref import WeakSet

import h11
import hypercorn.protocol
import hypercorn.trio.run
import trio
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData
from hypercorn.logging import Logger
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.typing import H11SendableEvent, WorkerContext

from api.app.strict_parser import StrictParser
from api.dialects.answers import failure
from api.http.head import ERRORS, HEAD_BYTES_MAX, INVALID
from api.http.refusals import Refusals
from api.http.sockets import (
    BACKLOG,
    HEAD_TIMEOUT_S,
    KEEP_ALIVE_S,
    LINGER_BYTES_MAX,
    LINGER_S,
    READ_AHEAD_BYTES_MAX,
    spread_probes,
)

_QUICK_TURN_S = 0.02
_GONE_POLL_S = 1.0
_TCP_ESTABLISHED = 1

_NEVER = 10**12


@contextlib.contextmanager
def mended(refusals: Refusals) -> Iterator[None]:
    """Puts the mended classes where Hypercorn looks for them, for as long as it serves clients itself.

    Reaches: both names are module globals of Hypercorn that it looks up for each connection.

    Args:
        refusals: counts what is refused before the application sees it.
    """
    Connection.refusals = refusals
    replaced = ((hypercorn.protocol, "H11Protocol", H11), (hypercorn.trio.run, "TCPServer", Connection))
    theirs = [getattr(module, name) for module, name, _ in replaced]
    for module, name, ours in replaced:
        setattr(module, name, ours)
    try:
        yield
    finally:
        for (module, name, _), original in zip(replaced, theirs, strict=True):
            setattr(module, name, original)


def connections_open() -> int:
    """Returns how many TCP connections are open in this process, idle ones included."""
    return len(Connection.live)


def hypercorn_config(
    fds: Sequence[int], *, graceful_timeout_s: float = 3.0, keep_alive_s: float = KEEP_ALIVE_S
) -> Config:
    """Makes the configuration Holdfast is served with.

    Args:
        fds: listening sockets, bound and tuned. Hypercorn owns and closes them from here on: pass what
            `socket.detach()` returns.
        graceful_timeout_s: from the shutdown trigger to the cancellation of what still runs.
        keep_alive_s: how long a connection may be idle.

    Returns:
        The configuration; logs go to the logger `holdfast.http`, and there is no access log.
    """
    config = _Config()
    config.bind = [f"fd://{fd}" for fd in fds]
    config.backlog = BACKLOG
    quiet(config)
    config.keep_alive_timeout = keep_alive_s
    config.keep_alive_max_requests = _NEVER
    config.graceful_timeout = graceful_timeout_s
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    return config


def quiet(config: Config) -> None:
    """Makes Hypercorn log like the rest of us, and not name itself. These are its documented settings.

    Args:
        config: to change.
    """
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("holdfast.http")
    config.logger_class = _HttpLog


class _Turn:
    """Hypercorn's `can_read` event: waited for by the reader while a request is before its bytes.

    Most turns come within milliseconds. When one does not the reader goes on reading meanwhile, which is
    the only way to see the client leave.
    """

    def __init__(self, protocol: H11) -> None:
        self._protocol = protocol
        self._event = trio.Event()

    async def clear(self) -> None:
        self._event = trio.Event()

    async def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        with trio.move_on_after(_QUICK_TURN_S):
            await self._event.wait()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            await self._event.wait()
            nursery.cancel_scope.cancel()

    async def _watch(self, waiting: trio.CancelScope) -> None:
        await self._protocol.wait_until_gone()
        await self._protocol.handle(Closed())
        waiting.cancel()


def _established(connection: trio.socket.SocketType) -> bool:
    """Tells by the first byte of the kernel's TCP_INFO whether neither side has closed."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_ESTABLISHED


class H11(H11Protocol):
    """Hypercorn's HTTP/1 with a strict parser, JSON errors and one write for one answer."""

    connection: StrictParser

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # Hypercorn's nine arguments, untouched
        self.connection = StrictParser()
        self.can_read = _Turn(self)
        self._head = b""

    @property
    def _transport(self) -> Connection:
        """Reaches: `send` is the bound method of the connection this protocol belongs to."""
        return cast(Connection, cast(MethodType, self.send).__self__)

    async def handle(self, event: Event) -> None:
        """Takes bytes from the reader, or the news that the client is gone."""
        if isinstance(event, Closed):
            self.connection.ended = True
        elif isinstance(event, RawData) and self.connection.deaf:
            return
        await super().handle(event)
        if self.stream is None and self.connection.head_begun:
            self._transport.limit_head()

    async def wait_until_gone(self) -> None:
        """Reads ahead while a request is being worked on; returns when the client has left."""
        stream = self._transport.stream
        kept = 0
        while kept < READ_AHEAD_BYTES_MAX:
            try:
                data = await stream.receive_some(MAX_RECV)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            self.connection.receive_data(bytes(data))
            kept += len(data)
        # The rest stays in the kernel, so that a client cannot make us hold it. Its FIN stands behind
        # those bytes and cannot be read; the state of the connection shows it all the same.
        while _established(stream.socket):  # noqa: ASYNC110  # the kernel has no event for this
            await trio.sleep(_GONE_POLL_S)

    async def refuse(self, status: int, error: str, detail: str) -> None:
        """Sends an error of this layer, the last answer on the connection."""
        answer = failure(status, error, detail)
        Connection.refusals.count(status)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer.body)),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=answer.status, headers=headers))
        await self._send_h11_event(h11.Data(data=answer.body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _send_error_response(self, status_code: int) -> None:
        """Called by Hypercorn's reader for what h11 could not parse; it closes the connection next."""
        if self.connection.verbatim:
            Connection.refusals.count(status_code)
            await self.send(RawData(data=self.connection.verbatim))
        else:
            await self.refuse(status_code, ERRORS.get(status_code, INVALID), self.connection.complaint)
        self.connection.ended = True
        await self._transport.linger()

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Keeps the head of an answer until its body is there, so that both leave in one write."""
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response | h11.InformationalResponse):
            data = _with_reason(event.status_code, data)
        if isinstance(event, h11.Response):
            self._head = data
            return
        data, self._head = self._head + data, b""
        if data:
            await self.send(RawData(data=data))


def _with_reason(status: int, head: bytes) -> bytes:
    """Says the status in words, which Hypercorn leaves out."""
    _, end, fields = head.partition(b"\r\n")
    return b"HTTP/1.1 %d %b%b%b" % (status, HTTPStatus(status).phrase.encode(), end, fields)


class _IdleTimer:
    """Stands in for Hypercorn's timer, a task that it starts and cancels for each request: a deadline.

    Attributes:
        scope: around all reading of the connection; at its deadline the reader gives up.
        idle: no request is being worked on.
        head_is_late: the deadline that counts is that of a head.
    """

    def __init__(self, keep_alive_s: float) -> None:
        self.scope = trio.CancelScope()
        self.idle = True
        self.head_is_late = False
        self._keep_alive_s = keep_alive_s

    async def restart(self, _task_group: object, _action: object) -> None:
        self._set(trio.current_time() + self._keep_alive_s, idle=True)

    async def stop(self) -> None:
        self._set(math.inf, idle=False)

    def _set(self, deadline: float, *, idle: bool) -> None:
        self.idle = idle
        if not (idle and self.head_is_late):  # the head of a next request can come before the idle time
            self.head_is_late = False
            self.scope.deadline = deadline

    def limit_head(self) -> None:
        """Starts the time a head has, unless it is running."""
        if not self.head_is_late:
            self.head_is_late = True
            self.scope.deadline = trio.current_time() + HEAD_TIMEOUT_S


class Connection(TCPServer):
    """Hypercorn's connection, whose sends end with it, and with a deadline instead of a timer task."""

    live: ClassVar[set[Connection]] = set()
    refusals: ClassVar[Refusals]

    async def run(self) -> None:
        """Serves the connection until it is closed."""
        self._timer = _IdleTimer(self.config.keep_alive_timeout)
        self.idle_task = self._timer  # type: ignore[assignment]  # has the two methods that are called
        _end_idle_at_shutdown(self.context)
        Connection.live.add(self)
        try:
            spread_probes(self.stream.socket)
            await super().run()
        finally:
            Connection.live.discard(self)

    def end_if_idle(self) -> None:
        """Closes the connection unless a request is being worked on."""
        if self._timer.idle:
            self._timer.head_is_late = False  # not the client's fault
            self._timer.scope.cancel()

    def limit_head(self) -> None:
        """Starts the time the rest of a head has."""
        self._timer.limit_head()

    async def protocol_send(self, event: Event) -> None:
        """Sends bytes without Hypercorn's shield; everything else is its own affair."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self.protocol.handle(Closed())  # busy: the reader is closing it

    async def linger(self) -> None:
        """Ends our side and throws away what the client still sends, for a bounded time and amount."""
        thrown = 0
        with trio.move_on_after(LINGER_S):
            try:
                await self.stream.send_eof()
                while thrown < LINGER_BYTES_MAX and (data := await self.stream.receive_some(MAX_RECV)):
                    thrown += len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # gone: that is what was waited for

    async def _read_data(self) -> None:
        """Reads until the client is gone, or has been idle or busy with a head for too long."""
        if self.context.terminated.is_set():
            return
        with self._timer.scope:
            await super()._read_data()
        if self._timer.scope.cancelled_caught:
            if self._timer.head_is_late:
                with trio.move_on_after(LINGER_S):
                    detail = f"a head has {HEAD_TIMEOUT_S:g} s to arrive"
                    await cast(H11, self.protocol.protocol).refuse(408, "request timeout", detail)
            await self.protocol.handle(Closed())


_WATCHED: WeakSet[WorkerContext] = WeakSet()


def _end_idle_at_shutdown(context: WorkerContext) -> None:
    """Starts, with the first connection of a server, the task that closes its idle ones at shutdown."""
    if context not in _WATCHED:
        _WATCHED.add(context)
        trio.lowlevel.spawn_system_task(_end_idle, context)


async def _end_idle(context: WorkerContext) -> None:
    await context.terminated.wait()
    for connection in list(Connection.live):
        if connection.context is context:
            connection.end_if_idle()


class _HttpLog(Logger):
    """Hypercorn's log, without its greeting: the server says itself where it listens."""

    async def info(self, message: str, *args: object, **kwargs: object) -> None:
        await super().debug(message, *args, **kwargs)


class _Config(Config):
    """Hypercorn's configuration, whose listeners are not inherited by child processes (row H3)."""

    def create_sockets(self) -> Sockets:
        sockets = super().create_sockets()
        for listener in sockets.insecure_sockets:
            listener.set_inheritable(False)
        return sockets
