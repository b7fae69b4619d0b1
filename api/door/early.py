"""Requests that came before there was an engine: they wait, and are started in the order in which they came."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Protocol

import trio

from api.dialects.answers import Answer
from api.door.settings import TURN_MAX
from api.http.body import BodyBudget, HeldBody


class Waiting(Protocol):
    """A request: an exchange, as far as it is known here."""

    def work(self, data: bytes, held: HeldBody | None) -> None:
        """Starts the work."""

    def finish(self, answer: Answer | bytes) -> None:
        """Answers it without any."""


class Early:
    """The requests that wait.

    Args:
        budget: of all bodies.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._waiting: dict[Waiting, HeldBody] = {}

    def keep(self, request: Waiting, body: HeldBody) -> bool:
        """Has a request wait; False when the budget has no share left for its body."""
        kept = body.hold(self._budget, len(body.data))
        if kept:
            self._waiting[request] = body
        return kept

    def leave(self, request: Waiting) -> None:
        """Takes out a request whose client is gone; harmless when it is not here."""
        body = self._waiting.pop(request, None)
        if body is not None:
            body.release()

    async def start(self) -> None:
        """Starts all, a turn's worth at a time, those included that come meanwhile."""
        await self._take_out(lambda request, body: request.work(body.data, body))

    async def turn_away(self, answer: Answer) -> None:
        """Answers all: the server stops before it was open."""

        def finish(request: Waiting, body: HeldBody) -> None:
            body.release()
            request.finish(answer)

        await self._take_out(finish)

    async def _take_out(self, do: Callable[[Waiting, HeldBody], None]) -> None:
        while self._waiting:
            for request in list(islice(self._waiting, TURN_MAX)):
                body = self._waiting.pop(request, None)
                if body is not None:
                    do(request, body)
            await trio.lowlevel.checkpoint()
