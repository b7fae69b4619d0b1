"""The log's life on a sound disk and on one that fails: open, append, roll, commit, close, open again."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.harness import logs
from tests.harness.disk import CHANGING, FakeDisk, Fault, failing
from tests.harness.logs import COMMITS
from wal.files import DiskDirectory, LockedError
from wal.frame import Frame
from wal.log import Log, LogFailed
from wal.manifest import MANIFEST_NAME
from wal.recovery import Recovery
from wal.replay import replay_sealed
from wal.segment import HEADER_BYTES


class Reader:
    """Opens the log of a disk and keeps what it replayed."""

    def __init__(self, disk: FakeDisk, *, segment_bytes_max: int = 10_000) -> None:
        self.frames: list[Frame] = []
        self.progress: list[tuple[int, int]] = []
        self.log = Log.recover(
            disk.directory(),
            self.frames.append,
            time_ms=1,
            segment_bytes_max=segment_bytes_max,
            progress=lambda done, total: self.progress.append((done, total)),
        )

    @property
    def values(self) -> list[Any]:
        """What was appended, record by record."""
        return [record[0] for frame in self.frames for record in frame.records]


def append(log: Log, *values: Any, time_ms: int = 0) -> int:
    return log.append([msgpack.packb((value,)) for value in values], time_ms)


def values(disk: FakeDisk) -> list[Any]:
    reader = Reader(disk)
    reader.log.abandon()
    return reader.values


def test_an_empty_directory_becomes_an_empty_log() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    assert (log.last_lsn, log.durable_lsn, log.size_bytes) == (0, 0, HEADER_BYTES)
    assert log.recovery == Recovery(records=0, time_ms=0, torn_bytes=0, is_new=True)
    assert sorted(disk.names) == ["00000001.log", MANIFEST_NAME]


def test_what_was_appended_comes_back_in_order_with_its_times() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    assert append(log, "a", time_ms=10) == 1
    assert append(log, "b", "c", time_ms=20) == 3
    log.close()
    reader = Reader(disk)
    assert [(f.first_lsn, f.time_ms, f.durable_lsn, f.records) for f in reader.frames] == [
        (1, 10, 0, (("a",),)),
        (2, 20, 0, (("b",), ("c",))),
    ]
    assert reader.log.recovery == Recovery(records=3, time_ms=20, torn_bytes=0)
    assert reader.log.last_lsn == reader.log.durable_lsn == 3


def test_a_frame_carries_what_was_durable_when_it_was_written() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    append(log, "a")
    append(log, "b")
    assert log.durable_lsn == 0
    log.commit()
    assert log.durable_lsn == 2
    append(log, "c")
    log.abandon()
    assert [frame.durable_lsn for frame in Reader(disk).frames] == [0, 0, 2]


def test_only_what_was_committed_survives_a_power_cut() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    append(log, "a")
    log.commit()
    append(log, "b")
    disk.cut_power()
    assert values(disk) == ["a"]


def test_what_was_appended_survives_a_kill() -> None:
    disk = FakeDisk()
    append(Reader(disk).log, "a")
    disk.kill()
    assert values(disk) == ["a"]


def test_what_a_start_has_shown_survives_a_power_cut_right_after_it() -> None:
    """I5: it was not synced by whoever wrote it, and whoever reads it now must be able to rely on it."""
    disk = FakeDisk()
    append(Reader(disk).log, "a")
    disk.kill()
    assert Reader(disk).values == ["a"]
    disk.cut_power()
    assert values(disk) == ["a"]


def test_a_segment_rolls_before_the_frame_that_would_take_it_beyond_its_limit() -> None:
    disk = FakeDisk()
    log = Reader(disk, segment_bytes_max=200).log
    for number in range(20):
        append(log, number)
    assert len(disk.segments()) > 2
    assert all(len(disk.get(name)) <= 200 for name in disk.segments())
    assert log.size_bytes == sum(len(disk.get(name)) for name in disk.segments())
    size_bytes = log.size_bytes
    log.close()
    reader = Reader(disk, segment_bytes_max=200)
    assert reader.values == list(range(20))
    assert reader.log.size_bytes == size_bytes
    reader.log.close()


def test_a_frame_larger_than_a_segment_gets_one_of_its_own() -> None:
    disk = FakeDisk()
    log = Reader(disk, segment_bytes_max=200).log
    for value in ("small", "x" * 1000, "small again"):
        append(log, value)
    log.close()
    assert len(disk.segments()) == 3
    assert values(disk) == ["small", "x" * 1000, "small again"]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("creation", [1, 2], ids=["manifest", "segment"])
def test_without_descriptors_the_log_goes_on_in_the_old_segment_and_rolls_later(code: int, creation: int) -> None:
    """B6"""
    disk = FakeDisk()
    log = Reader(disk, segment_bytes_max=100).log
    append(log, "a" * 20)
    creations = 0

    def fault(operation: str, _name: str) -> None:
        nonlocal creations
        creations += operation == "create"
        if operation == "create" and creations == creation:
            raise OSError(code, "too many open files")

    disk.fault = fault
    append(log, "b" * 20)
    log.commit()
    kept = disk.copy()
    assert values(kept) == ["a" * 20, "b" * 20]
    append(log, "c" * 20)
    log.commit()
    disk.kill()
    assert len(disk.segments()) == 2
    assert values(disk) == ["a" * 20, "b" * 20, "c" * 20]


def test_a_roll_makes_what_came_before_durable() -> None:
    disk = FakeDisk()
    log = Reader(disk, segment_bytes_max=100).log
    append(log, "a" * 20)
    append(log, "b" * 20)
    assert log.durable_lsn == 1
    disk.cut_power()
    assert values(disk) == ["a" * 20]


def test_progress_runs_up_to_the_size_of_the_log() -> None:
    disk = FakeDisk()
    log = Reader(disk, segment_bytes_max=200).log
    for number in range(20):
        append(log, number)
    log.close()
    reader = Reader(disk)
    done = [done for done, _ in reader.progress]
    assert done == sorted(done)
    assert {total for _, total in reader.progress} == {reader.log.size_bytes}
    assert 0 < done[-1] < reader.log.size_bytes


def test_a_replay_that_is_stopped_has_changed_nothing() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    append(log, "a")
    log.close()
    before = disk.content()

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    directory = disk.directory()
    with pytest.raises(KeyboardInterrupt):
        Log.recover(directory, lambda _frame: None, time_ms=1, progress=stop)
    directory.close()
    assert disk.content() == before
    assert values(disk) == ["a"]


def test_closing_gives_up_the_directory_and_opening_holds_it() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    with pytest.raises(LockedError):
        disk.directory()
    log.close()
    Reader(disk).log.abandon()
    disk.directory()


def test_a_log_that_is_only_opened_and_closed_stays_the_same() -> None:
    disk = FakeDisk()
    Reader(disk).log.close()
    before = disk.content()
    for _ in range(3):
        Reader(disk).log.close()
        assert disk.content() == before


def test_the_footer_is_taken_back_before_the_first_append() -> None:
    """Else a crash after it would be taken for damage."""
    disk = FakeDisk()
    Reader(disk).log.close()
    append(Reader(disk).log, "a")
    disk.kill()
    assert values(disk) == ["a"]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("operation", ["write", "sync"])
def test_after_a_failed_write_or_sync_the_log_never_touches_the_disk_again(operation: str, error: int) -> None:
    """B1, B2"""
    disk = FakeDisk()
    log = Reader(disk).log
    append(log, "a")
    log.commit()

    def fail(at: str, _name: str) -> None:
        if at == operation:
            raise OSError(error, "broken")

    disk.fault = fail
    with pytest.raises(LogFailed, match=r"writing the log in fake failed.*broken"):  # noqa: PT012
        append(log, "b")
        log.commit()
    disk.fault = None
    content, done = disk.content(), len(disk.log)
    for again in (lambda: append(log, "c"), log.commit, log.close):
        with pytest.raises(LogFailed, match="earlier"):
            again()
    assert log.durable_lsn == 1
    assert [operation for operation, _ in disk.log[done:] if operation in CHANGING] == []
    assert disk.content() == content
    assert values(disk)[0] == "a"


def test_an_error_of_the_program_itself_fails_the_log_too() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    with pytest.raises(TypeError):
        log.append([5], 0)  # type: ignore[list-item]  # no caller does; a MemoryError would do as well
    with pytest.raises(LogFailed):
        append(log, "a")


def test_frames_that_a_failed_sync_left_in_memory_are_written_again_by_the_next_start() -> None:
    """B1: after the error the pages count as clean, so that the next sync alone would bring nothing to the disk."""
    disk = FakeDisk()
    log = Reader(disk).log
    append(log, "a")
    log.commit()

    append(log, "b")
    disk.fault = failing("sync")
    with pytest.raises(LogFailed):
        log.commit()
    disk.kill()
    reader = Reader(disk)
    assert reader.values == ["a", "b"]
    append(reader.log, "c")
    reader.log.commit()
    disk.cut_power()
    assert values(disk) == ["a", "b", "c"]


def test_a_start_after_a_clean_close_writes_no_frame_again() -> None:
    disk = FakeDisk()
    log = Reader(disk).log
    append(log, "a")
    log.close()
    done = len(disk.log)
    Reader(disk).log.abandon()
    assert [name for operation, name in disk.log[done:] if operation == "write"] == ["MANIFEST.tmp"]
    assert ("truncate", "00000001.log") not in disk.log[done:]


def test_a_log_that_failed_gets_no_footer() -> None:
    """B1: what is there may be less than it knows of."""
    disk = FakeDisk()
    log = Reader(disk).log
    before = disk.get(MANIFEST_NAME)

    disk.fault = failing("sync")
    with pytest.raises(LogFailed):
        log.close()
    disk.fault = None
    assert disk.get(MANIFEST_NAME) == before
    disk.directory()  # it was given up all the same


def test_a_file_of_somebody_else_is_left_alone_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A14"""
    for strangers in (["notes.txt", "00000001.log.bak"], ["1.log", "MANIFEST.old", "00000001.log.torn-x"]):
        disk = FakeDisk()
        for name in strangers:
            disk.put(name, b"mine")
        for _ in range(2):
            caplog.clear()
            Reader(disk).log.close()
            assert [record.levelno for record in caplog.records] == [logging.WARNING] * len(strangers)
            assert all(name in caplog.text for name in strangers)
            assert [disk.get(name) for name in strangers] == [b"mine"] * len(strangers)


