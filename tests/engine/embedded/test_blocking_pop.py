"""BQPOP: who waits, who is served, and what becomes of a value whose client has left (E)."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.limits import Limits
from engine.replies import Error, Failure, Integer, Ok, Reply, Value
from tests.harness.effort import many
from tests.harness.world import Job, World

NULL = Value(None)


async def queue_of(world: World, key: str = "q") -> list[bytes]:
    """The values of a queue, first to last."""
    await world.settle()
    return list(world.state.queue(key.encode()) or ())


async def popping(world: World, *lines: str) -> list[Job]:
    """Submits pops one after the other; with a commit on its way none of them is answered."""
    jobs = []
    for line in lines:
        jobs.append(world.spawn(line))
        await world.settle()
    return jobs


def value_of(reply: Reply | None) -> bytes:
    assert isinstance(reply, Value)
    assert reply.value is not None
    return reply.value


# Waiting


async def test_it_takes_the_first_value_at_once_when_there_is_one(world: World) -> None:
    await world.do("QPUSH q a b")
    assert await world.do("BQPOP q") == Value(b"a")
    assert await world.do("BQPOP q 0") == Value(b"b")


async def test_waiting_for_a_queue_does_not_make_it(world: World) -> None:
    job = await world.park("BQPOP q")
    assert await world.do("EXISTS q") == Integer(0)
    assert await world.do("QPOP q") == NULL
    assert await world.do("QPUSH q a") == Ok(length=1)
    assert await job.wait() == Value(b"a")
    assert await world.do("EXISTS q") == Integer(1)


async def test_a_timeout_of_zero_answers_at_once(world: World) -> None:
    assert await world.do("BQPOP q 0") == NULL
    assert world.engine.statistics().waiters == 0


async def test_the_timeout_answers_null_at_its_very_instant(world: World) -> None:
    job = await world.park("BQPOP q 90.5")
    await trio.sleep(90.499)
    await world.settle()
    assert not job.done.is_set()
    await trio.sleep(0.001)
    assert await job.wait() == NULL
    assert trio.current_time() == pytest.approx(90.5)
    assert world.disk.log.count(("sync", world.disk.segments()[0])) <= 1, "a null needs no sync"


async def test_one_without_a_timeout_waits_for_ever(world: World) -> None:
    job = await world.park("BQPOP q")
    await trio.sleep(10**8)
    assert not job.done.is_set()
    await world.do("QPUSH q a")
    assert await job.wait() == Value(b"a")


async def test_waiters_keep_waiting_while_the_key_holds_a_plain_value(world: World) -> None:
    job = await world.park("BQPOP q")
    await world.do("SET q v EX 60")
    assert await world.do("BQPOP q") == Failure(Error.WRONG_TYPE, "the key holds a plain value, BQPOP needs a queue")
    await trio.sleep(60)
    assert not job.done.is_set()
    await world.do("QPUSH q a")
    assert await job.wait() == Value(b"a")


async def test_one_push_of_many_values_serves_many_and_keeps_the_rest(world: World) -> None:
    jobs = [await world.park("BQPOP q") for _ in range(3)]
    assert await world.do("QPUSH q a b c d e") == Ok(length=5)
    assert [job.reply for job in jobs] == [Value(b"a"), Value(b"b"), Value(b"c")]
    assert await queue_of(world) == [b"d", b"e"]


async def test_too_many_waiters_are_turned_away(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    world = World(nursery, limits=Limits(waiters_max=2))
    await world.start()
    first, _second = await world.park("BQPOP q"), await world.park("BQPOP r")
    assert await world.do("BQPOP q") == Failure(Error.UNAVAILABLE, "too many clients are waiting")
    assert await world.do("BQPOP q 0") == NULL
    first.leave()
    await world.park("BQPOP q")


async def test_a_thousand_waiters_are_served_first_come_first_served_whoever_leaves(world: World) -> None:
    """I6"""
    rng = random.Random(5)
    jobs = [world.spawn("BQPOP q") for _ in range(1_000)]
    await world.settle()
    jobs.sort(key=lambda job: job.submitted or 0)
    staying = jobs.copy()
    pushed = 0
    served: list[Job] = []
    while staying:
        for job in rng.sample(staying, min(len(staying), rng.randrange(40))):
            job.leave()
            staying.remove(job)
        count = min(len(staying), rng.randrange(1, 60))
        if count:
            await world.do("QPUSH q " + " ".join(str(pushed + n) for n in range(count)))
            served += staying[:count]
            del staying[:count]
            pushed += count
    assert [value_of(job.reply) for job in served] == [b"%d" % number for number in range(pushed)]
    assert await queue_of(world) == []
    assert world.engine.statistics().waiters == 0


async def test_one_push_wakes_exactly_one_of_ten_thousand_and_that_the_oldest(world: World) -> None:
    """E9"""
    jobs = [world.spawn("BQPOP q") for _ in range(10_000)]
    await world.settle()
    jobs.sort(key=lambda job: job.submitted or 0)
    await world.do("QPUSH q a")
    assert [number for number, job in enumerate(jobs) if job.done.is_set()] == [0]
    assert jobs[0].reply == Value(b"a")
    assert world.engine.statistics().waiters == 9_999


@pytest.mark.costly("ten thousand times")
async def test_a_push_at_the_timeout_ten_thousand_times_is_never_both_null_and_consumed(world: World) -> None:
    """E7"""
    rng = random.Random(7)
    delays_s = [1.0, 1.0, 0.9995, 1.0005]

    async def push(key: str) -> None:
        await trio.sleep(rng.choice(delays_s))
        await world.do(f"QPUSH {key} v")

    jobs = {}
    async with trio.open_nursery() as nursery:
        for number in range(many(10_000)):
            jobs[f"q{number}"] = world.spawn(f"BQPOP q{number} 1")
            nursery.start_soon(push, f"q{number}")
    outcomes = set()
    for key, job in jobs.items():
        left = len(world.state.queue(key.encode()) or ())
        outcomes.add((job.reply, left))
    assert outcomes == {(NULL, 1), (Value(b"v"), 0)}
    assert world.engine.statistics().waiters == 0


async def test_clients_that_come_and_leave_leave_nothing_behind(world: World) -> None:
    """E10"""
    for _ in range(30):
        jobs = [world.spawn(f"BQPOP q{number % 7} {number}") for number in range(1, 60)]
        await world.settle()
        for job in jobs:
            job.leave()
        await world.settle()
    waiters = world.engine._pops.waiters
    assert (len(waiters), waiters._lines, len(waiters._deadlines)) == (0, {}, 0)
    assert not world.engine._pops.has_abandoned
    assert world.engine._answers.callers == 0


# Leaving


async def test_one_who_leaves_before_the_engine_looked_leaves_no_trace(world: World) -> None:
    """E1"""
    jobs = [world.spawn("BQPOP q"), world.spawn("QPUSH q a"), world.spawn("SET k v")]
    for job in jobs:
        job.leave()
    await world.settle()
    assert world.dump() == []
    assert world.engine.statistics().waiters == 0


async def test_one_who_leaves_while_waiting_is_passed_over(world: World) -> None:
    """E2"""
    first, second = await world.park("BQPOP q"), await world.park("BQPOP q")
    first.leave()
    await world.settle()
    assert world.engine.statistics().waiters == 1
    await world.do("QPUSH q a")
    assert first.reply is None
    assert await second.wait() == Value(b"a")


@pytest.mark.parametrize("commit_s", [0.0, 1.0])
@pytest.mark.parametrize("ticks", range(12))
async def test_one_who_leaves_about_the_tick_of_the_push_gets_the_value_or_the_queue_keeps_it(
    world: World, commit_s: float, ticks: int
) -> None:
    """E4"""
    world.commit_s = commit_s
    job = await world.park("BQPOP q")
    push = world.spawn("QPUSH q a")
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    job.leave()
    assert await push.wait() == Ok(length=1)
    await trio.sleep(10)
    left = await queue_of(world)
    assert (job.reply, left) in ((None, [b"a"]), (Value(b"a"), []))
    assert left or ticks > 2


@pytest.mark.parametrize("line", ["BQPOP q", "QPOP q"])
async def test_one_who_leaves_while_the_pop_is_being_synced_gives_the_value_back(world: World, line: str) -> None:
    """E5"""
    await world.do("QPUSH q a b c")
    world.commit_s = 1.0
    (job,) = await popping(world, line)
    assert len(await queue_of(world)) == 2
    job.leave()
    assert await queue_of(world) == [b"a", b"b", b"c"]
    await trio.sleep(5)
    assert job.reply is None
    assert world.engine.statistics().returned_values == 1
    await world.cut_power()
    await world.start()
    assert await queue_of(world) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("written", [False, True])
async def test_a_crash_while_a_value_is_going_back_keeps_it_or_has_it_popped(world: World, *, written: bool) -> None:
    """E5: the pop is durable, its undoing on its way; the client was gone, so either is as good."""
    await world.do("QPUSH q a b")
    world.commit_s = 1.0
    (job,) = await popping(world, "BQPOP q")
    await trio.sleep(0.5)
    job.leave()
    await trio.sleep(1.0)  # the pop's group is through, the group with its undoing is on its way
    await world.kill(written=written)
    await world.start()
    assert await queue_of(world) == ([b"a", b"b"] if written else [b"b"])


@pytest.mark.parametrize("seed", range(20))
async def test_answer_and_cancellation_in_the_same_tick_give_the_value_back(world: World, seed: int) -> None:
    """E5"""
    await world.do("QPUSH q a b")
    world.commit_s = 1.0
    (job,) = await popping(world, "BQPOP q")
    rest = world.spawn("GET other")
    for _ in range(seed):  # so that the two that wake at the same time do it in either order
        await trio.lowlevel.checkpoint()
    await trio.sleep_until(1.0)
    answered = job.done.is_set()
    job.leave()
    await trio.sleep(5)
    assert not answered
    assert job.reply is None
    assert rest.reply == Failure(Error.KEY_NOT_FOUND)
    assert await queue_of(world) == [b"a", b"b"]


async def test_an_answered_client_that_is_cancelled_before_it_runs_gives_the_value_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: the narrowest case, arranged exactly: the task is scheduled with its answer, then cancelled."""
    await world.do("QPUSH q a b")
    world.commit_s = 1.0
    (job,) = await popping(world, "BQPOP q")
    release = world.engine._committer._release

    def release_and_leave(call: Any) -> None:
        release(call)
        job.leave()

    monkeypatch.setattr(world.engine._committer, "_release", release_and_leave)
    await trio.sleep(1.0)
    await world.settle()
    assert job.reply is None
    assert await queue_of(world) == [b"a", b"b"]


