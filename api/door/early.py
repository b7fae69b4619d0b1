"""Requests that came before there was an engine: they wait, and are started in the order in which they came."""

from __future__ import annotations

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
        while self._waiting:
            for request in list(islice(self._waiting, TURN_MAX)):
                body = self._waiting.pop(request)
                request.work(body.data, body)
            await trio.lowlevel.checkpoint()

    def turn_away(self, answer: Answer) -> None:
        """Answers all: the server stops before it was open."""
        while self._waiting:
            request = next(iter(self._waiting))
            self._waiting.pop(request).release()
            request.finish(answer)