def test_leftovers_of_ours_are_removed_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """A14"""
    disk = FakeDisk()
    Reader(disk).log.close()
    kept = sorted(disk.names)
    leftovers = ["MANIFEST.tmp", "00000002.log", "00000002.log.tmp", "00000001.log.tmp", "00000001.log.torn-5.tmp"]
    for name in leftovers:
        disk.put(name, b"half")
    disk.put("00000001.log.torn-5", b"a copy that was kept")
    Reader(disk).log.close()
    assert sorted(disk.names) == sorted([*kept, "00000001.log.torn-5"])
    assert caplog.records == []


# Files that somebody takes away


def four_files(*, allocates: bool = True) -> tuple[FakeDisk, Log]:
    """A log with a snapshot, two sealed segments and the open one, and its disk."""
    disk = FakeDisk(allocates=allocates)
    _, log = logs.start(disk)
    for number, commit in enumerate(COMMITS[:4]):
        if number == 1:
            logs.checkpoint(disk, log)
        elif number > 1:
            log.seal()
        logs.append(log, commit)
        log.commit()
    assert [name for name in logs.listed(disk) if name != MANIFEST_NAME] == [
        "00000001.snapshot",
        "00000002.log",
        "00000003.log",
        "00000004.log",
    ]
    return disk, log


