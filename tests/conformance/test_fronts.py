"""Several fronts of one Redis: any of them answers, and together they keep what one engine alone keeps."""

from __future__ import annotations

import random
from typing import cast

import pytest
import trio

from engine.replies import Ok, Value
from tests.conformance.cases import ALREADY_EXISTS, OK
from tests.conformance.store import OnRedis, Store
from tests.conformance.test_leaving import PAUSES_S, leave_after
from tests.harness.waiting import until


@pytest.fixture(params=["on_cluster", "on_one_redis"])
def redis(request: pytest.FixtureRequest) -> OnRedis:
    redis = cast(OnRedis, request.getfixturevalue(request.param))
    redis.clear()
    return redis


@pytest.fixture
async def fronts(redis: OnRedis, nursery: trio.Nursery) -> list[Store]:
    return [await redis.open(nursery) for _ in range(3)]


async def test_what_one_front_wrote_all_of_them_read(fronts: list[Store]) -> None:
    for number, front in enumerate(fronts):
        assert await front.do(f"SET k {number}") == OK
        assert [await other.do("GET k") for other in fronts] == [Value(b"%d" % number)] * 3


async def test_who_waits_at_one_front_is_served_by_a_push_at_another(fronts: list[Store]) -> None:
    jobs = [(await front.park("BQPOP q"))[0] for front in fronts]
    for number in range(3):
        assert await fronts[number].do(f"QPUSH q {number}") == Ok(length=1)
        await until(lambda number=number: sum(job.done.is_set() for job in jobs) == number + 1)  # type: ignore[misc]
    assert {job.reply for job in jobs} == {Value(b"0"), Value(b"1"), Value(b"2")}
    await fronts[0].holds({b"q": ("queue",)})


async def test_a_value_whose_client_left_goes_to_one_who_waits_at_another_front(fronts: list[Store]) -> None:
    """E5"""
    await fronts[0].do("QPUSH q a b")
    client = fronts[0].submit("BQPOP q", "QPOP q")
    await client.delivered()
    first, second = await fronts[1].park("BQPOP q", "BQPOP q")
    client.leave()
    assert {await first.wait(), await second.wait()} == {Value(b"a"), Value(b"b")}


async def test_a_lock_is_had_by_one_of_all_who_want_it(fronts: list[Store]) -> None:
    jobs = [front.spawn(f"SET lock{number} me NX EX 1000") for number in range(50) for front in fronts]
    units = [front.spawn_many(f"SET unit{number} me NX", atomic=True) for number in range(50) for front in fronts]
    replies = [await job.wait() for job in jobs]
    assert (replies.count(OK), replies.count(ALREADY_EXISTS)) == (50, 100)
    assert [await unit.wait() for unit in units].count([OK]) == 50


async def test_a_crowd_at_all_fronts_gets_every_value_once(fronts: list[Store]) -> None:
    """I6: with clients that leave at any moment."""
    rng = random.Random(3)
    delivered: list[bytes] = []

    async def push(value: bytes) -> None:
        await trio.sleep(rng.random() / 5)
        assert isinstance(await rng.choice(fronts).do([b"QPUSH", b"q%d" % rng.randrange(3), value]), Ok)

    async def pop(line: str) -> None:
        await trio.sleep(rng.random() / 5)
        job = rng.choice(fronts).spawn(line % rng.randrange(3))
        await leave_after(job, min(rng.choice(PAUSES_S), 0.2))
        if isinstance(job.reply, Value) and job.reply.value is not None:
            delivered.append(job.reply.value)

    async with trio.open_nursery() as nursery:
        for number in range(600):
            nursery.start_soon(push, b"%d" % number)
            nursery.start_soon(pop, rng.choice(["BQPOP q%d", "BQPOP q%d", "BQPOP q%d 0.01", "QPOP q%d"]))

    def left() -> list[object]:
        return [value for _, *values in fronts[0].content().values() for value in values]

    await until(lambda: len(left()) + len(delivered) == 600, lambda: f"{len(delivered)} delivered, {len(left())} left")
    assert {*delivered, *left()} == {b"%d" % number for number in range(600)}
    assert sum(front.waiters for front in fronts) == 0
