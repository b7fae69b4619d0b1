"""Batches: several commands in one call, sliced among others (`/pipeline`) or all or nothing (`/multi`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.calls import Call, Command
from engine.commands.keys import Delete
from engine.commands.values import Set
from engine.embedded import actor, committer, engine, performer
from engine.limits import Limits
from engine.replies import NULL, Error, Failure, Integer, Ok, Refused, Reply, Value
from engine.store.state import State
from engine.store.store import BIG_QUEUE_LENGTH
from tests.harness.disk import FakeDisk
from tests.harness.folding import FoldingWorld
from tests.harness.stepper import Stepper
from tests.harness.world import World

T = TypeVar("T")
KIB = 1024
SHUTTING_DOWN = Refused(Failure(Error.UNAVAILABLE, "shutting down"))


async def queue_of(world: World, key: str = "q") -> list[bytes]:
    """The values of a queue, first to last."""
    await world.settle()
    return list(world.state.queue(key.encode()) or ())


def error_of(outcome: list[Reply] | Refused | Reply | None) -> tuple[Error, int | None] | None:
    """Why a batch was refused, and which of its commands was to blame."""
    return (outcome.failure.error, outcome.index) if isinstance(outcome, Refused) else None


def writes(world: World) -> int:
    return sum(operation == "write" for operation, _ in world.disk.log)


def accounts(state: State) -> tuple[Any, ...]:
    """All that a state counts beside what it holds."""
    return (
        len(state),
        state.queue_count,
        state.memory_bytes,
        state.live_bytes,
        state.next_deadline_ms,
        state.has_garbage,
        [queue.values_bytes for key in state.entries if (queue := state.queue(key)) is not None],
        list(state.deadlines.order()),
        sorted(state.deadlines._by_key),
    )


both = pytest.mark.parametrize("atomic", [False, True])


async def test_a_batch_pops_no_more_than_an_answer_may_hold(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """I6: what was popped has to be answered, so the rest stays where it is."""
    world = World(nursery, limits=Limits(answer_bytes_max=4))
    await world.start()
    await world.do("QPUSH q aa bb cc dd")
    refused = Failure(Error.TOO_LARGE, "the values popped before make the answer too long")
    assert await world.do_many("BQPOP q", "QPOP q", "BQPOP q", "QPOP q", "SET k v", atomic=False) == [
        *(Value(b"aa"), Value(b"dd"), refused, refused, Ok()),
    ]
    assert await queue_of(world) == [b"bb", b"cc"]
    await world.do("QPUSH q ee")
    assert error_of(await world.do_many("SET k w", "BQPOP q", "BQPOP q", "BQPOP q", atomic=True)) == (
        Error.TOO_LARGE,
        3,
    )
    assert await queue_of(world) == [b"bb", b"cc", b"ee"]
    assert await world.do("GET k") == Value(b"v")


@both
async def test_commands_are_done_in_order_and_answered_in_order(world: World, *, atomic: bool) -> None:
    replies = await world.do_many(
        "SET k v", "GET k", "QPUSH q a b c", "BQPOP q", "QPOP q", "QLEN q", "EXISTS k q", "DELETE k", "GET k", "PING",
        atomic=atomic,
    )  # fmt: skip
    assert replies == [
        *(Ok(), Value(b"v"), Ok(length=3), Value(b"a"), Value(b"c")),
        *(Integer(1), Integer(2), Integer(1), Failure(Error.KEY_NOT_FOUND), Value(b"PONG")),
    ]
    assert await queue_of(world) == [b"b"]
    await world.cut_power()
    await world.start()
    assert await queue_of(world) == [b"b"]


@both
async def test_a_blocking_pop_in_it_never_waits(world: World, *, atomic: bool) -> None:
    replies = await world.do_many("BQPOP q", "BQPOP q 60", "QPUSH q a", "BQPOP q", "BQPOP q 60", atomic=atomic)
    assert replies == [NULL, NULL, Ok(length=1), Value(b"a"), NULL]
    assert trio.current_time() == 0
    assert world.engine.statistics().waiters == 0


@both
async def test_an_empty_one_is_answered_with_nothing(world: World, *, atomic: bool) -> None:
    assert await world.do_many(atomic=atomic) == []


@both
async def test_it_counts_as_many_commands(world: World, *, atomic: bool) -> None:
    await world.do_many("SET k v", "GET k", "PING", atomic=atomic)
    assert world.engine.statistics().commands == 3


@both
async def test_its_answer_leaves_when_all_of_it_is_on_disk(world: World, *, atomic: bool) -> None:
    """I5"""
    world.commit_s = 1.0
    batch = world.spawn_many("SET k v", "GET k", atomic=atomic)
    await trio.sleep(0.9)
    assert not batch.done.is_set()
    await trio.sleep(0.1)
    await world.settle()
    assert batch.reply == [Ok(), Value(b"v")]


@both
async def test_reads_alone_touch_no_disk_but_wait_for_what_they_saw(world: World, *, atomic: bool) -> None:
    """I5"""
    await world.do("SET k v")
    before = world.disk.log.copy()
    assert await world.do_many("GET k", "EXISTS k", atomic=atomic) == [Value(b"v"), Integer(1)]
    assert world.disk.log == before
    world.commit_s = 1.0
    world.spawn("SET k w")
    await trio.sleep(0.5)
    reads = world.spawn_many("GET k", atomic=atomic)
    await trio.sleep(0.4)
    assert not reads.done.is_set()
    assert await reads.wait() == [Value(b"w")]


@both
async def test_it_serves_those_who_wait(world: World, *, atomic: bool) -> None:
    jobs = [await world.park("BQPOP q") for _ in range(2)]
    length = 3 if atomic else 2
    assert await world.do_many("QPUSH q a", "QPUSH q b c", atomic=atomic) == [Ok(length=1), Ok(length=length)]
    assert [await job.wait() for job in jobs] == [Value(b"a"), Value(b"b")]
    assert await queue_of(world) == [b"c"]


@both
@pytest.mark.parametrize("leaving_s", [0.5, 1.0])
async def test_what_it_popped_goes_back_when_its_client_leaves(world: World, leaving_s: float, *, atomic: bool) -> None:
    """E5: also in the tick of the answer; what it wrote stays."""
    await world.do("QPUSH q a b c d")
    world.commit_s = 1.0
    batch = world.spawn_many("BQPOP q", "QPOP q", "SET k v", "BQPOP q", atomic=atomic)
    await trio.sleep(leaving_s)
    batch.leave()
    await trio.sleep(5)
    assert batch.reply is None
    assert await queue_of(world) == [b"a", b"b", b"c", b"d"]
    assert world.engine.statistics().returned_values == 3
    assert await world.do("GET k") == Value(b"v")


@both
async def test_one_that_leaves_before_the_engine_looked_leaves_no_trace(world: World, *, atomic: bool) -> None:
    """E1"""
    batch = world.spawn_many("SET k v", "QPUSH q a", atomic=atomic)
    batch.leave()
    await world.settle()
    assert world.dump() == []
    assert world.engine._mailbox.batched_commands == 0


@both
async def test_it_is_refused_as_a_whole_while_shutting_down(world: World, *, atomic: bool) -> None:
    world.engine.shut_down()
    assert await world.do_many("SET k v", "PING", atomic=atomic) == SHUTTING_DOWN
    assert world.dump() == []


@both
async def test_what_is_in_the_mailbox_when_the_engine_closes_is_done(world: World, *, atomic: bool) -> None:
    lines = [f"SET k{number} v" for number in range(1_000)]
    world.commit_s = 0.5
    batch = world.spawn_many(*lines, atomic=atomic)
    while batch.submitted is None:
        await trio.lowlevel.checkpoint()
    await world.stop()
    assert batch.reply == [Ok()] * 1_000
    await world.start()
    assert len(world.dump()) == 1_000


@both
async def test_a_full_mailbox_turns_it_away(autojump_clock: MockClock, nursery: trio.Nursery, *, atomic: bool) -> None:
    world = World(nursery, limits=Limits(mailbox_max=3))
    await world.start()
    batches = [world.spawn_many("PING", "PING", atomic=atomic) for _ in range(5)]
    await world.settle()
    outcomes = [batch.reply for batch in batches]
    assert outcomes.count([Value(b"PONG")] * 2) == 3, "each takes one place"
    assert outcomes.count(Refused(Failure(Error.UNAVAILABLE, "too many commands are waiting"))) == 2


async def test_long_batches_are_turned_away_when_together_they_hold_too_many_commands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BATCHED_COMMANDS_MAX", 1_000)
    batches = [world.spawn_many(*["SET k v"] * 600) for _ in range(3)]
    await world.settle()
    assert sorted(error_of(batch.reply) is None for batch in batches) == [False, True, True]
    assert await world.do_many("GET k") == [Value(b"v")], "they are done now"


# One by one: slices


async def test_a_command_that_is_refused_does_not_disturb_the_rest(world: World) -> None:
    await world.do("SET k v")
    assert await world.do_many("SET k w NX", "QPUSH k a", "SET other v XX", "QPOP q", "SET k w XX") == [
        Failure(Error.KEY_ALREADY_EXISTS),
        Failure(Error.WRONG_TYPE, "the key holds a plain value, QPUSH needs a queue"),
        Failure(Error.KEY_NOT_FOUND),
        NULL,
        Ok(),
    ]


async def test_others_have_their_turn_in_the_middle_of_a_long_one(world: World) -> None:
    batch = world.spawn_many(*[f"SET k{number} v" for number in range(40 * performer.TURN_WEIGHT_MAX)])
    while batch.submitted is None:
        await trio.lowlevel.checkpoint()
    for number in range(3):
        assert await world.do(f"SET other{number} v") == Ok()
    assert not batch.done.is_set()
    assert await batch.wait() == [Ok()] * (40 * performer.TURN_WEIGHT_MAX)


async def test_a_long_one_rests_when_it_is_far_ahead_of_the_disk_and_others_do_not(world: World) -> None:
    world.commit_s = 1.0
    groups = 4
    lines = [f"SET k{number} v" for number in range(groups * actor.RECORDS_AHEAD_MAX)]
    batch = world.spawn_many(*lines)
    await trio.sleep(0.5)
    open_group = world.engine._committer.open
    assert len(open_group.frames[0]) == actor.RECORDS_AHEAD_MAX, "and not all the rest"
    other = world.spawn("SET other v")
    await trio.sleep(0.5 + 1.0 + 0.1)
    assert other.reply == Ok(), "with the group that was open"
    assert await batch.wait() == [Ok()] * len(lines)
    assert trio.current_time() < groups + 2


async def test_the_answer_of_a_long_one_waits_for_the_group_of_its_last_slice(world: World) -> None:
    """I5, B13"""
    world.commit_s = 1.0
    lines = [f"SET k{number} v" for number in range(3 * performer.TURN_WEIGHT_MAX)]
    batch = world.spawn_many(*lines, "GET k0")
    await trio.sleep(1.5)
    assert not batch.done.is_set(), "its first slice is on disk"
    await world.cut_power()
    assert batch.reply is None
    await world.start()
    assert len(world.dump()) == performer.TURN_WEIGHT_MAX


async def test_one_whose_client_leaves_half_way_is_not_gone_on_with(world: World) -> None:
    """E5: what it popped so far goes back, what it wrote stays."""
    await world.do("QPUSH q a b c")
    world.commit_s = 1.0
    batch = world.spawn_many("BQPOP q", *[f"SET k{number} v" for number in range(3 * performer.TURN_WEIGHT_MAX)])
    while not world.state.held(b"k0")[0]:
        await trio.lowlevel.checkpoint()
    batch.leave()
    assert await queue_of(world) == [b"a", b"b", b"c"]
    assert world.state.held(b"k%d" % (2 * performer.TURN_WEIGHT_MAX)) == (None, None)
    assert world.engine._mailbox.batched_commands == 0
    await trio.sleep(5)
    assert world.engine._answers.callers == 0


# On a small disk


async def small_world(nursery: trio.Nursery) -> FoldingWorld:
    disk = FakeDisk(capacity_bytes=KIB * KIB, allocates=True)
    world = FoldingWorld(nursery, disk=disk, segment_bytes_max=64 * KIB)
    await world.start()
    return world


async def test_one_that_is_longer_than_the_room_waits_in_the_middle_and_goes_on_where_it_stopped(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """B3"""
    world = await small_world(nursery)
    world.commit_s = 0.01
    count = 50
    batch = world.spawn_many(*[f"QPUSH q {number}{'x' * 7_000}" for number in range(count)])
    assert await batch.wait() == [Ok(length=number + 1) for number in range(count)]
    assert [value.rstrip(b"x") for value in await queue_of(world)] == [b"%d" % number for number in range(count)]
    assert world.engine.statistics().commits > 2


async def fill(world: FoldingWorld) -> int:
    """Pushes until the disk is full; returns how many values there are."""
    count = 0
    while not world.engine.statistics().disk_full:
        count += await world.do(f"QPUSH q {'x' * 7_000}") == Ok(length=count + 1)
    return count


async def test_on_a_full_disk_what_grows_is_refused_in_its_place(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """B3, B4"""
    world = await small_world(nursery)
    await world.do("SET k v")
    count = await fill(world)
    full = Failure(Error.STORAGE_FULL, "the disk is full")
    assert await world.do_many("SET k w", "GET k", "DELETE k", "QPUSH q a", "QLEN q") == [
        *(full, Value(b"v"), Integer(1), full, Integer(count)),
    ]


async def test_on_a_full_disk_a_unit_that_grows_is_refused_and_names_the_command(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """B3, I2"""
    world = await small_world(nursery)
    await world.do("SET k v")
    await fill(world)
    dump, before = world.dump(), accounts(world.state)
    full = Failure(Error.STORAGE_FULL, "the disk is full")
    assert await world.do_many("GET k", "DELETE k", "QPUSH other a", atomic=True) == Refused(full, 2)
    assert (world.dump(), accounts(world.state)) == (dump, before)
    assert await world.do_many("DELETE k", "GET k", atomic=True) == [Integer(1), Failure(Error.KEY_NOT_FOUND)]


async def test_a_unit_that_waits_for_room_is_decided_when_there_is_some(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """I2: nothing of it is to be seen before."""
    world = await small_world(nursery)
    await world.do("QPUSH q a")
    world.commit_s = 0.1
    first = world.spawn(f"SET large {'x' * 60_000}")
    await trio.sleep(0.05)
    unit = world.spawn_many("BQPOP q", "SET k v", f"SET larger {'x' * 60_000}", atomic=True)
    await world.settle()
    assert await queue_of(world) == [b"a"]
    assert first.reply is None
    assert await unit.wait() == [Value(b"a"), Ok(), Ok()]
    assert await queue_of(world) == []


# All or nothing: units

BEFORE = ("SET k v", "SET e v PX 60000", "QPUSH q a b c")
CHANGES = (
    *("SET k w", "SET e w", "SET new v PX 5", "DELETE q", "QPUSH q d"),
    *("QPOP q", "BQPOP q", "DELETE k e", "SET q v"),
)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("SET x v NX", Error.KEY_ALREADY_EXISTS),
        ("SET none v XX", Error.KEY_NOT_FOUND),
        ("DELETE none", Error.KEY_NOT_FOUND),
        ("QPUSH x a", Error.WRONG_TYPE),
        ("QPOP x", Error.WRONG_TYPE),
        ("QPOP empty", Error.QUEUE_IS_EMPTY),
        ("BQPOP x", Error.WRONG_TYPE),
    ],
)
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_would_be_refused_leaves_nothing_of_the_unit(
    world: World, change: str, bad: str, error: Error
) -> None:
    """I2"""
    for line in (*BEFORE, "SET x v", "QPUSH empty a", "QPOP empty"):
        await world.do(line)
    dump, before, log = world.dump(), accounts(world.state), world.disk.log.copy()
    assert error_of(await world.do_many(change, "GET none", bad, "SET after v", atomic=True)) == (error, 2)
    assert (world.dump(), accounts(world.state), world.disk.log) == (dump, before, log)
    await world.cut_power()
    await world.start()
    assert world.dump() == dump


async def test_a_read_that_finds_nothing_refuses_nothing(world: World) -> None:
    await world.do("QPUSH q a")
    assert await world.do_many("GET none", "GET q", "TTL none", "QLEN none", "EXISTS none", "SET k v", atomic=True) == [
        Failure(Error.KEY_NOT_FOUND),
        Failure(Error.WRONG_TYPE, "the key holds a queue, GET reads plain values"),
        *(Integer(-2), Integer(0), Integer(0), Ok()),
    ]


async def test_a_pop_that_finds_no_queue_or_does_not_wait_refuses_nothing(world: World) -> None:
    await world.do_many("QPUSH q a", "QPOP q")
    assert await world.do_many("QPOP none", "BQPOP none", "BQPOP q", "SET k v", atomic=True) == [NULL, NULL, NULL, Ok()]


async def test_all_its_records_are_in_one_frame(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2"""
    monkeypatch.setattr(committer, "FRAME_BYTES_GOAL", 500)
    world.disk.log.clear()
    jobs = [world.spawn(f"SET other{number} {'x' * 90}") for number in range(4)]
    assert await world.do_many(*[f"SET k{number} {'x' * 90}" for number in range(50)], atomic=True) == [Ok()] * 50
    assert [job.reply for job in jobs] == [Ok()] * 4
    assert writes(world) == 2


