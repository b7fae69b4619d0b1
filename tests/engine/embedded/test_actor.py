"""Group commit, the mailbox and failure: when answers leave, and when none may."""

from __future__ import annotations

import errno
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from engine.calls import Call, Command
from engine.commands.queues import BQPop, QPop, QPush
from engine.commands.server import Ping
from engine.commands.table import parse
from engine.commands.values import Get, Set
from engine.embedded import committer, performer, sweeper
from engine.embedded.clock import Clock
from engine.embedded.committer import FsyncPolicy
from engine.embedded.engine import Engine
from engine.embedded.recovery import recover
from engine.limits import MIB, Limits
from engine.replies import Error, Failure, Integer, Ok, Reply, Value
from tests.harness.disk import CHANGING, FakeDisk, failing
from tests.harness.world import EPOCH_MS, Job, World
from wal.log import LogFailed

UNAVAILABLE = Error.UNAVAILABLE


def is_done(*jobs: Job) -> list[bool]:
    return [job.done.is_set() for job in jobs]


def error_of(reply: Reply | None) -> Error | None:
    return reply.error if isinstance(reply, Failure) else None


def syncs(world: World) -> int:
    return sum(operation == "sync" for operation, _ in world.disk.log)


async def test_virtual_time_passes_at_once(world: World) -> None:
    await trio.sleep(10**6)
    assert trio.current_time() == 10**6


async def test_a_value_survives_a_power_cut(world: World) -> None:
    assert await world.do("SET k v") == Ok()
    await world.cut_power()
    await world.start()
    assert await world.do("GET k") == Value(b"v")


async def test_a_push_wakes_the_oldest_waiter(world: World) -> None:
    first, second = await world.park("BQPOP q"), await world.park("BQPOP q")
    assert await world.do("QPUSH q a") == Ok(length=1)
    assert await first.wait() == Value(b"a")
    assert not second.done.is_set()
    assert await world.do("EXISTS q") == Integer(1)


# Group commit


async def test_a_read_is_held_until_what_it_saw_is_durable(world: World) -> None:
    """I5"""
    world.commit_s = 1.0
    write = world.spawn("SET k v")
    await trio.sleep(0.5)
    reads = [world.spawn(line) for line in ("GET k", "EXISTS k", "TTL k", "QLEN k", "GET other")]
    await trio.sleep(0.4)
    assert not any(is_done(write, *reads))
    await trio.sleep(0.1)
    await world.settle()
    assert all(is_done(write, *reads)), "a group without records needs no commit of its own"
    assert reads[0].reply == Value(b"v")


@pytest.mark.parametrize("written", [False, True])
async def test_nobody_has_seen_a_value_that_a_power_cut_takes_back(world: World, *, written: bool) -> None:
    """I5, B13"""
    world.commit_s = 1.0
    jobs = [world.spawn("SET k v")]
    await trio.sleep(0.5)
    jobs += [world.spawn("GET k"), world.spawn("EXISTS k"), world.spawn("SET k w NX")]
    await world.settle()
    await world.cut_power(written=written)
    assert [job.reply for job in jobs] == [None] * 4
    await world.start()
    assert await world.do("EXISTS k") == Integer(0)


async def test_the_next_group_is_applied_while_the_first_is_being_synced(world: World) -> None:
    world.commit_s = 1.0
    first = world.spawn("SET a 1")
    await trio.sleep(0.3)
    others = [world.spawn("SET b 2"), world.spawn("QPUSH q x")]
    await world.settle()
    assert len(world.dump()) == 3
    await trio.sleep(0.7)
    await world.settle()
    assert is_done(first, *others) == [True, False, False]
    await trio.sleep(1.0)
    await world.settle()
    assert all(is_done(*others))
    assert world.engine.statistics().commits == 2


async def test_many_commands_share_one_commit(world: World) -> None:
    before = syncs(world)
    jobs = [world.spawn(f"SET k{number} v") for number in range(200)]
    await world.settle()
    assert all(is_done(*jobs))
    assert syncs(world) - before == 1
    statistics = world.engine.statistics()
    assert (statistics.commits, statistics.records_per_commit) == (1, 200.0)
    assert (statistics.commands, statistics.keys, statistics.lsn) == (200, 200, 200)


async def test_ping_is_answered_while_a_sync_hangs(world: World) -> None:
    """B7"""
    world.commit_s = 3600.0
    write = world.spawn("SET k v")
    await world.settle()
    assert await world.do("PING") == Value(b"PONG")
    assert trio.current_time() == 0
    assert not write.done.is_set()


