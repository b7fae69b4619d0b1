"""Segments' headers and the manifest: each proves that it belongs, and is there whole or not at all."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from engine.store.ops import PUT
from tests.harness import logs
from tests.harness.disk import FakeDisk
from wal.manifest import (
    MANIFEST_NAME,
    MANIFEST_VERSION,
    CleanClose,
    Manifest,
    Snapshot,
    read_manifest,
    write_manifest,
)
from wal.segment import (
    HEADER_BYTES,
    HEADER_VERSION,
    SNAPSHOT_MAGIC,
    Damage,
    NewerFormat,
    SegmentHeader,
    create_file,
    decode_header,
    segment_name,
    segment_number,
    snapshot_name,
    snapshot_number,
)

STORE = bytes(range(16))
HEADER = SegmentHeader(7, STORE, b"\x01segment", first_lsn=301, previous_id=b"previous", previous_bytes=4711)
MANIFEST = Manifest(STORE, ((1, b"segment1"), (2, b"segment2")), CleanClose(300, 4711))


def decode(data: bytes) -> SegmentHeader:
    return decode_header(data, "dir", HEADER.name, HEADER.first_lsn)


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def placed(manifest: bytes) -> FakeDisk:
    disk = FakeDisk()
    disk.put(MANIFEST_NAME, manifest)
    return disk


def manifest_bytes(manifest: Manifest = MANIFEST) -> bytes:
    disk = FakeDisk()
    write_manifest(disk.directory(), manifest)
    return disk.get(MANIFEST_NAME)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("00000001.log", 1),
        ("12345678.log", 12345678),
        ("1.log", None),
        ("00000001.log.tmp", None),
        ("00000001.log.torn-5", None),
        ("x00000001.log", None),
        ("\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.log", None),
        ("MANIFEST", None),
    ],
)
def test_a_segments_name_is_its_number_and_no_other_name_is_one(name: str, number: int | None) -> None:
    assert segment_number(name) == number
    assert number is None or segment_name(number) == name


def test_a_header_is_read_as_it_was_written() -> None:
    assert decode(HEADER.encode()) == HEADER
    assert decode(HEADER.encode() + b"frames") == HEADER
    assert len(HEADER.encode()) == HEADER_BYTES


def test_every_flipped_bit_of_a_header_is_damage_and_never_taken_for_a_newer_format() -> None:
    """A2"""
    data = HEADER.encode()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damage) as caught:
            decode(bytes(flipped) + b"frames" * 20)
        assert (caught.value.file, caught.value.offset, caught.value.lsn) == (HEADER.name, 0, 301)


def test_a_header_cut_anywhere_is_damage() -> None:
    for size in range(HEADER_BYTES):
        with pytest.raises(Damage):
            decode(HEADER.encode()[:size])


@pytest.mark.parametrize("more", [0, 8, 400])
def test_a_header_of_a_newer_format_is_told_from_damage(more: int) -> None:
    """A13"""
    data = bytearray(HEADER.encode()[:-4] + bytes(more))
    data[8:12] = struct.pack("<HH", HEADER_VERSION + 1, len(data) + 4)
    with pytest.raises(NewerFormat, match=f"00000007.log has format version {HEADER_VERSION + 1}"):
        decode(sealed(bytes(data)) + b"frames")


def test_a_header_that_no_version_wrote_is_damage() -> None:
    for version, header_bytes in ((0, HEADER_BYTES), (HEADER_VERSION, 40), (HEADER_VERSION, 15)):
        body = bytearray(HEADER.encode()[: header_bytes - 4])
        body[8:12] = struct.pack("<HH", version, header_bytes)
        with pytest.raises(Damage):
            decode(sealed(bytes(body)).ljust(HEADER_BYTES, b"-"))


def test_the_mark_of_a_segment_never_starts_with_a_zero_and_its_identity_is_its_own() -> None:
    """A6"""
    assert replace(HEADER, segment_id=bytes(8)).identity.mark[0] != 0
    others = [
        replace(HEADER, store_id=bytes(16)),
        replace(HEADER, segment_id=b"\x01segmend"),
        replace(HEADER, number=8),
    ]
    assert len({header.identity for header in [HEADER, *others]}) == 4


@pytest.mark.parametrize("close", [None, CleanClose(300, 4711)])
@pytest.mark.parametrize("snapshot", [None, Snapshot(1, b"snapshot", 4711, 1_700_000_000_000)])
def test_a_manifest_is_read_as_it_was_written(close: CleanClose | None, snapshot: Snapshot | None) -> None:
    manifest = replace(MANIFEST, clean_close=close)
    if snapshot is not None:
        manifest = manifest.with_snapshot(snapshot)
    assert read_manifest(placed(manifest_bytes(manifest)).directory()) == manifest
    assert manifest.numbers == (range(1, 3) if snapshot is None else range(2, 3))


def test_a_manifest_of_version_1_is_still_read() -> None:
    """A13"""
    body = b"HOLDFAST" + msgpack.packb((1, STORE, MANIFEST.segments, (300, 4711)))
    assert read_manifest(placed(sealed(body)).directory()) == MANIFEST


def test_a_snapshots_name_is_its_number_and_its_header_is_told_from_a_segments() -> None:
    assert snapshot_number(snapshot_name(7)) == 7
    assert snapshot_number("00000007.snapshot.0123abcd.tmp") is None
    data = HEADER.encode(SNAPSHOT_MAGIC)
    assert decode_header(data, "dir", "00000007.snapshot", 0, SNAPSHOT_MAGIC) == HEADER
    with pytest.raises(Damage):
        decode(data)


def test_a_segment_more_takes_the_clean_close_back() -> None:
    after = MANIFEST.with_segment(replace(HEADER, number=3))
    assert after.numbers == range(1, 4)
    assert after.clean_close is None


def test_every_flipped_bit_and_every_cut_of_a_manifest_is_damage() -> None:
    """A2"""
    data = manifest_bytes()
    broken = [data[:size] for size in range(len(data))] + [data + b"\0"]
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        broken.append(bytes(flipped))
    for manifest in broken:
        with pytest.raises(Damage, match="fake/MANIFEST is damaged at offset 0"):
            read_manifest(placed(manifest).directory())


def test_a_manifest_of_a_newer_format_is_told_from_damage() -> None:
    """A13: whatever else it holds."""
    body = b"HOLDFAST" + msgpack.packb((MANIFEST_VERSION + 1, {"snapshot": 7}))
    with pytest.raises(NewerFormat, match=f"MANIFEST has format version {MANIFEST_VERSION + 1}"):
        read_manifest(placed(sealed(body)).directory())


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (1,),
        (None, STORE, ((1, b"segment1"),), None),
        (0, STORE, ((1, b"segment1"),), None),
        (1, STORE, (), None),
        (1, STORE, None, None),
        (1, None, ((1, b"segment1"),), None),
        (1, STORE, ((1, b"segment1"), (3, b"segment3")), None),
        (1, STORE, ((2, b"segment2"), (1, b"segment1")), None),
        (1, STORE, (("1", b"segment1"),), None),
        (1, STORE, ((1, 5),), None),
        (1, STORE, ((1, b"segment1", 5),), None),
        (1, STORE, ((1, b"segment1"),), (5,)),
        (1, STORE, ((1, b"segment1"),), 5),
        (1, STORE, ((1, b"segment1"),), None, None),
        (1, STORE, ((2, b"segment2"),), None),
        (2, STORE, ((1, b"segment1"),), None),
        (2, STORE, ((1, b"segment1"),), None, (5, b"snapshot", 100, 1)),
        (2, STORE, ((6, b"segment6"),), None, None),
        (2, STORE, ((6, b"segment6"),), None, (5, b"snapshot", 100)),
        (2, STORE, ((6, b"segment6"),), None, (5, b"snapshot", 100, 1), "more"),
        {"version": 1},
        1,
    ],
)
def test_a_valid_checksum_around_what_nobody_writes_is_a_damaged_manifest(fields: Any) -> None:
    """A12"""
    with pytest.raises(Damage, match="no version of Holdfast writes such a manifest"):
        read_manifest(placed(sealed(b"HOLDFAST" + msgpack.packb(fields))).directory())


@pytest.mark.parametrize("leftover", [None, b"", b"half of the n"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_is_made_whole_or_not_at_all_whenever_the_power_goes(old: bytes | None, leftover: bytes | None) -> None:
    """C1: a half-written temporary file of an earlier crash is no obstacle."""
    for count in range(20):
        for torn, keep_names in (
            (None, False),
            (None, True),
            (random.Random(count), False),
            (random.Random(count), True),
        ):
            disk = FakeDisk()
            for name, data in (("NAME", old), ("NAME.tmp", leftover)):
                if data is not None:
                    disk.put(name, data)
            logs.at_change(disk, count, lambda: None)
            done = True
            try:
                create_file(disk.directory(), "NAME", b"new content")
            except OSError:
                done = False
            disk.cut_power(torn, keep_names=keep_names)
            found = disk.content().get("NAME")
            assert found == b"new content" if done else found in (old, b"new content")
    assert done


# The worked example of the documentation


def example() -> dict[str, bytes]:
    """The files whose bytes docs/wal-format.md shows: lines of an offset and hex digits under a file's name."""
    text = (Path(__file__).parents[2] / "docs" / "wal-format.md").read_text()
    files: dict[str, bytes] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("==> "):
            name = line.split()[1]
            files[name] = b""
        elif name and line[:4].strip().isdigit() and line[4:6] == "  ":
            assert int(line[:4]) == len(files[name]), line
            files[name] += bytes.fromhex(line[6:54])
        elif line.startswith("```"):
            name = ""
    return files