def remove(disk: FakeDisk, name: str) -> None:
    del disk.names[name]


def rename(disk: FakeDisk, name: str) -> None:
    disk.names["elsewhere"] = disk.names.pop(name)


def copy_over(disk: FakeDisk, name: str) -> None:
    disk.put(name, disk.get(name))


def cut(disk: FakeDisk, name: str) -> None:
    disk.names[name].resize(disk.names[name].seen.length // 2)


def empty(disk: FakeDisk, name: str) -> None:
    disk.names[name].resize(0)


either = pytest.mark.parametrize("allocates", [True, False], ids=["allocated", "grown"])


@either
@pytest.mark.parametrize("strike", [remove, rename, copy_over, cut, empty])
def test_a_commit_into_a_file_that_somebody_took_away_fails(
    strike: Callable[[FakeDisk, str], None], *, allocates: bool
) -> None:
    """B10: the next commit, whatever was written after it; and it names the file."""
    disk, log = four_files(allocates=allocates)
    strike(disk, "00000004.log")
    with pytest.raises(LogFailed, match=r"00000004\.log was "):  # noqa: PT012
        append(log, "v" * 300)
        log.commit()
    with pytest.raises(LogFailed, match="earlier"):
        append(log, "w")


@pytest.mark.parametrize("strike", [remove, cut])
def test_a_file_that_is_taken_away_between_a_write_and_its_sync_is_missed(
    strike: Callable[[FakeDisk, str], None],
) -> None:
    """B10"""
    disk, log = four_files()
    append(log, "v")
    strike(disk, "00000004.log")
    with pytest.raises(LogFailed, match=r"00000004\.log was "):
        log.commit()
    assert log.durable_lsn < log.last_lsn


@either
@pytest.mark.parametrize("strike", [remove, rename, cut, empty])
@pytest.mark.parametrize("name", ["00000001.snapshot", "00000002.log", "00000003.log", MANIFEST_NAME])
def test_a_look_at_all_files_finds_the_one_that_somebody_took_away(
    name: str, strike: Callable[[FakeDisk, str], None], *, allocates: bool
) -> None:
    """B10"""
    disk, log = four_files(allocates=allocates)
    log.check_files()
    strike(disk, name)
    with pytest.raises(LogFailed, match=rf"{name} was "):
        log.check_files()
    with pytest.raises(LogFailed, match="earlier"):
        append(log, "w")


def test_a_look_at_all_files_changes_nothing_and_finds_nothing_in_a_long_life() -> None:
    """B10: after rolls, spares, checkpoints and starts."""
    disk = FakeDisk(allocates=True)
    for _ in range(3):
        _, log = logs.start(disk)
        log.check_files()
        for commit in (COMMITS[0], COMMITS[3]) * 5:
            logs.append(log, commit)
            log.commit()
            log.check_files()
            log.make_room(70_000)
            log.check_files()
        logs.checkpoint(disk, log)
        log.check_files()
        log.close()


def test_a_directory_that_was_moved_away_fails_the_log(tmp_path: Path) -> None:
    """B10"""
    log = Log.recover(DiskDirectory(tmp_path / "data"), lambda _frame: None, time_ms=1)
    append(log, "a")
    log.commit()
    log.check_files()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    with pytest.raises(LogFailed, match=f"{tmp_path}/data was moved or removed"):
        log.check_files()
    log.abandon()


# Room that is allocated ahead


def test_a_failed_sync_in_a_roll_is_never_taken_for_want_of_room() -> None:
    """B2: what was not committed before the roll may be lost, whatever the error is called."""
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE):
        disk = FakeDisk()
        log = Reader(disk, segment_bytes_max=100).log
        append(log, "a" * 20)

        def fault(operation: str, name: str, code: int = code) -> None:
            if operation == "sync" and name.startswith("00000001.log"):
                raise OSError(code, "not on disk")

        disk.fault = fault
        with pytest.raises(LogFailed, match="not on disk"):
            append(log, "b" * 20)