async def test_a_read_with_nothing_on_its_way_touches_no_disk(world: World) -> None:
    await world.do("SET k v")
    before = world.disk.log.copy()
    for line in ("GET k", "GET other", "EXISTS k", "TTL k", "QLEN q", "QPOP q", "BQPOP q 0", "PING", "DELETE other"):
        await world.do(line)
    assert world.disk.log == before
    assert trio.current_time() == 0


async def test_a_command_that_is_refused_writes_nothing(world: World) -> None:
    await world.do("SET k v")
    before = world.disk.log.copy()
    for line in ("SET k v NX", "SET other v XX", "QPUSH k v", "QPOP k", "DELETE other"):
        assert isinstance(await world.do(line), Failure)
    assert world.disk.log == before


async def test_when_the_disk_is_too_far_behind_writes_are_refused_until_it_has_caught_up(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """B7"""
    world = World(nursery, segment_bytes_max=64 * MIB)  # no roll in between
    await world.start()
    world.limits = Limits(value_bytes_max=8 * MIB)  # for the parser
    await world.do("QPUSH q a")
    world.commit_s = 10.0
    big = [b"SET", b"big", b"x" * (8 * MIB)]
    jobs = [world.spawn(big)]
    await world.settle()
    jobs += [world.spawn(big) for _ in range(4)]
    await world.settle()
    refused = [world.spawn(line) for line in ("SET k v", "QPUSH q b", "QPOP q", "BQPOP q", "DELETE q")]
    reads = [world.spawn("QLEN q")]
    await world.settle()
    assert [error_of(job.reply) for job in refused] == [UNAVAILABLE] * 5, "at once, not after the disk"
    assert not any(is_done(*jobs, *reads))
    assert await world.do("PING") == Value(b"PONG")
    await trio.sleep(20)
    await world.settle()
    assert [job.reply for job in jobs] == [Ok()] * 5
    assert reads[0].reply == Integer(1)
    world.commit_s = 0.0
    assert await world.do("SET k v") == Ok()
    nursery.cancel_scope.cancel()


async def test_while_the_disk_hangs_one_slice_of_expired_keys_is_swept_and_the_actor_does_not_spin(
    world: World,
) -> None:
    for number in range(300):
        world.spawn(f"SET k{number} v PX 500")
    await world.settle()
    world.commit_s = 60.0
    first = world.spawn("SET other v")
    await trio.sleep(59)  # a busy actor would not let virtual time pass
    assert world.engine.statistics().expired_keys == sweeper.SWEEP_KEYS_MAX
    await trio.sleep(122)
    assert world.engine.statistics().expired_keys == 300
    assert first.reply == Ok()


async def test_a_full_mailbox_turns_away_and_the_next_tick_takes_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    world = World(nursery, limits=Limits(mailbox_max=5))
    await world.start()
    jobs = [world.spawn(f"SET k{number} v") for number in range(20)]
    await world.settle()
    refused = [job for job in jobs if job.reply == Failure(UNAVAILABLE, "too many commands are waiting")]
    accepted = [job for job in jobs if job.reply == Ok()]
    assert (len(refused), len(accepted)) == (15, 5)
    assert await world.do("SET again v") == Ok()


async def test_a_command_is_refused_whole_when_its_records_would_not_fit_a_frame(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performer, "COMMAND_BYTES_MAX", 1_000)
    await world.do("SET k v")
    before = world.dump()
    for argv in ([b"SET", b"k", b"x" * 1_000], [b"QPUSH", b"q", *[b"x" * 100] * 10]):
        assert error_of(await world.spawn(argv).wait()) is Error.TOO_LARGE
    assert world.dump() == before
    assert await world.do("SET k w") == Ok()


async def test_a_group_beyond_the_size_of_a_frame_goes_on_in_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "FRAME_BYTES_GOAL", 500)
    jobs = [world.spawn(f"SET k{number} {'x' * 90}") for number in range(50)]
    jobs.append(world.spawn(f"SET large {'x' * 2_000}"))
    await world.settle()
    assert [job.reply for job in jobs] == [Ok()] * 51
    assert sum(operation == "write" for operation, _ in world.disk.log) > 10
    dump = world.dump()
    await world.cut_power()
    await world.start()
    assert world.dump() == dump


# Callers that are no tasks


class Desk:
    """Submits without waiting, and keeps what is delivered."""

    def __init__(self, world: World) -> None:
        self.delivered: list[Call] = []
        self._world = world

    def submit(self, line: str) -> Call:
        command = parse(line.encode().split(), self._world.limits)
        return self._world.engine.submit_nowait(command, self.delivered.append)

    @property
    def replies(self) -> list[Reply | None]:
        return [call.reply for call in self.delivered]


