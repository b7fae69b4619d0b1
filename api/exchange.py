"""One request of a connection and its answer, on their way through the door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api import batches, dialects
from api.request import RequestHead

if TYPE_CHECKING:
    import trio

    from api.connection import Connection
    from engine.calls import AnyCall, Batch, Call


class Exchange:
    """One request and its answer.

    Attributes:
        head: of the request.
        holds_up: may take its time, so nothing is started behind it.
        response: head and body of the answer, when it is there.
        call: what the engine does for it, if that is one call of its own.
        errand: around the task that works on it, if there is one.
    """

    __slots__ = ("call", "connection", "errand", "head", "holds_up", "request", "response")

    def __init__(self, connection: Connection, head: RequestHead, holds_up: bool) -> None:
        self.connection = connection
        self.head = head
        self.holds_up = holds_up
        self.response: bytes | None = None
        self.request: dialects.Request | batches.BatchRequest | None = None
        self.call: AnyCall | None = None
        self.errand: trio.CancelScope | None = None

    def deliver(self, call: Call) -> None:
        """Called by the engine with the reply of a command."""
        self.call = call
        try:
            assert isinstance(self.request, dialects.Request)
            assert call.reply is not None
            self.connection.answer(self, dialects.answer(self.request, call.reply))
        except Exception:
            self.connection.fail()

    def deliver_batch(self, batch: Batch) -> None:
        """Called by the engine with the replies of a batch."""
        self.call = batch
        try:
            assert isinstance(self.request, batches.BatchRequest)
            assert batch.reply is not None
            if batches.is_quick_to_answer(batch.reply):
                self.connection.answer(self, batches.answer(self.request, batch.reply))
            else:
                self.connection.door.finish_batch(self, self.request, batch)
        except Exception:
            self.connection.fail()

    def withdraw(self) -> None:
        """The client is gone: whatever is on its way comes back."""
        if self.errand is not None:
            self.errand.cancel()
        if self.call is not None:
            self.connection.door.engine.withdraw(self.call)
