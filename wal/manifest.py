"""The manifest: which files make up the log, and after a clean close where it ends.

`MANIFEST` names the snapshot the log starts from, if there is one, and the segments that follow it. After a clean
close it also says where the last one ends: that is the footer. It lives here and not in the segment because a flipped
bit in a footer at the end of the log could not be told from a crash in mid-write. The manifest is only ever replaced
whole, so it is never torn; a file that it does not name is no part of the log.

Version 1 knew no snapshots; it is still read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from wal.files import Directory, Readable
from wal.segment import (
    CRC_BYTES,
    SEGMENT_MAGIC,
    TEMPORARY_SUFFIX,
    Damage,
    NewerFormat,
    SegmentHeader,
    begin_file,
    has_crc,
    with_crc,
)

MANIFEST_NAME = "MANIFEST"
MANIFEST_VERSION = 2

UNFINISHED = SEGMENT_MAGIC + b" backup, not finished\n"
"""Stands in place of the manifest while a backup is made, so that nobody starts on half of it."""


@dataclass(frozen=True, slots=True)
class CleanClose:
    """Where the log ended when it was closed: everything beyond is damage, and so is anything less."""

    last_lsn: int
    last_segment_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The snapshot that the log starts from.

    Attributes:
        number: of the last segment folded into it.
        snapshot_id: random; marks its frames.
        size_bytes: its exact length.
        time_ms: engine time of the last commit folded, milliseconds since 1970.
    """

    number: int
    snapshot_id: bytes
    size_bytes: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes up the log.

    Attributes:
        store_id: random, made with the data directory.
        segments: number and segment id of each, oldest first, without gaps.
        clean_close: set by a clean close, taken back before the next append.
        snapshot: stands for the segments before these; None when there are none before.
    """

    store_id: bytes
    segments: tuple[tuple[int, bytes], ...]
    clean_close: CleanClose | None = None
    snapshot: Snapshot | None = None

    @property
    def numbers(self) -> range:
        """Numbers of the segments."""
        return range(self.segments[0][0], self.segments[-1][0] + 1)

    def with_segment(self, header: SegmentHeader) -> Manifest:
        """The manifest after a roll to the segment with this header."""
        return replace(self, segments=(*self.segments, (header.number, header.segment_id)), clean_close=None)

    def with_snapshot(self, snapshot: Snapshot) -> Manifest:
        """The manifest when a snapshot takes the place of the segments up to its number, and of the snapshot before."""
        return replace(
            self, segments=tuple(one for one in self.segments if one[0] > snapshot.number), snapshot=snapshot
        )


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as it stands on disk."""
    close, snapshot = manifest.clean_close, manifest.snapshot
    fields = (
        MANIFEST_VERSION,
        manifest.store_id,
        manifest.segments,
        None if close is None else (close.last_lsn, close.last_segment_bytes),
        None if snapshot is None else (snapshot.number, snapshot.snapshot_id, snapshot.size_bytes, snapshot.time_ms),
    )
    return with_crc(SEGMENT_MAGIC + msgpack.packb(fields))


def decode_manifest(data: bytes, directory: str) -> Manifest:
    """Reads a manifest.

    Args:
        data: what `encode_manifest` made.
        directory: for messages.

    Raises:
        NewerFormat: it has a format version of the future.
        Damage: it is not what was written.
    """
    if data == UNFINISHED:
        raise Damage(directory, MANIFEST_NAME, 0, 0, "this is a backup that was not finished")
    if not data.startswith(SEGMENT_MAGIC) or not has_crc(data):
        raise Damage(directory, MANIFEST_NAME, 0, 0, "the manifest's checksum does not match")
    try:
        version, *fields = msgpack.unpackb(data[len(SEGMENT_MAGIC) : -CRC_BYTES], use_list=False)
        if type(version) is int and version > MANIFEST_VERSION:
            raise NewerFormat(directory, MANIFEST_NAME, version, MANIFEST_VERSION)
        return _manifest(version, *fields, *([None] if version == 1 else []))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        reason = f"no version of Holdfast writes such a manifest ({error})"
        raise Damage(directory, MANIFEST_NAME, 0, 0, reason) from error


def write_manifest(directory: Directory, manifest: Manifest) -> None:
    """Replaces the manifest, whole and durably."""
    begin_manifest(directory, manifest)
    name_manifest(directory)
    directory.sync()


def begin_manifest(directory: Directory, manifest: Manifest) -> None:
    """Brings a manifest to the disk, under its temporary name."""
    file = begin_file(directory, MANIFEST_NAME)
    try:
        file.write(encode_manifest(manifest))
        file.sync()
    finally:
        file.close()


def name_manifest(directory: Directory) -> None:
    """Gives it its name, in place of the one that stands; durable after a sync of the directory."""
    directory.rename(MANIFEST_NAME + TEMPORARY_SUFFIX, MANIFEST_NAME)


def read_manifest(directory: Readable) -> Manifest:
    """Reads the manifest of a directory; raises as `decode_manifest` does."""
    return decode_manifest(directory.read(MANIFEST_NAME), directory.path)


def _manifest(
    version: int, store_id: bytes, segments: Sequence[tuple[int, bytes]], close: Any, snapshot: Any
) -> Manifest:
    """Builds a manifest from what was read; raises ValueError or TypeError when that is none."""
    numbers = [number for number, _ in segments]
    ids = [store_id, *(segment_id for _, segment_id in segments)]
    if version not in (1, MANIFEST_VERSION) or not all(type(one) is bytes for one in ids):
        raise ValueError("a field is of the wrong type")
    first = 1 if snapshot is None else snapshot[0] + 1
    if not numbers or numbers != list(range(first, first + len(numbers))):
        raise ValueError("the segments' numbers have gaps")
    return Manifest(
        store_id,
        tuple(segments),
        None if close is None else CleanClose(*close),
        None if snapshot is None else Snapshot(*snapshot),
    )
