"""Checkpoints in a running engine: when one is made, what happens meanwhile, and how it fails."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from engine.embedded.checkpointer import PAUSE_MAX_S, Checkpointer
from engine.face import Checkpoint, FoldFailed
from engine.replies import Integer, Ok, Value
from tests.harness.disk import failing
from tests.harness.folding import FoldingWorld
from wal.log import LogFailed
from wal.manifest import MANIFEST_NAME
from wal.segment import HEADER_BYTES, Damage
from wal.snapshot import FoldPlan

KIB = 1024
SEGMENT_BYTES = 64 * KIB


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[FoldingWorld]:
    """An engine with small segments, which makes checkpoints."""
    world = FoldingWorld(nursery, segment_bytes_max=SEGMENT_BYTES)
    await world.start()
    yield world
    nursery.cancel_scope.cancel()


async def fill(world: FoldingWorld, key: str, size_bytes: int) -> None:
    """Writes a plain value of so many bytes."""
    assert await world.spawn([b"SET", key.encode(), b"x" * size_bytes]).wait() == Ok()


def statistics(world: FoldingWorld) -> tuple[int, int]:
    """Checkpoints made and checkpoints failed."""
    found = world.engine.statistics()
    return found.checkpoints, found.checkpoint_failures


def out_of(code: int, *operations: str) -> Callable[[str, str], None]:
    """A fault: these operations fail for want of something."""

    def fault(operation: str, _name: str) -> None:
        if operation in operations:
            raise OSError(code, "there is nothing left")

    return fault


# When


async def test_a_checkpoint_is_made_when_the_sealed_segments_are_three_quarters_of_a_segment(
    world: FoldingWorld,
) -> None:
    for number in range(3):
        await fill(world, f"k{number}", 20 * KIB)
        await world.settle()
        assert world.folds == []
    await fill(world, "k3", 20 * KIB)
    await world.settle()
    assert len(world.folds) == 1
    assert statistics(world) == (1, 0)
    assert world.disk.segments() == ["00000002.log"]
    assert world.engine.statistics().snapshot_bytes == len(world.disk.get("00000001.snapshot"))
    await world.cut_power()
    await world.start()
    assert [entry[1] for entry in world.dump()] == [b"k0", b"k1", b"k2", b"k3"]


async def test_later_checkpoints_wait_until_the_sealed_segments_are_as_long_as_the_snapshot(
    world: FoldingWorld,
) -> None:
    """C8: what lives is written once more for each time that it was written."""
    sizes: list[tuple[int, int]] = []
    for number in range(60):
        await fill(world, f"k{number}", 20 * KIB)
        await world.settle()
        if len(world.folds) > len(sizes):
            sizes.append((number, world.engine.statistics().snapshot_bytes))
    assert [number for number, _ in sizes] == [3, 6, 12, 24, 48]


async def test_a_log_of_which_little_lives_is_folded_although_no_segment_is_full(world: FoldingWorld) -> None:
    for number in range(40):
        await fill(world, f"k{number}", 20 * KIB)
    await world.settle()
    before = len(world.folds)
    await world.do("DELETE " + " ".join(f"k{number}" for number in range(40)))
    await world.settle()
    assert len(world.folds) == before + 1
    assert world.engine.statistics().snapshot_bytes == HEADER_BYTES
    assert world.engine.statistics().log_bytes == 2 * HEADER_BYTES


async def test_reads_and_small_writes_make_no_checkpoint(world: FoldingWorld) -> None:
    for _ in range(200):
        await world.do("SET k v")
        await world.do("GET k")
    await trio.sleep(3600)
    assert world.folds == []


async def test_a_checkpoint_that_gives_nothing_back_is_not_made_again_and_again(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files' headers alone are more than twice what lives, with segments as short as this."""
    calls = 0
    checkpoint = Checkpointer._checkpoint

    async def counted(self: Checkpointer, *, seal: bool) -> Checkpoint:
        nonlocal calls
        calls += 1
        assert calls < 100, "it never stops"
        return await checkpoint(self, seal=seal)

    monkeypatch.setattr(Checkpointer, "_checkpoint", counted)
    world = FoldingWorld(nursery, segment_bytes_max=100)
    await world.start()
    await world.do("SET k v")
    await world.do("DELETE k")
    await trio.sleep(60)
    await world.do("PING")
    assert 0 < calls < 10
    nursery.cancel_scope.cancel()


