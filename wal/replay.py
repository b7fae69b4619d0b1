"""Reading the log back: what is there, whether it is what was written, and mending a torn tail.

`check_names`, `replay` and `check_end` only read, and raise `Damage`. `mend` is the first to change the disk: it
keeps a copy of a torn tail, cuts it off, and makes what is left durable.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from wal.files import Directory, File, Readable
from wal.frame import Frame, Scan, Tail
from wal.manifest import MANIFEST_NAME, CleanClose, Manifest
from wal.segment import (
    HEADER_BYTES,
    SEGMENT_MAGIC,
    SNAPSHOT_MAGIC,
    Damage,
    SegmentHeader,
    create_file,
    decode_header,
    segment_name,
    segment_number,
    snapshot_name,
    snapshot_number,
)
from wal.snapshot import FoldPlan, load_snapshot
from wal.spare import NEXT_MANIFEST_NAME

IMPORT_NAME = "IMPORT"
"""A file that stands in a directory while an import into it is not finished: no server starts on it."""


def unfinished_import(directory: str) -> str:
    """Says what such a directory is, and what to do with it."""
    return (
        f"{directory} holds an import that was not finished: run the command that began it again, or remove the"
        " directory to give it up"
    )


_TORN_COPY = r"[0-9]{8}\.log\.torn-[0-9]+"
_SNAPSHOT = r"[0-9]{8}\.snapshot"
_DAMAGED_COPY = rf"(MANIFEST|[0-9]{{8}}\.log|{_SNAPSHOT})\.damaged-[0-9]+"
_KEPT_NAMES = re.compile(rf"LOCK|MANIFEST|{IMPORT_NAME}|{_TORN_COPY}|{_DAMAGED_COPY}")
TEMPORARY_NAMES = re.compile(
    rf"(MANIFEST|{NEXT_MANIFEST_NAME}|{IMPORT_NAME}|[0-9]{{8}}\.log|{_TORN_COPY}|{_SNAPSHOT}\.[0-9a-f]{{8}})\.tmp"
)

_logger = logging.getLogger("holdfast.wal")

Apply = Callable[[Frame], None]
"""Takes one replayed commit; raises ValueError when its records make no sense."""

Progress = Callable[[int, int], None]
"""Told (bytes read, bytes in all) while replaying; may raise to stop the replay."""


@dataclass(slots=True)
class Found:
    """The log as it was read, before anything on disk is changed.

    Attributes:
        header: of the last segment read.
        scan: of its frames.
        size_bytes: its length.
        earlier_bytes: length of the snapshot and the segments before.
        records: number of records so far.
        time_ms: engine time of the last commit.
    """

    header: SegmentHeader
    scan: Scan
    size_bytes: int
    earlier_bytes: int = 0
    records: int = 0
    time_ms: int = 0

    @property
    def name(self) -> str:
        """File name of the last segment read."""
        return self.header.name


class Kind(Enum):
    """What a file in a data directory is, from its name."""

    LISTED = "part of the log"
    UNLISTED = "not named by the manifest"
    TEMPORARY = "in the making"
    KEPT = "kept"
    FOREIGN = "not a file of Holdfast"


def kind_of(name: str, manifest: Manifest | None) -> Kind:
    """Says what a file is.

    Args:
        name: of the file.
        manifest: what makes up the log; None when there is none.
    """
    number = segment_number(name)
    if number is not None:
        return Kind.LISTED if manifest is not None and number in manifest.numbers else Kind.UNLISTED
    if snapshot_number(name) is not None:
        snapshot = None if manifest is None else manifest.snapshot
        return Kind.LISTED if snapshot is not None and name == snapshot_name(snapshot.number) else Kind.UNLISTED
    if TEMPORARY_NAMES.fullmatch(name):
        return Kind.TEMPORARY
    return Kind.KEPT if _KEPT_NAMES.fullmatch(name) else Kind.FOREIGN


def check_names(directory: Readable, names: list[str], manifest: Manifest | None) -> list[str]:
    """Looks for files that should not be there; what is not ours stays.

    Beside the files of the log there may be one segment without frames, from an interrupted roll, and what an
    interrupted checkpoint left: the segments and the snapshot it had folded, or its own that was never named.

    Args:
        directory: the data directory.
        names: of the files in it.
        manifest: what makes up the log; None when there is none.

    Returns:
        Those that are ours and no part of the log.

    Raises:
        Damage: there is a segment or a snapshot that nothing explains.
    """
    leftovers = []
    for name in names:
        kind = kind_of(name, manifest)
        if kind is Kind.UNLISTED:
            explain(directory, name, manifest)
        if kind in (Kind.UNLISTED, Kind.TEMPORARY):
            leftovers.append(name)
        elif kind is Kind.FOREIGN:
            _logger.warning("%s/%s is not a file of Holdfast; left alone", directory.path, name)
    return leftovers


def explain(directory: Readable, name: str, manifest: Manifest | None) -> None:
    """Raises Damage unless an interrupted create, roll or checkpoint leaves such an unlisted file beside the log."""
    number = segment_number(name)
    if manifest is None:
        if number != 1 or _has_frames(directory, name):
            raise Damage(directory.path, MANIFEST_NAME, 0, 1, f"the manifest is missing, but there is {name}")
    elif number is None:
        if not _is_ours(directory, name, snapshot_number(name), manifest, SNAPSHOT_MAGIC):
            raise Damage(directory.path, name, 0, 0, "the manifest does not name this snapshot")
    else:
        if number < manifest.numbers.start:
            explained = _is_ours(directory, name, number, manifest, SEGMENT_MAGIC)
        else:
            explained = number == manifest.numbers.stop and not _has_frames(directory, name)
        if not explained:
            raise Damage(directory.path, name, 0, 0, "the manifest does not name this segment")


def _is_ours(directory: Readable, name: str, number: int | None, manifest: Manifest, magic: bytes) -> bool:
    """Whether a file's header says that it belongs to this store, and has this name."""
    header = decode_header(directory.read(name, 0, HEADER_BYTES), directory.path, name, 0, magic)
    return (header.store_id, header.number) == (manifest.store_id, number)


