"""One request of a connection and its answer, on their way through the door."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from api.dialects import answers, batches
from api.dialects.answers import Answer
from api.dialects.request import Request
from api.door.request import RequestHead
from engine.limits import KIB
from engine.replies import Error, Refused, Reply, Value

if TYPE_CHECKING:
    import trio

    from api.door.connection import Connection
    from engine.calls import AnyCall, Batch, Call

_logger = logging.getLogger("holdfast.http")

DEFECT = answers.failure(500, Error.INTERNAL_ERROR.value)
"""The answer to a request that a defect keeps from being done; the log has its traceback."""


LONG_VALUE_BYTES = 64 * KIB
"""Values from this length on are put into words by a task: the longest take up to 25 ms, and a client can ask for many
at once (five that did held everybody up for 14 s, and took 2.2 GB)."""


class Exchange:
    """One request and its answer.

    Attributes:
        head: of the request.
        holds_up: may take its time, so nothing is started behind it.
        response: head and body of the answer, when it is there.
        request, batch: what was asked, for whoever words the answer of the engine.
        call: what may have to be withdrawn: what the engine does for it, then only a call that has popped something.
        errand: around the task that works on it, if there is one.
        later: makes the answer, for one that is long: it is made when it is the next to be sent.
        later_bytes: what its values take until then, unless the engine has them in memory anyway.
    """

    __slots__ = (
        "batch",
        "call",
        "connection",
        "errand",
        "head",
        "holds_up",
        "later",
        "later_bytes",
        "request",
        "response",
    )

    def __init__(self, connection: Connection, head: RequestHead, holds_up: bool) -> None:
        self.connection = connection
        self.head = head
        self.holds_up = holds_up
        self.response: bytes | None = None
        self.request: Request | None = None
        self.batch: batches.BatchRequest | None = None
        self.call: AnyCall | None = None
        self.errand: trio.CancelScope | None = None
        self.later: Callable[[], Awaitable[Answer]] | None = None
        self.later_bytes = 0

    def deliver(self, call: Call) -> None:
        """Called by the engine with the reply of a command."""
        self.call = call if call.taken else None  # of others nothing is left, not even a cycle of references
        try:
            assert self.request is not None
            reply = call.reply
            assert reply is not None
            if type(reply) is Value and reply.value is not None and len(reply.value) >= LONG_VALUE_BYTES:
                self._answer_later(partial(self.connection.door.word, self.request, reply), (reply,))
                return
            answer = answers.answer(self.request, reply)
        except Exception:
            _logger.exception("an answer failed")
            self.take_back()
            answer = DEFECT
        self.finish(answer)

    def deliver_batch(self, batch: Batch) -> None:
        """Called by the engine with the replies of a batch."""
        self.call = batch if batch.taken else None
        try:
            assert self.batch is not None
            assert batch.reply is not None
            if not batches.is_quick_to_answer(batch.reply):
                assert not isinstance(batch.reply, Refused)
                self._answer_later(partial(self.connection.door.service.word, self.batch, batch.reply), batch.reply)
                return
            answer = batches.answer(self.batch, batch.reply)
        except Exception:
            _logger.exception("an answer failed")
            self.take_back()
            answer = DEFECT
        self.finish(answer)

    def _answer_later(self, later: Callable[[], Awaitable[Answer]], replies: Sequence[Reply]) -> None:
        self.later = later
        if self.connection.door.engine.copies_values:
            self.later_bytes = sum([len(reply.value) for reply in replies if isinstance(reply, Value) and reply.value])
        try:
            self.connection.postpone(self)
        except Exception:
            self.connection.fail()

    def keep(self, call: AnyCall) -> None:
        """Takes over, from a task, what was popped: it can come back until its answer is handed over."""
        self.call = call if call.taken else None

    def finish(self, answer: Answer | bytes) -> None:
        """Answers the request, from a task or from the engine: a defect in what follows does not reach them.

        Args:
            answer: for the door to render, or head and body of a response.
        """
        try:
            if isinstance(answer, bytes):
                self.connection.respond(self, answer)
            else:
                self.connection.answer(self, answer)
        except Exception:
            self.connection.fail()

    def settle(self) -> None:
        """The first byte of the answer is the kernel's: what was popped does not come back any more."""
        call = self.call
        if call is not None:
            self.call = None
            self.connection.door.engine.settle(call)

    def withdraw(self) -> None:
        """The client is gone: whatever is on its way comes back."""
        if self.errand is not None:
            self.errand.cancel()
        self.take_back()

    def take_back(self) -> None:
        """Has what the engine does for this request undone as far as it can be: the client does not get its answer."""
        call = self.call
        if call is not None:
            self.call = None
            self.connection.door.engine.withdraw(call)
