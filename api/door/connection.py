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
- Requests that came together take turns with those of others: a connection does one in a turn of the event loop, more
  while its share of it lasts, and is put off with the rest (turns.py).
- E2: behind a parked pop it is read on, so that the end of the connection is seen behind whatever is pipelined. Where
  more comes than is read ahead the connection is closed, and the pop withdrawn.
- E2, E5: whatever is on its way when the connection ends is withdrawn, and so are popped values whose answer is unsent.
- F5: no new request is started while bytes are unsent, and all connections together have a bound of unsent bytes; and
  one of bytes that came and are not started.
- F4: each state has its deadline, but work has none: a parked pop waits for as long as it likes. So may an answer take,
  if the client's side acknowledges some of it now and then.
"""

from __future__ import annotations

import enum
import math
import socket
from collections.abc import Callable

from api.dialects.answers import failure
from api.door.channel import TO_READ, TO_WAIT
from api.door.incoming import Incoming, Refused
from api.door.sender import Sender
from api.door.settings import DoorSettings
from api.door.shared import Shared
from api.http.sockets import READ_AHEAD_BYTES_MAX
from engine.replies import Error

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Phase(enum.Enum):
    """What a connection waits for."""

    NEW = enum.auto()
    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    WORK = enum.auto()
    LINGER = enum.auto()


_IDLE, _WORK = _Phase.IDLE, _Phase.WORK  # to look them up in their class takes 0.1 us, and each request passes both

_SILENT = (_Phase.NEW, _Phase.IDLE, _Phase.LINGER)
"""Those that end without an answer."""

_TIME_OF: dict[_Phase, Callable[[DoorSettings], float]] = {
    _Phase.NEW: lambda settings: settings.head_timeout_s,
    _Phase.IDLE: lambda settings: settings.keep_alive_s,
    _Phase.HEAD: lambda settings: settings.head_timeout_s,
    _Phase.BODY: lambda settings: settings.body_timeout_s,
    _Phase.WORK: lambda _: math.inf,
    _Phase.LINGER: lambda settings: settings.linger_s,
}
"""How long each may take, in seconds."""


class Connection(Sender):
    """A client. Arguments and errors are those of `Channel`."""

    __slots__ = (
        "_incoming",
        "_is_ahead",
        "_is_put_off",
        "_phase",
    )

    def __init__(self, shared: Shared, client: socket.socket, forget: Callable[[int], None]) -> None:
        super().__init__(shared, client, forget)
        self._incoming = Incoming(shared)
        self._is_put_off = False
        self._is_ahead = False  # it holds bytes that are not started
        self._phase: _Phase
        self._enter(_Phase.NEW)

    @property
    def requests_open(self) -> int:
        """Requests whose answer was not handed over yet, one whose body is still coming among them."""
        return len(self._outgoing.exchanges) + (self._incoming.body is not None)

    def on_deadline(self) -> None:
        """Does what is due when `deadline` has passed."""
        try:
            if self._outgoing.outbox.unsent_bytes:
                self._wait_for_progress(self._outgoing.outbox.handed_bytes)
            elif self._phase in _SILENT:
                self.close()
            elif self._phase is _WORK:
                self._watch(TO_READ)  # there is something, and by now the pop before it may be parked
            else:
                self._refuse(self._incoming.late())
        except Exception:
            self.fail()

    def shut_down(self) -> None:
        """Closes when what is being worked on is answered; at once when that is nothing."""
        try:
            if self._incoming.body is not None:
                self._refuse(Refused(failure(503, Error.UNAVAILABLE.value, "shutting down")))
            elif self._outgoing.exchanges or self._outgoing.outbox.unsent_bytes:
                self.closing = True
            elif self._is_put_off:
                self._incoming.drop()
                self._linger()
            else:
                self.close()
        except Exception:
            self.fail()

    def _on_closed(self) -> None:
        self.closing = True
        self._incoming.drop()
        for exchange in self._outgoing.drop():
            exchange.withdraw()

    # Reading

    def _on_readable(self) -> None:
        if self._phase is not _IDLE and not self.closing and (self._is_put_off or self._outgoing.holds_up()):
            self._read_ahead()
            return
        data = self._receive(self.shared.ahead.receive_bytes)
        if data and not self.closing:
            self._incoming.data += data
            self._read()

    def _read_ahead(self) -> None:
        """Reads on behind a parked pop; else it stays in the kernel: a client cannot make us hold it."""
        outgoing = self._outgoing
        if self._is_put_off or not outgoing.is_parked:
            self._watch(TO_WAIT)
            if outgoing.waits and not outgoing.outbox.unsent_bytes:  # nobody tells when it is parked
                self._wait(self.shared.settings.tick_s)
            return
        room = READ_AHEAD_BYTES_MAX - len(self._incoming.data)
        if room <= 0:
            self.close()
        elif data := self._receive(min(room, self.shared.ahead.receive_bytes)):
            self._incoming.data += data
            self._note_ahead()

    def go_on(self) -> None:
        """Part of `Unfinished`: goes on with requests that came with others, or behind one that is answered now."""
        self._is_put_off = False
        if not self._open or self.closing:
            return
        try:
            self._read()
            if not (self._is_put_off or self.closing or self._outgoing.holds_up()):
                self._watch(TO_READ)
        except Exception:
            self.fail()

    def _put_off(self) -> None:
        if not self._is_put_off:
            self._is_put_off = True
            self.shared.turns.put_off(self)

    def _note_ahead(self) -> None:
        held_bytes = self._incoming.held_bytes
        self._is_ahead = held_bytes > 0
        self.shared.ahead.note(self, held_bytes)

    def _read(self) -> None:
        """Starts the requests that have come whole, as far as they may be started now."""
        incoming, outgoing = self._incoming, self._outgoing
        self._reading = True
        try:
            while incoming.data and (self._phase is _IDLE or self._may_start()):
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
        if incoming.data or self._is_ahead:
            incoming.cut()
            self._note_ahead()
        if outgoing.exchanges and not outgoing.running:
            self._send()

    def _may_start(self) -> bool:
        """Whether another request may be started now; else it is put off, or those before it hold it up."""
        if self.closing or self._outgoing.holds_up():
            return False
        if self.shared.turns.is_over_for(self):
            self._put_off()
            return False
        return True

    def _await_rest(self) -> None:
        """Gives the rest of a head or a body its time, from when it began."""
        body = self._incoming.body
        if body is None and not self._incoming.data:  # nothing but empty lines came
            if self._outgoing.exchanges:
                self._enter(_WORK)
            elif self._phase is not _IDLE:
                self._enter(_IDLE)
            return
        if self._incoming.is_paused:
            self._put_off()
        self._is_ahead = True
        if body is None:
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

    def _on_all_sent(self) -> None:
        self._enter(self._phase)

    def _go_on(self) -> None:
        """Does what may be done now that answers have left."""
        outgoing = self._outgoing
        if not self._open or outgoing.outbox.unsent_bytes or self._reading:
            return
        if outgoing.exchanges:
            self._make_next()
        if self.closing:
            if not outgoing.exchanges:
                self._linger()
            return
        if self._incoming.data:
            if not outgoing.holds_up():
                self._put_off()
            return
        if self._watched != TO_READ and not outgoing.holds_up():
            self._watch(TO_READ)
        if not outgoing.exchanges and self._incoming.body is None:
            self._phase = _IDLE
            self.deadline = self.shared.timers.idle_deadline
            if self.deadline < self.timer:
                self.shared.timers.arm(self, self.deadline)

    def _linger(self) -> None:
        self.closing = True
        if self._end():
            self._enter(_Phase.LINGER)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._wait(_TIME_OF[phase](self.shared.settings))
