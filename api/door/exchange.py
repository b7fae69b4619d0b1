"""One request of a connection, from its start to its answer.

Theory of operation. A quick command goes to the engine at once, and its answer comes back by a call to `deliver`.
Everything else is done by a task, an errand: a body that is long to read, an answer that is long to write, and whatever
the application answers. Either way the exchange ends with `finish`, which hands the answer to the connection.

The rules that hold here; the codes group faults as in docs/testing.md:

- F10: what may take its time says so (`hold_up`) before it is under way: nothing is started behind it.
- E2: when the client is gone, whatever is on its way is withdrawn.
- E5: what was popped comes back until the first byte of its answer is the kernel's (`settle`).
- F13: a defect is logged and answered, and what the engine did for the request is taken back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import trio

from api.dialects import answers, batches, bodies, json_body
from api.dialects.answers import Answer
from api.dialects.batches import BatchRequest
from api.dialects.json_body import BadRequest
from api.dialects.request import Request
from api.door.request import RequestHead
from api.door.responses import Verbatim
from api.door.shared import Shared
from api.http.body import HeldBody
from api.http.probes import PROBES
from api.http.service import BODIES_FULL, COMMAND, MULTI, PIPELINE
from engine.calls import AnyCall, Batch, Call
from engine.commands.table import WAITING, may_wait
from engine.limits import KIB
from engine.replies import Error, Failure, Refused, Reply, Value

_logger = logging.getLogger("holdfast.http")

DEFECT = answers.failure(500, Error.INTERNAL_ERROR.value)
"""The answer to a request that a defect keeps from being done; the log has its traceback."""

_STATUS_DIGITS = slice(len(b"HTTP/1.1 "), len(b"HTTP/1.1 200"))

LONG_VALUE_BYTES = 64 * KIB
"""Values from this length on are put into words by a task: the longest take up to 25 ms, and a client can ask for many
at once (five that did held everybody up for 14 s, and took 2.2 GB)."""


class Client(Protocol):
    """Whose request it is: a connection, as far as its exchanges know it.

    Attributes:
        shared: with all others.
        closing: it ends behind its last answer.
    """

    shared: Shared
    closing: bool

    def hold_up(self, exchange: Exchange) -> None:
        """Has nothing started behind a request that may take its time."""

    def is_last(self, exchange: Exchange) -> bool:
        """Whether no request is behind this one."""

    def complete(self, exchange: Exchange, response: bytes) -> None:
        """Takes a response; it leaves when those before it have left."""

    def postpone(self, exchange: Exchange) -> None:
        """Has `make` called when the answer is the next to be sent."""

    def peer(self) -> str:
        """The address of the client, for the log."""

    def fail(self) -> None:
        """Gives the connection up over a defect; to be called where the exception is."""


class Exchange:
    """One request and its answer.

    Attributes:
        client: whose request it is.
        head: of the request.
        holds_up: may take its time, so nothing is started behind it.
        response: head and body of the answer, when it is there.
        request, batch: what was asked, for whoever words the answer of the engine.
        call: what the engine does for it, and would have to withdraw; once that is answered, only if it has popped
            something.
        errand: around the task that works on it, if there is one.
        later: makes the answer, for one that is long: it is made when it is the next to be sent.
        later_bytes: what its values take until then, unless the engine has them in memory anyway.
    """

    __slots__ = (
        "batch",
        "call",
        "client",
        "errand",
        "head",
        "holds_up",
        "later",
        "later_bytes",
        "request",
        "response",
    )

    def __init__(self, client: Client, head: RequestHead) -> None:
        self.client = client
        self.head = head
        self.holds_up = False
        self.response: bytes | None = None
        self.request: Request | None = None
        self.batch: BatchRequest | None = None
        self.call: AnyCall | None = None
        self.errand: trio.CancelScope | None = None
        self.later: Callable[[], Awaitable[Answer]] | None = None
        self.later_bytes = 0

    # Working

    def start(self, data: bytes, held: HeldBody | None) -> None:
        """Starts the work; while the server itself starts, that is later, but for a probe.

        Args:
            data: the body, whole.
            held: its share of the budget, if it has one.
        """
        early = self.client.shared.early
        if early is None or self.head.path in PROBES:
            self.work(data, held)
        elif early.keep(self, held or HeldBody(data)):
            self.client.hold_up(self)
        else:
            self.finish(BODIES_FULL)

    def work(self, data: bytes, held: HeldBody | None) -> None:
        """Starts the work now; arguments as for `start`."""
        path = self.head.path
        try:
            if path == COMMAND and json_body.is_quick(data):
                self._start_command(data)
            elif path in (PIPELINE, MULTI) and batches.is_quick(data):
                self._start_batch(data)
            elif path in PROBES:
                self.finish(self.client.shared.probes.answer(path))
            else:
                self._start_errand(held or HeldBody(data))
                return
        except Exception:
            _logger.exception("a request failed")
            self.finish(DEFECT)
        if held is not None:
            held.release()

    def _start_command(self, data: bytes) -> None:
        shared = self.client.shared
        try:
            request, command = bodies.understand(data, shared.service.limits)
        except BadRequest as bad:
            self.finish(answers.refuse(bad))
            return
        if isinstance(command, Failure):
            self.finish(answers.answer(request, command))
            return
        if type(command) in WAITING and may_wait(command):  # a call less for nearly all
            self.client.hold_up(self)
        self.request = request
        call = shared.engine.submit_nowait(command, self.deliver)
        if self.response is None:  # else it was refused
            self.call = call

    def _start_batch(self, data: bytes) -> None:
        shared = self.client.shared
        try:
            batch = batches.parse(data, shared.service.limits, atomic=self.head.path == MULTI)
        except BadRequest as bad:
            self.finish(answers.refuse(bad))
            return
        if not batch.atomic:  # the rest of a long one has its turn behind what came meanwhile, the next request as well
            self.client.hold_up(self)
        self.batch = batch
        call = shared.engine.submit_many_nowait(batch.commands, batch.atomic, self.deliver_batch)
        if self.response is None:  # else it was refused
            self.call = call

    def _start_errand(self, body: HeldBody) -> None:
        if not body.hold(self.client.shared.service.budget, len(body.data)):
            self.finish(BODIES_FULL)
            return
        self.client.hold_up(self)
        self._send_on_errand(partial(self._answer_body, body))

    def _send_on_errand(self, errand: Callable[[], Awaitable[Answer | bytes]]) -> None:
        """Has a task make the answer; it is cancelled when the client is gone."""
        self.errand = trio.CancelScope()
        self.client.shared.nursery.start_soon(self._run_errand, self.errand, errand)

    async def _run_errand(self, scope: trio.CancelScope, errand: Callable[[], Awaitable[Answer | bytes]]) -> None:
        with scope:
            try:
                answer = await errand()
            except Exception:
                _logger.exception("a request failed")
                self.take_back()
                answer = DEFECT if self.head.method != b"HEAD" else Answer(DEFECT.status, b"")
            self.finish(answer)

    async def _answer_body(self, body: HeldBody) -> Answer | bytes:
        shared = self.client.shared
        try:
            if self.head.path is not None:  # no probe: they are no errand
                return await shared.service.answer(self.head.path, body, self._keep)
            return await shared.relay.request(self.head, body.data)
        finally:
            body.release()

    def _keep(self, call: AnyCall) -> None:
        """Takes over, from a task, what was popped: it can come back until its answer is handed over."""
        self.call = call if call.taken else None

    # Answering

    def deliver(self, call: Call) -> None:
        """Called by the engine with the reply of a command."""
        self.call = call if call.taken else None  # of others nothing is left, not even a cycle of references
        try:
            assert self.request is not None
            reply = call.reply
            assert reply is not None
            if type(reply) is Value and reply.value is not None and len(reply.value) >= LONG_VALUE_BYTES:
                self._answer_later(partial(self.client.shared.word, self.request, reply), (reply,))
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
        shared = self.client.shared
        try:
            assert self.batch is not None
            assert batch.reply is not None
            if not batches.is_quick_to_answer(batch.reply, shared.service.limits.answer_bytes_max):
                assert not isinstance(batch.reply, Refused)
                self._answer_later(partial(shared.service.word, self.batch, batch.reply), batch.reply)
                return
            answer = batches.answer(self.batch, batch.reply)
        except Exception:
            _logger.exception("an answer failed")
            self.take_back()
            answer = DEFECT
        self.finish(answer)

    def _answer_later(self, later: Callable[[], Awaitable[Answer]], replies: Sequence[Reply]) -> None:
        self.later = later
        if self.client.shared.engine.copies_values:
            self.later_bytes = sum([len(reply.value) for reply in replies if isinstance(reply, Value) and reply.value])
        try:
            self.client.postpone(self)
        except Exception:
            self.client.fail()

    def make(self) -> None:
        """Has a task make the answer that was postponed."""
        later, self.later = self.later, None
        assert later is not None
        self._send_on_errand(later)

    def finish(self, answer: Answer | bytes) -> None:
        """Answers the request, for a task or the engine, too: a defect in what follows does not reach them.

        Args:
            answer: to render, or head and body of a response.
        """
        client = self.client
        shared = client.shared
        try:
            closes = client.closing and client.is_last(self)
            if isinstance(answer, bytes):
                shared.refusals.count(int(answer[_STATUS_DIGITS]))
                response = answer if not closes else answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
            else:
                if answer.status >= 400:
                    shared.refusals.note(answer, client.peer)
                response = shared.responses.render(answer, closes=closes)
                if self.head.method == b"HEAD":
                    response = response.removesuffix(answer.body)
                elif type(answer) is Verbatim:
                    response = answer.verbatim
            client.complete(self, response)
        except Exception:
            client.fail()

    # Ending

    def settle(self) -> None:
        """The first byte of the answer is the kernel's: what was popped does not come back any more."""
        call = self.call
        if call is not None:
            self.call = None
            self.client.shared.engine.settle(call)

    def withdraw(self) -> None:
        """The client is gone: whatever is on its way comes back."""
        if self.errand is not None:
            self.errand.cancel()
        if self.client.shared.early is not None:
            self.client.shared.early.leave(self)
        self.take_back()

    def take_back(self) -> None:
        """Has what the engine does for this request undone as far as it can be: the client does not get its answer."""
        call = self.call
        if call is not None:
            self.call = None
            self.client.shared.engine.withdraw(call)