async def test_a_log_that_is_due_at_the_start_is_folded_without_a_write(world: FoldingWorld) -> None:
    """C3, C8: the checkpoint before had crashed."""
    world.fold_s = 3600.0
    for number in range(4):
        await fill(world, f"k{number}", 20 * KIB)
    await world.kill()
    world.fold_s = 0.0
    await world.start()
    await world.settle()
    assert statistics(world) == (1, 0)


@pytest.mark.parametrize(("crashed", "asked"), [(True, False), (True, True), (False, False)])
async def test_after_a_crash_the_first_checkpoint_waits_a_while_unless_somebody_asks_for_it(
    world: FoldingWorld, crashed: bool, asked: bool
) -> None:
    """C4: where memory is short, the crash may have come of one."""
    world.fold_s = 3600.0
    for number in range(4):
        await fill(world, f"k{number}", 20 * KIB)
    await (world.kill() if crashed else world.stop())
    world.fold_s, world.crash_pause_s = 0.0, 10.0
    await world.start()
    await world.do("SET k v")
    await trio.sleep(9)
    waits = crashed and not asked
    if asked:
        await world.engine.checkpoint()
    assert statistics(world) == (0 if waits else 1, 0)
    await trio.sleep(2)
    assert statistics(world) == (1, 0)


async def test_a_checkpoint_that_is_asked_for_folds_all_that_was_written(world: FoldingWorld) -> None:
    await world.do("SET k v")
    await world.do("QPUSH q a b")
    done = await world.engine.checkpoint()
    assert (done.segments, done.snapshot_bytes) == (1, len(world.disk.get("00000001.snapshot")))
    assert done.folded_bytes > HEADER_BYTES
    assert await world.engine.checkpoint() == Checkpoint(0, 0, done.snapshot_bytes, 0.0)
    assert world.engine.statistics().log_bytes == done.snapshot_bytes + HEADER_BYTES


async def test_a_checkpoint_of_an_empty_store_does_nothing(world: FoldingWorld) -> None:
    assert await world.engine.checkpoint() == Checkpoint(0, 0, 0, 0.0)
    assert world.disk.segments() == ["00000001.log"]


async def test_requests_that_come_at_once_share_a_checkpoint_and_one_that_comes_later_gets_the_next(
    world: FoldingWorld, nursery: trio.Nursery
) -> None:
    """C6"""
    await world.do("SET k v")
    world.fold_s = 1.0
    done: list[tuple[float, int]] = []

    async def ask() -> None:
        outcome = await world.engine.checkpoint()
        done.append((trio.current_time(), outcome.segments))

    for _ in range(3):
        nursery.start_soon(ask)
    await trio.sleep(0.5)
    await world.do("SET k w")
    nursery.start_soon(ask)
    await trio.sleep(5)
    assert done == [(1.0, 1), (1.0, 1), (1.0, 1), (2.0, 1)]
    assert world.most_running == 1


# Meanwhile


async def test_nobody_is_held_up_while_a_checkpoint_runs(world: FoldingWorld, nursery: trio.Nursery) -> None:
    """C9: in virtual time; what it costs in real time is measured elsewhere."""
    await world.do("SET k v")
    world.fold_s = world.after_s = 500.0
    nursery.start_soon(world.engine.checkpoint)
    await world.settle()
    assert world.running == 1
    for number in range(100):
        await world.do(f"SET k{number} v")
        await world.do("GET k")
        await world.do("QPUSH q a")
        assert await world.do("BQPOP q") == Value(b"a")
    assert trio.current_time() == 0
    await trio.sleep(2000)
    assert statistics(world) == (1, 0)


