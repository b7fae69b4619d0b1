from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from engine.embedded.recovery import recover
from engine.embedded.sweeper import SWEEP_KEYS_MAX
from engine.limits import MIB, Limits
from engine.replies import Error, Failure, Integer, Ok, Value
from engine.store import ops
from engine.store.state import State
from tests.harness.world import EPOCH_MS, World
from wal.frame import Frame
from wal.log import Log

DAY_MS = 86_400_000
NOT_FOUND = Failure(Error.KEY_NOT_FOUND)


def logged(world: World) -> list[tuple[object, ...]]:
    """All ops in the log of a stopped world."""
    found: list[tuple[object, ...]] = []

    def collect(frame: Frame) -> None:
        found.extend(frame.records)

    Log.recover(world.disk.copy().directory(), collect, time_ms=EPOCH_MS).abandon()
    return found


async def test_a_key_is_gone_at_the_very_instant(world: World) -> None:
    await world.do("SET k v EX 60")
    await world.do("SET l v PX 60001")
    await trio.sleep(59.999)
    assert await world.do("GET k") == Value(b"v")
    await trio.sleep(0.001)
    assert await world.do("GET k") == NOT_FOUND
    assert await world.do("GET l") == Value(b"v")
    await trio.sleep(0.001)
    assert await world.do("GET l") == NOT_FOUND


async def test_an_expired_key_is_swept_and_its_memory_freed_without_any_command(world: World) -> None:
    await world.do("SET stays v")
    before_bytes = world.state.memory_bytes
    await world.do("SET k v EX 60")
    await trio.sleep(61)
    assert world.state.memory_bytes == before_bytes
    statistics = world.engine.statistics()
    assert (statistics.keys, statistics.expired_keys) == (1, 1)
    await world.stop()
    assert (ops.EXPIRE, (b"k",)) in logged(world)


async def test_the_seconds_left_are_rounded_up_and_never_zero_while_the_key_is_there(world: World) -> None:
    await world.do("SET k v EX 2")
    seconds = []
    for _ in range(6):
        seconds.append(await world.do("TTL k"))
        await trio.sleep(0.4)
    assert seconds == [Integer(2), Integer(2), Integer(2), Integer(1), Integer(1), Integer(-2)]


async def test_a_set_drops_an_older_expiry_and_a_later_sweep_leaves_the_key_alone(world: World) -> None:
    await world.do("SET k v EX 60")
    await world.do("SET k w")
    await trio.sleep(100)
    assert await world.do("GET k") == Value(b"w")
    assert world.engine.statistics().expired_keys == 0


async def test_a_key_that_persists_outlives_its_time_and_a_power_cut_and_is_not_written_again(
    world: World,
) -> None:
    value = "v" * 100_000
    await world.do(f"SET k {value} EX 60")
    written_bytes = world.engine.statistics().log_bytes
    assert await world.do("PERSIST k") == Integer(1)
    assert await world.do("PERSIST k") == Integer(0)
    assert world.engine.statistics().log_bytes < written_bytes + 200
    await world.cut_power()
    await world.start()
    await trio.sleep(3600)
    assert await world.do("TTL k") == Integer(-1)
    assert await world.do("GET k") == Value(value.encode())
    await world.stop()
    assert logged(world)[1:] == [(ops.DEADLINE, b"k", None)]


async def test_an_expired_key_that_is_not_swept_yet_makes_room_for_a_queue(world: World) -> None:
    """D4: the log says that the old value went, so replay needs no clock."""
    await world.do("SET k v PX 5")  # the next sweep is 100 ms away
    await trio.sleep(0.01)
    assert len(world.dump()) == 1
    assert await world.do("SET k v XX") == NOT_FOUND
    assert await world.do("QPUSH k a") == Ok(length=1)
    await trio.sleep(10)
    assert world.dump() == [("queue", b"k", (b"a",))]
    await world.kill()
    await world.start()
    assert world.dump() == [("queue", b"k", (b"a",))]


async def test_keys_that_expire_one_by_one_are_swept_together(world: World) -> None:
    for number in range(1, 101):
        await world.do(f"SET k{number} v PX {1000 + number}")
    commits = world.engine.statistics().commits
    await trio.sleep(2)
    assert world.engine.statistics().expired_keys == 100
    assert world.engine.statistics().commits - commits <= 3


