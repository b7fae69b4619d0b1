"""What a connection has to answer: its requests in the order in which they came, and the bytes that are unsent.

    exchanges, in order -> answered, in one write -> outbox -> socket

The rules that hold here; the codes group faults as in docs/testing.md:

- F10: an answer leaves when those before it have left. Those that are ready together leave in one write.
- F5: a long answer is made when it is the next to be sent, so that no client has more than one of them waiting.
- Whatever holds up new requests is here: one that may take its time, too many of them, and unsent bytes.
"""

from __future__ import annotations

import socket
from itertools import takewhile
from operator import attrgetter

from api.door.exchange import Client, Exchange
from api.door.outbox import Outbox
from api.door.request import RequestHead
from engine.calls import PARKED

PIPELINE_MAX = 128
"""Requests of one connection that are on their way at once."""

_RESPONSE = attrgetter("response")


class Outgoing:
    """The requests of a client that are on their way, and what it has to be sent.

    Args:
        client: the socket, not blocking.

    Attributes:
        exchanges: whose answer was not handed over to the outbox yet, in order.
        outbox: the bytes on their way to the kernel.
        running: how many of the exchanges wait for their answer and hold nothing up: it comes in a moment.
    """

    __slots__ = ("_postponed_bytes", "exchanges", "outbox", "running")

    def __init__(self, client: socket.socket) -> None:
        self.exchanges: list[Exchange] = []
        self.outbox = Outbox(client)
        self.running = 0
        self._postponed_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Unsent bytes, and the values of answers that are not made yet, as far as this client alone has them."""
        return self.outbox.unsent_bytes + self._postponed_bytes

    def holds_up(self) -> bool:
        """Whether nothing may be started behind what is here."""
        exchanges = self.exchanges
        if exchanges and (exchanges[-1].holds_up or len(exchanges) >= PIPELINE_MAX):
            return True
        return self.outbox.unsent_bytes > 0

    @property
    def waits(self) -> bool:
        """Whether a pop holds up what is behind it, or may be about to: it can take as long as it likes."""
        exchanges = self.exchanges
        return bool(exchanges) and exchanges[-1].request is not None and exchanges[-1].holds_up

    @property
    def is_parked(self) -> bool:
        """Whether it is a pop that waits for a value."""
        call = self.exchanges[-1].call if self.waits else None
        return call is not None and call.stage is PARKED

    def begin(self, client: Client, head: RequestHead) -> Exchange:
        """Takes a request in.

        Args:
            client: whose this is.
            head: of the request.

        Returns:
            The exchange, last in order.
        """
        exchange = Exchange(client, head)
        self.exchanges.append(exchange)
        self.running += 1
        return exchange

    def hold_up(self, exchange: Exchange) -> None:
        """Has nothing started behind a request, and no answer before it wait for its own."""
        if not exchange.holds_up:
            exchange.holds_up = True
            self.running -= 1

    def postpone(self, exchange: Exchange) -> None:
        """Notes an answer that is made when it is the next."""
        self._postponed_bytes += exchange.later_bytes
        self.hold_up(exchange)

    def complete(self, exchange: Exchange, response: bytes) -> None:
        """Notes an answer; `send` sends it."""
        exchange.response = response
        if not exchange.holds_up:
            self.running -= 1

    def is_last(self, exchange: Exchange) -> bool:
        """Whether no request is behind this one."""
        return self.exchanges[-1:] == [exchange]

    def send(self) -> bool:
        """Sends the answers that are next in order, in one write.

        Returns:
            False when the next is not there.

        Raises:
            OSError: the client is gone; nothing was handed over.
        """
        exchanges = self.exchanges
        if len(exchanges) == 1:  # as nearly always
            ready = exchanges if exchanges[0].response is not None else []
        else:
            ready = list(takewhile(_RESPONSE, exchanges))
        if not ready:
            return False
        self.outbox.put(ready)
        self.exchanges = exchanges[len(ready) :]
        return True

    def make_next(self) -> bool:
        """Has a long answer made, when it is the next; returns whether there is one."""
        if self.outbox.unsent_bytes or not self.exchanges or self.exchanges[0].later is None:
            return False
        self._postponed_bytes -= self.exchanges[0].later_bytes
        self.exchanges[0].make()
        return True

    def drop(self) -> list[Exchange]:
        """Gives all of it up; returns the exchanges whose answer was not handed over."""
        left = self.outbox.drop() + self.exchanges
        self.exchanges = []
        return left