async def test_what_is_submitted_in_one_turn_is_delivered_in_order_after_one_commit(world: World) -> None:
    desk, before = Desk(world), syncs(world)
    for line in ("SET k v", "GET k", "QPUSH q a", "QLEN q", "PING"):
        desk.submit(line)
    assert desk.delivered == []
    await world.settle()
    assert desk.replies == [Value(b"PONG"), Ok(), Value(b"v"), Ok(length=1), Integer(1)]
    assert syncs(world) - before == 1


async def test_a_refusal_is_delivered_from_within(world: World) -> None:
    desk = Desk(world)
    world.engine.shut_down()
    call = desk.submit("GET k")
    assert desk.delivered == [call]
    assert error_of(call.reply) is UNAVAILABLE


async def test_what_delivers_may_submit_the_next_command(world: World) -> None:
    lines = ["PING", "SET k v", "GET k", "QPOP q", "QPUSH q a"] * 200
    replies: list[Reply | None] = []

    def go_on(call: Call) -> None:
        replies.append(call.reply)
        if lines:
            world.engine.submit_nowait(parse(lines.pop().encode().split(), world.limits), go_on)

    world.engine.submit_nowait(Ping(), go_on)
    await world.settle()
    assert len(replies) == 1_001
    assert replies.count(Ok()) == 200


async def test_what_delivers_may_withdraw_others(world: World) -> None:
    """E8: of many who wait, each that is turned away takes the next with it."""
    calls: list[Call] = []
    delivered: list[int] = []

    def withdraw_next(call: Call) -> None:
        number = calls.index(call)
        delivered.append(number)
        world.engine.withdraw(calls[(number + 1) % 10])

    calls += [world.engine.submit_nowait(BQPop(b"q%d" % (number % 3)), withdraw_next) for number in range(10)]
    await world.settle()
    world.engine.shut_down()
    await world.settle()
    assert delivered == [0, 3, 6, 9, 2, 5, 8], "queue by queue; 1, 4 and 7 have left"
    assert world.engine.statistics().waiters == 0
    assert world.engine._answers.callers == 0


@pytest.mark.parametrize("command", [Ping(), Get(b"k"), Set(b"k", b"v")])
async def test_an_exception_of_what_delivers_ends_the_engine(command: Command) -> None:
    """F13: from the actor, or from the committer."""

    def fail(_call: Call) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with running(FakeDisk()) as engine:
            engine.submit_nowait(command, fail)
    assert caught.value.subgroup(ZeroDivisionError) is not None


async def test_a_popped_value_comes_back_until_its_answer_is_settled(world: World) -> None:
    """E5"""
    await world.do("QPUSH q a b c")
    desk = Desk(world)
    first, second = desk.submit("BQPOP q"), desk.submit("QPOP q")
    await world.settle()
    assert desk.replies == [Value(b"a"), Value(b"c")]
    world.engine.settle(first)
    world.engine.withdraw(first)
    world.engine.withdraw(second)
    world.engine.withdraw(second)
    world.engine.settle(second)
    await world.settle()
    assert world.dump() == [("queue", b"q", (b"b", b"c"))]
    assert world.engine.statistics().returned_values == 1
    assert world.engine._answers.callers == 0


async def test_to_settle_or_withdraw_what_popped_nothing_changes_nothing(world: World) -> None:
    desk = Desk(world)
    calls = [desk.submit(line) for line in ("SET k v", "GET k", "QPOP q", "PING")]
    await world.settle()
    for call in calls:
        world.engine.settle(call)
        world.engine.withdraw(call)
    await world.settle()
    assert world.dump() == [("value", b"k", b"v", None)]
    assert world.engine._answers.callers == 0


@pytest.mark.parametrize("leaves", [False, True])
async def test_the_engine_closes_when_the_last_answer_is_settled_or_withdrawn(world: World, *, leaves: bool) -> None:
    """E5, E8"""
    await world.do("QPUSH q a")
    desk = Desk(world)
    call = desk.submit("BQPOP q")
    await world.settle()
    assert desk.delivered == [call]
    world.engine.close()
    await trio.sleep(100)
    assert not world.ended.is_set()
    (world.engine.withdraw if leaves else world.engine.settle)(call)
    await world.settle()
    assert world.ended.is_set()
    await world.start()
    assert await world.do("QLEN q") == Integer(1 if leaves else 0)


