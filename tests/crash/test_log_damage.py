"""Damaged logs, byte by byte: what heals, what is refused, and that a refusal changes nothing on disk."""

from __future__ import annotations

import errno
import logging
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from engine.store import ops
from tests.harness import logs
from tests.harness.disk import FakeDirectory, FakeDisk
from tests.harness.logs import COMMITS, DUMPS, TIME_MS
from wal.files import LOCK_NAME, DiskDirectory
from wal.frame import HEAD_BYTES, Scan, encode
from wal.log import Log
from wal.manifest import MANIFEST_NAME
from wal.segment import HEADER_BYTES, Damage, NewerFormat, SegmentHeader, decode_header

CRASHED = logs.crashed().content()
CLOSED = logs.closed().content()
SEGMENTS = sorted(name for name in CRASHED if name.endswith(".log"))
FIRST, MIDDLE, LAST = SEGMENTS


def disk_of(files: dict[str, bytes]) -> FakeDisk:
    disk = FakeDisk()
    for name, data in files.items():
        disk.put(name, data)
    return disk


def without(files: dict[str, bytes], name: str) -> FakeDisk:
    """A disk with these files but one."""
    return disk_of({other: data for other, data in files.items() if other != name})


def header(name: str) -> SegmentHeader:
    return decode_header(CRASHED[name], "", name, 0)


def ends(name: str) -> list[int]:
    """Where each frame of a segment ends, its header first."""
    scan = Scan(CRASHED[name], HEADER_BYTES, header(name).identity, header(name).first_lsn)
    return [frame.offset for frame in scan] + [scan.offset]


ENDS = ends(LAST)
BEFORE_LAST = len(COMMITS) - (len(ENDS) - 1)
"""Commits in the segments before the last."""


def refused(disk: FakeDisk) -> Damage:
    """Starts, which must refuse and change nothing; returns what it said."""
    before = disk.content()
    disk.log.clear()
    with pytest.raises(Damage) as caught:
        logs.start(disk)
    assert disk.content() == before
    assert logs.changes(disk) == []
    damage = caught.value
    assert str(damage) == (
        f"fake/{damage.file} is damaged at offset {damage.offset}, record {damage.lsn}: {damage.reason}."
        " Nothing was changed on disk"
    )
    return damage


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each bit flipped, one at a time: the byte's offset, and the data."""
    for at in range(len(data)):
        for bit in range(8):
            yield at, data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def torn_copies(disk: FakeDisk) -> dict[str, bytes]:
    return {name: data for name, data in disk.content().items() if ".torn-" in name}


def test_the_log_under_test_has_three_segments_of_several_commits() -> None:
    assert len(SEGMENTS) == 3
    assert min(len(ends(name)) for name in SEGMENTS) >= 3
    assert len({str(dump) for dump in DUMPS}) == len(COMMITS) + 1
    assert logs.dump(logs.crashed()) == logs.dump(logs.closed()) == DUMPS[-1]


# What heals