@pytest.mark.parametrize("then", ["stop", "kill", "power cut"])
@pytest.mark.parametrize("when_s", [0.5, 1.5, 2.5], ids=["before it reads", "after it has written", "after it"])
async def test_what_is_written_during_a_checkpoint_is_there_exactly_once(
    world: FoldingWorld, nursery: trio.Nursery, when_s: float, then: str
) -> None:
    """C5: pushes, pops, overwriting, deletion and expiry; the engine's end may come in the middle as well."""
    await world.do("QPUSH q a b c d")
    await world.do("SET gone v")
    await world.do("SET stays v")
    await world.do("SET brief v PX 400")
    world.fold_s = world.after_s = 1.0

    async def ask() -> None:
        try:
            await world.engine.checkpoint()
        except FoldFailed:
            assert when_s < 2

    nursery.start_soon(ask)
    for step in range(5):
        await trio.sleep(when_s / 5)
        await world.do(f"QPUSH q e{step}")
        assert await world.do("BQPOP q") == Value((b"a", b"b", b"c", b"d", b"e0")[step])
        await world.do("DELETE gone" if step == 0 else f"SET gone{step} v")
        await world.do(f"SET stays {step}")
    expected = world.dump()
    assert not [entry for entry in expected if entry[1] == b"brief"]
    if then == "stop":
        await world.stop()
    else:
        await (world.kill() if then == "kill" else world.cut_power())
    await world.start()
    assert world.dump() == expected
    assert not [name for name in world.disk.names if name.endswith(".tmp")]
    assert statistics(world) == (0, 0)


async def test_keys_that_expired_before_a_checkpoint_but_were_not_swept_expire_after_it(world: FoldingWorld) -> None:
    """D4: the fold asks no clock."""
    await world.do("SET brief v PX 50")
    await world.engine.checkpoint()
    snapshot = world.disk.get("00000001.snapshot")
    await trio.sleep(0.06)
    await world.do("SET other v")
    assert b"brief" in snapshot
    await world.kill()
    await trio.sleep(10)
    await world.start()
    assert await world.do("GET brief") != Value(b"v")
    assert await world.do("EXISTS brief other") == Integer(1)