def test_a_segment_is_sealed_without_the_zeros_of_an_allocation_that_failed() -> None:
    """B3, B6: no descriptor for the next segment, and no room to let this one grow."""
    disk = FakeDisk(allocates=True)
    log = Reader(disk, segment_bytes_max=100_000).log
    append(log, "a" * 90_000)
    disk.fault = no_more(errno.EMFILE, "create")
    disk.capacity_bytes = disk.used_bytes + 20_000
    log.make_room()
    assert log.room.full
    disk.fault = None
    append(log, "b" * 9_000)
    log.commit()
    disk.capacity_bytes = None
    log.make_room()
    append(log, "c" * 50_000)
    log.commit()
    log.check_files()
    log.seal()
    log.check_files()
    disk.kill()
    assert [value[0] for value in values(disk)] == ["a", "b", "c"]


def no_more(code: int, *operations: str) -> Fault:
    """A fault: these operations fail for want of something."""

    def fault(operation: str, _name: str) -> None:
        if operation in operations:
            raise OSError(code, "there is nothing left")

    return fault


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
def test_a_roll_that_the_manifest_refuses_gives_the_new_segments_room_back(code: int) -> None:
    """B3, B6: the log goes on in the old segment, on a disk that has room for one of the two."""
    disk = FakeDisk(allocates=True)
    log = Reader(disk, segment_bytes_max=100_000).log
    append(log, "a" * 60_000)
    log.make_room()
    disk.capacity_bytes = disk.used_bytes

    refused = 0

    def fault(operation: str, name: str) -> None:
        nonlocal refused
        if (operation, name) == ("write", "MANIFEST.next.tmp"):
            refused += 1
            raise OSError(code, "there is nothing left")

    disk.fault = fault
    append(log, "b" * 60_000)
    log.commit()
    log.check_files()
    assert refused == 1
    disk.fault = None
    disk.kill()
    assert [value[0] for value in values(disk)] == ["a", "b"]