def test_the_worked_example_of_the_documentation_still_decodes() -> None:
    disk = FakeDisk()
    for name, data in example().items():
        disk.put(name, data)
    state, log = logs.start(disk)
    assert state == [
        ("value", b"key_a", b"4", None),
        ("value", b"key_b", b"3", 1_700_000_062_000),
        ("queue", b"queue_a", (b"b", b"c")),
    ]
    assert (log.last_lsn, log.recovery.records) == (5, 5)
    log.close()


def test_the_worked_example_of_the_documentation_is_what_is_written_today() -> None:
    files = example()
    disk = FakeDisk()
    for name, data in files.items():
        disk.put(name, data)
    directory = disk.directory()
    manifest = read_manifest(directory)
    write_manifest(directory, manifest)
    assert disk.get(MANIFEST_NAME) == files[MANIFEST_NAME]
    header = SegmentHeader(2, manifest.store_id, manifest.segments[0][1], 3, bytes.fromhex("c4bb86c3d1c42710"), 152)
    assert files[header.name].startswith(header.encode())
    assert manifest.snapshot is not None
    header = replace(header, number=1, segment_id=manifest.snapshot.snapshot_id)
    assert files[snapshot_name(1)].startswith(header.encode(SNAPSHOT_MAGIC))
    assert PUT == 1
