"""Moving into a data directory: exact, whatever happens on the way, and only into an empty one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from engine.moving import directory as moving
from engine.moving.directory import DirectoryDestination, DirectorySource
from engine.moving.items import Item, MoveError, Piece, Plain
from engine.moving.move import Moved, move
from engine.moving.tally import Difference
from engine.store import ops
from engine.store.ops import Op
from tests.harness.disk import CHANGING, FakeDisk, Fault
from tests.harness.logs import TIME_MS
from tests.harness.moving import DAY_MS, Items, dump, everything, fill, silent, state_of
from wal.replay import IMPORT_NAME
from wal.segment import Damage

EVERYTHING = everything(TIME_MS, keys=50)
FEW: list[Op] = [
    (ops.PUT, b"a", b"1", None),
    (ops.PUT, b"b", b"2", TIME_MS + DAY_MS),
    (ops.PUSH, b"q", tuple(b"%d" % number for number in range(1_500))),
    (ops.PUSH, b"r", ()),
]


class Clock:
    """A wall clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ms = TIME_MS

    def __call__(self) -> int:
        return self.now_ms


async def move_to(disk: FakeDisk, source: Items | DirectorySource, clock: Callable[[], int] | None = None) -> Moved:
    destination = DirectoryDestination(disk.directory(), clock or Clock(), silent)
    try:
        return await move(source, destination, silent, silent)
    finally:
        destination.close()


