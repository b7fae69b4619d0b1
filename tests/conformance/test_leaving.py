"""Clients that leave: a value is delivered or in its queue, never both and never neither (E, I6)."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
import trio

from engine.replies import Failure, Integer, Ok, Value
from tests.conformance.cases import NULL, OK
from tests.conformance.store import Store
from tests.harness.waiting import until
from tests.harness.world import Job


async def test_one_who_leaves_while_waiting_is_passed_over(store: Store) -> None:
    """E2"""
    first, second = await store.park("BQPOP q", "BQPOP q")
    first.leave()
    await until(lambda: store.waiters == 1)
    await store.do("QPUSH q a")
    assert await second.wait() == Value(b"a")
    assert first.reply is None
    await store.holds({b"q": ("queue",)})


async def test_when_all_who_waited_have_left_the_value_stays(store: Store) -> None:
    """E2"""
    for job in await store.park(*["BQPOP q"] * 3):
        job.leave()
    await until(lambda: store.waiters == 0)
    await store.do("QPUSH q a")
    await store.holds({b"q": ("queue", b"a")})
    assert await store.do("BQPOP q") == Value(b"a")


@pytest.mark.parametrize("line", ["BQPOP q", "QPOP q"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_values_of_several_who_leave_with_their_answers_are_back_in_their_old_order(
    store: Store, line: str, order: tuple[int, ...]
) -> None:
    """E5: the answers were delivered, and nobody has taken them."""
    await store.do("QPUSH q a b c d e")
    client = store.submit(line, line, line)
    replies = await client.delivered()
    assert sorted(reply.value for reply in replies) == ([b"a", b"b", b"c"] if line == "BQPOP q" else [b"c", b"d", b"e"])
    assert await store.do("QLEN q") == Integer(2)
    client.leave(order)
    await store.holds({b"q": ("queue", b"a", b"b", b"c", b"d", b"e")})
    assert await store.do("QLEN q") == Integer(5)


async def test_values_taken_from_both_ends_go_back_to_both_ends(store: Store) -> None:
    """E5"""
    await store.do("QPUSH q a b c d")
    client = store.submit("BQPOP q", "QPOP q", "BQPOP q", "QPOP q")
    assert await client.delivered() == [Value(b"a"), Value(b"d"), Value(b"b"), Value(b"c")]
    client.leave((2, 0, 3, 1))
    await store.holds({b"q": ("queue", b"a", b"b", b"c", b"d")})


@pytest.mark.parametrize("line", ["BQPOP q", "QPOP q"])
async def test_the_last_value_comes_back_to_its_emptied_queue(store: Store, line: str) -> None:
    """E5"""
    await store.do("QPUSH q a")
    client = store.submit(line)
    await client.delivered()
    assert await store.do("QLEN q") == Integer(0)
    client.leave()
    await store.holds({b"q": ("queue", b"a")})


async def test_a_value_that_comes_back_wakes_the_next_who_waits(store: Store) -> None:
    """E5"""
    await store.do("QPUSH q a b c")
    client = store.submit("BQPOP q", "BQPOP q", "QPOP q")
    assert await client.delivered() == [Value(b"a"), Value(b"b"), Value(b"c")]
    jobs = await store.park(*["BQPOP q"] * 3)
    client.leave((1, 2, 0))
    assert [await job.wait() for job in jobs] == [Value(b"a"), Value(b"b"), Value(b"c")]
    await store.holds({b"q": ("queue",)})


async def test_a_value_that_came_back_is_before_those_that_were_pushed_meanwhile(store: Store) -> None:
    """E5"""
    await store.do("QPUSH q a b")
    client = store.submit("BQPOP q")
    await client.delivered()
    await store.do("QPUSH q c")
    client.leave()
    await store.holds({b"q": ("queue", b"a", b"b", b"c")})


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        (["DELETE q"], {}),
        (["SET q v"], {b"q": ("value", b"v", None)}),
        (["DELETE q", "QPUSH q new"], {b"q": ("queue", b"new")}),
        (["SET q v", "DELETE q", "QPUSH q new", "QPOP q"], {b"q": ("queue",)}),
    ],
)
@pytest.mark.parametrize("atomic", [None, False, True])
async def test_a_value_of_a_queue_that_was_removed_meanwhile_does_not_come_back(
    store: Store, lines: list[str], left: dict[bytes, tuple[object, ...]], *, atomic: bool | None
) -> None:
    """E5"""
    await store.do("QPUSH q a b")
    client = store.submit("BQPOP q")
    await client.delivered()
    if atomic is None:
        for line in lines:
            assert not isinstance(await store.do(line), Failure)
    else:
        assert isinstance(await store.do_many(*lines, atomic=atomic), list)
    client.leave()
    witness = store.submit("QPUSH witness x", "BQPOP witness")  # what is to come back goes the same way
    await witness.delivered()
    witness.leave()
    await store.holds({**left, b"witness": ("queue", b"x")})


async def test_what_was_taken_does_not_come_back(store: Store) -> None:
    """E6"""
    await store.do("QPUSH q a b c")
    client = store.submit("BQPOP q", "QPOP q")
    await client.delivered()
    client.take()
    client.leave()
    other = store.submit("BQPOP q")
    assert await other.delivered() == [Value(b"b")]
    other.leave()
    await store.holds({b"q": ("queue", b"b")})


async def test_what_was_written_stays_done_when_its_client_leaves(store: Store) -> None:
    """B9"""
    client = store.submit("SET k v", "QPUSH q a", "DELETE none", "SET j w NX")
    assert [type(reply) for reply in await client.delivered()] == [Ok, Ok, Failure, Ok]
    client.leave()
    await store.holds({b"k": ("value", b"v", None), b"q": ("queue", b"a"), b"j": ("value", b"w", None)})


@pytest.mark.parametrize("atomic", [False, True])
async def test_what_a_batch_popped_goes_back_when_its_client_leaves_and_what_it_wrote_stays(
    store: Store, *, atomic: bool
) -> None:
    """E5"""
    await store.do("QPUSH q a b c d e")
    client = store.submit_many("BQPOP q", "QPOP q", "SET {q}k v", "BQPOP q", "BQPOP {q}none", atomic=atomic)
    assert await client.delivered() == [[Value(b"a"), Value(b"e"), OK, Value(b"b"), NULL]]
    client.leave()
    await store.holds({b"q": ("queue", b"a", b"b", b"c", b"d", b"e"), b"{q}k": ("value", b"v", None)})


@pytest.mark.parametrize("atomic", [False, True])
async def test_what_batches_and_single_pops_have_taken_is_back_in_its_old_order(store: Store, *, atomic: bool) -> None:
    """E5"""
    await store.do("QPUSH q a b c d e f")
    first = store.submit("BQPOP q")
    await first.delivered()
    batch = store.submit_many("BQPOP q", "QPOP q", "BQPOP q", atomic=atomic)
    await batch.delivered()
    last = store.submit("BQPOP q")
    await last.delivered()
    batch.leave()
    last.leave()
    first.leave()
    await store.holds({b"q": ("queue", b"a", b"b", b"c", b"d", b"e", b"f")})


async def test_one_who_leaves_at_once_waits_for_nothing_and_takes_nothing(store: Store) -> None:
    """E1: whether the commands were still done or not."""
    await store.do("QPUSH q a b")
    client = store.submit("BQPOP q", "SET k v", "BQPOP none", "QPOP q", "BQPOP none")
    batches = [store.submit_many("SET {q}k v", "BQPOP q", "QPOP q", atomic=atomic) for atomic in (False, True)]
    for one in (client, *batches):
        one.leave()
    await until(lambda: store.waiters == 0)
    await store.do("QPUSH none c")
    await until(lambda: {b"q": ("queue", b"a", b"b"), b"none": ("queue", b"c")}.items() <= store.content().items())
    assert not any(one.delivered_calls for one in (client, *batches))


# Races


def queue_of(store: Store) -> tuple[bytes, ...]:
    _, *values = store.content()[b"q"]
    return tuple(values)  # type: ignore[arg-type]


PAUSES_S = [0.0, 0.0, 0.0, 0.0002, 0.0005, 0.001, 0.002, 60.0]
"""Until somebody leaves; the last one does not, unless there is nothing for him."""


async def leave_after(job: Job, pause_s: float) -> None:
    with trio.move_on_after(pause_s):
        await job.done.wait()
    job.leave()
    await job.done.wait()


async def test_one_who_leaves_about_the_push_gets_the_value_or_the_queue_keeps_it(store: Store) -> None:
    """E4"""
    rng = random.Random(1)
    jobs: dict[bytes, Job] = {}

    async def race(key: bytes) -> None:
        (job,) = await store.park([b"BQPOP", key])
        push = store.spawn([b"QPUSH", key, key])
        for _ in range(rng.randrange(12)):
            await trio.lowlevel.checkpoint()
        await leave_after(job, rng.choice(PAUSES_S))
        assert await push.wait() == Ok(length=1)
        jobs[key] = job

    for number in range(400):
        await race(b"q%d" % number)
    delivered = {key for key, job in jobs.items() if job.reply == Value(key)}
    assert {job.reply for key, job in jobs.items() if key not in delivered} <= {None}
    await store.holds({key: ("queue",) if key in delivered else ("queue", key) for key in jobs})
    assert 0 < len(delivered) < len(jobs)


@pytest.mark.parametrize("seed", range(4))
async def test_values_of_those_who_leave_at_any_moment_are_back(store: Store, seed: int) -> None:
    """E5, I6: in their old order only when they leave together."""
    rng = random.Random(seed)
    values = [b"%03d" % number for number in range(200)]
    await store.do([b"QPUSH", b"q", *values])
    delivered: list[bytes] = []

    async def pop(line: str) -> None:
        job = store.spawn(line)
        for _ in range(rng.randrange(6)):
            await trio.lowlevel.checkpoint()
        await leave_after(job, rng.choice(PAUSES_S))
        if isinstance(job.reply, Value):
            assert job.reply.value is not None
            delivered.append(job.reply.value)

    for _ in range(6):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(pop, rng.choice(["BQPOP q", "QPOP q"]))
    assert len(delivered) == len(set(delivered))
    await until(lambda: sorted(queue_of(store)) == [value for value in values if value not in delivered])


@pytest.mark.parametrize("seed", range(4))
async def test_under_load_every_value_is_delivered_once_or_still_there(store: Store, seed: int) -> None:
    """I6"""
    rng = random.Random(seed)
    pushed: set[bytes] = set()
    delivered: list[bytes] = []

    async def push(value: bytes) -> None:
        await trio.sleep(rng.random() / 10)
        assert isinstance(await store.do([b"QPUSH", b"q%d" % rng.randrange(3), value]), Ok)
        pushed.add(value)

    async def pop(line: str) -> None:
        await trio.sleep(rng.random() / 10)
        job = store.spawn(f"{line.replace('q', f'q{rng.randrange(3)}', 1)}")
        await leave_after(job, rng.choice([0.0, 0.0, 0.0005, 0.001, 0.003, 0.1]))
        if isinstance(job.reply, Value) and job.reply.value is not None:
            delivered.append(job.reply.value)

    async with trio.open_nursery() as nursery:
        for number in range(400):
            nursery.start_soon(push, b"%d" % number)
            nursery.start_soon(pop, rng.choice(["BQPOP q", "BQPOP q 0.01", "BQPOP q 0", "QPOP q"]))
    left: list[bytes] = []

    def is_all_there() -> bool:
        left[:] = [value for _, *values in store.content().values() for value in values]  # type: ignore[misc]
        return len(left) + len(delivered) == len(pushed)

    await until(is_all_there, lambda: f"{len(delivered)} delivered, {len(left)} left of {len(pushed)}")
    assert {*delivered, *left} == pushed
    assert store.waiters == 0
