"""Rolls and squeezes when the disk or the process has nothing left: what was promised before is written after."""

from __future__ import annotations

import errno

import pytest

from engine.embedded.fold import fold
from tests.harness import logs
from tests.harness.disk import FakeDisk, Fault
from wal.log import Log

SEGMENT_BYTES = 100_000
OVERHEAD_BYTES = 64
"""What a frame takes beyond its value, at most."""

NO_DESCRIPTORS = ("names", "read", "hold", "create", "open")
"""What needs a descriptor."""


def opened(disk: FakeDisk, segment_bytes_max: int = SEGMENT_BYTES) -> Log:
    return Log.recover(disk.directory(), lambda _frame: None, time_ms=1, segment_bytes_max=segment_bytes_max)


def write(log: Log, length: int) -> None:
    """One frame of this length, or a little less, on disk."""
    logs.append(log, ((1, b"k", b"x" * (length - OVERHEAD_BYTES), None),))
    log.commit()


def refusing(code: int, *operations: str) -> Fault:
    """Every one of these operations says that there is nothing left."""

    def fault(operation: str, _name: str) -> None:
        if operation in operations:
            raise OSError(code, "there is nothing left")

    return fault


def last_value(disk: FakeDisk) -> int:
    """Length of the value that a start finds."""
    disk.kill()
    return len(logs.dump(disk)[0][2])


def test_a_roll_needs_nothing_of_a_disk_of_which_others_take_every_byte() -> None:
    """B3: the spare has the room for all it takes, the manifest's too."""
    disk = FakeDisk(allocates=True)
    log = opened(disk)
    write(log, 60_000)
    log.make_room()
    disk.is_contested = True
    write(log, log.room.frames_bytes)
    assert disk.segments() == ["00000001.log", "00000002.log"]
    log.check_files()
    assert last_value(disk) > 99_000


def test_a_roll_needs_no_descriptor_but_those_of_the_spare() -> None:
    """B6"""
    disk = FakeDisk(allocates=True)
    log = opened(disk)
    write(log, 60_000)
    log.make_room()
    disk.fault = refusing(errno.EMFILE, *NO_DESCRIPTORS)
    write(log, 60_000)
    assert disk.segments() == ["00000001.log", "00000002.log"]
    for _ in range(20):  # the next one cannot be made: the log goes on in this
        write(log, 30_000)
        log.make_room()
    assert not log.room.full
    assert disk.segments() == ["00000001.log", "00000002.log"]
    disk.fault = None
    log.make_room()
    write(log, 50_000)
    assert disk.segments()[-1] == "00000003.log"
    assert last_value(disk) > 49_000


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
def test_a_checkpoint_that_is_refused_its_manifest_leaves_the_log_as_it_was_and_the_next_is_installed(
    code: int,
) -> None:
    """B6, C4: nothing is opened or read to find out which manifest stands."""
    disk = FakeDisk(allocates=True)
    log = opened(disk)
    write(log, 60_000)
    log.seal()
    for goes in (False, True):
        plan = log.plan_fold()
        assert plan is not None
        snapshot = fold(disk.beside(), plan)
        disk.fault = None if goes else refusing(code, *NO_DESCRIPTORS)
        if goes:
            log.install(plan, snapshot)
        else:
            with pytest.raises(OSError, match="there is nothing left"):
                log.install(plan, snapshot)
            assert [name for name in disk.names if "snapshot" in name or name == "MANIFEST.tmp"] == []
        write(log, 1_000)
        disk.fault = None
        log.check_files()
    assert last_value(disk) > 900


STEPS = (
    ("write", "MANIFEST.next.tmp"),
    ("sync", "MANIFEST.next.tmp"),
    ("write", "00000002.log.tmp"),
    ("sync", "00000002.log.tmp"),
    ("rename", "00000002.log"),
    ("sync_directory", ""),
)
"""Of a roll, until it has all it needs."""


@pytest.mark.parametrize("step", [*STEPS, ("rename", "MANIFEST")], ids=" ".join)
def test_a_roll_that_is_refused_gives_up_nothing_of_what_was_promised(step: tuple[str, str]) -> None:
    """B3: whatever step of it the disk refuses. Only to the last one no others may come between."""
    disk = FakeDisk(allocates=True)
    log = opened(disk, 50_000)  # less than what is allocated, so that a roll is due while there is room
    write(log, 47_000)
    log.make_room()
    disk.capacity_bytes = disk.used_bytes
    disk.is_contested = step in STEPS
    promised_bytes = log.room.frames_bytes
    refused: list[tuple[str, str]] = []

    def fault(operation: str, name: str) -> None:
        if (operation, name) == step and (operation != "sync_directory" or "00000002.log" in disk.names):
            refused.append(step)
            raise OSError(errno.ENOSPC, "there is nothing left")

    disk.fault = fault
    for count in (1, 2):
        write(log, 4_000)
        assert len(refused) == count
        assert log.room.frames_bytes == promised_bytes
        log.check_files()
    disk.fault = None
    disk.is_contested = True
    write(log, promised_bytes)
    assert disk.segments() == ["00000001.log", "00000002.log"]
    log.check_files()
    assert last_value(disk) > promised_bytes - 200


@pytest.mark.parametrize("lack", ["quota", "others"])
def test_a_squeeze_that_finds_no_room_keeps_what_was_promised(lack: str) -> None:
    """B4: on a disk that says so for ever, and on one of which others take what the log has just given back."""
    disk = FakeDisk(allocates=True)
    log = opened(disk)
    write(log, 60_000)
    if lack == "quota":
        disk.fault = refusing(errno.ENOSPC, "allocate")
    disk.capacity_bytes = disk.used_bytes
    disk.is_contested = lack == "others"
    log.make_room()
    assert log.room.full
    promised_bytes = log.room.frames_bytes // 4
    with pytest.raises(OSError, match=r"No space|nothing left"):
        log.seal(promised_bytes)
    assert log.room.full
    write(log, promised_bytes)
    log.check_files()
    assert last_value(disk) > promised_bytes - 200


def test_a_squeeze_that_finds_room_has_as_much_in_the_new_segment_as_was_promised() -> None:
    """B4"""
    disk = FakeDisk(allocates=True)
    log = opened(disk)
    write(log, 20_000)
    disk.capacity_bytes = disk.used_bytes
    log.make_room(90_000)
    assert log.room.full
    promised_bytes = log.room.frames_bytes // 4
    log.seal(promised_bytes)
    disk.is_contested = True
    write(log, promised_bytes)
    assert disk.segments() == ["00000001.log", "00000002.log"]
    assert last_value(disk) > promised_bytes - 200
