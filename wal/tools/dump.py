"""Listing what a log holds, commit by commit, also where it is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wal.files import Directory, Readable
from wal.frame import Frame, Tail
from wal.manifest import Manifest
from wal.segment import (
    HEADER_BYTES,
    SEGMENT_MAGIC,
    SNAPSHOT_MAGIC,
    Damage,
    SegmentHeader,
    decode_header,
    segment_number,
    snapshot_number,
)
from wal.tools.check import open_view, stated_header
from wal.tools.view import View, listed
from wal.tools.walk import Hole, walk


@dataclass(frozen=True, slots=True)
class Entry:
    """A commit, or bytes that hold none.

    Attributes:
        file: in which it stands.
        item: what stands there.
        is_snapshot: its records are a state and have no LSN; they are numbered within the snapshot.
        is_damage: bytes that hold no commit, and should.
    """

    file: str
    item: Frame | Hole
    is_snapshot: bool
    is_damage: bool = False


def dump(directory: Directory, file: str | None = None) -> Iterator[Entry]:
    """Yields all commits of a log in the order of replay, and what is between them.

    Args:
        directory: with or without its lock; a server may run on it.
        file: a segment or snapshot, or a copy that was kept of one, to be read instead of the log.

    Raises:
        NoLog: there is nothing to dump.
        NewerFormat: a later version wrote it.
        FileNotFoundError: there is no such file.
        Restless, OSError: see `wal.tools.check.verify`.
    """
    if file is not None:
        yield from _dump_file(directory, file, None, may_be_torn=True)
        return
    view, damage = open_view(directory)
    with view:
        manifest = None if damage else view.manifest
        names = _names(view, manifest)
        for name in names:
            open_end = name == names[-1] and (manifest is None or manifest.clean_close is None)
            yield from _dump_file(view, name, manifest, may_be_torn=open_end)


def _names(view: View, manifest: Manifest | None) -> list[str]:
    """Which files to read: those that the manifest names; without one, whatever looks like a part of a log."""
    present = view.names()
    if manifest is not None:
        return [name for name in listed(manifest) if name in present]
    snapshots = [name for name in present if snapshot_number(name) is not None]
    return snapshots + [name for name in present if segment_number(name) is not None]


def _dump_file(source: Readable, name: str, manifest: Manifest | None, *, may_be_torn: bool) -> Iterator[Entry]:
    data = source.read(name, 0, HEADER_BYTES)
    is_snapshot = data.startswith(SNAPSHOT_MAGIC) or snapshot_number(name) is not None
    header: SegmentHeader | None
    lsn: int | None = None
    try:
        header = decode_header(data, source.path, name, 0, SNAPSHOT_MAGIC if is_snapshot else SEGMENT_MAGIC)
    except Damage as damage:
        yield Entry(name, Hole(0, min(len(data), HEADER_BYTES), 0, Tail.CORRUPT, damage.reason), is_snapshot, True)
        if manifest is None:
            return  # without an id no frame can be told
        header = stated_header(manifest, name)
    else:
        lsn = 1 if is_snapshot else header.first_lsn
    hole: Hole | None = None
    for item in walk(source, name, header.identity, HEADER_BYTES, lsn):
        if hole is not None:
            yield Entry(name, hole, is_snapshot, is_damage=True)
            hole = None
        if isinstance(item, Frame):
            yield Entry(name, item, is_snapshot)
        else:
            hole = item
    if hole is not None and not (may_be_torn and hole.tail is Tail.ZEROS):
        yield Entry(name, hole, is_snapshot, is_damage=not may_be_torn or hole.tail is Tail.CORRUPT)