async def test_one_that_leaves_in_the_middle_of_the_last_delivery_has_its_value_back_at_the_end(world: World) -> None:
    """E5, E8"""
    await world.do("QPUSH q a")
    world.commit_s = 1.0
    pop = world.engine.submit_nowait(BQPop(b"q"), lambda _call: None)
    await trio.sleep(0.5)
    world.engine.submit_nowait(Get(b"q"), lambda _call: world.engine.withdraw(pop))
    world.engine.submit_nowait(Ping(), lambda _call: world.engine.close())
    await world.ended.wait()
    await world.start()
    assert await world.do("QLEN q") == Integer(1)


# Failure


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("operation", ["sync", "write"])
async def test_after_a_failed_write_or_sync_nothing_is_answered_that_rests_on_it(
    world: World, operation: str, code: int
) -> None:
    """B1, B2"""
    await world.do("SET k old")
    waiter = await world.park("BQPOP q")
    failures: list[str] = []

    def fail_once(done: str, _name: str) -> None:
        if done == operation and not failures:
            failures.append(done)
            raise OSError(code, "injected")

    world.disk.fault = fail_once
    world.commit_s = 1.0
    jobs = [world.spawn("SET k new"), world.spawn("QPUSH q a")]
    await trio.sleep(0.5)
    jobs += [world.spawn("GET k"), world.spawn("SET other v"), world.spawn("QLEN q")]
    await trio.sleep(0.5)
    await world.settle()
    assert isinstance(world.failure, ExceptionGroup)
    assert world.failure.subgroup(LogFailed) is not None
    after = len(world.disk.log)
    await trio.sleep(100)
    assert [job.reply for job in (*jobs, waiter)] == [None] * 6
    assert world.disk.log[after:] == [], "it never touches the disk again"
    assert error_of(await world.do("GET k")) is UNAVAILABLE
    assert world.disk.holder is None, "the directory is free for the next start"


async def test_the_next_start_after_a_failed_sync_finds_all_or_nothing_of_the_group(world: World) -> None:
    """B1, I2"""

    await world.do("SET a old")
    world.disk.fault = failing("sync")
    jobs = [world.spawn("SET a new"), world.spawn("DELETE a b"), world.spawn("QPUSH q x y z")]
    await world.settle()
    await world.cut_power()
    assert [job.reply for job in jobs] == [None] * 3
    await world.start()
    assert world.dump() == [("value", b"a", b"old", None)]


@asynccontextmanager
async def running(
    disk: FakeDisk,
) -> AsyncIterator[Engine]:
    """An engine whose commits run in a thread, as the server's do."""
    state, log = recover(disk.directory(), Limits(), wall_ms=EPOCH_MS)
    engine = Engine(state, log, Limits(), wall_ms=EPOCH_MS)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        engine.close()


async def test_an_exception_in_the_actor_ends_the_engine() -> None:
    """F13"""
    disk = FakeDisk()
    with pytest.raises(ExceptionGroup) as caught:
        async with running(disk) as engine:
            await engine.submit(object())  # type: ignore[arg-type]
    assert caught.value.subgroup(KeyError) is not None
    assert not engine.accepting
    assert disk.holder is None
    assert error_of(await engine.submit(Ping())) is UNAVAILABLE