@pytest.mark.parametrize("line", ["BQPOP q", "QPOP q"])
@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_values_of_several_who_leave_at_once_are_back_in_their_old_order(
    world: World, line: str, order: tuple[int, ...]
) -> None:
    """E5"""
    await world.do("QPUSH q a b c d e")
    world.commit_s = 1.0
    jobs = await popping(world, line, line, line)
    assert len(await queue_of(world)) == 2
    for number in order:
        jobs[number].leave()
    assert await queue_of(world) == [b"a", b"b", b"c", b"d", b"e"]


async def test_values_taken_from_both_ends_go_back_to_both_ends(world: World) -> None:
    """E5"""
    await world.do("QPUSH q a b c d")
    world.commit_s = 1.0
    jobs = await popping(world, "BQPOP q", "QPOP q", "BQPOP q", "QPOP q", "BQPOP q")
    for job in (jobs[2], jobs[0], jobs[3], jobs[1]):
        job.leave()
    await world.settle()
    await trio.sleep(3)
    assert jobs[4].reply == Value(b"a"), "it waited for the emptied queue, and the first value came back"
    assert await queue_of(world) == [b"b", b"c", b"d"]


async def test_a_value_that_comes_back_wakes_the_next_waiter(world: World) -> None:
    """E5"""
    await world.do("QPUSH q a")
    world.commit_s = 1.0
    (job,) = await popping(world, "BQPOP q")
    waiter = await world.park("BQPOP q")
    job.leave()
    assert await waiter.wait() == Value(b"a")
    assert await queue_of(world) == []


