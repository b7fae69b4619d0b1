"""The bytes of answers on their way to the kernel, and the popped values among them."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence

from api.door.exchange import Exchange


class Outbox:
    """What a connection has to send.

    A popped value is handed over when the first byte of its answer is the kernel's; until then it can go back (E5).

    Args:
        client: the socket, not blocking.

    Attributes:
        unsent_bytes: what the kernel has not taken yet.
    """

    __slots__ = ("_client", "_popped", "_put_bytes", "_unsent", "unsent_bytes")

    def __init__(self, client: socket.socket) -> None:
        self.unsent_bytes = 0
        self._client = client
        self._put_bytes = 0  # of all answers that were not sent at once
        self._unsent: deque[memoryview] | None = None
        self._popped: deque[tuple[int, Exchange]] | None = None  # unsent answers of pops, and where they begin

    @property
    def handed_bytes(self) -> int:
        """What the kernel has taken; while bytes are unsent, to be compared with what it was before."""
        return self._put_bytes - self.unsent_bytes

    def put(self, exchanges: Sequence[Exchange]) -> None:
        """Sends answers behind those that are unsent.

        Args:
            exchanges: answered ones, in order.

        Raises:
            OSError: the client is gone; nothing was handed over.
        """
        data = exchanges[0].response or b""
        if len(exchanges) > 1:
            data = b"".join([exchange.response or b"" for exchange in exchanges])
        sent = 0
        if not self._unsent:
            try:  # noqa: SIM105  # `suppress` would cost 0.4 us an answer
                sent = self._client.send(data)
            except (BlockingIOError, InterruptedError):
                pass
        if sent < len(data):
            self._keep(exchanges, data, sent)
            return
        for exchange in exchanges:
            if exchange.call is not None:
                exchange.settle()

    def _keep(self, exchanges: Sequence[Exchange], data: bytes, sent: int) -> None:
        """Keeps what the kernel did not take."""
        begins_at = self._put_bytes
        self._put_bytes += len(data)
        self.unsent_bytes += len(data) - sent
        if self._unsent is None:
            self._unsent, self._popped = deque(), deque()
        self._unsent.append(memoryview(data)[sent:])
        assert self._popped is not None
        for exchange in exchanges:
            if exchange.call is not None:
                self._popped.append((begins_at, exchange))
            begins_at += len(exchange.response or b"")
        self._settle_sent()

    def flush(self) -> None:
        """Goes on with what is unsent; the kernel has room again, and says so once more when it takes all of this.

        Raises:
            OSError: the client is gone; nothing was handed over.
        """
        assert self._unsent
        try:
            sent = self._client.send(self._unsent[0])
        except (BlockingIOError, InterruptedError):
            return
        self.unsent_bytes -= sent
        self._unsent[0] = self._unsent[0][sent:]
        if not self._unsent[0]:
            self._unsent.popleft()
        self._settle_sent()
        if not self._unsent:
            self._unsent = self._popped = None

    def drop(self) -> list[Exchange]:
        """Gives up what is unsent; returns the exchanges whose popped values were not handed over."""
        left = [exchange for _, exchange in self._popped or ()]
        self._unsent = self._popped = None
        return left

    def _settle_sent(self) -> None:
        while self._popped and self._popped[0][0] < self.handed_bytes:
            self._popped.popleft()[1].settle()
