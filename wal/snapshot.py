"""Snapshots: a state written out as records, so that what led to it can go.

A snapshot is a header and frames like a segment's, with LSNs of its own, from 1. It is written by another process than
the one that appends, under a temporary name, and becomes part of the log when the manifest names it, with its exact
length: so it is never torn, and anything that is not as it was written is damage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import msgpack

from wal.files import Directory, Readable
from wal.frame import CUT_OFF, Frame, Scan, encode
from wal.manifest import Manifest, Snapshot, decode_manifest, encode_manifest
from wal.segment import (
    HEADER_BYTES,
    SNAPSHOT_MAGIC,
    TEMPORARY_SUFFIX,
    Damage,
    SegmentHeader,
    decode_header,
    snapshot_name,
)

FRAME_BYTES_GOAL = 1024 * 1024
"""Records put into one frame: enough that its head costs nothing, little enough to be written without a burst."""

READ_BYTES = 4 * 1024 * 1024
"""Read at once: a snapshot may be much larger than what should be in memory beside the state."""


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """What one checkpoint folds: a snapshot, if there is one, and the sealed segments after it, into a new snapshot.

    Attributes:
        manifest: names what is folded, and nothing else.
        header: of the new snapshot.
    """

    manifest: Manifest
    header: SegmentHeader

    @property
    def name(self) -> str:
        """File name of the new snapshot."""
        return snapshot_name(self.header.number)

    @property
    def temporary_name(self) -> str:
        """File name while it is written: its own, should two processes be at it."""
        return f"{self.name}.{self.header.segment_id[:4].hex()}{TEMPORARY_SUFFIX}"

    def pack(self) -> bytes:
        """The plan as bytes, for another process."""
        packed: bytes = msgpack.packb((encode_manifest(self.manifest), self.header.encode(SNAPSHOT_MAGIC)))
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The plan from its bytes."""
        manifest, header = msgpack.unpackb(data)
        return cls(decode_manifest(manifest, ""), decode_header(header, "", "", 0, SNAPSHOT_MAGIC))


def write_snapshot(directory: Directory, plan: FoldPlan, records: Iterable[bytes], time_ms: int) -> Snapshot:
    """Writes a snapshot under its temporary name, durably.

    Args:
        directory: where.
        plan: which one.
        records: the state as packed ops.
        time_ms: engine time of the last commit folded, milliseconds since 1970.

    Returns:
        How the manifest is to name it.

    Raises:
        OSError: the disk refused; what had been written is removed.
    """
    header = plan.header
    file = directory.create(plan.temporary_name)
    try:
        data = header.encode(SNAPSHOT_MAGIC)
        file.write(data)
        size_bytes, lsn = len(data), 1
        for batch in _batches(records):
            data = encode(header.identity, lsn, time_ms, lsn - 1, batch)
            file.write(data)
            file.sync()  # now and then: one large sync at the end would hold up those of the log
            size_bytes += len(data)
            lsn += len(batch)
        file.sync()
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):
            directory.remove(plan.temporary_name)
        raise
    file.close()
    return Snapshot(header.number, header.segment_id, size_bytes, time_ms)


def _batches(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    batch_bytes = 0
    for record in records:
        batch.append(record)
        batch_bytes += len(record)
        if batch_bytes >= FRAME_BYTES_GOAL:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def load_snapshot(
    directory: Readable, manifest: Manifest, apply: Callable[[Frame], None], progress: Callable[[int], None]
) -> tuple[SegmentHeader, int]:
    """Reads and applies the snapshot that a manifest names.

    Args:
        directory: where it is.
        manifest: names one.
        apply: called with every frame, in order.
        progress: told how many bytes are done.

    Returns:
        Its header, which says what the next segment has to be, and the number of its records.

    Raises:
        Damage: it is not what was written.
        NewerFormat: a later version wrote it.
    """
    entry = manifest.snapshot
    assert entry is not None
    name = snapshot_name(entry.number)
    if name not in directory.names():
        raise Damage(directory.path, name, 0, 0, "the snapshot is missing")
    header = decode_header(directory.read(name, 0, HEADER_BYTES), directory.path, name, 0, SNAPSHOT_MAGIC)
    if (header.store_id, header.number, header.segment_id) != (manifest.store_id, entry.number, entry.snapshot_id):
        raise Damage(directory.path, name, 0, 0, "the snapshot is not the one that the manifest names")
    size_bytes = directory.size(name)
    records = 0
    for frame, offset in _frames(directory, name, header, size_bytes):
        records += len(frame.records)
        try:
            apply(frame)
        except ValueError as error:
            reason = f"the frame cannot be applied: {error}"
            raise Damage(directory.path, name, offset, frame.first_lsn, reason) from error
        progress(offset)
    if size_bytes != entry.size_bytes:
        reason = f"the snapshot has {size_bytes} bytes, the manifest says {entry.size_bytes}"
        raise Damage(directory.path, name, min(size_bytes, entry.size_bytes), 0, reason)
    return header, records


def _frames(directory: Readable, name: str, header: SegmentHeader, size_bytes: int) -> Iterator[tuple[Frame, int]]:
    """The frames of a snapshot, block by block, each with the offset at which it starts."""
    offset, lsn, count = HEADER_BYTES, 1, READ_BYTES
    while offset < size_bytes:
        data = directory.read(name, offset, count)
        scan = Scan(data, 0, header.identity, lsn, offset)
        for frame in scan:
            yield frame, offset + frame.offset
        if scan.offset > 0:
            offset, lsn, count = offset + scan.offset, scan.next_lsn, READ_BYTES
        elif offset + count < size_bytes and scan.reason.endswith(CUT_OFF):
            count *= 4  # the frame goes on beyond this block
        else:
            raise Damage(directory.path, name, offset, lsn, scan.reason)