async def test_values_that_come_back_together_go_to_the_waiters_in_their_old_order(world: World) -> None:
    """E5"""
    await world.do("QPUSH q a b c")
    world.commit_s = 1.0
    jobs = await popping(world, "BQPOP q", "BQPOP q", "QPOP q")
    waiters = [await world.park("BQPOP q") for _ in range(3)]
    for job in jobs:
        job.leave()
    await trio.sleep(5)
    assert [waiter.reply for waiter in waiters] == [Value(b"a"), Value(b"b"), Value(b"c")]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        (["DELETE q"], []),
        (["SET q v"], []),
        (["DELETE q", "QPUSH q new"], [b"new"]),
        (["SET q v", "DELETE q", "QPUSH q new"], [b"new"]),
    ],
)
async def test_a_value_of_a_queue_that_was_removed_meanwhile_does_not_come_back(
    world: World, lines: list[str], left: list[bytes]
) -> None:
    """E5"""
    await world.do("QPUSH q a b")
    world.commit_s = 1.0
    pop, *_ = await popping(world, "BQPOP q", *lines)
    pop.leave()
    assert await queue_of(world) == left
    await trio.sleep(5)
    assert world.engine.statistics().returned_values == 0


async def test_a_value_comes_back_to_an_emptied_queue(world: World) -> None:
    """E5"""
    await world.do("QPUSH q a")
    world.commit_s = 1.0
    (job,) = await popping(world, "QPOP q")
    job.leave()
    assert await queue_of(world) == [b"a"]