@pytest.mark.parametrize("written", [False, True])
async def test_a_crash_leaves_all_of_it_or_nothing(world: World, *, written: bool) -> None:
    """I2, B13"""
    world.commit_s = 1.0
    unit = world.spawn_many("SET a 1", "QPUSH q x", "SET b 2", atomic=True)
    await trio.sleep(0.5)
    await world.kill(written=written)
    assert unit.reply is None
    await world.start()
    assert len(world.dump()) == (3 if written else 0)


async def test_those_who_wait_are_served_after_it_not_in_between(world: World) -> None:
    waiter = await world.park("BQPOP q")
    assert await world.do_many("QPUSH q a", "QPOP q", "QPUSH q b", "BQPOP q", atomic=True) == [
        *(Ok(length=1), Value(b"a"), Ok(length=1), Value(b"b")),
    ]
    assert not waiter.done.is_set()
    await world.do_many("QPUSH q c d", "BQPOP q", atomic=True)
    assert await waiter.wait() == Value(b"d")


async def test_expired_keys_that_it_names_are_gone_before_and_stay_gone(world: World) -> None:
    """D3: whatever the clock says after a crash."""
    await world.do("SET k v PX 50")
    await trio.sleep(0.05)
    assert await world.do_many("SET other v", "SET k w NX", "DELETE k", atomic=True) == [Ok(), Ok(), Integer(1)]
    await world.do_many("SET k v PX 50")
    await trio.sleep(0.05)
    assert error_of(await world.do_many("SET k v XX", atomic=True)) == (Error.KEY_NOT_FOUND, 0)
    await world.do("PING")
    world.wall_offset_ms = -3_600_000
    await world.cut_power()
    await world.start()
    assert await world.do("EXISTS k") == Integer(0)