def test_the_last_segment_cut_at_any_offset_starts_with_the_whole_commits_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A1, A10, I7"""
    for size in range(len(CRASHED[LAST]) + 1):
        caplog.clear()
        disk = disk_of(CRASHED)
        disk.put(LAST, CRASHED[LAST][:size])
        end = max([end for end in ENDS if end <= size], default=0)
        commits = BEFORE_LAST + (ENDS.index(end) if end else 0)

        dump = logs.dump(disk)
        assert dump == DUMPS[commits]
        torn = CRASHED[LAST][end:size].rstrip(b"\0")
        assert torn_copies(disk) == ({f"{LAST}.torn-{TIME_MS}": torn} if torn else {})
        assert disk.get(LAST) == (CRASHED[LAST][:end] or header(LAST).encode())
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == bool(torn)
        if torn:
            records = sum(map(len, COMMITS[:commits]))
            text = warnings[0].getMessage()
            assert text.startswith(
                f"fake/{LAST}: torn tail of {len(torn)} bytes cut at offset {end}, last record {records}, copy in"
            )

        caplog.clear()
        healed = disk.content()
        assert logs.dump(disk) == dump
        assert disk.content() == healed
        assert caplog.records == []
        assert logs.goes_on(disk)


def test_a_flipped_bit_after_a_crash_is_refused_or_takes_the_last_commit_and_never_more() -> None:
    """A3, A4: every bit of every file; only in the last frame it may have been a torn write."""
    healed = 0
    for name, data in CRASHED.items():
        for at, flipped in flips(data):
            disk = disk_of(CRASHED)
            disk.put(name, flipped)
            if name == LAST and at >= ENDS[-2]:
                assert logs.dump(disk) == DUMPS[-2]
                healed += 1
            else:
                damage = refused(disk)
                assert damage.file == name
                assert damage.offset <= at
    assert healed == 8 * (ENDS[-1] - ENDS[-2])


@pytest.mark.parametrize("count", [1, 511, 512, 4096, 1024 * 1024])
def test_zeros_after_the_last_commit_are_cut_off_in_silence(count: int, caplog: pytest.LogCaptureFixture) -> None:
    """A5"""
    disk = disk_of(CRASHED)
    disk.put(LAST, CRASHED[LAST] + bytes(count))
    assert logs.dump(disk) == DUMPS[-1]
    assert disk.content() == CRASHED
    assert caplog.records == []


def test_zeros_over_the_end_lose_the_last_commit_or_are_refused() -> None:
    """A5"""
    data = CRASHED[LAST]
    for count in range(1, len(data) + 1):
        zeroed = data[:-count] + bytes(count)
        disk = disk_of(CRASHED)
        disk.put(LAST, zeroed)
        kept = max([end for end in ENDS if zeroed[:end] == data[:end]], default=None)  # a frame may end with a zero
        if kept is None:
            assert refused(disk).file == LAST
        else:
            assert logs.dump(disk) == DUMPS[BEFORE_LAST + ENDS.index(kept)]


def test_garbage_after_the_last_commit_is_cut_off_after_a_copy_was_kept() -> None:
    """A6"""
    chance = random.Random(6)
    for size in (1, 3, 12, 13, 100, 5000):
        garbage = b"\x01" + chance.randbytes(size) + b"\x01"
        disk = disk_of(CRASHED)
        disk.put(LAST, CRASHED[LAST] + garbage)
        assert logs.dump(disk) == DUMPS[-1]
        assert disk.content() == CRASHED | {f"{LAST}.torn-{TIME_MS}": garbage}


def test_old_content_after_the_last_commit_is_not_taken_for_the_next() -> None:
    """A6: frames of this segment, of another, and of another life of the same store."""
    other = FakeDisk(seed=1)
    logs.write(other, clean=False)
    for old in (CRASHED[LAST][HEADER_BYTES:], CRASHED[FIRST][HEADER_BYTES:], CRASHED[LAST], other.get(LAST)):
        disk = disk_of(CRASHED)
        disk.put(LAST, CRASHED[LAST] + old)
        assert logs.dump(disk) == DUMPS[-1]


def test_commits_that_reached_the_disk_out_of_order_are_torn() -> None:
    """A7: three commits under one sync that never returned; the pages of the last are there, those of the first not."""
    disk = FakeDisk()
    logs.write(disk, COMMITS[:1], clean=False)
    _, log = logs.start(disk)
    synced = len(disk.get(FIRST))
    sizes = [synced]
    for commit in COMMITS[1:3]:
        logs.append(log, commit)
        sizes.append(len(disk.get(FIRST)))
    log.abandon()
    data = disk.get(FIRST)
    for hole_end in range(synced + 1, sizes[1] + 1):
        damaged = disk_of(disk.content())
        damaged.put(FIRST, data[:synced] + bytes(hole_end - synced) + data[hole_end:])
        assert logs.dump(damaged) == DUMPS[1]
        assert logs.goes_on(damaged)


def test_a_torn_copy_of_an_earlier_start_is_not_overwritten() -> None:
    """The clock may say the same again, or be set back."""
    disk = disk_of(CRASHED)
    for size in (-2, -3, -4):
        disk.put(LAST, CRASHED[LAST][:size])
        logs.dump(disk)
    torn = CRASHED[LAST][ENDS[-2] :]
    assert torn_copies(disk) == {
        f"{LAST}.torn-{TIME_MS}": torn[:-2],
        f"{LAST}.torn-{TIME_MS + 1}": torn[:-3],
        f"{LAST}.torn-{TIME_MS + 2}": torn[:-4],
    }


# What is refused


def test_a_flipped_bit_after_a_clean_close_is_refused() -> None:
    """A2: every bit of every file, the manifest included."""
    for name, data in CLOSED.items():
        for at, flipped in flips(data):
            disk = disk_of(CLOSED)
            disk.put(name, flipped)
            damage = refused(disk)
            assert damage.file == name
            assert damage.offset <= at


def test_a_refusal_names_the_commit_that_holds_the_damage() -> None:
    """A2"""
    for name in SEGMENTS:
        scan = Scan(CLOSED[name], HEADER_BYTES, header(name).identity, header(name).first_lsn)
        for frame in scan:
            disk = disk_of(CLOSED)
            at = frame.offset + HEAD_BYTES
            disk.put(name, CLOSED[name][:at] + b"?" + CLOSED[name][at + 1 :])
            damage = refused(disk)
            assert (damage.file, damage.offset, damage.lsn) == (name, frame.offset, frame.first_lsn)


def test_any_byte_more_or_less_after_a_clean_close_is_refused() -> None:
    """A2, A11"""
    for name, data in CLOSED.items():
        longer = [data + bytes([byte]) for byte in (0, 1, 0x80)] + [data + data]
        for other in longer + [data[:size] for size in range(len(data))]:
            disk = disk_of(CLOSED)
            disk.put(name, other)
            assert refused(disk).file == name


@pytest.mark.parametrize("name", [FIRST, MIDDLE])
def test_a_segment_before_the_last_that_was_cut_is_refused_also_without_a_clean_close(name: str) -> None:
    """A11: also where a commit ends."""
    for size in range(len(CRASHED[name])):
        disk = disk_of(CRASHED)
        disk.put(name, CRASHED[name][:size])
        damage = refused(disk)
        end = max([end for end in ends(name) if end <= size], default=0)
        assert (damage.file, damage.offset) == (name, end)


def test_a_cut_where_a_commit_ends_is_told_by_the_next_segment() -> None:
    """A11"""
    disk = disk_of(CRASHED)
    disk.put(FIRST, CRASHED[FIRST][: ends(FIRST)[1]])
    damage = refused(disk)
    assert (damage.file, damage.offset, damage.lsn) == (FIRST, ends(FIRST)[1], 2)
    said = f"{MIDDLE} says that it had {len(CRASHED[FIRST])} bytes and ended with record {header(MIDDLE).first_lsn - 1}"
    assert said in damage.reason


@pytest.mark.parametrize("files", [CRASHED, CLOSED], ids=["crashed", "closed"])
@pytest.mark.parametrize("name", SEGMENTS)
def test_a_missing_segment_is_refused_by_name_and_first_record(name: str, files: dict[str, bytes]) -> None:
    """A8"""
    damage = refused(without(files, name))
    assert (damage.file, damage.lsn) == (name, header(name).first_lsn)
    assert "missing" in damage.reason


def test_a_missing_manifest_is_refused() -> None:
    """A8"""
    damage = refused(without(CLOSED, MANIFEST_NAME))
    assert damage.file == MANIFEST_NAME
    assert "the manifest is missing, but there is 00000001.log" in damage.reason


@pytest.mark.parametrize("there", [set(CLOSED), {MANIFEST_NAME}, {FIRST}], ids=["all", "manifest", "segment"])
def test_a_listing_that_comes_back_empty_never_has_a_new_log_made_over_the_old_one(
    there: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8, A15"""
    disk = disk_of({name: CLOSED[name] for name in there})
    monkeypatch.setattr(FakeDirectory, "names", lambda _self: [])
    damage = refused(disk)
    assert damage.file in there
    assert "the listing of the directory leaves this file out" in damage.reason