async def test_a_push_stays_done_when_its_client_leaves(world: World) -> None:
    """B9"""
    world.commit_s = 1.0
    jobs = await popping(world, "QPUSH q a", "SET k v")
    for job in jobs:
        job.leave()
    await trio.sleep(5)
    await world.cut_power()
    await world.start()
    assert await queue_of(world) == [b"a"]
    assert await world.do("GET k") == Value(b"v")


async def test_a_waiter_served_by_a_push_that_a_power_cut_takes_back_has_seen_nothing(world: World) -> None:
    """I5, B13"""
    waiter = await world.park("BQPOP q")
    world.commit_s = 1.0
    push = world.spawn("QPUSH q a")
    await trio.sleep(0.5)
    await world.cut_power()
    assert (waiter.reply, push.reply) == (None, None)
    await world.start()
    assert world.dump() == []


@pytest.mark.parametrize("seed", range(8))
async def test_under_load_every_value_is_delivered_once_or_still_there(world: World, seed: int) -> None:
    """I6: with clients that leave at any moment, and a kill in between."""
    rng = random.Random(seed)
    world.commit_s = rng.choice([0.0, 0.003])
    pushed: set[bytes] = set()
    delivered: list[bytes] = []

    async def push(value: bytes) -> None:
        await trio.sleep(rng.random())
        if (await world.do(f"QPUSH q {value.decode()}")) is not None:
            pushed.add(value)

    async def pop(line: str) -> None:
        await trio.sleep(rng.random())
        job = world.spawn(line)
        with trio.move_on_after(rng.choice([0.0, 0.001, 0.003, 0.1, 5.0])):
            await job.done.wait()
        job.leave()
        await job.done.wait()
        if isinstance(job.reply, Value) and job.reply.value is not None:
            delivered.append(job.reply.value)

    for round_number in range(3):
        async with trio.open_nursery() as nursery:
            for number in range(150):
                nursery.start_soon(push, b"%d.%d" % (round_number, number))
                nursery.start_soon(pop, rng.choice(["BQPOP q", "BQPOP q 0.01", "QPOP q"]))
        await trio.sleep(1)
        await world.kill()
        await world.start()
    left = await queue_of(world)
    assert len(delivered) == len(set(delivered)), "at most once"
    assert len(left) == len(set(left))
    assert set(delivered).isdisjoint(left)
    assert set(delivered) | set(left) == pushed, "none lost"
    assert world.state.queue_count == 1
