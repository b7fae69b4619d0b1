"""One client connection of the door: bytes in, requests in order, answers in order, bytes out. No task of its own.

Theory of operation. What came is taken apart into requests by `Incoming`; each becomes an `Exchange`, which does the
work; `Outgoing` keeps the order of the answers. Here is what binds them: when requests are read, when answers are sent,
how long the client may take, and how it ends.

    Channel: socket -> Incoming -> Exchange -> engine, or errand
                                      |
             socket <- Outgoing  <- answer

None of the three knows the connection, but for what an exchange may ask of its `Client`.

The rules that hold here; the codes group faults as in docs/testing.md:

- F10: requests of one packet are started together and answered in order. But nothing is started behind one that may
  take its time: a pop that waits, an errand. So what is behind a parked pop never runs when its client leaves (E3).
- E2, E5: whatever is on its way when the connection ends is withdrawn, and so are popped values whose answer is unsent.
- F5: no new request is started while bytes are unsent, and all connections together have a bound of unsent bytes.
- F4: each state has its deadline, but work has none: a parked pop waits for as long as it likes.
"""

from __future__ import annotations

import enum
import math
import socket
from collections.abc import Callable

from api.dialects.answers import failure
from api.door.channel import TO_READ, TO_WAIT, TO_WRITE, Channel
from api.door.exchange import Exchange
from api.door.incoming import Incoming, Refused
from api.door.outgoing import Outgoing
from api.door.settings import DoorSettings
from api.door.shared import Shared
from engine.replies import Error

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


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