def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every second item be a commit of its own."""
    monkeypatch.setattr(moving, "GROUP_BYTES_MAX", 2_000)


async def test_everything_arrives_and_what_arrived_can_be_moved_on() -> None:
    disk, second = FakeDisk(), FakeDisk(seed=1)
    moved = await move_to(disk, Items(state_of(EVERYTHING)))
    assert (moved.differences, moved.expired, moved.resumed_at) == ([], 0, 0)
    assert dump(disk.directory()) == list(state_of(EVERYTHING).dump())
    assert IMPORT_NAME not in disk.names
    disk.kill()
    source = DirectorySource(disk.beside(), Clock(), silent)
    again = await move_to(second, source)
    assert again.tally.checksum == moved.tally.checksum
    assert dump(second.beside()) == dump(disk.beside())


async def test_a_source_is_not_changed_and_the_same_state_has_the_same_identity() -> None:
    disk = FakeDisk()
    fill(disk.directory(), EVERYTHING, TIME_MS)
    before = disk.content()
    disk.log.clear()
    source = DirectorySource(disk.beside(), Clock(), silent)
    assert [item async for batch in source.batches() for item in batch] == Items(state_of(EVERYTHING)).items
    assert not [operation for operation, _ in disk.log if operation in CHANGING]
    assert disk.content() == before
    assert DirectorySource(disk.beside(), Clock(), silent).identity == source.identity
    fill(disk.directory(), [(ops.PUT, b"one more", b"", None)], TIME_MS)
    assert DirectorySource(disk.beside(), Clock(), silent).identity != source.identity


async def test_damage_in_the_source_is_found_before_anything_is_moved() -> None:
    disk, target = FakeDisk(), FakeDisk(seed=1)
    fill(disk.directory(), EVERYTHING, TIME_MS)
    name = disk.segments()[0]
    data = bytearray(disk.get(name))
    data[len(data) // 2] ^= 1
    disk.put(name, bytes(data))
    with pytest.raises(Damage):
        DirectorySource(disk.beside(), Clock(), silent)
    assert target.content() == {}


@pytest.mark.parametrize("torn", [False, True])
async def test_a_power_cut_at_any_moment_and_the_same_once_more_is_exact(
    monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    small_groups(monkeypatch)
    expected = list(state_of(FEW).dump())
    moment = 0
    while True:
        disk = FakeDisk(seed=moment)
        disk.fault = cut_at(disk, moment, torn)
        try:
            await move_to(disk, Items(state_of(FEW), size=1))
        except (OSError, MoveError):
            disk.cut_power()
        else:
            break
        if IMPORT_NAME in disk.names or not disk.segments():  # else nothing was missing but the footer of a clean close
            assert (await move_to(disk, Items(state_of(FEW), size=1))).differences == [], moment
        assert dump(disk.beside()) == expected, moment
        moment += 1
    assert moment > 20


def cut_at(disk: FakeDisk, moment: int, torn: bool) -> Fault:
    left = moment

    def fault(operation: str, _name: str) -> None:
        nonlocal left
        left -= operation in CHANGING
        if left < 0:
            disk.cut_power(random.Random(moment) if torn else None)
            raise OSError("the power was cut")

    return fault


async def test_a_finished_move_survives_a_power_cut() -> None:
    disk = FakeDisk()
    await move_to(disk, Items(state_of(FEW)))
    disk.cut_power()
    assert dump(disk.beside()) == list(state_of(FEW).dump())
    assert IMPORT_NAME not in disk.names


async def test_only_an_empty_directory_or_an_unfinished_move_from_the_same_source_is_moved_into() -> None:
    disk = FakeDisk()
    fill(disk.directory(), FEW, TIME_MS)
    before = disk.content()
    with pytest.raises(MoveError, match="fake is not empty"):
        await move_to(disk, Items(state_of(FEW)))
    assert disk.content() == before
    disk = FakeDisk()
    with pytest.raises(MoveError, match="stop"):
        await move_to(disk, Items(state_of(FEW), size=1, before=stop_at(2)))
    other = Items(state_of(FEW))
    other.identity = "another"
    with pytest.raises(MoveError, match=r"from another source that was not finished: store of a test.*, not another"):
        await move_to(disk, other)
    with pytest.raises(MoveError, match="holds an import that was not finished"):
        DirectorySource(disk.beside(), Clock(), silent)
    assert (await move_to(disk, Items(state_of(FEW)))).differences == []


def stop_at(batch: int) -> Callable[[int], None]:
    def stop(number: int) -> None:
        if number == batch:
            raise MoveError("stop")

    return stop


async def test_what_is_there_already_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch)
    whole, halved = FakeDisk(), FakeDisk()
    await move_to(whole, Items(state_of(EVERYTHING)))
    with pytest.raises(MoveError, match="stop"):
        await move_to(halved, Items(state_of(EVERYTHING), size=10, before=stop_at(4)))
    await move_to(halved, Items(state_of(EVERYTHING)))
    sizes = [log_bytes(disk) for disk in (whole, halved)]
    assert sizes[1] < sizes[0] * 1.1


async def test_a_piece_of_which_a_part_is_there_is_completed() -> None:
    """The lines of a file may be cut elsewhere than Holdfast cuts them."""
    disk, values = FakeDisk(), tuple(b"%d" % number for number in range(1_000))
    source = Items(state_of([]), size=1, before=stop_at(2))
    source.items = [Piece(b"q", 0, values[:300]), Piece(b"q", 300, values[300:700]), Piece(b"q", 700, values[700:])]
    with pytest.raises(MoveError, match="stop"):
        await move_to(disk, source)
    assert (await move_to(disk, Items(state_of([(ops.PUSH, b"q", values)])))).differences == []
    assert dump(disk.beside()) == [("queue", b"q", values)]


def log_bytes(disk: FakeDisk) -> int:
    return sum(len(disk.get(name)) for name in disk.segments())


async def test_a_full_disk_stops_it_and_with_room_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch)
    disk = FakeDisk(capacity_bytes=3 * 1024 * 1024, allocates=True)
    with pytest.raises(MoveError, match="the disk of fake is full"):
        await move_to(disk, Items(state_of(EVERYTHING)))
    disk.capacity_bytes = None
    assert (await move_to(disk, Items(state_of(EVERYTHING)))).differences == []
    assert dump(disk.beside()) == list(state_of(EVERYTHING).dump())


async def test_what_has_expired_is_left_out_and_counted() -> None:
    disk, clock = FakeDisk(), Clock()
    gone: list[Op] = [(ops.PUT, b"gone %d" % number, b"", TIME_MS - number) for number in range(3)]
    moved = await move_to(disk, Items(state_of([*FEW, *gone])), clock)
    assert (moved.differences, moved.expired) == ([], 3)
    assert dump(disk.beside()) == list(state_of(FEW).dump())


async def test_what_expires_between_a_kill_and_the_next_try_makes_no_difference() -> None:
    disk, clock = FakeDisk(), Clock()
    with pytest.raises(MoveError, match="stop"):
        await move_to(disk, Items(state_of(FEW), size=1, before=stop_at(3)), clock)
    clock.now_ms += 2 * DAY_MS
    source = Items(state_of([op for op in FEW if op[1] != b"b"]))
    moved = await move_to(disk, source, clock)
    assert moved.differences == []


YEAR_MS = 365 * DAY_MS


async def test_keys_of_a_store_whose_clock_was_ahead_have_as_long_to_live_as_there() -> None:
    disk, target = FakeDisk(), FakeDisk(seed=1)
    then_ms = TIME_MS + YEAR_MS + 1  # the millisecond goes: clocks are compared in whole seconds
    content: list[Op] = [
        (ops.PUT, b"expiring", b"", then_ms + 60_000),
        (ops.PUT, b"expired", b"", then_ms - 1),
        (ops.PUT, b"at the beginning of time", b"", 1),
        (ops.PUT, b"permanent", b"", None),
        (ops.PUSH, b"q", (b"1",)),
    ]
    fill(disk.directory(), content, then_ms)
    disk.kill()
    moved = await move_to(target, DirectorySource(disk.beside(), Clock(), silent))
    assert (moved.differences, moved.expired) == ([], 1 + 1)
    left = [(ops.PUT, b"expiring", b"", TIME_MS + 1 + 60_000), *content[3:]]
    assert dump(target.beside()) == list(state_of(left).dump())


async def test_a_clock_that_is_ahead_by_less_than_a_second_or_behind_changes_no_deadline() -> None:
    for time_ms in (0, TIME_MS - YEAR_MS, TIME_MS + 999):
        disk = FakeDisk()
        assert (await move_to(disk, Items(state_of(FEW), time_ms=time_ms))).differences == []
        assert dump(disk.beside()) == list(state_of(FEW).dump())


async def test_a_move_that_is_resumed_brings_deadlines_forward_by_as_much_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the clock here goes on meanwhile, and that of the store does not."""
    small_groups(monkeypatch)
    disk, clock, time_ms = FakeDisk(), Clock(), TIME_MS + YEAR_MS
    content: list[Op] = [(ops.PUT, b"%d" % number, bytes(999), time_ms + DAY_MS) for number in range(9)]
    with pytest.raises(MoveError, match="stop"):
        await move_to(disk, Items(state_of(content), size=1, time_ms=time_ms, before=stop_at(6)), clock)
    other = Items(state_of(content), time_ms=time_ms)
    other.identity = "store of a test at record 2"
    with pytest.raises(MoveError, match="from another source that was not finished: store of a test at record 1"):
        await move_to(disk, other, clock)
    clock.now_ms += DAY_MS // 2
    assert (await move_to(disk, Items(state_of(content), time_ms=time_ms), clock)).differences == []
    assert {deadline_ms for _, _, _, deadline_ms in dump(disk.beside())} == {TIME_MS + DAY_MS}


async def test_whatever_differs_in_the_end_is_found() -> None:
    """A queue that comes twice is not there twice."""
    source = Items(state_of(FEW))
    source.items += [Piece(b"r", 0, (b"x",)), Plain(b"a", b"2", None)]
    disk = FakeDisk()
    moved = await move_to(disk, source)
    assert moved.differences == [
        Difference("keys without expiry", 2, 1),
        Difference("queues", 3, 2),
    ]
    assert IMPORT_NAME in disk.names


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([Plain(b"a", b"", None), Piece(b"a", 0, ())], "'a' comes as a plain value and as a queue"),
        ([Plain(b"a", bytes(64 * 1024 * 1024), None)], "what is stored under 'a' is too large for one record"),
    ],
)
async def test_what_cannot_be_written_is_refused(items: list[Item], complaint: str) -> None:
    source = Items(state_of([]))
    source.items = items
    with pytest.raises(MoveError, match=complaint):
        await move_to(FakeDisk(), source)