class HeldSync:
    """Holds every sync in its thread until told to go on; `begun` is set when the first one is there."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.go_on = threading.Event()
        self.threads: set[threading.Thread] = set()
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, operation: str, _name: str) -> None:
        if operation == "sync":
            self.threads.add(threading.current_thread())
            self._token.run_sync_soon(self.begun.set)
            assert self.go_on.wait(60)


async def test_commits_run_in_a_thread_while_the_loop_goes_on() -> None:
    """B7"""
    disk, held = FakeDisk(), HeldSync()
    replies = []

    async with running(disk) as engine:

        async def write() -> None:
            replies.append(await engine.submit(Set(b"k", b"v")))

        disk.fault = held
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await held.begun.wait()
            assert await engine.submit(Ping()) == Value(b"PONG")
            assert replies == []
            held.go_on.set()
        assert replies == [Ok()]
        assert threading.current_thread() not in held.threads


async def test_a_cancelled_caller_never_cancels_a_commit() -> None:
    """B8, B9"""
    disk, held = FakeDisk(), HeldSync()
    async with running(disk) as engine:
        disk.fault = held
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.submit, Set(b"k", b"v"))
            await held.begun.wait()
            nursery.cancel_scope.cancel()
        held.go_on.set()
        assert await engine.submit(Get(b"k")) == Value(b"v")
    disk.fault = None
    async with running(disk) as engine:
        assert await engine.submit(Get(b"k")) == Value(b"v")


async def test_a_hundred_clients_with_a_commit_thread_lose_nothing() -> None:
    disk = FakeDisk()
    replies: list[Reply] = []

    async def client(engine: Engine, number: int) -> None:
        for _ in range(5):
            replies.append(await engine.submit(QPush(b"q", (b"v",))))
            replies.append(await engine.submit(QPop(b"q")))
        replies.append(await engine.submit(Set(b"k%d" % number, b"v")))

    async with running(disk) as engine, trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(client, engine, number)
    assert len(replies) == 1_100
    assert sum(reply == Value(b"v") for reply in replies) == 500
    state, log = recover(disk.directory(), Limits(), wall_ms=EPOCH_MS)
    log.abandon()
    assert (len(state), state.queue_count) == (101, 1)


# The fsync policies


@asynccontextmanager
async def world_with(fsync: FsyncPolicy, nursery: trio.Nursery, commit_s: float = 0.0) -> AsyncIterator[World]:
    world = World(nursery, fsync=fsync, commit_s=commit_s)
    await world.start()
    world.disk.log.clear()
    yield world
    nursery.cancel_scope.cancel()


async def test_with_interval_an_answer_does_not_wait_for_a_sync(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with world_with(FsyncPolicy.INTERVAL, nursery) as world:
        assert await world.do("SET k v") == Ok()
        assert [operation for operation, _ in world.disk.log if operation in CHANGING] == ["write"]
        assert trio.current_time() == 0


async def test_with_interval_a_power_cut_takes_at_most_the_last_second(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with world_with(FsyncPolicy.INTERVAL, nursery) as world:
        await world.do("SET old v")
        await trio.sleep(1.1)  # of silence
        await world.do("SET new v")
        await trio.sleep(0.9)
        await world.cut_power()
        await world.start()
        assert await world.do("EXISTS old") == Integer(1)
        assert await world.do("EXISTS new") == Integer(0)


async def test_with_interval_a_kill_takes_nothing(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async with world_with(FsyncPolicy.INTERVAL, nursery) as world:
        await world.do("SET k v")
        await world.kill()
        await world.start()
        assert await world.do("GET k") == Value(b"v")


async def test_with_interval_there_is_one_sync_a_second_under_load_and_none_when_idle(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with world_with(FsyncPolicy.INTERVAL, nursery) as world:
        for number in range(1, 101):
            await world.do(f"SET k {number}")
            await trio.sleep(0.1)
        assert 9 <= syncs(world) <= 10
        await trio.sleep(3600)
        assert syncs(world) <= 11


async def test_with_interval_answers_go_while_a_sync_is_under_way(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with world_with(FsyncPolicy.INTERVAL, nursery, commit_s=0.5) as world:
        await world.do("SET k v")
        await trio.sleep_until(0.9)
        late = world.spawn("SET k w")  # written until 1.4, and the sync is due at 1.0
        await trio.sleep_until(1.4)
        await world.settle()
        assert late.done.is_set()
        assert syncs(world) == 0
        assert await world.do("GET k") == Value(b"w")
        assert trio.current_time() == 1.4
        await trio.sleep_until(1.9)
        await world.settle()
        assert syncs(world) == 1


async def test_with_interval_a_failed_sync_ends_the_engine_without_traffic(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """B1"""
    async with world_with(FsyncPolicy.INTERVAL, nursery) as world:
        await world.do("SET k v")
        world.disk.fault = failing("sync")
        await trio.sleep(2)
        assert world.failure is not None


async def test_with_never_only_the_close_syncs(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async with world_with(FsyncPolicy.NEVER, nursery) as world:
        for number in range(10):
            await world.do(f"SET k {number}")
            await trio.sleep(100)
        assert syncs(world) == 0
        await world.stop()
        assert syncs(world) >= 1
        await world.cut_power()
        await world.start()
        assert await world.do("GET k") == Value(b"9")


# Time


@pytest.mark.parametrize("started_s", [0.0, 1.1, 12_345.678, 999_999.123_456])
async def test_engine_time_reaches_a_deadline_exactly_when_it_says(autojump_clock: MockClock, started_s: float) -> None:
    await trio.sleep(started_s)
    clock = Clock(EPOCH_MS)
    for after_ms in (1, 2, 3, 7, 999, 1_001, 86_400_000, 10**12):
        await trio.sleep_until(clock.when(EPOCH_MS + after_ms))
        assert clock.now_ms() == EPOCH_MS + after_ms


async def test_whoever_waits_when_the_engine_fails_gets_no_answer_and_later_ones_are_turned_away(world: World) -> None:
    """B1"""

    world.disk.fault = failing("sync")
    with pytest.raises(AssertionError, match="was not answered"):
        await world.do("SET k v")
    assert world.failure is not None
    assert await world.do("SET k v") == Failure(UNAVAILABLE, "shutting down")