class Connection(Channel):
    """A client. Arguments are those of `Channel`.

    Attributes:
        closing: no more requests are read; it ends behind the last answer.
    """

    __slots__ = ("_incoming", "_outgoing", "_phase", "_reading", "closing")

    def __init__(self, shared: Shared, client: socket.socket, forget: Callable[[int], None]) -> None:
        super().__init__(shared, client, forget)
        self.closing = False
        self._incoming = Incoming(shared)
        self._outgoing = Outgoing(client)
        self._reading = False
        self._phase: _Phase
        self._enter(_IDLE)

    @property
    def requests_open(self) -> int:
        """Requests whose answer was not handed over yet, one whose body is still coming among them."""
        return len(self._outgoing.exchanges) + (self._incoming.body is not None)

    def on_deadline(self) -> None:
        """Does what is due when `deadline` has passed."""
        try:
            if self._outgoing.outbox.unsent_bytes or self._phase in (_Phase.IDLE, _Phase.LINGER):
                self.close()
            else:
                self._refuse(self._incoming.late())
        except Exception:
            self.fail()

    def shut_down(self) -> None:
        """Closes when what is being worked on is answered; at once when that is nothing."""
        if self._incoming.body is not None:
            self._refuse(Refused(failure(503, Error.UNAVAILABLE.value, "shutting down")))
        elif not self._outgoing.exchanges and not self._outgoing.outbox.unsent_bytes:
            self.close()
        else:
            self.closing = True

    def _on_closed(self) -> None:
        self.closing = True
        self._incoming.drop()
        for exchange in self._outgoing.drop():
            exchange.withdraw()

    # Called by exchanges of this connection

    def hold_up(self, exchange: Exchange) -> None:
        """Has nothing started behind a request that may take its time."""
        self._outgoing.hold_up(exchange)

    def is_last(self, exchange: Exchange) -> bool:
        """Whether no request is behind this one."""
        return self._outgoing.is_last(exchange)

    def complete(self, exchange: Exchange, response: bytes) -> None:
        """Takes a response; it leaves when those before it have left."""
        if not self._open:
            exchange.withdraw()  # a task was too far to be cancelled
            return
        self._outgoing.complete(exchange, response)
        if not self._outgoing.running and not self._reading:  # else more come in a moment: they leave in one write
            self._send()

    def postpone(self, exchange: Exchange) -> None:
        """Has the answer made when it is the next to be sent."""
        self._outgoing.postpone(exchange)
        self.shared.unsent.note(self, self._outgoing.held_bytes)
        if not self._outgoing.running and not self._reading and self._open:
            self._send()

    # Reading

    def _on_readable(self) -> None:
        if self._phase is not _IDLE and not self.closing and self._outgoing.holds_up():
            self._watch(TO_WAIT)  # it stays in the kernel: a client cannot make us hold it
            return
        data = self._receive()
        if data and not self.closing:
            self._incoming.data += data
            self._read()

    def _read(self) -> None:
        """Starts the requests that have come whole, as far as they may be started now."""
        incoming, outgoing = self._incoming, self._outgoing
        self._reading = True
        try:
            while incoming.data and (self._phase is _IDLE or not (self.closing or outgoing.holds_up())):
                request = incoming.next()
                if request is None:
                    self._await_rest()
                    break
                head, body, held = request
                self._phase, self.deadline = _WORK, math.inf
                if not head.keep_alive:
                    self.closing = True
                exchange = outgoing.begin(self, head)
                if head.refusal is None:
                    exchange.start(body, held)
                else:
                    exchange.finish(head.refusal)
        except Refused as refused:
            self._refuse(refused)
        self._reading = False
        if self.closing:
            incoming.drop()
        elif incoming.data:
            incoming.cut()
        if outgoing.exchanges and not outgoing.running:
            self._send()

    def _await_rest(self) -> None:
        """Gives the rest of a head or a body its time, from when it began."""
        body = self._incoming.body
        if body is None and not self._incoming.data:  # nothing but empty lines came
            if self._outgoing.exchanges:
                self._enter(_WORK)
            elif self._phase is not _IDLE:
                self._enter(_IDLE)
        elif body is None:
            if self._phase is not _Phase.HEAD:
                self._enter(_Phase.HEAD)
        elif self._phase is not _Phase.BODY:
            self._enter(_Phase.BODY)
            if body.head.refusal is not None:
                self._wait(self.shared.settings.linger_s)
            if body.is_waited_for:  # what says so leaves in its turn, as an answer does
                self.complete(self._outgoing.begin(self, body.head), _CONTINUE)

    def _refuse(self, refused: Refused) -> None:
        """Gives the last answer."""
        self._enter(_WORK)
        self.closing = True
        self._incoming.drop()
        self._outgoing.begin(self, refused.head).finish(refused.answer)

    # Sending

    def _send(self) -> None:
        """Sends the answers that are next in order."""
        outgoing = self._outgoing
        unsent_bytes = outgoing.outbox.unsent_bytes
        try:
            sent = outgoing.send()
        except OSError:
            self.close()
            return
        if not sent:
            self._make_next()
            return
        if outgoing.outbox.unsent_bytes != unsent_bytes:
            self._note_unsent()
        self._go_on()

    def _on_writable(self) -> None:
        """Sends what is unsent; the kernel has room again."""
        try:
            self._outgoing.outbox.flush()
        except OSError:
            self.close()
            return
        self._note_unsent()
        self._go_on()

    def _note_unsent(self) -> None:
        """While bytes are unsent, nothing is read or started, and the client has its time to make progress."""
        self.shared.unsent.note(self, self._outgoing.held_bytes)
        if not self._open:
            return
        if self._outgoing.outbox.unsent_bytes:
            self._watch(TO_WRITE)
            self._wait(self.shared.settings.send_timeout_s)
        else:
            self._watch(TO_READ)
            self._enter(self._phase)

    def _make_next(self) -> None:
        if self._outgoing.make_next():
            self.shared.unsent.note(self, self._outgoing.held_bytes)

    def _go_on(self) -> None:
        """Does what may be done now that answers have left."""
        outgoing = self._outgoing
        if not self._open or outgoing.outbox.unsent_bytes or self._reading:
            return
        if outgoing.exchanges:
            self._make_next()
        if self.closing:
            if not outgoing.exchanges and self._end():
                self._enter(_Phase.LINGER)
            return
        if self._watched != TO_READ and not outgoing.holds_up():
            self._watch(TO_READ)
        if self._incoming.data:
            self._read()
        elif not outgoing.exchanges and self._incoming.body is None:
            self._phase = _IDLE
            self.deadline = self.shared.timers.idle_deadline
            if self.deadline < self.timer:
                self.shared.timers.arm(self, self.deadline)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._wait(_TIME_OF[phase](self.shared.settings))
