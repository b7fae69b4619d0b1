"""One client connection of the door: bytes in, requests in order, answers in order, bytes out. No task of its own.

Theory of operation. The door calls `on_ready` when the kernel has something to say about the socket; `_read` then goes
through what came: a head (remembered by its bytes), a body, and so an `Exchange`, which is one request and its answer.
A quick command goes to the engine at once, and its answer comes back by a call to `Exchange.deliver`. Everything else
is done by a task of the door's, an errand, to which the connection lends the exchange.

    pending bytes -> head -> body -> Exchange -> engine, or errand
                                        |
    socket  <- unsent bytes <- answers in order

The rules that hold here; the codes group faults as in docs/testing.md:

- F10: requests of one packet are started together and answered in order. But nothing is started behind one that may
  take its time: a pop that waits, an errand (`holds_up`). So what is behind a parked pop never runs when its client
  leaves (E3).
- E2: a client that hangs up, also with half of the connection, is gone: whatever of its requests is on its way is
  withdrawn. The kernel reports that beside unread bytes, so it is seen at once whatever is pipelined.
- E5: a popped value is handed over when the first byte of its answer is given to the kernel. Whatever is unsent when
  the connection ends goes back.
- F5: no new request is started while bytes are unsent, and all connections together have a bound of unsent bytes.
- F4: each state has its deadline (`deadline`), but work has none: a parked pop waits for as long as it likes.
- A defect here is logged, and costs one connection.
"""

from __future__ import annotations

import enum
import logging
import math
import select
import socket
from collections.abc import Callable
from itertools import takewhile
from operator import attrgetter
from typing import TYPE_CHECKING

from api.dialects import answers, batches, bodies, json_body
from api.dialects.answers import Answer, failure
from api.dialects.json_body import BadRequest
from api.door.exchange import DEFECT, Exchange
from api.door.outbox import Outbox
from api.door.request import BadBody, IncomingBody, RequestHead, refusal_of, too_large
from api.http.body import HeldBody
from api.http.head import HEAD_BYTES_MAX, INVALID, UNPARSABLE, BadHead, check_bytes
from api.http.service import BODIES_FULL, COMMAND, MULTI, PIPELINE
from engine.commands.grammar import BQPop
from engine.limits import KIB
from engine.replies import Error, Failure

if TYPE_CHECKING:
    from api.door.door import Door, DoorSettings

_logger = logging.getLogger("holdfast.http")

RECEIVE_BYTES = 64 * KIB

PIPELINE_MAX = 128
"""Requests of one connection that are on their way at once."""

SMALL_BODY_BYTES = 64 * KIB
"""A body up to this length is read and thrown away behind a refusal, so that the connection can stay open."""

FREE_BODY_BYTES = 16 * KIB
"""Bodies up to this length need no share of the budget: clients that fill it slowly cannot shut commands out."""

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
_READS = select.EPOLLRDHUP | READABLE
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_HEAD_END = b"\r\n\r\n"
_RESPONSE = attrgetter("response")


