"""Random commands, batches, units, clients that wait and leave: both engines do what the model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.store import Backend, Store
from tests.harness.effort import many
from tests.harness.model import Answer, Model, answer_of
from tests.harness.waiting import until
from tests.harness.world import BatchJob, Job

WAITERS_MAX = 3

KEYS = st.sampled_from([b"{t}a", b"{t}a", b"{t}a", b"{t}b", b"{t}\xff\x00"])
KEY_LISTS = st.lists(KEYS, min_size=1, max_size=3)
PADDING = st.sampled_from([b"", b"", b"\x00", b"x" * 200])
EXPIRY = st.sampled_from([(), (), (b"EX", b"5000"), (b"PX", b"7000000")])
CONDITION = st.sampled_from([(), (), (b"NX",), (b"XX",)])

SINGLE = st.one_of(
    st.builds(lambda key, pad, ex, nx: [b"SET", key, pad, *ex, *nx], KEYS, PADDING, EXPIRY, CONDITION),
    st.builds(lambda name, key: [name, key], st.sampled_from([b"GET", b"STRLEN", b"QLEN", b"TTL", b"PERSIST"]), KEYS),
    st.builds(lambda name, keys: [name, *keys], st.sampled_from([b"DELETE", b"EXISTS"]), KEY_LISTS),
    st.builds(lambda key, pads: [b"QPUSH", key, *pads], KEYS, st.lists(PADDING, min_size=1, max_size=4)),
    st.builds(lambda key: [b"QPOP", key], KEYS),
    st.builds(lambda key: [b"BQPOP", key, b"0"], KEYS),
    st.just([b"PING"]),
)
WAITING = st.builds(lambda key: [b"BQPOP", key], KEYS)

STEPS = st.one_of(
    st.tuples(st.just("do"), SINGLE | SINGLE | WAITING),
    st.tuples(st.just("pipeline"), st.lists(SINGLE | WAITING, max_size=6)),
    st.tuples(st.just("unit"), st.lists(SINGLE | WAITING, max_size=6)),
    st.tuples(st.just("leave"), st.integers(0, WAITERS_MAX - 1)),
)


class Course:
    """One run: the steps one after the other, each compared before the next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._model = Model(0, WAITERS_MAX)
        self._waiting: list[Job] = []
        self._values = 0

    async def step(self, kind: str, what: Any) -> None:
        if kind == "leave":
            await self._leave(what)
        elif kind == "do":
            await self._do(self._with_own_values(what))
        else:
            await self._do_many([self._with_own_values(words) for words in what], atomic=kind == "unit")
        await self._compare()

    async def _do(self, words: list[bytes]) -> None:
        if words[0] == b"BQPOP" and len(words) == 2 and len(self._waiting) == WAITERS_MAX:
            return
        job = self._store.spawn(words)
        self._model.do(job, words)
        if self._model.is_waiting(job):
            self._waiting.append(job)
            await until(lambda: self._store.waiters == len(self._waiting))
        else:
            await self._answered(job)

    async def _do_many(self, batch: list[list[bytes]], *, atomic: bool) -> None:
        if not atomic and self._waiting:
            return  # who is served between two commands of a pipeline is a matter of time
        job = self._store.spawn_many(*batch, atomic=atomic)
        if atomic:
            self._model.do_unit(job, batch)
        else:
            self._model.answers[job] = "batch", [self._model.do_in_batch(job, words) for words in batch]
        await self._answered(job)

    async def _leave(self, number: int) -> None:
        if number < len(self._waiting):
            job = self._waiting.pop(number)
            job.leave()
            await job.done.wait()
            self._model.leave(job)
            assert job.reply is None

    async def _answered(self, job: Job | BatchJob) -> None:
        await job.done.wait()
        assert job.reply is not None
        assert _without_seconds(answer_of(job.reply)) == _without_seconds(self._model.receive(job)), job.command

    async def _compare(self) -> None:
        """Whoever was served by the step has an answer, and the same is stored."""
        for job in [job for job in self._waiting if job in self._model.answers]:
            self._waiting.remove(job)
            await self._answered(job)
        assert not any(job.done.is_set() for job in self._waiting)
        assert _without_instants(self._store.content()) == _without_instants(self._model.content())
        assert self._store.waiters == len(self._waiting)

    def _with_own_values(self, words: list[bytes]) -> list[bytes]:
        """Makes every value that is written different from all others."""
        if words[0] not in (b"SET", b"QPUSH"):
            return words
        values_end = 3 if words[0] == b"SET" else len(words)
        self._values += len(words)
        values = [b"%d" % (self._values + index) + pad for index, pad in enumerate(words[2:values_end])]
        return [*words[:2], *values, *words[values_end:]]


def _without_seconds(answer: Answer) -> Answer:
    """An answer without the seconds that a key has left: the clock of the model stands still."""
    match answer:
        case "batch", list(answers):
            return "batch", [_without_seconds(one) for one in answers]
        case "integer", int(number) if number > 1000:
            return "integer", 1000
    return answer


def _without_instants(content: dict[bytes, Any]) -> dict[bytes, Any]:
    return {key: (*entry[:2], entry[2] is not None) if entry[0] == "value" else entry for key, entry in content.items()}


async def run(backend: Backend, steps: Sequence[tuple[str, Any]]) -> None:
    backend.clear()
    async with trio.open_nursery() as nursery:
        store = await backend.open(nursery)
        course = Course(store)
        for kind, what in steps:
            await course.step(kind, what)
        nursery.cancel_scope.cancel()


@settings(
    max_examples=many(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=10, max_size=60))
def test_the_engines_do_what_the_model_does(backend: Backend, steps: list[tuple[str, Any]]) -> None:
    trio.run(run, backend, steps)