async def test_many_keys_that_expire_at_once_go_in_slices_with_commands_in_between(world: World) -> None:
    """D5"""
    keys = 50_000
    for number in range(keys):
        world.state.apply((ops.PUT, b"k%d" % number, b"v", EPOCH_MS + 1_000))
    world.state.apply((ops.PUT, b"stays", b"v", None))
    await trio.sleep(0.5)
    swept_between = []
    await trio.sleep_until(1.0)
    while len(world.state) > 1:
        assert await world.do("GET k1") == NOT_FOUND
        assert await world.do("SET stays v") == Ok()
        swept_between.append(world.engine.statistics().expired_keys)
    steps = [after - before for before, after in pairwise(swept_between)]
    assert max(swept_between[0], *steps) <= 20 * SWEEP_KEYS_MAX, "a command waits for a few slices, not for all"
    assert trio.current_time() < 1.001
    assert world.engine.statistics().expired_keys == keys
    await world.stop()
    sweeps = [len(op[1]) for op in logged(world) if op[0] == ops.EXPIRE]  # type: ignore[arg-type]
    assert max(sweeps) == SWEEP_KEYS_MAX
    assert sum(sweeps) == keys


async def test_the_actor_rests_between_sweeps(world: World) -> None:
    await world.do("SET far v EX 1000000")
    await trio.sleep(10**6 + 1)  # would take for ever if it woke every 100 ms of it
    assert await world.do("EXISTS far") == Integer(0)


# The clock


@pytest.mark.parametrize("jump_ms", [DAY_MS, -DAY_MS])
async def test_a_wall_clock_that_jumps_while_running_moves_nothing(world: World, jump_ms: int) -> None:
    """D1"""
    await world.do("SET k v EX 60")
    waiter = await world.park("BQPOP q 60")
    world.wall_offset_ms = jump_ms
    await trio.sleep(30)
    assert await world.do("TTL k") == Integer(30)
    assert not waiter.done.is_set()
    await trio.sleep(30)
    assert await world.do("TTL k") == Integer(-2)
    assert await waiter.wait() == Value(None)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("behind_ms", [1, 30_000, DAY_MS, 10_000 * DAY_MS])
async def test_a_restart_with_the_clock_behind_never_lengthens_a_life(
    world: World, behind_ms: int, *, clean: bool
) -> None:
    """D2"""
    await trio.sleep(100)
    await world.do("SET k v EX 60")
    await trio.sleep(20)
    await world.do("SET l v EX 60")
    await (world.stop() if clean else world.kill())
    world.wall_offset_ms = -behind_ms
    await world.start()
    left = [await world.do("TTL k"), await world.do("TTL l")]
    assert isinstance(left[0], Integer)
    assert 40 <= left[0].value <= 60
    assert left[1] == Integer(60)
    await trio.sleep(60)
    assert await world.do("EXISTS k l") == Integer(0)


async def test_again_and_again_restarting_with_a_clock_that_stands_still_still_ends_a_life(world: World) -> None:
    """D2"""
    await world.do("SET k v EX 60")
    for round_number in range(7):
        await trio.sleep(10)
        await world.do(f"SET beat {round_number}")
        await world.stop()
        world.wall_offset_ms = -round(trio.current_time() * 1000)
        await world.start()
    assert await world.do("EXISTS k") == Integer(0)


async def test_a_restart_with_the_clock_ahead_expires_what_is_due_and_nothing_else(world: World) -> None:
    """D3"""
    for number in range(1_000):
        world.spawn(f"SET k{number} v EX 60")
    await world.do("SET stays v")
    await world.do("SET later v EX 172800")
    await world.settle()
    await world.kill()
    world.wall_offset_ms = DAY_MS
    await world.start()
    assert await world.do("GET k0") == NOT_FOUND
    assert await world.do("TTL later") == Integer(86_400)
    await trio.sleep(1)
    assert world.engine.statistics().expired_keys == 1_000
    assert [entry[1] for entry in world.dump()] == [b"later", b"stays"]


async def test_after_a_clock_that_was_ahead_engine_time_does_not_go_back(world: World) -> None:
    """D2, D3"""
    world.wall_offset_ms = DAY_MS
    await world.stop()
    await world.start()
    await world.do("SET k v EX 60")
    await world.kill()
    world.wall_offset_ms = 0
    await world.start()
    assert await world.do("TTL k") == Integer(60)
    await trio.sleep(60)
    assert await world.do("TTL k") == Integer(-2)


