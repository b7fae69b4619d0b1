"""A connection as its exchanges see it, and how their answers leave: in order, and as fast as the client takes them.

The rules that hold here; the codes group faults as in docs/testing.md:

- F5: no new request is started while bytes are unsent, and all connections together have a bound of unsent bytes. A
  client that gets nothing for a while is closed.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Callable

from api.door.channel import TO_READ, TO_WRITE, Channel
from api.door.exchange import Exchange
from api.door.outgoing import Outgoing
from api.door.shared import Shared


class Sender(Channel):
    """A socket to which answers are sent. Arguments and errors are those of `Channel`.

    Attributes:
        closing: no more requests are read; it ends behind the last answer.
    """

    __slots__ = ("_outgoing", "_reading", "closing")

    def __init__(self, shared: Shared, client: socket.socket, forget: Callable[[int], None]) -> None:
        super().__init__(shared, client, forget)
        self.closing = False
        self._outgoing = Outgoing(client)
        self._reading = False

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

    # Sending, all of it

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
            self._wait_for_progress(self._outgoing.outbox.handed_bytes)
        else:
            self._watch(TO_READ)
            self._on_all_sent()

    def _make_next(self) -> None:
        if self._outgoing.make_next():
            self.shared.unsent.note(self, self._outgoing.held_bytes)

    # For the connection

    @abstractmethod
    def _on_all_sent(self) -> None:
        """The kernel has taken what was unsent."""

    @abstractmethod
    def _go_on(self) -> None:
        """Answers have left."""
