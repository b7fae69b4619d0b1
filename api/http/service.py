"""The service behind the command paths: the body of a request in, its answer out. Knows no HTTP.

    POST /           a command
    POST /pipeline   a list of them, each by itself
    POST /multi      a list of them, all or nothing

Both ways in use it, the Quart application for every body and the door for those that are not quick.

The rules that hold here:

- Nothing holds the event loop for long: what is not quick is parsed in a worker thread, one body at a time, and
  answered in slices.
- A reply that was given is handed over, or what it popped goes back. For a command there is no checkpoint between the
  return of `submit` and the return of `answer`; a batch is settled as `answer` returns, or else withdrawn.
- The body of a command is dropped as soon as it is parsed: a parked request holds its command, not its body. A batch
  keeps its share of the budget until it is answered, and a larger one: its commands take more memory than its body.
- A defect is logged with its traceback and answered without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from api.dialects import answers, batches, bodies, json_body
from api.dialects.answers import Answer
from api.dialects.json_body import BadRequest
from api.http.body import BodyBudget, HeldBody
from engine.calls import AnyCall, Command
from engine.face import Face
from engine.limits import Limits
from engine.replies import Error, Failure, Refused, Reply

COMMAND, PIPELINE, MULTI = PATHS = ("/", "/pipeline", "/multi")
"""Where commands are sent, each by POST."""

BODIES_FULL = answers.failure(503, Error.UNAVAILABLE.value, "too many request bodies at once")
"""The answer to a body for which the budget has no share left."""

_FREED_MAX = 4096
"""Commands of a long batch that are freed in one go: 1 ms. The longest batch would take 13."""

_Parsed = TypeVar("_Parsed")

_logger = logging.getLogger("holdfast.http")


class Service:
    """Answers the bodies that are sent to `PATHS`.

    Args:
        engine: what runs the commands; None while there is none, which is put here when there is.
        limits: of the product.

    Attributes:
        engine: what runs the commands.
        limits: of the product.
        budget: what is left for bodies; whoever reads one takes its share here.
    """

    engine: Face

    def __init__(self, engine: Face | None, limits: Limits) -> None:
        if engine is not None:
            self.engine = engine
        self.limits = limits
        self.budget = BodyBudget(limits.bodies_bytes_max)
        self._parser = trio.CapacityLimiter(1)

    async def answer(self, path: str, body: HeldBody, keep: Callable[[AnyCall], None] | None = None) -> Answer:
        """Runs what a body spells. Cancelling withdraws it.

        Args:
            path: one of `PATHS`.
            body: read whole; released here.
            keep: called with a batch that is answered, for whoever hands the answer over to settle or withdraw; None
                has it settled when this returns.

        Returns:
            The answer to send.
        """
        assert path in PATHS
        try:
            if path == COMMAND:
                return await self._answer_command(body)
            return await self._answer_batch(body, keep or self.engine.settle, atomic=path == MULTI)
        except BadRequest as bad:
            return answers.refuse(bad)
        finally:
            body.release()

    async def _answer_command(self, body: HeldBody) -> Answer:
        if json_body.is_quick(body.data):
            request, command = bodies.understand(body.data, self.limits)
        else:
            request, command = await self._in_thread(partial(bodies.understand_in_steps, body.data, self.limits))
        body.release()
        reply = command if isinstance(command, Failure) else await self._run(command)
        return answers.answer(request, reply)

    async def _run(self, command: Command) -> Reply:
        try:
            return await self.engine.submit(command)
        except Exception:
            _logger.exception("a command failed")
            return Failure(Error.INTERNAL_ERROR)

    async def _answer_batch(self, body: HeldBody, keep: Callable[[AnyCall], None], *, atomic: bool) -> Answer:
        size = len(body.data)
        batch = await self._parse_batch(body.data, atomic=atomic)
        body.data = b""
        if not body.hold(self.budget, size + batch.memory_bytes):
            return BODIES_FULL
        try:
            return await self._run_batch(batch, keep)
        except Exception:
            _logger.exception("a batch failed")
            return answers.failure(500, Error.INTERNAL_ERROR.value)

    async def _parse_batch(self, data: bytes, *, atomic: bool) -> batches.BatchRequest:
        if batches.is_quick(data):
            return batches.parse(data, self.limits, atomic=atomic)
        return await self._in_thread(partial(batches.parse, data, self.limits, atomic=atomic))

    async def _run_batch(self, batch: batches.BatchRequest, keep: Callable[[AnyCall], None]) -> Answer:
        delivered = trio.Event()
        call = self.engine.submit_many_nowait(batch.commands, batch.atomic, lambda _call: delivered.set())
        try:
            await delivered.wait()
            assert call.reply is not None
            answer = await self.word(batch, call.reply)
        except BaseException:
            self.engine.withdraw(call)
            raise
        keep(call)
        return answer

    async def word(self, batch: batches.BatchRequest, reply: list[Reply] | Refused) -> Answer:
        """Turns the replies to a batch into its answer, in slices.

        Args:
            batch: what was asked; its commands are freed.
            reply: what the engine answered.

        Returns:
            The answer to send.
        """
        if batches.is_quick_to_answer(reply, self.limits.answer_bytes_max):
            return batches.answer(batch, reply)
        assert not isinstance(reply, Refused)
        slices = []
        for one in batches.encode(batch, reply, self.limits.answer_bytes_max):
            slices.append(one)
            await trio.lowlevel.checkpoint()
        while batch.commands:
            del batch.commands[-_FREED_MAX:]
            await trio.lowlevel.checkpoint()
        return batches.list_of(slices)

    async def _in_thread(self, parse: Callable[[], _Parsed]) -> _Parsed:
        parsed = await trio.to_thread.run_sync(_parsed_or_bad, parse, limiter=self._parser)
        if not isinstance(parsed, BadRequest):
            return parsed
        try:
            raise parsed
        finally:
            del parsed, parse  # a cycle of the exception and this frame would keep the body until it is collected


def _parsed_or_bad(parse: Callable[[], _Parsed]) -> _Parsed | BadRequest:
    """Parses; a mistake is returned without its frames, all of which have the body."""
    try:
        return parse()
    except BadRequest as bad:
        bad.__context__ = None
        return bad.with_traceback(None)