def test_a_missing_manifest_is_refused_also_when_only_an_empty_later_segment_is_left() -> None:
    """A8: its number says that there were others."""
    assert refused(disk_of({MIDDLE: CRASHED[MIDDLE][:HEADER_BYTES]})).file == MANIFEST_NAME


@pytest.mark.parametrize("number", [4, 5, 99])
@pytest.mark.parametrize("name", SEGMENTS)
def test_a_segment_under_another_name_as_well_is_refused(name: str, number: int) -> None:
    """A9"""
    copy = f"{number:08}.log"
    damage = refused(disk_of(CRASHED | {copy: CRASHED[name]}))
    assert (damage.file, damage.reason) == (copy, "the manifest does not name this segment")


def test_segments_that_changed_places_or_names_are_refused() -> None:
    """A9"""
    for name in SEGMENTS:
        for other in SEGMENTS:
            if name != other:
                damage = refused(disk_of(CRASHED | {name: CRASHED[other]}))
                assert (damage.file, damage.reason) == (name, f"the segment is a copy of {other}")
        moved = {f"x{name}" if old == name else old: data for old, data in CRASHED.items()}
        assert refused(disk_of(moved)).file == name
        assert refused(disk_of(CRASHED | {name: CRASHED[MANIFEST_NAME]})).file == name  # it begins in the same way