class _Phase(enum.Enum):
    """What a connection waits for."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    WORK = enum.auto()
    LINGER = enum.auto()


_IDLE, _WORK = _Phase.IDLE, _Phase.WORK  # to look them up in their class takes 0.1 us, and each request passes both

_TIME_OF: dict[_Phase, Callable[[DoorSettings], float]] = {
    _Phase.IDLE: lambda settings: settings.keep_alive_s,
    _Phase.HEAD: lambda settings: settings.head_timeout_s,
    _Phase.BODY: lambda settings: settings.body_timeout_s,
    _Phase.WORK: lambda _: math.inf,
    _Phase.LINGER: lambda settings: settings.linger_s,
}
"""How long each may take, in seconds."""


class Connection:
    """A client.

    Args:
        door: it belongs to.
        client: the accepted socket, not blocking.

    Attributes:
        fd: descriptor of the socket.
        deadline: when to look at it again, in trio's time.
        timer: when the door does; no later than at the deadline.
    """

    __slots__ = (
        "_body",
        "_closing",
        "_events",
        "_exchanges",
        "_open",
        "_outbox",
        "_pending",
        "_phase",
        "_postponed_bytes",
        "_reading",
        "_running",
        "_socket",
        "deadline",
        "door",
        "fd",
        "timer",
    )

    def __init__(self, door: Door, client: socket.socket) -> None:
        self.door = door
        self.fd = client.fileno()
        self.deadline = math.inf
        self.timer = math.inf
        self._socket = client
        self._events = _READS
        self._open = True
        self._closing = False  # no more requests are read
        self._reading = False
        self._pending = b""
        self._body: IncomingBody | None = None
        self._exchanges: list[Exchange] = []
        self._running = 0  # exchanges that wait for their answer and hold nothing up
        self._outbox = Outbox(client)
        self._postponed_bytes = 0
        door.epoll.register(self.fd, self._events)
        self._enter(_Phase.IDLE)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers that the kernel has not taken yet."""
        return self._outbox.unsent_bytes

    @property
    def held_bytes(self) -> int:
        """These, and the values of answers that are not made yet, as far as they take memory for this client alone."""
        return self._outbox.unsent_bytes + self._postponed_bytes

    @property
    def requests_open(self) -> int:
        """Requests whose answer was not handed over yet, one whose body is still coming among them."""
        return len(self._exchanges) + (self._body is not None)

    # Called by the door

    def on_ready(self, events: int) -> None:
        """Does what the kernel says can be done.

        Args:
            events: of epoll.
        """
        try:
            if events & GONE:
                self.close()
                return
            if events & WRITABLE:
                self._flush()
            if events & READABLE and self._open:
                self._receive()
        except Exception:
            self.fail()

    def on_deadline(self) -> None:
        """Does what is due when `deadline` has passed."""
        settings = self.door.settings
        try:
            if self.unsent_bytes or self._phase in (_Phase.IDLE, _Phase.LINGER):
                self.close()
            elif self._body is not None and self._body.head.refusal is not None:
                self._refuse(self._body.head.refusal, self._body.head)  # what is left of its body does not matter
            elif self._phase is _Phase.BODY:
                self._refuse(failure(408, "request timeout", f"a body has {settings.body_timeout_s:g} s to arrive"))
            else:
                self._refuse(failure(408, "request timeout", f"a head has {settings.head_timeout_s:g} s to arrive"))
        except Exception:
            self.fail()

    def shut_down(self) -> None:
        """Closes when what is being worked on is answered; at once when that is nothing."""
        if self._body is not None:
            self._refuse(failure(503, Error.UNAVAILABLE.value, "shutting down"))
        elif not self._exchanges and not self.unsent_bytes:
            self.close()
        else:
            self._closing = True

    def fail(self) -> None:
        """Gives the connection up over a defect; to be called where the exception is."""
        _logger.exception("a connection failed")
        self.close()

    def close(self) -> None:
        """Closes at once: the client is gone, or has used up its time."""
        if not self._open:
            return
        self._open = False
        self._closing = True
        self.deadline = math.inf
        self.door.forget(self)
        self._socket.close()
        if self._body is not None:
            self._body.held.release()
        left = self._outbox.drop() + self._exchanges
        self._pending, self._body, self._exchanges = b"", None, []
        for exchange in left:
            exchange.withdraw()

    # Reading

    def _receive(self) -> None:
        if not self._closing and self._is_held_up():
            self._watch(select.EPOLLRDHUP)  # it stays in the kernel: a client cannot make us hold it
            return
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self._closing:
            self._read(self._pending + data if self._pending else data)

    def _read(self, data: bytes) -> None:
        """Goes through received bytes as far as they can be used now, and keeps the rest."""
        at = 0
        self._pending = b""
        self._reading = True
        while at < len(data) and (self._phase is _IDLE or not self._is_held_up()):
            taken = self._read_head(data, at) if self._body is None else self._read_body(data, at)
            if taken == at:
                break
            at = taken
        self._reading = False
        if not self._closing and at < len(data):
            self._pending = data[at:]
        if self._exchanges and not self._running:
            self._send_answers()

    def _is_held_up(self) -> bool:
        """Whether nothing may be started now."""
        exchanges = self._exchanges
        if exchanges and (exchanges[-1].holds_up or len(exchanges) >= PIPELINE_MAX):
            return True
        return self._closing or self._outbox.unsent_bytes > 0

    def _read_head(self, data: bytes, at: int) -> int:
        """Reads a head, and its body if that is all here. Returns where to go on: at the same place when it cannot."""
        end = data.find(_HEAD_END, at, at + HEAD_BYTES_MAX + len(_HEAD_END))
        if end < 0:
            self._begin_head(data[at:])
            return at
        end += len(_HEAD_END)
        head = self.door.read_head(data[at:end])
        if head.refusal is None and head.length is not None and end + head.length <= len(data):
            self._start(head, data[end : end + head.length])
            return end + head.length
        if head.refusal is not None and not (head.keep_alive and self._throws_away(head)):
            self._refuse(head.refusal, head)
        else:
            self._begin_body(head, nothing_follows=end == len(data))
        return end

    def _begin_head(self, data: bytes) -> None:
        """Gives the rest of a head its time, unless no head begins like that."""
        try:
            check_bytes(data)
        except BadHead as error:
            self._refuse(refusal_of(error))
            return
        if self._phase is not _Phase.HEAD:
            self._enter(_Phase.HEAD)

    def _throws_away(self, head: RequestHead) -> bool:
        """Whether the body behind a refused head is worth waiting for."""
        return head.length is not None and head.length <= SMALL_BODY_BYTES and not head.expects_continue

    def _begin_body(self, head: RequestHead, *, nothing_follows: bool) -> None:
        self._body = IncomingBody(head)
        self._enter(_Phase.BODY)
        if head.refusal is not None:
            self._wait(self.door.settings.linger_s)
        if head.expects_continue and nothing_follows:
            self._complete(self._begin_exchange(head), b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._body.complete:
            self._end_body(self._body)

    def _read_body(self, data: bytes, at: int) -> int:
        body = self._body
        assert body is not None
        try:
            piece, at = body.take(data, at)
        except BadBody:
            self._refuse(failure(400, INVALID, UNPARSABLE))
            return at
        if body.head.refusal is None and piece:
            refusal = self._hold(body, piece)
            if refusal is not None:
                self._refuse(refusal)
                return at
        if body.complete:
            self._end_body(body)
        return at

    def _hold(self, body: IncomingBody, piece: bytes) -> Answer | None:
        """Adds to a body; returns the answer to one that may not grow so long."""
        size = len(body.data) + len(piece)
        if size > self.door.service.limits.body_bytes_max:
            return too_large(self.door.service.limits.body_bytes_max)
        if size > FREE_BODY_BYTES and not body.held.hold(self.door.service.budget, size):
            return BODIES_FULL
        body.data += piece
        return None

    def _end_body(self, body: IncomingBody) -> None:
        self._body = None
        if body.head.refusal is not None:
            self._enter(_Phase.WORK)
            self._answer_now(body.head, body.head.refusal)
        else:
            body.held.data = bytes(body.data)
            self._start(body.head, body.held.data, body.held)

    # Working

    def _start(self, head: RequestHead, data: bytes, held: HeldBody | None = None) -> None:
        """Starts the work of one whole request.

        Args:
            head: not refused.
            data: the body.
            held: its share of the budget, if it has one.
        """
        self._phase = _WORK
        self.deadline = math.inf
        if not head.keep_alive:
            self._closing = True
        before = len(self._exchanges)
        try:
            if head.path == COMMAND and json_body.is_quick(data):
                self._start_command(head, data)
            elif head.path in (PIPELINE, MULTI) and batches.is_quick(data):
                self._start_batch(head, data)
            else:
                self._start_errand(head, held or HeldBody(data))
                return
        except Exception:
            _logger.exception("a request failed")
            self.answer(self._exchanges[before] if self._exchanges[before:] else self._begin_exchange(head), DEFECT)
        if held is not None:
            held.release()

    def _start_command(self, head: RequestHead, data: bytes) -> None:
        try:
            request, command = bodies.understand(data, self.door.service.limits)
        except BadRequest as bad:
            self._answer_now(head, answers.refuse(bad))
            return
        if isinstance(command, Failure):
            self._answer_now(head, answers.answer(request, command))
            return
        exchange = self._begin_exchange(head, holds_up=type(command) is BQPop and command.timeout_ms != 0)
        exchange.request = request
        call = self.door.engine.submit_nowait(command, exchange.deliver)
        if exchange.response is None:  # else it was refused
            exchange.call = call

    def _start_batch(self, head: RequestHead, data: bytes) -> None:
        try:
            batch = batches.parse(data, self.door.service.limits, atomic=head.path == MULTI)
        except BadRequest as bad:
            self._answer_now(head, answers.refuse(bad))
            return
        # The rest of a long batch has its turn behind what came meanwhile, and so it would behind the next request.
        exchange = self._begin_exchange(head, holds_up=not batch.atomic)
        exchange.batch = batch
        call = self.door.engine.submit_many_nowait(batch.commands, batch.atomic, exchange.deliver_batch)
        if exchange.response is None:  # else it was refused
            exchange.call = call

    def _start_errand(self, head: RequestHead, body: HeldBody) -> None:
        if not body.hold(self.door.service.budget, len(body.data)):
            self._answer_now(head, BODIES_FULL)
            return
        self.door.send_on_errand(self._begin_exchange(head, holds_up=True), body)

    def _begin_exchange(self, head: RequestHead, *, holds_up: bool = False) -> Exchange:
        exchange = Exchange(self, head, holds_up)
        self._exchanges.append(exchange)
        if not holds_up:
            self._running += 1
        return exchange

    # Answering

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Answers a request; the answer leaves when those before it have left.

        Args:
            exchange: of this connection, not answered yet.
            answer: to it.
        """
        self._complete(exchange, self.door.render(answer, closes=self._closing and self._is_last(exchange)))

    def respond(self, exchange: Exchange, response: bytes) -> None:
        """As `answer`, with the bytes of head and body."""
        if self._closing and self._is_last(exchange):
            response = response.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
        self._complete(exchange, response)

    def postpone(self, exchange: Exchange) -> None:
        """Has the answer made when it is the next to be sent, so that no client has more than one long answer waiting.

        Args:
            exchange: of this connection, with `later`.
        """
        self._postponed_bytes += exchange.later_bytes
        if not exchange.holds_up:
            exchange.holds_up = True
            self._running -= 1
        self.door.note_unsent(self, exchange.later_bytes)
        if not self._running and not self._reading and self._open:
            self._send_answers()

    def _make_next(self) -> None:
        """Has a long answer made, when it is the next."""
        if self._exchanges and not self._outbox.unsent_bytes:
            exchange = self._exchanges[0]
            later, exchange.later = exchange.later, None
            if later is not None:
                self._postponed_bytes -= exchange.later_bytes
                self.door.note_unsent(self, -exchange.later_bytes)
                self.door.start_errand(exchange, later)

    def _is_last(self, exchange: Exchange) -> bool:
        return self._exchanges[-1:] == [exchange]

    def _complete(self, exchange: Exchange, response: bytes) -> None:
        if not self._open:
            exchange.withdraw()  # a task was too far to be cancelled
            return
        exchange.response = response
        if not exchange.holds_up:
            self._running -= 1
        if not self._running and not self._reading:  # else more come in a moment: they leave in one write
            self._send_answers()

    def _answer_now(self, head: RequestHead, answer: Answer) -> None:
        """Answers a request that needs no work."""
        if not head.keep_alive:
            self._closing = True
        exchange = self._begin_exchange(head)
        response = self.door.render(answer, closes=self._closing)
        self._complete(exchange, response.removesuffix(answer.body) if head.method == b"HEAD" else response)

    def _refuse(self, answer: Answer, head: RequestHead | None = None) -> None:
        """Answers what is no request, or one whose rest is not read: the last answer."""
        self._enter(_Phase.WORK)
        self._closing = True
        self._pending = b""
        if self._body is not None:
            self._body.held.release()  # now, not when the client has its answer: others may need the budget
            self._body = None
        self._answer_now(head or _NO_HEAD, answer)

    def _send_answers(self) -> None:
        """Sends the answers that are next in order, in one write."""
        exchanges = self._exchanges
        if len(exchanges) == 1:  # as nearly always
            ready = exchanges if exchanges[0].response is not None else []
        else:
            ready = list(takewhile(_RESPONSE, exchanges))
        if not ready:
            self._make_next()
            return
        outbox = self._outbox
        unsent_bytes = outbox.unsent_bytes
        try:
            outbox.put(ready)
        except OSError:
            self.close()
            return
        self._exchanges = exchanges[len(ready) :]
        if outbox.unsent_bytes != unsent_bytes:
            self._note_unsent(outbox.unsent_bytes - unsent_bytes)
        self._go_on()

    def _flush(self) -> None:
        """Sends what is unsent; the kernel has room again."""
        unsent_bytes = self._outbox.unsent_bytes
        try:
            self._outbox.flush()
        except OSError:
            self.close()
            return
        self._note_unsent(self._outbox.unsent_bytes - unsent_bytes)
        self._go_on()

    def _note_unsent(self, change_bytes: int) -> None:
        """While bytes are unsent, nothing is read or started, and the client has its time to make progress."""
        self.door.note_unsent(self, change_bytes)
        if not self._open:
            return
        if self._outbox.unsent_bytes:
            self._watch(select.EPOLLRDHUP | WRITABLE)
            self._wait(self.door.settings.send_timeout_s)
        else:
            self._watch(_READS)
            self._enter(self._phase)

    def _go_on(self) -> None:
        """Does what may be done now that answers have left."""
        if not self._open or self._outbox.unsent_bytes or self._reading:
            return
        self._make_next()
        if self._closing:
            if not self._exchanges:
                self._hang_up()
            return
        if self._events != _READS and not self._is_held_up():
            self._watch(_READS)
        if self._pending:
            self._read(self._pending)
        elif not self._exchanges and self._body is None:
            self._phase = _IDLE
            self.deadline = self.door.idle_deadline
            if self.deadline < self.timer:
                self.door.arm(self, self.deadline)

    def _hang_up(self) -> None:
        """Ends our side, and waits a moment for the client to end its own.

        Closing over bytes that were not read resets the connection, and the client loses the answer.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._watch(_READS)
        self._enter(_Phase.LINGER)

    # The kernel and the clock

    def _watch(self, events: int) -> None:
        if events != self._events and self._open:
            self._events = events
            self.door.epoll.modify(self.fd, events)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._wait(_TIME_OF[phase](self.door.settings))

    def _wait(self, seconds: float) -> None:
        """Sets the deadline."""
        self.deadline = deadline = self.door.now + seconds
        if deadline < self.timer:
            self.door.arm(self, deadline)


_NO_HEAD = RequestHead(b"", b"", "1.1", (), None, 0, False, False, None)
