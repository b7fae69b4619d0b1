"""Verifying: the verdict of a start, all the damage and not only the first, and a server that works meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.embedded.recovery import applying
from engine.store import ops
from engine.store.state import State
from tests.harness import damage, logs
from tests.harness.damage import HEALTHY, Files, disk_of
from tests.harness.disk import FakeDisk, failing
from tests.harness.logs import COMMITS, TIME_MS
from wal.frame import Scan, Tail, encode
from wal.log import Log
from wal.manifest import MANIFEST_NAME, CleanClose, decode_manifest, encode_manifest
from wal.segment import HEADER_BYTES, Damage, NewerFormat, SegmentHeader, segment_name, with_crc
from wal.tools.check import FileReport, Report, Torn, verify
from wal.tools.dump import dump
from wal.tools.view import NoLog, Restless
from wal.tools.walk import settle

CRASHED, CLOSED = HEALTHY["crashed"], HEALTHY["closed"]
FIRST, MIDDLE, LAST = damage.segments(CRASHED)


def report_on(disk: FakeDisk) -> Report:
    """Verifies beside whoever holds the disk; nothing may change."""
    directory = disk.beside()
    try:
        return verify(directory, lambda: applying(State()), lambda _done, _total: None)
    finally:
        directory.close()


def refusal(disk: FakeDisk) -> str | None:
    """What a start refuses with."""
    try:
        logs.start(disk)[1].abandon()
    except Damage as found:
        return str(found)
    return None


@pytest.mark.parametrize("which", HEALTHY)
def test_the_first_that_is_found_is_what_a_start_refuses_with_and_nothing_is_found_when_it_does_not(which: str) -> None:
    """A1 to A12: whatever is wrong."""
    refused = 0
    for name, files in damage.damaged(which):
        disk = disk_of(files)
        try:
            found = [str(one) for one in report_on(disk).damage]
        except NoLog:
            found = []
        assert disk.content() == files, name
        assert logs.changes(disk) == []
        expected = refusal(disk)
        assert found[:1] == ([] if expected is None else [expected]), name
        refused += bool(found)
    assert refused > 250


def test_a_whole_log_is_described_file_by_file() -> None:
    report = report_on(disk_of(CLOSED | {"notes.txt": b"", f"{FIRST}.torn-1": b"", "MANIFEST.damaged-2": b""}))
    assert report.files == [
        FileReport(FIRST, len(CLOSED[FIRST]), 3, 4, 1, 4),
        FileReport(MIDDLE, len(CLOSED[MIDDLE]), 3, 4, 5, 8),
        FileReport(LAST, len(CLOSED[LAST]), 2, 4, 9, 12),
    ]
    assert (report.last_lsn, report.time_ms, report.is_closed) == (12, TIME_MS + len(COMMITS) - 1, True)
    assert (report.damage, report.torn) == ([], None)
    assert (report.kept, report.foreign, report.leftovers) == (
        [f"{FIRST}.torn-1", "MANIFEST.damaged-2"],
        ["notes.txt"],
        [],
    )


def test_the_records_of_a_snapshot_are_counted_without_lsns() -> None:
    report = report_on(disk_of(HEALTHY["closed with snapshot"]))
    snapshot = report.files[0]
    assert snapshot.name.endswith(".snapshot")
    assert (snapshot.frames, snapshot.records, snapshot.first_lsn) == (1, 3, None)
    assert report.files[1].first_lsn == 6
    assert report.last_lsn == 12


def test_a_torn_tail_and_what_an_interrupted_roll_leaves_is_told_and_is_no_damage() -> None:
    """A1, A14"""
    torn = CRASHED | {LAST: CRASHED[LAST][:-3], "00000004.log.tmp": b"", "00000004.log": b"HOLD"}
    report = report_on(disk_of(torn))
    assert report.damage == []
    assert report.torn == Torn(LAST, 106, 38, "the frame's end is cut off")
    assert report.leftovers == ["00000004.log", "00000004.log.tmp"]


def broken(files: Files, *places: tuple[str, int]) -> Files:
    files = dict(files)
    for name, at in places:
        files[name] = files[name][:at] + bytes([files[name][at] ^ 1]) + files[name][at + 1 :]
    return files


def test_all_places_are_found_within_a_file_and_in_those_behind() -> None:
    places = ((FIRST, 90), (FIRST, 170), (MIDDLE, 3), (MIDDLE, 120), (LAST, 80), (LAST, 140))
    found = report_on(disk_of(broken(CLOSED, *places))).damage
    assert [(one.file, one.offset, one.lsn) for one in found] == [
        (FIRST, 68, 1),
        (FIRST, 159, 4),
        (MIDDLE, 0, 0),
        (MIDDLE, 106, 6),
        (LAST, 68, 9),
    ]
    # The end of the last file: its first frame was found broken, and nothing behind it is whole.
    assert found[-1].reason.startswith("the frame's checksum does not match")


def test_what_stands_behind_a_missing_segment_and_a_missing_manifest_is_read_as_well() -> None:
    files = broken({name: data for name, data in CLOSED.items() if name != FIRST}, (LAST, 80))
    found = report_on(disk_of(files)).damage
    assert [(one.file, one.offset) for one in found] == [(FIRST, 0), (LAST, 68)]
    files = broken({name: data for name, data in CLOSED.items() if name != "MANIFEST"}, (MIDDLE, 120))
    found = report_on(disk_of(files)).damage
    assert [(one.file, one.offset) for one in found] == [("MANIFEST", 0), (MIDDLE, 106)]


def test_two_missing_segments_are_both_named() -> None:
    found = report_on(disk_of({name: data for name, data in CLOSED.items() if name not in (FIRST, MIDDLE)})).damage
    assert [(one.file, one.reason) for one in found] == [
        (FIRST, "the segment is missing"),
        (MIDDLE, "the file is missing"),
    ]


def test_a_directory_without_a_log_and_one_of_a_newer_format_are_refused() -> None:
    """A13"""
    for files in ({}, {"00000001.log": CRASHED[FIRST][:HEADER_BYTES]}, {"LOCK": b""}):
        with pytest.raises(NoLog, match="there is no log in fake"):
            report_on(disk_of(files))
    newer = bytearray(CRASHED[LAST][: HEADER_BYTES - 4])
    newer[8] = 2
    with pytest.raises(NewerFormat):
        report_on(disk_of(CRASHED | {LAST: with_crc(bytes(newer)) + CRASHED[LAST][HEADER_BYTES:]}))


def test_an_error_while_reading_is_no_damage() -> None:
    """A15"""
    disk = disk_of(CRASHED)
    disk.fault = failing("read")
    with pytest.raises(OSError, match="injected") as caught:
        report_on(disk)
    assert caught.value.errno == errno.EIO


# Beside a server


def at_work(log: Log, disk: FakeDisk) -> Callable[[int], None]:
    """What a server does in one go: commits, rolls, and now and then a checkpoint."""

    def work(number: int) -> None:
        for _ in range(3):
            logs.append(log, ((ops.PUT, b"key", b"value %d" % number, None),))
            log.commit()
        if number % 2:
            log.seal()
            damage.checkpoint(log, disk.beside())

    return work


@pytest.mark.parametrize("files", HEALTHY.values(), ids=HEALTHY)
@pytest.mark.parametrize("work", [1, 2])
def test_what_a_server_does_meanwhile_is_never_taken_for_damage(files: Files, work: int) -> None:
    """At whatever moment of the verification it commits, rolls, folds and removes."""
    quiet = disk_of(files)
    logs.start(quiet)
    quiet.log.clear()
    report_on(quiet)
    for moment in range(len(quiet.log)):
        disk = disk_of(files)
        _, log = logs.start(disk)
        interfere(disk, moment, lambda log=log, disk=disk: at_work(log, disk)(work))  # type: ignore[misc]
        report = report_on(disk)
        assert report.damage == [], moment
        assert report.last_lsn >= 12
        disk.fault = None
        log.abandon()


def interfere(disk: FakeDisk, moment: int, act: Callable[[], None]) -> None:
    """Has `act` called before the operation with this number."""
    left = moment

    def fault(_operation: str, _name: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            act()

    disk.fault = fault


def test_a_manifest_that_never_stands_still_is_given_up() -> None:
    disk = disk_of(CRASHED)
    manifests = [replace(decode_manifest(CRASHED[MANIFEST_NAME], ""), clean_close=CleanClose(n, n)) for n in (1, 2)]

    def fault(operation: str, name: str) -> None:
        if operation == "hold":
            manifests.reverse()
            disk.put(MANIFEST_NAME, encode_manifest(manifests[0]))
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)

    disk.fault = fault
    with pytest.raises(Restless, match="changes faster than it can be read"):
        verify(disk.beside(), lambda: applying(State()), lambda _done, _total: None)


def test_a_frame_that_is_missed_while_it_is_written_is_no_damage() -> None:
    for moment in range(1, 8):
        disk = disk_of(CRASHED)
        disk.fault = damage.racing(disk, LAST, moment)
        report = report_on(disk)
        assert (report.damage, report.torn) == ([], None)
        disk.fault = damage.racing(disk, LAST, moment)
        entries = list(dump(disk.beside()))
        assert not any(entry.is_damage for entry in entries)
        assert entries[-1].item[2] == 11


def test_a_server_that_starts_meanwhile_or_rolls_just_now_is_no_damage() -> None:
    """It takes the footer back and appends; it has made a segment that the manifest is about to name."""
    rolling = disk_of(CRASHED)
    _, log = logs.start(rolling)
    while len(rolling.segments()) == 3:
        logs.append(log, ((ops.PUT, b"key", b"value", None),))
    log.abandon()
    new = rolling.segments()[-1]
    between = {LAST: rolling.get(LAST), new: rolling.get(new)[:HEADER_BYTES]}

    def roll(disk: FakeDisk) -> None:
        disk.put(MANIFEST_NAME, rolling.get(MANIFEST_NAME))
        disk.names[new].write(0, rolling.get(new))

    def begin(disk: FakeDisk) -> None:
        _, log = logs.start(disk)
        logs.append(log, ((ops.PUT, b"key", b"value", None),))
        log.abandon()

    for files, act in ((CRASHED | between, roll), (CLOSED, begin)):
        for moment in range(1, 40):
            disk = disk_of(files)
            interfere(disk, moment, lambda disk=disk, act=act: act(disk))  # type: ignore[misc]
            assert report_on(disk).damage == [], moment


class Racing:
    """A segment of which the first read has missed a frame that was being written, as a page of the system's may be."""

    path = "fake"

    def __init__(self, seen: bytes, now: bytes) -> None:
        self.reads = [seen, now]

    def names(self) -> list[str]:
        return ["00000001.log"]

    def size(self, name: str) -> int:
        return len(self.reads[0])

    def read(self, name: str, offset: int = 0, count: int | None = None) -> bytes:
        data = self.reads.pop(0) if len(self.reads) > 1 else self.reads[0]
        return data[offset : None if count is None else offset + count]


def test_a_frame_that_was_missed_while_it_was_written_is_seen_by_a_second_look() -> None:
    header = SegmentHeader(1, bytes(16), bytes(range(1, 9)), 1)
    frames = [encode(header.identity, lsn, TIME_MS, lsn - 1, [ops.pack((ops.POP_LAST, b"q"))]) for lsn in (1, 2, 3)]
    now = header.encode() + b"".join(frames)
    seen = header.encode() + frames[0] + bytes(len(frames[1])) + frames[2]
    for second, tail, lsn in ((now, Tail.END, 4), (seen, Tail.CORRUPT, 2)):
        source = Racing(seen, second)
        scan = Scan(source.read("00000001.log"), HEADER_BYTES, header.identity, 1)
        list(scan)
        assert scan.tail is Tail.CORRUPT
        settled = settle(source, segment_name(1), header.identity, scan)
        assert (settled.tail, settled.next_lsn) == (tail, lsn)