async def test_the_memory_cap_holds_for_it_as_a_whole(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    world = World(nursery, limits=Limits(memory_bytes_max=2_000))
    await world.start()
    large = "x" * 1_000
    await world.do(f"SET a {large}")
    before = accounts(world.state)
    assert error_of(await world.do_many("SET k v", f"SET b {large}", atomic=True)) == (Error.STORAGE_FULL, 1)
    assert accounts(world.state) == before
    assert await world.do_many("DELETE a", f"SET b {large}", atomic=True) == [Integer(1), Ok()]


async def test_one_whose_records_would_not_fit_a_frame_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performer, "COMMAND_BYTES_MAX", 1_000)
    lines = [f"SET k{number} {'x' * 100}" for number in range(10)]
    assert error_of(await world.do_many(*lines, atomic=True)) == (Error.TOO_LARGE, None)
    assert world.dump() == []
    assert await world.do_many(*lines) == [Ok()] * 10, "one by one they do fit"


async def test_when_the_disk_is_too_far_behind_it_is_refused_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7"""
    monkeypatch.setattr(performer, "GROUP_BYTES_MAX", 500)
    world.commit_s = 10.0
    world.spawn(f"SET k {'x' * 600}")
    await world.settle()
    world.spawn(f"SET l {'x' * 600}")
    await world.settle()
    refused = world.spawn_many("SET k v", atomic=True)
    await world.settle()
    assert error_of(refused.reply) == (Error.UNAVAILABLE, None)


async def test_a_popped_value_finds_its_queue_again_after_a_unit_that_had_removed_it(world: World) -> None:
    """E5, I2: the very same queue is back."""
    await world.do("QPUSH q a b")
    world.commit_s = 1.0
    pop = world.spawn("BQPOP q")
    await trio.sleep(0.1)
    unit = world.spawn_many("DELETE q", "QPUSH q new", "SET q v", "QPUSH q w", atomic=True)
    await world.settle()
    pop.leave()
    await trio.sleep(5)
    assert isinstance(unit.reply, Refused)
    assert await queue_of(world) == [b"a", b"b"]


async def test_a_long_queue_that_a_unit_had_removed_is_not_freed(world: World) -> None:
    """I2"""
    count = 3 * BIG_QUEUE_LENGTH
    values = " ".join(map(str, range(count)))
    await world.do(f"QPUSH q {values}")
    unit = [f"QPUSH r {values}", "DELETE r", "DELETE q", f"QPUSH q {values}", "SET q v", "QPUSH q a"]
    assert isinstance(await world.do_many(*unit, atomic=True), Refused)
    assert not world.state.has_garbage
    await trio.sleep(1)
    assert len(await queue_of(world)) == count


# Very many keys in one command

MANY = [b"k%d" % number for number in range(20 * performer.TURN_WEIGHT_MAX)]


async def turns_of_another(busy: Callable[[], Awaitable[T]]) -> tuple[T, int]:
    """Runs a function, and counts the turns that another task has meanwhile."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        result = await busy()
        nursery.cancel_scope.cancel()
    return result, turns