async def test_a_power_cut_at_any_moment_of_a_checkpoint_keeps_every_answered_write(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """C1, C5, I1: twelve lives on one disk, each ended somewhere else, with clients that write on."""
    chance = random.Random(1)
    world = FoldingWorld(nursery, segment_bytes_max=SEGMENT_BYTES)
    answered: dict[bytes, bytes] = {}
    for life in range(12):
        await world.start()
        held = {entry[1]: entry[2] for entry in world.dump()}
        assert answered.items() <= held.items()
        world.commit_s, world.fold_s = 0.01, chance.random() / 5

        async def write(key: bytes, value: bytes) -> None:
            reply = await world.spawn([b"SET", key, value]).wait()
            if reply == Ok():
                answered[key] = value

        async with trio.open_nursery() as writers:
            with trio.move_on_after(chance.random() / 2):
                for number in range(40):
                    key, value = b"%d" % (number % 7), b"%d.%d " % (life, number) + b"x" * 9_000
                    answered.pop(key, None)
                    await write(key, value)
            writers.cancel_scope.cancel()
        await world.cut_power(chance if life % 2 else None, written=life % 3 == 0)
    assert len(world.folds) > 10


# Failures


async def test_a_fold_without_room_is_tried_again_after_growing_pauses(
    world: FoldingWorld, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """C4: the log is untouched, writes go on, and the failures are counted."""
    times_s: list[float] = []

    def refuse(_plan: FoldPlan) -> None:
        times_s.append(trio.current_time())
        raise OSError(errno.ENOSPC, "No space left on device")

    world.refuse = refuse
    for number in range(4):
        await fill(world, f"k{number}", 20 * KIB)
    await trio.sleep(300)
    await world.do("SET other v")
    pauses_s = [round(after - before) for before, after in pairwise(times_s)]
    assert pauses_s == [1, 2, 4, 8, 16, 32, PAUSE_MAX_S, PAUSE_MAX_S, PAUSE_MAX_S][: len(pauses_s)]
    assert len(pauses_s) >= 8
    assert statistics(world) == (0, len(times_s))
    assert len([record for record in caplog.records if "checkpoint failed" in record.message]) == len(times_s)
    world.refuse = lambda _plan: None
    done = await world.engine.checkpoint()
    assert done.segments >= 1
    assert statistics(world)[0] == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename", "sync_directory"])
async def test_want_of_something_in_any_step_of_a_checkpoint_leaves_the_log_as_it_was(
    world: FoldingWorld, operation: str, code: int
) -> None:
    """C4"""
    await world.do("SET k v")
    world.disk.log.clear()

    def refuse(_plan: FoldPlan) -> None:
        world.disk.fault = out_of(code, operation)

    world.refuse = refuse
    with pytest.raises(FoldFailed):
        await world.engine.checkpoint()
    world.disk.fault = None
    world.refuse = lambda _plan: None
    assert not [name for name in world.disk.names if "snapshot" in name]
    assert await world.do("SET k w") == Ok()
    assert (await world.engine.checkpoint()).segments == 2
    await world.cut_power()
    await world.start()
    assert await world.do("GET k") == Value(b"w")


async def test_a_fold_that_is_killed_leaves_nothing_behind_while_the_server_goes_on(world: FoldingWorld) -> None:
    """C4, C7: by the system for want of memory, again and again."""
    await fill(world, "k", 60 * KIB)

    def kill(operation: str, name: str) -> None:
        if operation == "sync" and ".snapshot." in name:
            world.kill_fold()

    for _ in range(10):
        world.disk.fault = kill
        with pytest.raises(FoldFailed, match="SIGKILL"):
            await world.engine.checkpoint()
        world.disk.fault = None
    assert not [name for name in world.disk.names if "snapshot" in name]
    assert statistics(world) == (0, 10)
    await world.engine.checkpoint()


async def test_a_roll_that_is_refused_while_much_is_deleted_is_not_tried_without_a_pause(world: FoldingWorld) -> None:
    """B6: for want of descriptors."""
    for number in range(3):
        await fill(world, f"k{number}", 20 * KIB)
    world.disk.fault = out_of(errno.EMFILE, "create")
    for number in range(3):
        await fill(world, f"k{number}", 20 * KIB)
    await world.do("DELETE k0 k1 k2")
    done = len(world.disk.log)
    await trio.sleep(60)
    tries = [name for operation, name in world.disk.log[done:] if operation == "create"]
    assert 3 <= len(tries) <= 20
    assert statistics(world)[1] >= 3
    world.disk.fault = None
    await trio.sleep(60)
    assert statistics(world)[0] == 1
    assert world.engine.statistics().log_bytes == 2 * HEADER_BYTES


@pytest.mark.parametrize("operation", ["read", "write", "sync", "create", "rename", "sync_directory"])
async def test_an_error_of_the_disk_in_a_checkpoint_ends_the_engine(world: FoldingWorld, operation: str) -> None:
    """B1, A15"""
    await world.do("SET k v")

    def refuse(_plan: FoldPlan) -> None:
        world.disk.fault = failing(operation)

    world.refuse = refuse
    with pytest.raises(FoldFailed, match="shutting down"):
        await world.engine.checkpoint()
    await world._ended.wait()
    assert isinstance(world.failure, ExceptionGroup)
    assert world.failure.subgroup(LogFailed) is not None
    world.disk.kill()
    await world.start()
    assert await world.do("GET k") == Value(b"v")


async def test_damage_that_a_checkpoint_finds_ends_the_engine(world: FoldingWorld) -> None:
    """A2: the next start would refuse that log, so nothing more is acknowledged into it."""
    await world.do("SET k value")

    def refuse(_plan: FoldPlan) -> None:
        data = world.disk.get("00000001.log")
        world.disk.put("00000001.log", data.replace(b"value", b"valve"))

    world.refuse = refuse
    with pytest.raises(FoldFailed):
        await world.engine.checkpoint()
    await world._ended.wait()
    assert isinstance(world.failure, ExceptionGroup)
    found = world.failure.subgroup(Damage)
    assert found is not None
    assert "00000001.log is damaged at offset 68, record 1" in str(found.exceptions[0])
    job = world.spawn("SET k w")
    await world.settle()
    assert job.reply != Ok()


# Shutting down


async def test_a_stop_does_not_wait_for_a_checkpoint_and_the_next_start_tidies_up(
    world: FoldingWorld, nursery: trio.Nursery
) -> None:
    """H1"""
    await world.do("SET k v")
    world.fold_s = 3600.0
    failures: list[str] = []

    async def ask() -> None:
        try:
            await world.engine.checkpoint()
        except FoldFailed as error:
            failures.append(str(error))

    nursery.start_soon(ask)
    await world.settle()
    world.disk.put("00000001.snapshot.01234567.tmp", b"half a snapshot")
    assert world.running == 1
    await world.stop()
    await world.settle()
    assert (trio.current_time(), failures, world.failure) == (0, ["shutting down"], None)
    await world.start()
    assert world.disk.segments() == ["00000001.log", "00000002.log"]
    assert not [name for name in world.disk.names if "snapshot" in name]
    assert await world.do("GET k") == Value(b"v")


async def test_a_request_while_shutting_down_is_refused(world: FoldingWorld) -> None:
    world.engine.shut_down()
    with pytest.raises(FoldFailed, match="shutting down"):
        await world.engine.checkpoint()
    await world.stop()
    with pytest.raises(FoldFailed, match="shutting down"):
        await world.engine.checkpoint()


@pytest.mark.parametrize("ticks", range(0, 40, 3))
async def test_a_stop_in_any_tick_of_a_checkpoint_is_clean(
    world: FoldingWorld, nursery: trio.Nursery, ticks: int
) -> None:
    """H1, C1"""
    await world.do("SET k v")

    async def ask() -> None:
        try:
            await world.engine.checkpoint()
        except FoldFailed as error:
            assert str(error) == "shutting down"  # noqa: PT017

    nursery.start_soon(ask)
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    await world.stop()
    assert world.failure is None
    await world.cut_power()
    await world.start()
    assert await world.do("GET k") == Value(b"v")


# The disk


async def at_rest(world: FoldingWorld) -> None:
    """Checks the bound of C8 when nothing happens any more, and that the statistics say what the disk holds."""
    await world.settle()
    disk_bytes = sum(content.seen.length for name, content in world.disk.names.items() if name != MANIFEST_NAME)
    assert world.engine.statistics().disk_bytes == disk_bytes
    assert disk_bytes <= 2 * world.state.live_bytes + 2 * SEGMENT_BYTES


async def test_a_million_pushes_and_pops_leave_the_disk_small(world: FoldingWorld) -> None:
    """C8: with one value that is never taken."""
    await world.do("QPUSH never taken")
    values = [b"%05d" % number for number in range(1_000)]
    for turn in range(1_000):
        assert await world.spawn([b"QPUSH", b"q", *values]).wait() == Ok(length=1_000)
        await world.do("DELETE q")  # a pop is a command of its own, and a million of them are slow
        if turn % 10 == 0:
            await at_rest(world)
    assert await world.do("BQPOP never") == Value(b"taken")


async def test_jobs_that_go_round_in_a_queue_of_a_hundred_thousand_leave_the_disk_small(world: FoldingWorld) -> None:
    """C8: each that is taken is queued again."""
    jobs = [b"%05d" % number for number in range(100_000)]
    for start in range(0, len(jobs), 10_000):
        await world.spawn([b"QPUSH", b"q", *jobs[start : start + 10_000]]).wait()
    for start in range(0, 10_000, 2_000):
        taken = [world.spawn("BQPOP q 0") for _ in range(2_000)]
        await world.settle()
        assert {job.reply for job in taken} == {Value(job) for job in jobs[start : start + 2_000]}
        await world.spawn([b"QPUSH", b"q", *jobs[start : start + 2_000]]).wait()
        await at_rest(world)
    assert await world.do("QLEN q") == Integer(100_000)


@pytest.mark.parametrize("seed", range(4))
async def test_the_disk_stays_small_whatever_is_written_and_deleted(world: FoldingWorld, seed: int) -> None:
    """C8: values of every size, up to a segment's."""
    chance = random.Random(seed)
    for _ in range(300):
        if chance.random() < 0.7:
            await fill(world, f"k{chance.randrange(6)}", int(SEGMENT_BYTES * chance.random() ** 3))
        else:
            await world.do(f"DELETE k{chance.randrange(6)}")
        await at_rest(world)