@pytest.mark.parametrize("step", ["write", "sync", "rename", "sync_directory"])
def test_a_spare_that_cannot_be_named_gives_its_room_back(step: str) -> None:
    """B3"""
    disk = FakeDisk(allocates=True)
    log = Reader(disk, segment_bytes_max=100_000).log
    append(log, "a" * 60_000)
    log.make_room()
    disk.capacity_bytes = disk.used_bytes

    def fault(operation: str, name: str) -> None:
        if operation == step and (name.startswith("00000002.log") or not name):
            raise OSError(errno.ENOSPC, "there is nothing left")

    disk.fault = fault
    append(log, "b" * 60_000)
    log.commit()
    disk.fault = None
    disk.kill()
    assert [value[0] for value in values(disk)] == ["a", "b"]


def test_a_spare_that_somebody_removed_fails_the_log() -> None:
    """B10"""
    disk = FakeDisk(allocates=True)
    log = Reader(disk, segment_bytes_max=100_000).log
    append(log, "a" * 60_000)
    log.make_room()
    del disk.names["00000002.log.tmp"]
    with pytest.raises(LogFailed):
        append(log, "b" * 60_000)


def test_a_command_for_which_there_is_no_room_does_not_cost_the_spare() -> None:
    """B4: what was held in reserve before is held after it."""
    disk = FakeDisk(allocates=True)
    log = Reader(disk, segment_bytes_max=100_000).log
    append(log, "a" * 95_000)
    log.make_room()
    before = log.room
    assert before.frames_bytes > 90_000
    disk.capacity_bytes = disk.used_bytes + 50_000
    log.make_room(1_000_000)
    assert log.room.full
    disk.capacity_bytes = disk.used_bytes
    log.make_room()
    assert (log.room.frames_bytes, log.room.full) == (before.frames_bytes, False)


def test_a_frame_that_only_the_spare_has_room_for_goes_there_though_the_segment_is_empty() -> None:
    """B3: a segment without frames is a segment like any other."""
    disk = FakeDisk(allocates=True)
    reader = Reader(disk, segment_bytes_max=100_000)
    append(reader.log, "a" * 10_000)
    reader.log.seal()
    reader.log.make_room(200_000)
    disk.capacity_bytes = disk.used_bytes + 1_000
    append(reader.log, "b" * 199_000)
    reader.log.commit()
    reader.log.check_files()
    assert logs.listed(disk) == ["00000001.log", "00000002.log", "00000003.log", MANIFEST_NAME]
    for _ in range(2):
        disk.kill()
        assert [value[0] for value in values(disk)] == ["a", "b"]
    disk.capacity_bytes = None
    log = Reader(disk).log
    log.seal()
    plan = log.plan_fold()
    assert plan is not None
    frames: list[Frame] = []
    replay_sealed(disk.beside(), plan, frames.append, lambda _done, _total: None)
    assert [frame.records[0][0][0] for frame in frames] == ["a", "b"]


def test_the_log_says_what_it_takes_of_the_disk() -> None:
    for allocates in (True, False):
        disk = FakeDisk(allocates=allocates)
        _, log = logs.start(disk)
        for number, commit in enumerate(COMMITS):
            logs.append(log, commit)
            log.commit()
            log.make_room(70_000 if number % 3 == 0 else 0)
            if number == 4:
                logs.checkpoint(disk, log)
            assert log.disk_bytes == sum(
                content.seen.length for name, content in disk.names.items() if name != MANIFEST_NAME
            )
