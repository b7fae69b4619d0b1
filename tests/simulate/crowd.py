"""The clients of a simulation at work: they send what they think of, wait for the answer, and leave when they like."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from engine.calls import AnyCall
from engine.commands.table import parse
from engine.embedded.engine import Engine
from engine.limits import Limits
from engine.replies import Refused, Reply
from tests.harness.model import answer_of
from tests.simulate.books import Books
from tests.simulate.clients import Batch, Mind, Words
from tests.simulate.history import REFUSALS, Answer, Request
from tests.simulate.result import Result
from tests.simulate.shelf import UNAVAILABLE, Refusal

LIMITS = Limits()

BATCHED_MAX = 14
"""Commands of batches in flight: any of them may have been the last before a crash, with those of others in between."""

LINGERING_MS = (0, 0, 0, 0, 1, 5)
"""How long an answer with popped values is on its way from the engine to the transport."""

Submit = Callable[[Engine, Callable[[AnyCall], None]], AnyCall]


class Crowd:
    """All clients of a simulation, also those that only look.

    Attributes:
        spent: set when those at work have sent as many requests as they should.
        sent: set when somebody sends one; to be replaced by whoever looks.

    Args:
        chance: of the seed.
        books: where everything is noted.
        result: where batches are counted.
        engine: the one that runs.
        trace: told each request and each answer.
    """

    def __init__(
        self,
        chance: random.Random,
        books: Books,
        result: Result,
        engine: Callable[[], Engine],
        trace: Callable[[str], None],
    ) -> None:
        self.spent = trio.Event()
        self.sent = trio.Event()
        self._minds = [Mind(number, chance) for number in range(chance.randint(3, 7))]
        self._chance = chance
        self._books = books
        self._result = result
        self._engine = engine
        self._trace = trace
        self._budget = 0
        self._batched = 0

    def set_to_work(self, nursery: trio.Nursery, budget: int) -> None:
        """Has everybody work, for about so many requests."""
        self._budget, self.spent = budget, trio.Event()
        for mind in self._minds:
            nursery.start_soon(self._work, mind)

    async def send(self, client: int, words: Words, patience_ms: int | None = None) -> Answer | None:
        """Has a command done; None when the client left before its answer, or nobody was there to give one."""
        command = parse(words, LIMITS)
        request = self._books.send(client, words, _now_ms())
        return await self._have_done(
            request, patience_ms, lambda engine, deliver: engine.submit_nowait(command, deliver)
        )

    async def send_batch(self, client: int, batch: Batch, patience_ms: int | None) -> Answer | None:
        """Has a batch done; the answer to its first command, or None as above."""
        commands = [parse(words, LIMITS) for words in batch.commands]
        request = self._books.send_batch(client, batch.commands, _now_ms(), atomic=batch.atomic)
        self._batched += len(commands)
        try:
            answer = await self._have_done(
                request,
                patience_ms,
                lambda engine, deliver: engine.submit_many_nowait(commands, batch.atomic, deliver),
            )
        finally:
            self._batched -= len(commands)
        self._result.pipelines += not batch.atomic
        self._result.units += batch.atomic
        self._result.refused_units += answer is not None and answer[0] == "refused"
        return answer

    async def _work(self, mind: Mind) -> None:
        while True:
            await trio.sleep_until((_now_ms() + mind.gap_ms()) / 1000)
            batch = mind.batch()
            if batch is not None and self._batched + len(batch.commands) <= BATCHED_MAX:
                answer = await self.send_batch(mind.number, batch, mind.patience_ms(0.35))
            else:
                answer = await self.send(mind.number, mind.command(), mind.patience_ms())
            if answer == UNAVAILABLE:
                return
            self._budget -= 1
            if self._budget <= 0:
                self.spent.set()

    async def _have_done(self, request: Request, patience_ms: int | None, submit: Submit) -> Answer | None:
        first = request.operations[0]
        self._trace(f"#{request.number} client {first.client}: {request}")
        self.sent.set()
        answers: list[Answer] | None = None
        engine = self._engine()
        scope = trio.CancelScope()
        if patience_ms is not None:
            scope.deadline = (_now_ms() + patience_ms) / 1000
        with scope:
            answers = answers_of(await self._reply(engine, submit), len(request.operations))
        if engine.accepting or self._books.life.stopping_ms is not None:  # else nobody is there any more
            self._books.end(request, _now_ms(), answers)
        self._trace(f"#{request.number} {request.outcome.value} {answers}")
        return first.answer

    async def _reply(self, engine: Engine, submit: Submit) -> Reply | list[Reply] | Refused:
        """The reply as a server sees it: at first it only has it in its hands."""
        delivered = trio.Event()
        call = submit(engine, lambda _call: delivered.set())
        try:
            if not delivered.is_set():  # else it was refused
                await delivered.wait()
            if call.taken and (lingering_ms := self._chance.choice(LINGERING_MS)):
                await trio.sleep(lingering_ms / 1000)
        except trio.Cancelled:
            engine.withdraw(call)
            raise
        engine.settle(call)
        assert call.reply is not None
        return call.reply


def answers_of(outcome: Reply | list[Reply] | Refused, count: int) -> list[Answer]:
    """What is answered, as a history notes it: something for each of so many commands."""
    if isinstance(outcome, list):
        return [answer_of(reply) for reply in outcome]
    if not isinstance(outcome, Refused):
        return [answer_of(outcome)]
    error = outcome.failure.error.value
    if error in REFUSALS:
        return [("error", error)] * count
    assert outcome.index is not None, "a command is to blame"
    return [("refused", Refusal(outcome.index, error))] * count


def _now_ms() -> int:
    return round(trio.current_time() * 1000)