def test_segments_and_manifests_of_another_store_are_refused() -> None:
    """A9"""
    other = FakeDisk(seed=1)
    logs.write(other, clean=False)
    for name in SEGMENTS:
        damage = refused(disk_of(CRASHED | {name: other.get(name)}))
        assert (damage.file, damage.reason) == (name, "the segment belongs to another data directory")
    assert refused(disk_of(CRASHED | {MANIFEST_NAME: other.get(MANIFEST_NAME)})).file == FIRST


def test_a_segment_of_another_life_of_the_same_store_is_refused() -> None:
    """A9: a copy of the directory went on by itself, and one of its segments came back."""
    fork = disk_of(CRASHED)
    fork.random_bytes(99)
    _, log = logs.start(fork)
    original = disk_of(CRASHED)
    _, other = logs.start(original)
    for disk, going in ((fork, log), (original, other)):
        for number in range(4):
            logs.append(going, ((ops.PUT, b"key", b"%d" % number, None),))
        assert len(disk.segments()) > 3
        going.close()
    damage = refused(disk_of(original.content() | {"00000004.log": fork.get("00000004.log")}))
    assert (damage.file, damage.reason) == ("00000004.log", "the segment is not the one that the manifest names")


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_data_of_a_newer_format_is_refused_and_not_touched() -> None:
    """A13"""
    newer_header = bytearray(CRASHED[LAST][: HEADER_BYTES - 4])
    newer_header[8:10] = struct.pack("<H", 2)
    newer = [
        (LAST, 2, sealed(bytes(newer_header)) + CRASHED[LAST][HEADER_BYTES:]),
        (MANIFEST_NAME, 3, sealed(b"HOLDFAST" + msgpack.packb((3, {"something": "else"})))),
    ]
    for name, version, data in newer:
        disk = disk_of(CRASHED)
        disk.put(name, data)
        before = disk.content()
        for _ in range(100):
            with pytest.raises(
                NewerFormat, match=f"fake/{name} has format version {version}, this Holdfast reads up to {version - 1}"
            ):
                logs.start(disk)
        assert disk.content() == before
        assert logs.changes(disk) == []


def test_a_hundred_starts_on_a_real_log_of_a_newer_format_change_no_byte_and_name_the_way_back(tmp_path: Path) -> None:
    """A13: but for LOCK, which names who holds it."""
    for name, data in CRASHED.items():
        (tmp_path / name).write_bytes(data)
    newer = sealed(b"HOLDFAST" + msgpack.packb((3, {"something": "else"})))
    (tmp_path / MANIFEST_NAME).write_bytes(newer)
    tmp_path.chmod(0o700)

    def content() -> dict[str, tuple[bytes, int]]:
        files = (file for file in tmp_path.iterdir() if file.name != LOCK_NAME)
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = content()
    for _ in range(100):
        directory = DiskDirectory(tmp_path)
        with pytest.raises(NewerFormat, match="Start the version of Holdfast that wrote it, or a later one"):
            Log.recover(directory, lambda _frame: None, time_ms=TIME_MS)
        directory.close()
    assert content() == before