def _has_frames(directory: Readable, name: str) -> bool:
    """Whether there is anything behind a segment's header but the zeros of room that was allocated."""
    return directory.read(name, HEADER_BYTES).count(0) != max(0, directory.size(name) - HEADER_BYTES)


def replay(
    directory: Readable,
    manifest: Manifest,
    apply: Apply,
    progress: Progress,
    begin: Callable[[str], None] = lambda _name: None,
) -> Found:
    """Reads and applies the snapshot and every segment; all but the last must be whole.

    Args:
        directory: the data directory.
        manifest: what makes up the log.
        apply: called with every frame, in order.
        progress: told how far the replay is.
        begin: told the name of each file before its first frame is applied.

    Raises:
        Damage: a file is missing, foreign or not what was written, but for the end of the last.
        NewerFormat: a later version wrote one.
    """
    present = set(directory.names())
    listed = [segment_name(number) for number in manifest.numbers]
    total_bytes = sum(directory.size(name) for name in listed if name in present)
    expected = SegmentHeader(manifest.numbers[0], manifest.store_id, manifest.segments[0][1], first_lsn=1)
    earlier_bytes = records = time_ms = 0
    if manifest.snapshot is not None:
        begin(snapshot_name(manifest.snapshot.number))
        earlier_bytes, time_ms = manifest.snapshot.size_bytes, manifest.snapshot.time_ms
        total_bytes += earlier_bytes
        header, records = load_snapshot(directory, manifest, apply, lambda done: progress(done, total_bytes))
        expected = replace(header, number=expected.number, segment_id=expected.segment_id)
    found: Found | None = None
    for number, segment_id in manifest.segments:
        if found is not None:
            expected = _successor(directory, found, number, segment_id)
        if expected.name not in present:
            raise Damage(directory.path, expected.name, 0, expected.first_lsn, "the segment is missing")
        begin(expected.name)
        last = number == manifest.numbers[-1] and manifest.clean_close is None
        if found is not None:
            earlier_bytes += found.size_bytes
            records, time_ms = found.records, found.time_ms
        found = _read_segment(directory, expected, found, may_be_torn=last)
        found.earlier_bytes, found.records, found.time_ms = earlier_bytes, records, time_ms
        _apply_frames(directory, found, apply, lambda done: progress(done, total_bytes))
    assert found is not None, "a manifest names at least one segment"
    return found


def _apply_frames(directory: Readable, found: Found, apply: Apply, progress: Callable[[int], None]) -> None:
    for frame in found.scan:
        try:
            apply(frame)
        except ValueError as error:
            reason = f"the commit of records {frame.first_lsn} to {frame.last_lsn} cannot be applied: {error}"
            raise _damage(directory, found, reason) from error
        found.records += len(frame.records)
        found.time_ms = frame.time_ms
        progress(found.earlier_bytes + frame.offset)


def replay_sealed(directory: Readable, plan: FoldPlan, apply: Apply, progress: Progress) -> Found:
    """Reads and applies what a checkpoint folds; all of it must be whole, and end where the log goes on.

    Raises:
        Damage: it is not what was written.
    """
    found = replay(directory, plan.manifest, apply, progress)
    expected = _successor(directory, found, plan.header.number, plan.header.segment_id)
    if expected != plan.header:
        raise _damage(directory, found, f"the log went on after record {plan.header.first_lsn - 1}")
    return found