async def fill_many(world: World) -> None:
    """Every other one of the keys is there, and of those every other one expires."""
    for number, key in enumerate(MANY[::2]):
        world.spawn([b"SET", key, b"v", *([b"PX", b"1000"] if number % 2 else [])])
    await world.settle()


@pytest.mark.parametrize("kind", ["single", "batch", "unit"])
@pytest.mark.parametrize("expired", [False, True])
async def test_a_command_of_very_many_keys_lets_other_tasks_have_their_turn(
    world: World, kind: str, *, expired: bool
) -> None:
    await fill_many(world)
    if expired:
        world.engine._actor.sweeper._next_ms = 1 << 62
        await trio.sleep(1)
    count = len(MANY) // (4 if expired else 2)
    lines = [[b"EXISTS", *MANY], [b"DELETE", *MANY, *MANY[:50]], [b"EXISTS", *MANY], [b"QPUSH", b"q", *MANY]]
    expected = [Integer(count), Integer(count), Integer(0), Ok(length=len(MANY))]

    async def submit() -> list[Reply] | Refused:
        if kind == "single":
            return [await world.spawn(line).wait() for line in lines]
        return await world.spawn_many(*lines, atomic=kind == "unit").wait()

    replies, turns = await turns_of_another(submit)
    assert replies == expected
    assert turns > 60
    dump = world.dump()
    assert [entry[1] for entry in dump] == [b"q"]
    await world.cut_power()
    await world.start()
    assert world.dump() == dump