@pytest.mark.parametrize(
    "record",
    [
        (),
        (0,),
        (99, b"a"),
        (True, b"a"),
        (1.0, b"a", b"1", None),
        ("PUT", b"a", b"1", None),
        (None,),
        ((1,), b"a"),
        (ops.PUT, b"a", b"1"),
        (ops.PUT, b"a", b"1", None, None),
        (ops.PUT, "a", b"1", None),
        (ops.PUT, b"a", 1, None),
        (ops.PUT, b"a", b"1", -1),
        (ops.PUT, b"a", b"1", True),
        (ops.PUT, b"a", b"1", 1.5),
        (ops.REMOVE, b"unknown"),
        (ops.REMOVE, (b"c",)),
        (ops.PUSH, b"c", (b"1",)),
        (ops.PUSH, b"q", (1,)),
        (ops.PUSH, b"q", b"1"),
        (ops.POP_FIRST, b"unknown"),
        (ops.POP_FIRST, b"c"),
        (ops.POP_LAST, b"unknown"),
        (ops.RETURN_FIRST, b"unknown", b"1"),
        (ops.RETURN_LAST, b"c", b"1"),
        (ops.EXPIRE, ()),
        (ops.EXPIRE, (b"unknown",)),
        (ops.EXPIRE, (b"c", b"c")),
        (ops.EXPIRE, b"c"),
        (msgpack.Timestamp(1), b"a"),
    ],
    ids=repr,
)
def test_a_record_that_no_version_writes_is_refused_though_its_checksum_is_valid(record: tuple[Any, ...]) -> None:
    """A12"""
    last_lsn = sum(map(len, COMMITS))
    good, bad = ops.pack((ops.PUT, b"good", b"", None)), msgpack.packb(record, use_bin_type=True)
    frame = encode(header(LAST).identity, last_lsn + 1, TIME_MS, last_lsn, [good, bad])
    disk = disk_of(CRASHED)
    disk.put(LAST, CRASHED[LAST] + frame)
    damage = refused(disk)
    assert (damage.file, damage.offset, damage.lsn) == (LAST, ENDS[-1], last_lsn + 1)
    assert (
        f"the commit of records {last_lsn + 1} to {last_lsn + 2} cannot be applied: record {last_lsn + 2}: "
        in damage.reason
    )


def test_a_pop_from_an_empty_queue_in_the_log_is_refused() -> None:
    """A12"""
    disk = FakeDisk()
    logs.write(disk, [((ops.PUSH, b"q", (b"1",)),), ((ops.POP_LAST, b"q"),), ((ops.POP_LAST, b"q"),)], clean=True)
    damage = refused(disk)
    assert damage.lsn == 3
    assert "pops from an empty queue" in damage.reason


def test_an_error_while_reading_is_never_taken_for_the_end() -> None:
    """A15: whichever read it is, and whether it comes again or not."""
    reads = 0
    disk = disk_of(CRASHED)
    logs.dump(disk)
    total = sum(operation in ("read", "names", "size") for operation, _ in disk.log)
    for bad in range(total):
        disk = disk_of(CRASHED)
        reads = 0

        def fail(operation: str, name: str, bad: int = bad) -> None:
            nonlocal reads
            if operation in ("read", "names", "size"):
                reads += 1
                if reads == bad + 1:
                    raise OSError(errno.EIO, "cannot read", name)

        disk.fault = fail
        with pytest.raises(OSError, match="cannot read"):
            logs.start(disk)
        assert disk.content() == CRASHED
        disk.fault = None
        assert logs.dump(disk) == DUMPS[-1]
