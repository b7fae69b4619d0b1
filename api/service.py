"""The service behind the command paths: the body of a request in, its answer out. Knows no HTTP.

Both ways in use it, the Quart application for every body and the door for those that are not quick.

The rules that hold here:

- Nothing holds the event loop for long: what `is_quick` does not take is parsed in a worker thread, one body at a time.
- Between the return of `submit` and the return of `answer` there is no checkpoint: a reply that was
  given is a reply that is handed over.
- The body of a command is dropped as soon as it is parsed: a parked request holds its command, not its body.
- A defect is logged with its traceback and answered without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import trio

from api import dialects
from api.body import BodyBudget, HeldBody
from engine.calls import Call
from engine.checkpointer import Checkpoint
from engine.commands import Command
from engine.limits import Limits
from engine.replies import Error, Failure, Reply

PATHS = frozenset({"/"})
"""Where commands are sent, each by POST."""

_logger = logging.getLogger("holdfast.http")


class EngineFace(Protocol):
    """What the translators need of an engine, the one in this process or a cluster."""

    @property
    def accepting(self) -> bool:
        """False while shutting down."""

    async def submit(self, command: Command) -> Reply:
        """Runs a command; cancelling it withdraws the command."""

    def submit_nowait(self, command: Command, deliver: Callable[[Call], None]) -> Call:
        """Runs a command and returns at once; `deliver` is called when its reply is there."""

    def settle(self, call: Call) -> None:
        """Says that the answer was handed to the transport."""

    def withdraw(self, call: Call) -> None:
        """Says that the client has left before that."""

    async def checkpoint(self) -> Checkpoint:
        """Has the log folded into a snapshot; raises FoldFailed when that came to nothing."""

    def statistics(self) -> Any:
        """A frozen dataclass of numbers."""


class Service:
    """Answers the bodies that are sent to `PATHS`.

    Attributes:
        engine: what runs the commands.
        limits: of the product.
        budget: what is left for bodies; whoever reads one takes its share here.
    """

    def __init__(self, engine: EngineFace, limits: Limits) -> None:
        self.engine = engine
        self.limits = limits
        self.budget = BodyBudget(limits.bodies_bytes_max)
        self._parser = trio.CapacityLimiter(1)

    async def answer(self, path: str, body: HeldBody) -> dialects.Answer:
        """Runs what a body spells. Cancelling withdraws it.

        Args:
            path: one of `PATHS`.
            body: read whole; released here.

        Returns:
            The answer to send.
        """
        assert path in PATHS
        try:
            request, command = await self._understand(body.data)
        except dialects.BadRequest as bad:
            return dialects.refuse(bad)
        finally:
            body.release()
        reply = command if isinstance(command, Failure) else await self._run(command)
        return dialects.answer(request, reply)

    async def _understand(self, data: bytes) -> tuple[dialects.Request, Command | Failure]:
        if dialects.is_quick(data):
            return dialects.understand(data, self.limits)
        return await trio.to_thread.run_sync(dialects.understand_in_steps, data, self.limits, limiter=self._parser)

    async def _run(self, command: Command) -> Reply:
        try:
            return await self.engine.submit(command)
        except Exception:
            _logger.exception("a command failed")
            return Failure(Error.INTERNAL_ERROR)
