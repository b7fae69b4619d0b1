"""A manifest made anew from the headers of what is there.

Every header states its number, its store, its id, its first LSN and which segment it follows, and where that one ended.
So the chain can be put together without the manifest, but for two things that only the manifest knows: whether there
was anything behind the last file, and how long a snapshot has to be.
"""

from __future__ import annotations

from wal.files import Readable
from wal.frame import Frame
from wal.manifest import Manifest, Snapshot
from wal.segment import (
    HEADER_BYTES,
    SEGMENT_ID_BYTES,
    SEGMENT_MAGIC,
    SNAPSHOT_MAGIC,
    Damage,
    SegmentHeader,
    decode_header,
    segment_number,
    snapshot_name,
    snapshot_number,
)
from wal.tools.walk import walk


def rebuild(source: Readable) -> Manifest | None:
    """Puts together the log that starts from the newest snapshot that a segment follows, or from the first segment.

    Args:
        source: the data directory.

    Returns:
        Names of what belongs together, as far as it does; None when there is no start, or files of several stores.

    Raises:
        NewerFormat: a later version wrote some of it.
        OSError: reading failed.
    """
    segments, snapshots = {}, {}
    for name in source.names():
        if (number := segment_number(name)) is not None:
            segments[number] = read_header(source, name, SEGMENT_MAGIC)
        elif (number := snapshot_number(name)) is not None:
            snapshots[number] = read_header(source, name, SNAPSHOT_MAGIC)
    known = [header for header in (*segments.values(), *snapshots.values()) if header is not None]
    if len({header.store_id for header in known}) != 1:
        return None
    for number in sorted(snapshots, reverse=True):
        header = snapshots[number]
        if header is not None and (chain := _chain(segments, header)):
            return Manifest(known[0].store_id, tuple(chain), snapshot=_entry(source, header))
    start = SegmentHeader(0, known[0].store_id, bytes(SEGMENT_ID_BYTES), first_lsn=1)
    chain = _chain(segments, start)
    return Manifest(known[0].store_id, tuple(chain)) if chain else None


def read_header(source: Readable, name: str, magic: bytes = SEGMENT_MAGIC) -> SegmentHeader | None:
    """The header of a segment or snapshot; None when it cannot be read, or is that of another file.

    Raises:
        NewerFormat: a later version wrote it.
    """
    try:
        header = decode_header(source.read(name, 0, HEADER_BYTES), source.path, name, 0, magic)
    except Damage:
        return None
    return header if header.number in (segment_number(name), snapshot_number(name)) else None


def _chain(segments: dict[int, SegmentHeader | None], start: SegmentHeader) -> list[tuple[int, bytes]]:
    """The segments after a snapshot, each following the one before."""
    chain: list[tuple[int, bytes]] = []
    first = segments.get(start.number + 1)
    if first is None or _end(first) != _end(start):
        return chain
    after: SegmentHeader | None = first
    while after is not None and (not chain or after.previous_id == chain[-1][1]):
        chain.append((after.number, after.segment_id))
        after = segments.get(after.number + 1)
    return chain


def _end(header: SegmentHeader) -> tuple[int, bytes, int]:
    """What the first segment after a snapshot and the snapshot itself say alike."""
    return header.first_lsn, header.previous_id, header.previous_bytes


def _entry(source: Readable, header: SegmentHeader) -> Snapshot:
    """How a manifest names a snapshot; whether it is whole is for the replay to say."""
    name = snapshot_name(header.number)
    first = next(walk(source, name, header.identity, HEADER_BYTES, 1), None)
    time_ms = first.time_ms if isinstance(first, Frame) else 0  # all its frames have the same
    return Snapshot(header.number, header.segment_id, source.size(name), time_ms)
