from __future__ import annotations

import pytest
import trio

from engine.replies import Error, Failure, Integer, Ok, Value
from tests.harness.disk import failing
from tests.harness.world import World
from wal.log import LogFailed
from wal.manifest import read_manifest

SHUTTING_DOWN = Failure(Error.UNAVAILABLE, "shutting down")


def is_clean(world: World) -> bool:
    """Whether the log says that it was closed cleanly."""
    directory = world.disk.directory()
    try:
        return read_manifest(directory).clean_close is not None
    finally:
        directory.close()


async def test_a_stop_leaves_a_clean_log_and_a_free_directory(world: World) -> None:
    """H1"""
    await world.do("SET k v")
    dump = world.dump()
    await world.stop()
    assert world.failure is None
    assert is_clean(world)
    await world.cut_power()
    await world.start()
    assert world.dump() == dump


async def test_an_engine_that_did_nothing_stops(world: World) -> None:
    await world.stop()
    assert is_clean(world)
    await world.start()
    await world.stop()
    assert world.dump() == []


async def test_shutting_down_turns_waiters_away_at_once(world: World) -> None:
    """E8"""
    jobs = [await world.park("BQPOP q"), await world.park("BQPOP q 60"), await world.park("BQPOP r")]
    world.engine.shut_down()
    await world.settle()
    assert [job.reply for job in jobs] == [SHUTTING_DOWN] * 3
    assert trio.current_time() == 0
    assert world.engine.readiness() == SHUTTING_DOWN
    assert not world._ended.is_set(), "it goes on until it is closed"


async def test_ten_thousand_waiters_are_turned_away_and_nothing_is_consumed(world: World) -> None:
    """E8"""
    jobs = [world.spawn(f"BQPOP q{number % 100} {number % 7 + 1}") for number in range(10_000)]
    await world.settle()
    assert world.engine.statistics().waiters == 10_000
    pushes = [world.spawn(f"QPUSH q{number} a") for number in range(100)]
    for _ in range(2):
        await trio.lowlevel.checkpoint()  # the pushes are in the mailbox
    await world.stop()
    delivered = sum(job.reply == Value(b"a") for job in jobs)
    assert sum(job.reply == SHUTTING_DOWN for job in jobs) == 10_000 - delivered
    assert [job.reply for job in pushes] == [Ok(length=1)] * 100
    assert sum(len(entry[2]) for entry in world.dump()) == 100 - delivered
    assert is_clean(world)


async def test_a_push_in_the_tick_of_the_shutdown_is_done_but_wakes_nobody(world: World) -> None:
    """E8"""
    waiter = await world.park("BQPOP q")
    push = world.spawn("QPUSH q a")
    await trio.lowlevel.checkpoint()
    assert world.engine.statistics().mailbox <= 1
    world.engine.shut_down()
    await world.settle()
    assert (push.reply, waiter.reply) in ((Ok(length=1), SHUTTING_DOWN), (SHUTTING_DOWN, SHUTTING_DOWN))
    await world.stop()
    await world.start()
    assert await world.do("QLEN q") == Integer(1 if push.reply == Ok(length=1) else 0)


async def test_new_commands_are_turned_away(world: World) -> None:
    world.engine.shut_down()
    for line in ("SET k v", "GET k", "BQPOP q", "PING"):
        assert await world.do(line) == SHUTTING_DOWN
    await world.stop()
    assert await world.do("GET k") == SHUTTING_DOWN
    assert world.dump() == []


@pytest.mark.parametrize("commit_s", [0.0, 1.0])
async def test_what_is_in_the_mailbox_or_on_its_way_is_finished(world: World, commit_s: float) -> None:
    world.commit_s = commit_s
    jobs = [world.spawn("SET first v")]
    await world.settle()
    jobs += [world.spawn(f"SET k{number} v") for number in range(1_000)]
    waiter = world.spawn("BQPOP q")
    while any(job.submitted is None for job in (*jobs, waiter)):
        await trio.lowlevel.checkpoint()
    await world.stop()
    assert [job.reply for job in jobs] == [Ok()] * 1_001
    assert waiter.reply == SHUTTING_DOWN
    await world.cut_power()
    await world.start()
    assert len(world.dump()) == 1_001


async def test_a_pop_whose_client_leaves_while_the_engine_is_closing_gives_its_value_back(world: World) -> None:
    """E5, E8"""
    await world.do("QPUSH q a b c")
    world.commit_s = 1.0
    jobs = [world.spawn("BQPOP q"), world.spawn("QPOP q")]
    await trio.sleep(0.5)
    world.engine.close()
    await trio.sleep(0.2)
    for job in jobs:
        job.leave()
    await world.stop()
    assert [job.reply for job in jobs] == [None, None]
    await world.start()
    assert await world.do("QLEN q") == Integer(3)
    assert [await world.do("BQPOP q") for _ in "abc"] == [Value(b"a"), Value(b"b"), Value(b"c")]


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 1.0])
async def test_a_pop_cancelled_at_any_moment_of_the_closing_is_delivered_or_back(world: World, delay_s: float) -> None:
    """E5"""
    await world.do("QPUSH q a")
    world.commit_s = 1.0
    job = world.spawn("BQPOP q")
    await world.settle()
    world.engine.close()
    await trio.sleep(delay_s)
    job.leave()
    await world.stop()
    await world.start()
    left = await world.do("QLEN q")
    assert (job.reply, left) in ((None, Integer(1)), (Value(b"a"), Integer(0)))


async def test_closing_twice_or_after_shutting_down_is_the_same_as_once(world: World) -> None:
    await world.do("SET k v")
    world.engine.shut_down()
    world.engine.shut_down()
    await world.settle()
    world.engine.close()
    world.engine.close()
    await world.stop()
    assert is_clean(world)


async def test_a_sync_that_fails_while_closing_is_reported_and_leaves_no_footer(world: World) -> None:
    """B1, H1"""

    await world.do("SET k v")
    world.disk.fault = failing("sync")
    await world.stop()
    failure = world.failure
    assert isinstance(failure, ExceptionGroup)
    assert failure.subgroup(LogFailed) is not None
    world.disk.kill()
    assert not is_clean(world)


async def test_a_cancellation_while_the_log_is_being_closed_waits_for_its_end(world: World) -> None:
    """H1: a second signal is still safe."""
    await world.do("SET k v")
    world.commit_s = 1.0
    world.engine.close()
    await trio.sleep(0.5)
    world._scope.cancel()
    await world._ended.wait()
    assert trio.current_time() == 1.0
    assert is_clean(world)


@pytest.mark.parametrize("ticks", range(12))
async def test_a_cancellation_in_any_tick_of_the_closing_frees_the_directory(world: World, ticks: int) -> None:
    """H1"""
    job = world.spawn("SET k v")
    await trio.lowlevel.checkpoint()
    world.engine.close()
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    world._scope.cancel()
    await world._ended.wait()
    assert world.disk.holder is None
    world.disk.cut_power()
    await world.start()
    if job.reply == Ok():
        assert await world.do("GET k") == Value(b"v")
    job.leave()
