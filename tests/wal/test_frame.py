"""Frames: what is written is read, and nothing else is; torn and corrupt are told apart."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wal.frame import FRAME_BYTES_MAX, HEAD_BYTES, Frame, Identity, Record, Scan, Tail, encode

IDENTITY = Identity(b"\x80abc", 0x12345678)

# first LSN, time, durable LSN, records, bytes on disk: what the writer makes of it, and what the reader takes it from.
CASES: list[tuple[int, int, int, list[Record], str]] = [
    (1, 0, 0, [(1,)], "80616263 07000000 de9e43cc 94010000 919101"),
    (
        300,
        1_700_000_000_000,
        299,
        [(1, b"k", b""), (2, b"k")],
        "80616263 1d000000 280a7c31 94cd012c cf0000018bcfe56800 cd012b 92 9301c4016bc400 9202c4016b",
    ),
]


def made(first_lsn: int, durable_lsn: int, *records: Record, identity: Identity = IDENTITY) -> bytes:
    packed = [msgpack.packb(record) for record in records or ((1, b"key", b"value"),)]
    return encode(identity, first_lsn, 0, durable_lsn, packed)


def framed(payload: bytes) -> bytes:
    """A frame with a valid checksum around any payload."""
    length = struct.pack("<I", len(payload))
    crc = zlib.crc32(payload, zlib.crc32(length, IDENTITY.seed))
    return IDENTITY.mark + length + struct.pack("<I", crc) + payload


def read(data: bytes, next_lsn: int = 1) -> tuple[list[int], Tail | None, int]:
    """LSNs of the frames found, how they end, and where."""
    scan = Scan(data, 0, IDENTITY, next_lsn)
    return [frame.first_lsn for frame in scan], scan.tail, scan.offset


def flips(data: bytes, start: int = 0, end: int | None = None) -> list[bytes]:
    """The data with each bit between two offsets flipped, one at a time."""
    end = len(data) if end is None else end
    return [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(start, end) for bit in range(8)]


# Three commits, each synced before the next was written.
ONE, TWO, THREE = made(1, 0), made(2, 1), made(3, 2)
SYNCED = ONE + TWO + THREE
STARTS = (0, len(ONE), len(ONE + TWO), len(SYNCED))


@pytest.mark.parametrize(("first_lsn", "time_ms", "durable_lsn", "records", "expected"), CASES)
def test_the_writer_makes_exactly_these_bytes(
    first_lsn: int, time_ms: int, durable_lsn: int, records: list[Record], expected: str
) -> None:
    packed = [msgpack.packb(record) for record in records]
    assert encode(IDENTITY, first_lsn, time_ms, durable_lsn, packed) == bytes.fromhex(expected)


@pytest.mark.parametrize(("first_lsn", "time_ms", "durable_lsn", "records", "expected"), CASES)
def test_the_reader_finds_in_these_bytes_what_was_written(
    first_lsn: int, time_ms: int, durable_lsn: int, records: list[Record], expected: str
) -> None:
    data = bytes.fromhex(expected)
    scan = Scan(data, 0, IDENTITY, first_lsn)
    assert list(scan) == [Frame(0, len(data), first_lsn, time_ms, durable_lsn, tuple(records))]
    assert (scan.tail, scan.offset, scan.next_lsn) == (Tail.END, len(data), first_lsn + len(records))


FIELDS = st.none() | st.binary() | st.integers(-(2**63), 2**64 - 1) | st.lists(st.binary()).map(tuple)
RECORDS = st.lists(st.lists(FIELDS, min_size=1).map(tuple), min_size=1)


@settings(max_examples=40)
@given(st.lists(RECORDS, max_size=5))
def test_any_commits_come_back_as_they_were_appended(commits: list[list[Record]]) -> None:
    data, lsn = b"", 1
    for records in commits:
        data += made(lsn, lsn - 1, *records)
        lsn += len(records)
    scan = Scan(data, 0, IDENTITY, 1)
    assert [list(frame.records) for frame in scan] == commits
    assert (scan.tail, scan.next_lsn) == (Tail.END, lsn)


@given(st.binary(), st.binary())
def test_bytes_of_any_kind_are_read_without_an_error(garbage: bytes, payload: bytes) -> None:
    for data in (garbage, IDENTITY.mark + garbage, ONE + framed(payload) + garbage):
        scan = Scan(data, 0, IDENTITY, 1)
        list(scan)
        assert scan.tail is not None


def test_nothing_at_all_is_an_end() -> None:
    assert read(b"") == ([], Tail.END, 0)


def test_cut_at_every_offset_the_whole_frames_before_are_kept() -> None:
    """A1"""
    for size in range(len(SYNCED) + 1):
        whole = sum(size >= start for start in STARTS[1:])
        tail = Tail.END if size in STARTS else Tail.TORN
        assert read(SYNCED[:size]) == ([1, 2, 3][:whole], tail, STARTS[whole])


@pytest.mark.parametrize(("number", "tail"), [(0, Tail.CORRUPT), (1, Tail.CORRUPT), (2, Tail.TORN)])
def test_a_flipped_bit_is_damage_when_a_later_frame_knew_the_record_durable(number: int, tail: Tail) -> None:
    """A3, A4: every bit of each frame, those of the length included; only in the last frame it may be a torn write."""
    for data in flips(SYNCED, STARTS[number], STARTS[number + 1]):
        assert read(data) == ([1, 2, 3][:number], tail, STARTS[number])


def test_the_reason_names_the_frame_that_proves_the_damage() -> None:
    """A3"""
    scan = Scan(b"\0" + SYNCED[1:], 0, IDENTITY, 1)
    assert not list(scan)
    assert scan.reason == f"no frame starts here; the frame at offset {STARTS[1]} shows that LSN 1 had been on disk"


def test_a_frame_that_is_missing_altogether_is_damage_when_the_next_knew_it_durable() -> None:
    """A3"""
    assert read(ONE + THREE) == ([1], Tail.CORRUPT, len(ONE))


def test_pages_written_out_of_order_are_a_torn_tail() -> None:
    """A7: commit 2 and 3 were never synced; of the two only the later reached the disk."""
    three = made(3, 1)
    for hole in (bytes(len(TWO)), TWO[:-1] + b"?", b""):
        assert read(ONE + hole + three) == ([1], Tail.TORN, len(ONE))


def test_a_frame_with_the_crc_of_nothing_is_no_frame() -> None:
    """Length 0 is illegal, its checksum valid or not: CRC-32 of nothing is 0."""
    for empty in (framed(b""), IDENTITY.mark + bytes(8)):
        assert read(ONE + empty) == ([1], Tail.TORN, len(ONE))


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_beyond_the_file_allocates_nothing(length: int) -> None:
    """A16"""
    data = ONE + IDENTITY.mark + struct.pack("<II", length, 0) + b"rest"
    tracemalloc.start()
    try:
        assert read(data) == ([1], Tail.TORN, len(ONE))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "identity",
    [Identity(b"\x80abd", IDENTITY.seed), Identity(IDENTITY.mark, IDENTITY.seed + 1)],
    ids=["another mark", "another seed"],
)
def test_a_frame_of_another_segment_does_not_fit(identity: Identity) -> None:
    """A6"""
    stranger = made(2, 1, identity=identity)
    assert read(ONE + stranger) == ([1], Tail.TORN, len(ONE))
    assert read(ONE + stranger + stranger) == ([1], Tail.TORN, len(ONE))


def test_old_frames_of_the_segment_itself_do_not_fit_where_they_do_not_belong() -> None:
    """A6"""
    assert read(SYNCED + TWO) == ([1, 2, 3], Tail.TORN, len(SYNCED))
    assert read(SYNCED + SYNCED) == ([1, 2, 3], Tail.TORN, len(SYNCED))


@pytest.mark.parametrize("count", [1, 3, 4, HEAD_BYTES, 511, 512, 4096, 1024 * 1024])
def test_zeros_after_the_last_frame_are_its_end(count: int) -> None:
    """A5"""
    assert read(SYNCED + bytes(count)) == ([1, 2, 3], Tail.ZEROS, len(SYNCED))


def test_zeros_over_the_end_take_only_the_last_frame() -> None:
    """A5"""
    for count in range(1, len(THREE) + 1):
        tail = Tail.ZEROS if count == len(THREE) else Tail.TORN
        if SYNCED[-count:].strip(b"\0"):
            assert read(SYNCED[:-count] + bytes(count)) == ([1, 2], tail, STARTS[2])


@pytest.mark.parametrize("count", [0, 1, 511, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 300_000])
def test_what_is_torn_ends_with_the_last_byte_that_is_not_zero(count: int) -> None:
    """A1, A5: the open segment is laid out ahead, so zeros stand behind whatever a crash leaves."""
    for torn in (b"\x01", IDENTITY.mark, TWO[:-1], bytes(70_000) + b"?", made(3, 1), bytes(len(TWO)) + made(3, 1)):
        scan = Scan(ONE + torn + bytes(count), 0, IDENTITY, 2)
        scan.offset = len(ONE)
        assert not list(scan)
        assert (scan.tail, scan.rest) == (Tail.TORN, torn.rstrip(b"\0"))


def test_zeros_behind_a_frame_that_ends_in_zeros_do_not_hide_it() -> None:
    """A3, A5: neither when it is read, nor when it is what proves the damage before it."""
    ending = made(2, 1, (1, bytes(20)))
    assert read(ONE + ending + bytes(500)) == ([1, 2], Tail.ZEROS, len(ONE + ending))
    assert read(b"\0" + ONE[1:] + ending + bytes(500)) == ([], Tail.CORRUPT, 0)


@pytest.mark.parametrize("torn", [b"", TWO[:-1]])
def test_zeros_at_the_end_are_not_copied(torn: bytes) -> None:
    """A16"""
    scan = Scan(ONE + torn + bytes(16 * 1024 * 1024), 0, IDENTITY, 1)
    tracemalloc.start()
    try:
        assert len(list(scan)) == 1
        assert scan.rest == torn
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_zeros_before_a_frame_that_knew_better_are_damage() -> None:
    """A5"""
    assert read(ONE + bytes(len(TWO)) + THREE) == ([1], Tail.CORRUPT, len(ONE))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        b"\x94\x02",
        b"\x01",
        b"\x93\x02\x00\x01",
        b"\x95\x02\x00\x01\x91\x91\x01\x00",
        b"\x94\xff\x00\x01\x91\x91\x01",
        b"\x94\xc3\x00\x01\x91\x91\x01",
        b"\x94\x02\xca\x00\x00\x00\x00\x01\x91\x91\x01",
        b"\x94\x02\x00\xc0\x91\x91\x01",
        b"\x94\x02\x00\x01\x90",
        b"\x94\x02\x00\x01\xc0",
        b"\x94\x02\x00\x01\x91\x01",
        b"\x94\x02\x00\x01\x91\xa1\xff",
        b"\x94\x02\x00\x01\x91\x81\x80\x00",
        b"\x94\x02\x00\x01\x91\xc7\x04\xff\x00\x00\x00\x00",
        b"\x94\x02\x00\x01\x91\x91\x01tail",
        b"\x94\x02\x00\x01\xdd\xff\xff\xff\xff",
        b"\x94\x02\x00\x01\x91" + b"\x91" * 5000 + b"\x01",
    ],
)
def test_a_valid_checksum_around_what_nobody_writes_is_no_frame(payload: bytes) -> None:
    """A12"""
    assert read(ONE + framed(payload)) == ([1], Tail.TORN, len(ONE))
    later = made(3, 2)
    assert read(ONE + framed(payload) + later) == ([1], Tail.CORRUPT, len(ONE))


def test_what_no_later_frame_proves_durable_is_known() -> None:
    """B1: this is what a start after a failed sync has to write again."""
    three, four = made(3, 1), made(4, 3)
    for data, proven in (
        (ONE, b""),
        (ONE + TWO, ONE),
        (ONE + TWO + three, ONE),
        (ONE + TWO + three + four, -len(four)),
    ):
        scan = Scan(data, 0, IDENTITY, 1)
        list(scan)
        expected = data[:proven] if isinstance(proven, int) else proven
        assert data[: scan.durable_offset] == expected
        assert scan.unproven == data[len(expected) :]


def test_frames_lie_one_behind_the_other() -> None:
    scan = Scan(SYNCED, 0, IDENTITY, 1)
    frames = list(scan)
    assert [frame.offset for frame in frames] == list(STARTS[:-1])
    assert all(before.last_lsn + 1 == after.first_lsn for before, after in pairwise(frames))