def _successor(directory: Readable, before: Found, number: int, segment_id: bytes) -> SegmentHeader:
    """The one header that fits after a whole segment: all of it follows from the manifest and that segment."""
    if before.scan.tail is not Tail.END:
        raise _damage(directory, before, before.scan.reason or "the segment does not end with a frame")
    return replace(
        before.header,
        number=number,
        segment_id=segment_id,
        first_lsn=before.scan.next_lsn,
        previous_id=before.header.segment_id,
        previous_bytes=before.size_bytes,
    )


def _read_segment(directory: Readable, expected: SegmentHeader, before: Found | None, *, may_be_torn: bool) -> Found:
    """Reads a segment and checks that it is the one that belongs here; its frames are still to be scanned."""
    data = directory.read(expected.name)
    scan = Scan(data, HEADER_BYTES, expected.identity, expected.first_lsn)
    if may_be_torn and len(data) < HEADER_BYTES and expected.encode().startswith(data):
        scan.offset = 0
    else:
        header = decode_header(data, directory.path, expected.name, expected.first_lsn)
        if header != expected:
            raise _misfit(directory, header, expected, before)
    return Found(expected, scan, len(data))


def _misfit(directory: Readable, header: SegmentHeader, expected: SegmentHeader, before: Found | None) -> Damage:
    """What is wrong when a segment's header is sound but not the one expected."""
    if header.store_id != expected.store_id:
        reason = "the segment belongs to another data directory"
    elif header.number != expected.number:
        reason = f"the segment is a copy of {header.name}"
    elif header.segment_id != expected.segment_id or before is None or header.previous_id != expected.previous_id:
        reason = "the segment is not the one that the manifest names"
    else:
        had = f"had {header.previous_bytes} bytes and ended with record {header.first_lsn - 1}"
        return _damage(directory, before, f"the segment ends here, but {header.name} says that it {had}")
    return Damage(directory.path, expected.name, 0, expected.first_lsn, reason)


def check_end(directory: Readable, close: CleanClose | None, found: Found) -> None:
    """Raises Damage unless the log ends with a whole or a torn frame, and after a clean close exactly as noted."""
    if found.scan.tail is Tail.CORRUPT:
        raise _damage(directory, found, found.scan.reason)
    ends = (found.scan.next_lsn - 1, found.scan.offset, found.size_bytes)
    if close is not None and ends != (close.last_lsn, close.last_segment_bytes, close.last_segment_bytes):
        reason = found.scan.reason or "the segment ends elsewhere"
        noted = f"it was closed cleanly with record {close.last_lsn} at {close.last_segment_bytes} bytes"
        raise _damage(directory, found, f"{reason}; {noted}")


def _damage(directory: Readable, found: Found, reason: str) -> Damage:
    return Damage(directory.path, found.name, found.scan.offset, found.scan.next_lsn, reason)


def mend(directory: Directory, names: list[str], found: Found, time_ms: int, *, clean: bool) -> File:
    """Opens the last segment for appending, a torn tail cut off after a copy was kept, and all of it durable."""
    scan = found.scan
    if scan.tail is Tail.TORN:
        copy = _keep_copy(directory, names, found, time_ms)
        _logger.warning(
            "%s/%s: torn tail of %d bytes cut at offset %d, last record %d, copy in %s (%s)",
            directory.path,
            found.name,
            len(scan.rest),
            scan.offset,
            scan.next_lsn - 1,
            copy,
            scan.reason,
        )
    if scan.offset < HEADER_BYTES:
        return create_file(directory, found.name, found.header.encode())
    file = directory.open(found.name, scan.offset if clean else scan.durable_offset)
    try:
        if not clean:  # what is read may be in memory only, and the sync that failed to write it will not be repeated
            file.write(scan.unproven)
        if found.size_bytes > scan.offset:
            file.truncate(scan.offset)
        file.sync()
    except BaseException:
        file.close()
        raise
    return file


def _keep_copy(directory: Directory, names: list[str], found: Found, time_ms: int) -> str:
    """Copies a torn tail, durably, and returns the copy's name; a start that was interrupted has done so already."""
    rest = found.scan.rest
    copies = [name for name in names if name.startswith(f"{found.name}.torn-") and _KEPT_NAMES.fullmatch(name)]
    for name in copies:
        if directory.size(name) == len(rest) and directory.read(name) == rest:
            directory.sync()
            return name
    while (copy := f"{found.name}.torn-{time_ms}") in copies:
        time_ms += 1
    create_file(directory, copy, rest).close()
    return copy