async def test_replay_gives_the_same_state_whenever_it_is_run(world: World) -> None:
    """D4, I7"""
    for line in ("SET a 1 EX 60", "SET b 2 PX 5", "QPUSH q x y", "SET c 3 EX 1"):
        await world.do(line)
    await trio.sleep(0.02)
    for line in ("QPUSH b z", "SET b late NX", "BQPOP q", "SET c 4 EX 1000"):
        await world.do(line)
    await trio.sleep(30)
    expected = world.dump()
    await world.kill()

    def replayed(years: int) -> State:
        state, log = recover(world.disk.copy().directory(), world.limits, wall_ms=EPOCH_MS + years * 365 * DAY_MS)
        log.abandon()
        return state

    for years in (-10, 0, 10):
        assert list(replayed(years).dump()) == expected


async def test_a_deadline_is_absolute_and_goes_on_while_the_engine_is_down(world: World) -> None:
    await world.do("SET k v EX 60")
    await world.kill()
    await trio.sleep(45)
    await world.start()
    assert await world.do("TTL k") == Integer(15)


async def test_expired_keys_do_not_pile_up_behind_groups_of_many_commands(world: World) -> None:
    world.commit_s = 0.1
    for round_ in range(10):
        jobs = [world.spawn(f"SET k{round_}-{number} v PX 50") for number in range(1_000)]
        for job in jobs:
            await job.wait()
    await trio.sleep(1)
    assert world.engine.statistics().keys == 0


async def test_long_keys_that_expire_together_are_swept_without_pauses(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World(nursery, limits=Limits(key_bytes_max=1 << 20), segment_bytes_max=64 * MIB)  # no roll in between
    await world.start()
    for number in range(40):
        await world.do("SET " + str(number) * 500_000 + " v PX 1000")
    await trio.sleep(1.2)
    assert world.engine.statistics().keys == 0
    nursery.cancel_scope.cancel()


async def test_a_key_that_was_seen_to_have_expired_stays_gone_whatever_the_clock_says_after_a_crash(
    world: World,
) -> None:
    """I5, D2: the answer leaves with the record of it, also between two sweeps."""
    await world.do("SET swept 1 PX 10")
    await trio.sleep(0.01)  # the next sweep is some time off now
    await world.do("SET seen 1 PX 10")
    await trio.sleep(0.01)
    assert await world.do("EXISTS seen") == Integer(0)
    await world.cut_power()
    world.wall_offset_ms -= 3_600_000
    await world.start()
    assert await world.do("EXISTS seen") == Integer(0)


@pytest.mark.parametrize("jump_ms", [365 * DAY_MS, -365 * DAY_MS])
async def test_a_lock_is_held_for_its_time_though_the_clock_jumps(world: World, jump_ms: int) -> None:
    """D1: while running."""
    assert await world.do("SET lock me EX 60 NX") == Ok()
    world.wall_offset_ms = jump_ms
    await trio.sleep(59)
    assert await world.do("SET lock you EX 60 NX") == Failure(Error.KEY_ALREADY_EXISTS)
    await trio.sleep(1)
    assert await world.do("SET lock you EX 60 NX") == Ok()
    assert await world.do("TTL lock") == Integer(60)


async def test_a_lock_is_never_held_for_longer_because_the_clock_has_jumped_over_a_restart(world: World) -> None:
    """D2, D3: a clock set ahead is time that has passed; one set back changes nothing."""
    assert await world.do("SET lock me EX 60 NX") == Ok()
    await world.stop()
    world.wall_offset_ms = -365 * DAY_MS
    await world.start()
    assert await world.do("SET lock you EX 60 NX") == Failure(Error.KEY_ALREADY_EXISTS)
    assert await world.do("TTL lock") == Integer(60)
    await world.stop()
    world.wall_offset_ms = 365 * DAY_MS
    await world.start()
    assert await world.do("SET lock you EX 60 NX") == Ok()
    await world.stop()
    world.wall_offset_ms = 0  # it is right again: time goes on from where the log is
    await world.start()
    assert await world.do("TTL lock") == Integer(60)
    await trio.sleep(60)
    assert await world.do("SET lock me EX 60 NX") == Ok()
