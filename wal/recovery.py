"""Recovering a log: from a data directory to the files of a log that is open for appending.

First everything is read and judged (`wal/replay.py`), then the disk is changed: when a start is refused, not one byte
has changed. The changes are made in this order, so that a crash between any two leaves a log that recovers to the same:

    leftovers removed -> torn tail kept, cut, the rest made durable -> manifest without a footer -> room allocated
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from wal.files import Directory
from wal.frame import Tail
from wal.log_files import LogFiles
from wal.manifest import MANIFEST_NAME, Manifest, encode_manifest, read_manifest, write_manifest
from wal.open_segment import OpenSegment
from wal.replay import Apply, Progress, check_end, check_names, mend, replay
from wal.segment import (
    HEADER_BYTES,
    SEGMENT_ID_BYTES,
    STORE_ID_BYTES,
    Damage,
    SegmentHeader,
    create_file,
    segment_name,
)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What replay found.

    Attributes:
        records: number of records replayed, those of the snapshot included.
        time_ms: engine time of the last commit; 0 when there was none.
        torn_bytes: length of the torn tail that was cut off.
        clean: whether the log was closed before, or is new.
        is_new: whether there was no log, and one was made.
    """

    records: int
    time_ms: int
    torn_bytes: int
    clean: bool = True
    is_new: bool = False


def recover(
    directory: Directory, apply: Apply, progress: Progress | None, *, time_ms: int, segment_bytes_max: int
) -> tuple[LogFiles, Recovery]:
    """Opens the log of a directory, or makes one; see `Log.recover` for arguments and errors."""
    names = directory.names()
    if MANIFEST_NAME in names:
        progress = progress or (lambda _done, _total: None)
        files, recovery = _reopen(directory, names, apply, progress, time_ms, segment_bytes_max)
    else:
        files, recovery = _create(directory, names, segment_bytes_max)
    try:
        if MANIFEST_NAME not in names or directory.read(MANIFEST_NAME) != encode_manifest(files.manifest):
            write_manifest(directory, files.manifest)  # not otherwise: a full disk may have no room for it
        files.open.allocate()
    except BaseException:
        files.open.close()
        raise
    return files, recovery


def _create(directory: Directory, names: list[str], segment_bytes_max: int) -> tuple[LogFiles, Recovery]:
    leftovers = check_names(directory, names, None)
    for name in (MANIFEST_NAME, segment_name(1)):
        _check_listing(directory, names, name)
    _remove(directory, leftovers)
    store_id = directory.random_bytes(STORE_ID_BYTES)
    header = SegmentHeader(1, store_id, directory.random_bytes(SEGMENT_ID_BYTES), first_lsn=1)
    file = create_file(directory, header.name, header.encode())
    manifest = Manifest(store_id, ()).with_segment(header)
    manifest_bytes = len(encode_manifest(manifest))
    open_segment = OpenSegment(directory, header, file, HEADER_BYTES, segment_bytes_max, manifest_bytes)
    return LogFiles(directory, manifest, open_segment, {}, last_lsn=0), Recovery(0, 0, 0, is_new=True)


def _check_listing(directory: Directory, names: list[str], name: str) -> None:
    """Raises Damage when a file is there that the listing leaves out: a new log would be made over an old one."""
    if name in names:
        return
    with suppress(FileNotFoundError):
        directory.size(name)
        reason = "the listing of the directory leaves this file out, so a new log would be made over the old one"
        raise Damage(directory.path, name, 0, 0, reason)


def _reopen(
    directory: Directory,
    names: list[str],
    apply: Apply,
    progress: Progress,
    time_ms: int,
    segment_bytes_max: int,
) -> tuple[LogFiles, Recovery]:
    manifest = read_manifest(directory)
    leftovers = check_names(directory, names, manifest)
    found = replay(directory, manifest, apply, progress)
    check_end(directory, manifest.clean_close, found)
    # From here on the disk is changed. First room is made: on a full disk all the rest may need it.
    directory.sync()  # the manifest that does not name the leftovers may be durable only now
    _remove(directory, leftovers)
    clean = manifest.clean_close is not None
    file = mend(directory, names, found, time_ms, clean=clean)
    manifest = replace(manifest, clean_close=None)
    size_bytes = max(HEADER_BYTES, found.scan.offset)
    manifest_bytes = len(encode_manifest(manifest))
    open_segment = OpenSegment(directory, found.header, file, size_bytes, segment_bytes_max, manifest_bytes)
    sealed = {name: directory.size(name) for name in map(segment_name, manifest.numbers[:-1])}
    files = LogFiles(directory, manifest, open_segment, sealed, last_lsn=found.scan.next_lsn - 1)
    torn_bytes = len(found.scan.rest) if found.scan.tail is Tail.TORN else 0
    return files, Recovery(found.records, found.time_ms, torn_bytes, clean)


def _remove(directory: Directory, names: list[str]) -> None:
    """Removes files that are no part of the log."""
    # Not synced: what a power cut brings back, the next start removes, and no name is used before it is replaced.
    for name in names:
        directory.remove(name)