async def test_a_delete_of_very_many_keys_is_one_frame_and_others_see_it_whole(world: World) -> None:
    """I2"""
    await fill_many(world)
    world.disk.log.clear()
    delete = world.spawn([b"DELETE", *MANY])
    while delete.submitted is None:
        await trio.lowlevel.checkpoint()
    reads = [world.spawn([b"EXISTS", MANY[0], MANY[-2]]) for _ in range(10)]
    await world.settle()
    assert {read.reply for read in reads} == {Integer(0)}
    assert delete.reply == Integer(len(MANY) // 2)
    assert writes(world) == 1


async def test_what_came_before_a_delete_of_very_many_keys_does_not_wait_for_it(world: World) -> None:
    await fill_many(world)
    answered: list[Command] = []

    def note(call: Call) -> None:
        answered.append(call.command)

    write, delete = Set(b"other", b"v"), Delete(tuple(MANY))
    world.engine.submit_nowait(write, note)
    world.engine.submit_nowait(delete, note)
    while not answered:
        await trio.lowlevel.checkpoint()
    assert answered == [write]
    assert world.state.held(MANY[-2])[0], "it is in the middle"
    await world.settle()
    assert answered == [write, delete]


async def test_a_delete_of_very_many_keys_that_finds_none_is_answered_so(world: World) -> None:
    none = Failure(Error.KEY_NOT_FOUND)
    assert await world.spawn([b"DELETE", *MANY]).wait() == none
    assert await world.spawn_many([b"DELETE", *MANY], "PING").wait() == [none, Value(b"PONG")]
    assert await world.spawn_many("PING", [b"DELETE", *MANY], atomic=True).wait() == Refused(none, 1)


async def test_a_unit_with_very_many_keys_that_is_refused_at_its_end_leaves_nothing(world: World) -> None:
    """I2"""
    await fill_many(world)
    dump, before = world.dump(), accounts(world.state)
    unit = world.spawn_many([b"DELETE", *MANY], [b"QPUSH", b"q", *MANY], "SET q v", "QPUSH q a", atomic=True)
    assert error_of(await unit.wait()) == (Error.WRONG_TYPE, 3)
    assert (world.dump(), accounts(world.state)) == (dump, before)


@both
async def test_a_client_that_leaves_in_a_pause_has_its_values_back(world: World, *, atomic: bool) -> None:
    """E5"""
    await fill_many(world)
    await world.do("QPUSH q a b")
    batch = world.spawn_many("BQPOP q", [b"DELETE", *MANY], "BQPOP q", atomic=atomic)
    while world.state.held(MANY[0])[0]:
        await trio.lowlevel.checkpoint()
    assert world.state.held(MANY[-2])[0], "it is in the middle"
    batch.leave()
    await world.settle()
    assert batch.reply is None
    assert await queue_of(world) == [b"a", b"b"]
    assert world.engine._answers.callers == world.engine._mailbox.batched_commands == 0


async def test_a_client_that_leaves_in_a_pause_of_its_only_command_is_not_answered(world: World) -> None:
    await fill_many(world)
    delete = world.spawn([b"DELETE", *MANY])
    while world.state.held(MANY[0])[0]:
        await trio.lowlevel.checkpoint()
    delete.leave()
    await world.settle()
    assert (delete.reply, world.dump()) == (None, [])
    assert world.engine._answers.callers == 0


# Whatever the commands

KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["", "v", "x" * 200])
LINES = st.one_of(
    st.builds("SET {} {}{}".format, KEYS, VALUES, st.sampled_from(["", " PX 5", " EX 9", " NX", " XX"])),
    st.builds("QPUSH {} {}".format, KEYS, st.lists(VALUES, min_size=1, max_size=3).map(" ".join)),
    st.builds("QPUSH {} {}".format, KEYS, st.just(" ".join(["v"] * (BIG_QUEUE_LENGTH + 1)))),
    st.builds("{} {}".format, st.sampled_from(["QPOP", "BQPOP", "GET", "TTL", "QLEN", "DELETE"]), KEYS),
    st.builds("{} {} {}".format, st.sampled_from(["DELETE", "EXISTS"]), KEYS, KEYS),
)


