"""BQPOP: who waits, and who is served (E)."""

from __future__ import annotations

import random

import pytest
import trio

from engine.limits import Limits
from engine.replies import Error, Failure, Integer, Ok, Value
from tests.conformance.cases import NULL, OK, wrong_type
from tests.conformance.store import Backend, Store
from tests.harness.waiting import until
from tests.harness.world import Job


def value_of(job: Job) -> bytes:
    assert isinstance(job.reply, Value)
    assert job.reply.value is not None
    return job.reply.value


async def test_a_timeout_of_zero_answers_at_once(store: Store) -> None:
    assert await store.do("BQPOP q 0") == NULL
    await store.do_many("QPUSH q a", "QPOP q")
    assert await store.do("BQPOP q 0") == NULL
    assert store.waiters == 0


async def test_when_the_timeout_passes_the_answer_is_null_and_later_values_stay(store: Store) -> None:
    """E7"""
    assert await store.do("BQPOP q 0.01") == NULL
    assert await store.do("BQPOP q 0.0001") == NULL
    assert store.waiters == 0
    await store.do("QPUSH q a")
    await store.holds({b"q": ("queue", b"a")})


async def test_timeouts_pass_in_the_order_of_their_instants(store: Store) -> None:
    client = store.submit("BQPOP q 0.2", "BQPOP q 0.05", "BQPOP r 0.1", "BQPOP q")
    await until(lambda: len(client.delivered_calls) == 3)
    assert [client.calls.index(call) for call in client.delivered_calls] == [1, 2, 0]
    assert store.waiters == 1
    await store.do("QPUSH q a")
    assert await client.delivered() == [NULL, NULL, NULL, Value(b"a")]
    client.take()


async def test_waiting_for_a_queue_does_not_make_it(store: Store) -> None:
    (job,) = await store.park("BQPOP q")
    assert await store.do("EXISTS q") == Integer(0)
    assert await store.do("QPOP q") == NULL
    assert await store.do("TTL q") == Integer(-2)
    assert store.content() == {}
    assert await store.do("QPUSH q a") == Ok(length=1)
    assert await job.wait() == Value(b"a")
    await store.holds({b"q": ("queue",)})


async def test_those_who_wait_keep_waiting_while_the_key_holds_a_plain_value(store: Store) -> None:
    (job,) = await store.park("BQPOP q")
    await store.do("SET q v")
    assert await store.do("BQPOP q") == wrong_type("BQPOP")
    assert store.waiters == 1
    await store.do("SET q v PX 50")
    while await store.do("QPUSH q a") == wrong_type("QPUSH"):
        assert store.waiters == 1, "it neither fails nor gives up"
    assert await job.wait() == Value(b"a")
    (job,) = await store.park("BQPOP q")
    assert await store.do("SET q v") == OK
    assert await store.do("DELETE q") == Integer(1)
    assert await store.do("QPUSH q b") == Ok(length=1)
    assert await job.wait() == Value(b"b")


async def test_those_who_wait_outlive_their_queue(store: Store) -> None:
    await store.do_many("QPUSH q x", "QPOP q")
    (job,) = await store.park("BQPOP q")
    assert await store.do("DELETE q") == Integer(1)
    assert await store.do_many("QPUSH q a", "DELETE q", atomic=True) == [Ok(length=1), Integer(1)]
    assert await store.do_many("QPUSH q b", "SET q v", "DELETE q", "QPUSH q c", atomic=True) == [
        *(Ok(length=1), OK, Integer(1), Ok(length=1)),
    ]
    assert await job.wait() == Value(b"c")


async def test_who_waits_keeps_the_first_place_whatever_becomes_of_the_key(store: Store) -> None:
    await store.do_many("QPUSH q x", "QPOP q")
    (first,) = await store.park("BQPOP q")
    assert await store.do("DELETE q") == Integer(1)
    assert await store.do("SET q v") == OK
    assert await store.do("DELETE q") == Integer(1)
    (second,) = await store.park("BQPOP q")
    assert await store.do("QPUSH q a b") == Ok(length=2)
    assert [await first.wait(), await second.wait()] == [Value(b"a"), Value(b"b")]
    await store.holds({b"q": ("queue",)})


async def test_one_push_of_many_values_serves_many_and_keeps_the_rest(store: Store) -> None:
    jobs = await store.park(*["BQPOP q"] * 3)
    assert await store.do("QPUSH q a b c d e") == Ok(length=5)
    assert [await job.wait() for job in jobs] == [Value(b"a"), Value(b"b"), Value(b"c")]
    await store.holds({b"q": ("queue", b"d", b"e")})


async def test_a_push_of_fewer_values_serves_those_who_have_waited_longest(store: Store) -> None:
    jobs = await store.park(*["BQPOP q"] * 5)
    await store.do("QPUSH q a b")
    assert [await job.wait() for job in jobs[:2]] == [Value(b"a"), Value(b"b")]
    assert store.waiters == 3
    await store.do_many("QPUSH q c", "QPUSH q d", "QPUSH q e")
    assert [await job.wait() for job in jobs[2:]] == [Value(b"c"), Value(b"d"), Value(b"e")]
    await store.holds({b"q": ("queue",)})


