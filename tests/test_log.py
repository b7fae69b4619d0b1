"""The log's life on a sound disk and on one that fails: open, append, roll, commit, close, open again."""

from __future__ import annotations

import errno
import logging
from typing import Any

import msgpack
import pytest

from tests.harness.disk import CHANGING, FakeDisk, failing
from wal.files import LockedError
from wal.frame import Frame
from wal.log import Log, LogFailed, Recovery
from wal.manifest import MANIFEST_NAME
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
    assert log.recovery == Recovery(records=0, time_ms=0, torn_bytes=0)
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
@pytest.mark.parametrize("creation", [1, 2], ids=["segment", "manifest"])
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