async def _one_by_one(world: World, lines: Sequence[str]) -> list[Reply]:
    return [await world.do(line + " 0" if line.startswith("BQPOP") else line) for line in lines]


@given(before=st.lists(LINES, max_size=8), unit=st.lists(LINES, min_size=1, max_size=8))
def test_a_unit_is_its_commands_one_by_one_or_nothing_at_all(before: list[str], unit: list[str]) -> None:
    """I2"""
    stepper = Stepper()
    try:
        world, twin = (World(stepper.nursery, limits=Limits(memory_bytes_max=30_000)) for _ in range(2))
        for each in (world, twin):
            stepper.run(each.start)
            stepper.run(_one_by_one, each, before)
        dump, counts = world.dump(), accounts(world.state)
        outcome = stepper.run(partial(world.do_many, *unit, atomic=True))
        replies = stepper.run(_one_by_one, twin, unit)
        if isinstance(outcome, Refused):
            assert outcome.index is not None
            assert outcome.failure == replies[outcome.index]
            assert (world.dump(), accounts(world.state)) == (dump, counts)
        else:
            assert outcome == replies
            assert (world.dump(), accounts(world.state)) == (twin.dump(), accounts(twin.state))
        dump = world.dump()
        stepper.run(world.kill)
        stepper.run(world.start)
        assert world.dump() == dump
    finally:
        stepper.close()
