"""A full disk: what grows is refused before it is applied, all else goes on, and it ends by itself."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from trio.testing import MockClock

from engine.limits import Limits
from engine.replies import Error, Failure, Integer, Ok, Reply, Value
from tests.harness.disk import FakeDisk
from tests.harness.folding import FoldingWorld
from wal.log import LogFailed

KIB = 1024
SEGMENT_BYTES = 64 * KIB
DISK_BYTES = 1024 * KIB


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[FoldingWorld]:
    """An engine with small segments on a small disk, which makes checkpoints."""
    disk = FakeDisk(capacity_bytes=DISK_BYTES, allocates=True)
    world = FoldingWorld(nursery, disk=disk, segment_bytes_max=SEGMENT_BYTES)
    await world.start()
    yield world
    nursery.cancel_scope.cancel()


def error_of(reply: Reply | None) -> Error | None:
    return reply.error if isinstance(reply, Failure) else None


async def fill(world: FoldingWorld, value_bytes: int = 7_000) -> int:
    """Pushes values until the disk is full; returns how many there are."""
    for number in range(10_000):
        reply = await world.spawn([b"QPUSH", b"q", b"%06d" % number + b"x" * value_bytes]).wait()
        if error_of(reply) is Error.STORAGE_FULL:
            return number
        assert reply == Ok(length=number + 1)
    raise AssertionError("the disk is endless")


def free(world: FoldingWorld, more_bytes: int | None = None) -> None:
    """Somebody else gives room back, or with a negative number takes it."""
    capacity_bytes = world.disk.capacity_bytes
    assert capacity_bytes is not None
    world.disk.capacity_bytes = None if more_bytes is None else capacity_bytes + more_bytes


def is_full(world: FoldingWorld) -> bool:
    return bool(world.engine.statistics().disk_full)


async def test_what_grows_is_refused_before_anything_is_applied(world: FoldingWorld) -> None:
    """B3"""
    await fill(world)
    before, memory_bytes = world.dump(), world.state.memory_bytes
    for line in ("SET k v", "SET k v EX 60", "QPUSH q a", "QPUSH new a b c"):
        assert await world.do(line) == Failure(Error.STORAGE_FULL, "the disk is full")
    assert (world.dump(), world.state.memory_bytes) == (before, memory_bytes)
    await world.cut_power()
    await world.start()
    assert world.dump() == before


async def test_what_does_not_grow_goes_on(world: FoldingWorld) -> None:
    """B3, B4"""
    await world.do("SET k v")
    count = await fill(world)
    assert await world.do("GET k") == Value(b"v")
    assert await world.do("EXISTS k q") == Integer(2)
    assert await world.do("QLEN q") == Integer(count)
    assert await world.do("PING") == Value(b"PONG")
    for pop in ("BQPOP q", "QPOP q"):
        reply = await world.do(pop)
        assert isinstance(reply, Value)
        assert reply.value is not None
    assert await world.do("DELETE k") == Integer(1)
    assert await world.do("QLEN q") == Integer(count - 2)
    assert world.failure is None


async def test_readiness_is_degraded_while_the_disk_is_full(world: FoldingWorld) -> None:
    """B3"""
    assert world.engine.readiness() == {"fsync": "always"}
    await fill(world)
    assert world.engine.readiness() == {
        "status": "degraded",
        "detail": "the disk is full: commands that store something are refused with 507; reads, pops and deletes go on",
        "fsync": "always",
    }
    free(world)
    await trio.sleep(5)
    assert world.engine.readiness() == {"fsync": "always"}


async def test_readiness_is_degraded_while_memory_is_at_its_cap(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    world = FoldingWorld(nursery, limits=Limits(memory_bytes_max=100_000))
    await world.start()
    while error_of(await world.do(f"QPUSH q {'x' * 5000}")) is None:
        pass
    assert world.engine.readiness() == {
        "status": "degraded",
        "detail": "memory is at its cap of 100000 bytes: writes that grow it are refused with 507; reads, pops and"
        " deletes go on",
        "fsync": "always",
    }
    await world.do("QPOP q")
    await world.do("QPOP q")
    assert world.engine.readiness() == {"fsync": "always"}
    await world.kill()


async def test_keys_expire_and_waiters_time_out_on_a_full_disk(world: FoldingWorld) -> None:
    for number in range(300):
        world.spawn(f"SET k{number} v PX 500")
    await world.settle()
    await fill(world)
    waiter = await world.park("BQPOP none 2")
    await trio.sleep(1)
    assert world.engine.statistics().keys == 0
    assert await waiter.wait() == Value(None)
    assert is_full(world)


async def test_a_value_whose_client_left_goes_back_on_a_full_disk(world: FoldingWorld) -> None:
    """B4, E5: it cannot be refused; and whoever waits gets it."""
    count = await fill(world)
    world.commit_s = 0.1
    for _ in range(3):
        job = world.spawn("BQPOP q")
        await trio.sleep(0.05)
        job.leave()
        await trio.sleep(0.2)
        assert world.failure is None
    assert await world.do("QLEN q") == Integer(count)
    world.commit_s = 0.0
    reply = await world.do("BQPOP q")
    assert isinstance(reply, Value)
    assert reply.value is not None
    assert reply.value.startswith(b"000000")


async def test_many_large_values_whose_clients_leave_at_once_go_back_on_a_full_disk(world: FoldingWorld) -> None:
    """B4, E5"""
    count = await fill(world, 30_000)
    world.commit_s = 0.1
    jobs = [world.spawn("BQPOP q") for _ in range(count)]
    await trio.sleep(0.05)
    for job in jobs:
        job.leave()
    await trio.sleep(5)
    assert world.failure is None
    refused = sum(error_of(job.reply) is Error.STORAGE_FULL for job in jobs)
    assert await world.do("QLEN q") == Integer(count)
    assert refused < count
    await world.cut_power()
    await world.start()
    assert await world.do("QLEN q") == Integer(count)


@pytest.mark.parametrize("ending", ["room", "stop"])
async def test_values_that_find_no_room_to_go_back_do_so_when_there_is_some_or_at_the_end(
    world: FoldingWorld, ending: str
) -> None:
    """B4, E5: in their old order; never a crash, and nobody spins meanwhile."""
    count = await fill(world, 30_000)
    world.disk.capacity_bytes = world.disk.used_bytes
    world.commit_s = 0.1
    jobs = [world.spawn("BQPOP q") for _ in range(4)]
    await trio.sleep(0.05)
    for job in jobs:
        job.leave()
    await trio.sleep(10)
    assert world.failure is None
    length = await world.do("QLEN q")
    assert isinstance(length, Integer)
    assert length.value < count
    world.disk.capacity_bytes = None
    if ending == "stop":
        await world.stop()
        await world.start()
    else:
        await trio.sleep(3)
    (entry,) = world.dump()
    assert [value[:6] for value in entry[2]] == [b"%06d" % number for number in range(count)]


async def test_the_engine_recovers_by_itself_when_there_is_room_again(
    world: FoldingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """B3: within seconds, without a restart or a command."""
    await fill(world)
    await trio.sleep(20)
    assert is_full(world)
    assert len([record for record in caplog.records if "disk is full" in record.message]) == 1
    free(world)
    await trio.sleep(2)
    assert not is_full(world)
    assert await world.do("SET k v") == Ok()
    assert len([record for record in caplog.records if "has room again" in record.message]) == 1


async def test_the_engine_recovers_also_while_it_is_never_idle(world: FoldingWorld, nursery: trio.Nursery) -> None:
    """B3: there is a commit of pops on its way at any moment."""
    count = await fill(world, 500)
    world.disk.capacity_bytes = world.disk.used_bytes  # somebody else takes what was kept for a checkpoint
    world.commit_s = 0.01

    async def pop() -> None:
        while True:
            await world.do("BQPOP q")

    for step in range(4):
        nursery.start_soon(pop)
        await trio.sleep(0.0025 * step)
    await trio.sleep(0.2)
    assert is_full(world)
    free(world)
    await trio.sleep(2.5)
    assert await world.do("QLEN q") != Integer(0), f"all {count} were taken before"
    assert not is_full(world)


async def test_a_disk_that_is_full_now_and_then_does_not_fill_the_log_file(
    world: FoldingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """B3: a line every 30 s about either."""
    await fill(world)
    for _ in range(150):
        free(world, 20 * SEGMENT_BYTES)
        await trio.sleep(2)
        assert not is_full(world)
        world.disk.capacity_bytes = world.disk.used_bytes + KIB
        await fill_on(world)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING and "disk" in record.message]
    assert len(lines) <= 2 * (trio.current_time() // 30 + 1)


async def fill_on(world: FoldingWorld) -> None:
    """Writes over one key until the disk is full."""
    while error_of(await world.spawn([b"SET", b"k", b"x" * 9_000]).wait()) is not Error.STORAGE_FULL:
        pass


async def test_deleting_on_a_full_disk_frees_room_by_a_checkpoint(world: FoldingWorld) -> None:
    """B4: and everything is there after a restart."""
    for number in range(1_000):
        if error_of(await world.spawn([b"SET", b"%03d" % number, b"x" * 9_000]).wait()) is not None:
            break
    for gone in range(number - 10):
        assert await world.do(f"DELETE {gone:03}") == Integer(1)
    await trio.sleep(30)
    assert not is_full(world)
    assert world.engine.statistics().checkpoints >= 1
    assert await world.do("SET k v") == Ok()
    before = world.dump()
    await world.cut_power()
    await world.start()
    assert world.dump() == before
    assert len(before) in (11, 12)


@pytest.mark.parametrize("kib", range(400, 1500, 97))
async def test_a_queue_is_worked_off_on_a_full_disk_of_any_size(
    nursery: trio.Nursery, autojump_clock: MockClock, kib: int
) -> None:
    """B4, I1"""
    disk = FakeDisk(capacity_bytes=kib * KIB, allocates=True)
    world = FoldingWorld(nursery, disk=disk, segment_bytes_max=SEGMENT_BYTES)
    await world.start()
    count = await fill(world, 3_000)
    for number in range(count):
        reply = await world.do("BQPOP q")
        while error_of(reply) is Error.STORAGE_FULL:  # a checkpoint has the room, for a moment
            await trio.sleep(1)
            reply = await world.do("BQPOP q")
        assert isinstance(reply, Value)
        assert reply.value is not None
        assert reply.value.startswith(b"%06d" % number)
    await trio.sleep(120)
    assert not is_full(world)
    assert await world.do("QPUSH q a") == Ok(length=1)
    await world.cut_power()
    await world.start()
    assert world.dump() == [("queue", b"q", (b"a",))]


async def test_checkpoints_that_are_asked_for_in_vain_do_not_use_up_the_reserve(world: FoldingWorld) -> None:
    """B4, C4"""
    count = await fill(world)
    world.disk.capacity_bytes = world.disk.used_bytes
    for _ in range(10):
        with pytest.raises(Exception, match="No space left"):
            await world.engine.checkpoint()
    await trio.sleep(3)
    for _ in range(count // 2):
        assert isinstance(await world.do("BQPOP q"), Value)


@pytest.mark.parametrize("clean", [True, False])
async def test_a_start_on_a_full_disk_has_everything(world: FoldingWorld, *, clean: bool) -> None:
    """B3, H4"""
    count = await fill(world)
    before = world.dump()
    await (world.stop() if clean else world.kill())
    world.disk.capacity_bytes = world.disk.used_bytes  # somebody else takes what there was
    await world.start()
    assert world.dump() == before
    assert await world.do("QLEN q") == Integer(count)
    while error_of(await world.do("SET k v")) is None:
        pass
    for _ in range(20):
        assert isinstance(await world.do("BQPOP q"), Value)
    assert world.failure is None


async def test_a_start_that_finds_little_room_still_lets_data_go(world: FoldingWorld) -> None:
    """B4, H4"""
    await fill(world)
    needed_bytes = world.engine.statistics().log_bytes + len(world.disk.get("MANIFEST"))
    await world.kill()
    world.disk.capacity_bytes = needed_bytes + 8 * KIB
    await world.start()
    assert error_of(await world.do("SET k v")) is Error.STORAGE_FULL
    for _ in range(20):
        assert isinstance(await world.do("BQPOP q"), Value)


async def test_what_is_being_written_counts_when_the_room_is_reckoned(world: FoldingWorld) -> None:
    """B3: each of the two would find room, but not both."""
    world.disk.capacity_bytes = world.disk.used_bytes
    world.commit_s = 0.1
    value = b"x" * (SEGMENT_BYTES * 3 // 5)
    first = world.spawn([b"SET", b"a", value])
    await trio.sleep(0.05)
    second = world.spawn([b"SET", b"b", value])
    assert await first.wait() == Ok()
    assert error_of(await second.wait()) is Error.STORAGE_FULL
    assert world.failure is None


async def test_when_the_reserve_runs_out_what_lets_go_is_refused_as_well(world: FoldingWorld) -> None:
    """B4: never a crash; somebody else has taken all the rest of the disk."""
    await fill(world)
    world.disk.capacity_bytes = world.disk.used_bytes - 100 * KIB
    refused = 0
    for number in range(5_000):
        reply = await world.do("BQPOP q 0" if number % 2 else "DELETE none")
        refused += error_of(reply) is Error.STORAGE_FULL
        assert world.failure is None
        if refused > 10:
            break
        await world.spawn([b"EXISTS", b"x" * 4_000]).wait()
    assert await world.do("PING") == Value(b"PONG")
    world.disk.capacity_bytes = None
    await trio.sleep(2)
    assert await world.do("SET k v") == Ok()


async def test_a_command_larger_than_the_room_waits_for_it_and_keeps_its_place(world: FoldingWorld) -> None:
    """B3: order kept, also beside pings and a slow disk."""
    world.commit_s = 1.0
    jobs = [world.spawn("QPUSH q first")]
    await world.settle()
    values = [b"x" * 100_000, b"y" * 100_000]
    jobs.append(world.spawn([b"QPUSH", b"q", *values]))
    await world.settle()
    jobs.append(world.spawn("QPUSH q last"))
    await trio.sleep(10)
    assert [job.reply for job in jobs] == [Ok(length=1), Ok(length=3), Ok(length=4)]
    assert [entry[2] for entry in world.dump()] == [(b"first", *values, b"last")]


async def test_a_command_larger_than_the_disk_is_refused_and_smaller_ones_go_on(world: FoldingWorld) -> None:
    """B3"""
    for _ in range(3):
        big = world.spawn([b"QPUSH", b"q", *[b"x" * 500_000] * 4])
        await world.settle()
        assert error_of(big.reply) is Error.STORAGE_FULL
        await trio.sleep(1.1)
        assert await world.do("SET k v") == Ok()


async def test_a_client_that_leaves_while_its_command_waits_for_room_leaves_no_trace(world: FoldingWorld) -> None:
    world.commit_s = 1.0
    world.spawn("SET k v")
    await world.settle()
    job = world.spawn([b"QPUSH", b"q", b"x" * 200_000])
    await world.settle()
    job.leave()
    await trio.sleep(5)
    assert await world.do("EXISTS q k") == Integer(1)


async def test_a_file_system_that_cannot_allocate_serves_until_it_is_full(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """B2: a full disk is then a failed write, and nobody is answered after it."""
    disk = FakeDisk(capacity_bytes=DISK_BYTES)
    world = FoldingWorld(nursery, disk=disk, segment_bytes_max=SEGMENT_BYTES)
    await world.start()
    answered = 0
    for number in range(1_000):
        job = world.spawn([b"SET", b"%03d" % number, b"x" * 9_000])
        await job.done.wait()
        if job.reply is None:
            break
        assert job.reply == Ok()
        answered += 1
    assert 20 < answered < 200
    assert isinstance(world.failure, ExceptionGroup)
    assert world.failure.subgroup(LogFailed) is not None
    disk.capacity_bytes = None
    disk.cut_power()
    await world.start()
    assert [entry[1] for entry in world.dump()] == [b"%03d" % number for number in range(answered)]


@pytest.mark.parametrize("seed", range(6))
async def test_everything_that_is_submitted_is_answered_whatever_room_there_is(
    nursery: trio.Nursery, autojump_clock: MockClock, seed: int
) -> None:
    """B3, B8: nobody waits for ever, nothing crashes, and what was answered is there after a power cut."""
    chance = random.Random(seed)
    disk = FakeDisk(capacity_bytes=chance.randrange(300, 900) * KIB, allocates=True)
    world = FoldingWorld(nursery, disk=disk, segment_bytes_max=SEGMENT_BYTES)
    await world.start()
    world.commit_s, world.fold_s = chance.choice((0.0, 0.05)), 0.2
    jobs = []
    for _ in range(400):
        key = b"%d" % chance.randrange(8)
        size = int(chance.choice((10, 1_000, 30_000, 100_000)) * chance.random())
        line = chance.choice(
            (
                [b"SET", b"k" + key, b"x" * size],
                [b"QPUSH", b"q" + key, *[b"y" * size] * chance.randrange(1, 4)],
                [b"BQPOP", b"q" + key, b"1"],
                [b"QPOP", b"q" + key],
                [b"DELETE", b"k" + key, b"q" + key],
                [b"GET", b"k" + key],
            )
        )
        job = world.spawn(line)
        jobs.append(job)
        await trio.sleep(chance.choice((0, 0, 0.01, 0.2)))
        if chance.random() < 0.1:
            chance.choice(jobs[-5:]).leave()
        if chance.random() < 0.05:
            used_bytes = disk.used_bytes
            disk.capacity_bytes = chance.choice((used_bytes, used_bytes + 100 * KIB, used_bytes + 700 * KIB))
    await trio.sleep(10)
    assert world.failure is None
    assert all(job.done.is_set() for job in jobs)
    before = world.dump()
    await world.cut_power()
    await world.start()
    assert world.dump() == before


async def test_room_for_the_next_snapshot_is_kept_so_that_a_disk_full_of_dead_data_recovers(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """B4, C4: a quarter of the disk lives, and is written over again and again."""
    disk = FakeDisk(capacity_bytes=16 * SEGMENT_BYTES, allocates=True)
    world = FoldingWorld(nursery, disk=disk, segment_bytes_max=SEGMENT_BYTES)
    await world.start()
    world.commit_s, world.fold_s = 0.001, 0.05
    refused = 0
    for number in range(400):
        reply = await world.spawn([b"SET", b"k%d" % (number % 8), b"x" * (SEGMENT_BYTES // 2)]).wait()
        if error_of(reply) is not None:
            refused += 1
            await trio.sleep(1)
    assert refused < 100  # it is written far faster than folded; but never stuck
    assert world.failure is None
    assert world.engine.statistics().checkpoint_failures == 0


async def test_pings_and_reads_are_answered_while_the_disk_is_slow(world: FoldingWorld) -> None:
    """B7: a ping at once, a read with the group it joined; nothing waits for room that is there."""
    world.commit_s = 5.0
    jobs = [world.spawn([b"SET", b"k", b"x" * 9_000]) for _ in range(3)]
    await world.settle()
    read = world.spawn("GET k")
    assert await world.do("PING") == Value(b"PONG")
    assert trio.current_time() == 0
    await trio.sleep(11)
    assert [job.reply for job in (*jobs, read)] == [Ok(), Ok(), Ok(), Value(b"x" * 9_000)]


async def test_while_the_room_is_lessened_no_more_is_admitted_than_was_promised(world: FoldingWorld) -> None:
    """B3, B4: a checkpoint squeezes the segment in a thread; what comes meanwhile waits, and is not refused."""
    keys = [b"%03d" % number + b"k" * 1_000 for number in range(100)]
    for key in keys:
        await world.spawn([b"SET", key, b"v"]).wait()
    await fill(world, 1_000)
    committer = world.engine._committer
    room_bytes = committer.room.frames_bytes
    with committer.holding() as promised_bytes:
        assert promised_bytes <= room_bytes // 2
        few = promised_bytes // 2 // 1_000
        assert await world.spawn([b"DELETE", *keys[:few]]).wait() == Integer(few), "what fits goes on"
        many = (promised_bytes + room_bytes) // 2 // 1_000
        deletion = world.spawn([b"DELETE", *keys[few : few + many]])
        await trio.sleep(1)
        assert not deletion.done.is_set()
    assert await deletion.wait() == Integer(many)
    assert is_full(world)


async def test_without_descriptors_writes_go_on_in_the_old_segment(world: FoldingWorld) -> None:
    """B6: far beyond its size; and it rolls when there are some again."""

    def fault(operation: str, _name: str) -> None:
        if operation == "create":
            raise OSError(errno.EMFILE, "Too many open files")

    world.disk.fault = fault
    for number in range(30):
        assert await world.spawn([b"SET", b"%d" % number, b"x" * 9_000]).wait() == Ok()
    assert world.disk.segments() == ["00000001.log"]
    assert not is_full(world)
    world.disk.fault = None
    assert await world.do("SET k v") == Ok()
    await trio.sleep(5)
    assert world.disk.segments() != ["00000001.log"]
    before = world.dump()
    await world.cut_power()
    await world.start()
    assert world.dump() == before


async def test_nobody_is_answered_after_a_file_of_the_log_was_taken_away(world: FoldingWorld) -> None:
    """B10: the open segment at once, any other file within a second."""
    await world.do("SET k v")
    await world.engine.checkpoint()
    await world.do("SET k v")
    await trio.sleep(5)
    del world.disk.names["00000001.snapshot"]
    job = world.spawn("SET k w")
    await job.done.wait()
    assert job.reply is None
    assert isinstance(world.failure, ExceptionGroup)
    found = world.failure.subgroup(LogFailed)
    assert found is not None
    assert "00000001.snapshot was removed" in str(found.exceptions[0])
    late = world.spawn("GET k")
    await world.settle()
    assert not isinstance(late.reply, Value | Ok)


@pytest.mark.parametrize("seed", range(4))
async def test_commits_checkpoints_and_looks_never_touch_the_log_at_once(
    world: FoldingWorld, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """C5: one at a time, whatever comes when; and none is starved."""
    chance = random.Random(seed)
    busy = 0
    run_commit = world._run_commit

    async def alone(function: Callable[[], None]) -> None:
        nonlocal busy
        assert busy == 0, "two at once"
        busy += 1
        world.commit_s = chance.random() / 100
        await run_commit(function)
        busy -= 1

    monkeypatch.setattr(world.engine._committer, "_run_commit", alone)
    world.fold_s = 0.05
    asked = 0

    async def ask() -> None:
        nonlocal asked
        while True:
            await world.engine.checkpoint()
            asked += 1

    for _ in range(3):
        nursery.start_soon(ask)
    jobs = []
    for number in range(200):
        jobs.append(world.spawn([b"SET", b"%d" % (number % 5), b"x" * chance.randrange(9_000)]))
        await trio.sleep(chance.random() / 50)
    await trio.sleep(1)
    assert [job.reply for job in jobs] == [Ok()] * 200
    assert asked > 20
    nursery.cancel_scope.cancel()