@pytest.mark.parametrize("atomic", [False, True])
async def test_a_batch_serves_those_who_wait(store: Store, *, atomic: bool) -> None:
    jobs = await store.park(*["BQPOP q"] * 2)
    await store.do_many("QPUSH q a", "QPUSH q b c", atomic=atomic)
    assert [await job.wait() for job in jobs] == [Value(b"a"), Value(b"b")]
    await store.holds({b"q": ("queue", b"c")})


async def test_those_who_wait_are_served_after_a_unit_and_not_in_between(store: Store) -> None:
    """I2"""
    (job,) = await store.park("BQPOP q")
    for _ in range(20):
        assert await store.do_many("QPUSH q a", "QPOP q", "QPUSH q b", "BQPOP q", atomic=True) == [
            *(Ok(length=1), Value(b"a"), Ok(length=1), Value(b"b")),
        ]
    assert not job.done.is_set()
    assert await store.do_many("QPUSH q c d", "BQPOP q", atomic=True) == [Ok(length=2), Value(b"c")]
    assert await job.wait() == Value(b"d")


async def test_a_refused_unit_serves_nobody(store: Store) -> None:
    """I2"""
    (job,) = await store.park("BQPOP q")
    for _ in range(20):
        await store.do_many("QPUSH q a", "DELETE {q}none", atomic=True)
    assert store.waiters == 1
    await store.do("QPUSH q b")
    assert await job.wait() == Value(b"b")


async def test_a_thousand_waiters_are_served_first_come_first_served_whoever_leaves(store: Store) -> None:
    """I6"""
    rng = random.Random(5)
    jobs = [store.spawn("BQPOP q") for _ in range(1_200)]
    await until(lambda: store.waiters == len(jobs))
    staying = sorted(jobs, key=lambda job: job.submitted or 0)
    served: list[Job] = []
    while staying:
        for job in rng.sample(staying, min(len(staying), rng.randrange(40))):
            job.leave()
            staying.remove(job)
        await until(lambda: store.waiters == len(staying))
        count = min(len(staying), rng.randrange(1, 60))
        if count:
            await store.do("QPUSH q " + " ".join(str(len(served) + number) for number in range(count)))
            served += staying[:count]
            del staying[:count]
    assert [int(await answered(job)) for job in served] == list(range(len(served)))
    await store.holds({b"q": ("queue",)})
    assert store.waiters == 0


async def answered(job: Job) -> bytes:
    await job.done.wait()
    return value_of(job)


async def test_many_wait_for_many_queues_and_each_gets_what_is_its_own(store: Store) -> None:
    """I6"""
    queues = [f"q{number}" for number in range(300)]
    jobs = {queue: [store.spawn(f"BQPOP {queue}") for _ in range(4)] for queue in queues}
    await until(lambda: store.waiters == 1_200)
    async with trio.open_nursery() as nursery:
        for queue in queues:
            nursery.start_soon(store.do, f"QPUSH {queue} {queue}.0 {queue}.1 {queue}.2 {queue}.3")
    for queue, waiting in jobs.items():
        waiting.sort(key=lambda job: job.submitted or 0)
        assert [await answered(job) for job in waiting] == [f"{queue}.{number}".encode() for number in range(4)]
    assert store.waiters == 0


async def test_a_push_about_the_timeout_is_never_both_null_and_consumed(store: Store) -> None:
    """E7"""
    rng = random.Random(7)

    async def push(key: str) -> None:
        await trio.sleep(rng.choice([0.048, 0.049, 0.050, 0.051, 0.052]))
        assert await store.do(f"QPUSH {key} v") == Ok(length=1)

    jobs = {f"q{number}": store.spawn(f"BQPOP q{number} 0.05") for number in range(500)}
    async with trio.open_nursery() as nursery:
        for key in jobs:
            nursery.start_soon(push, key)
    for job in jobs.values():
        await job.done.wait()
    expected = {key.encode(): ("queue", *([b"v"] if job.reply == NULL else [])) for key, job in jobs.items()}
    assert {job.reply for job in jobs.values()} <= {NULL, Value(b"v")}
    await store.holds(dict(expected))
    assert store.waiters == 0


async def test_too_many_who_wait_are_turned_away(backend: Backend, nursery: trio.Nursery) -> None:
    store = await backend.open(nursery, Limits(waiters_max=2))
    (first, _second) = await store.park("BQPOP q", "BQPOP r")
    assert await store.do("BQPOP q") == Failure(Error.UNAVAILABLE, "too many clients are waiting")
    assert await store.do("BQPOP q 5") == Failure(Error.UNAVAILABLE, "too many clients are waiting")
    assert await store.do("BQPOP q 0") == NULL
    await store.do("QPUSH s a")
    assert await store.do("BQPOP s") == Value(b"a"), "it need not wait"
    first.leave()
    await until(lambda: store.waiters == 1)
    await store.park("BQPOP q")
    store.close()


async def test_those_who_wait_are_told_when_the_engine_shuts_down(store: Store) -> None:
    """E8"""
    jobs = await store.park("BQPOP q", "BQPOP q 1000", "BQPOP r")
    store.engine.shut_down()
    for job in jobs:
        assert await job.wait() == Failure(Error.UNAVAILABLE, "shutting down")
    assert store.waiters == 0
