"""The write-ahead log: recover -> append -> commit -> close.

A `Log` that exists has been replayed and can be appended to; `recover` is the only way to get one. It first
reads everything and decides, then changes the disk: when it refuses, not one byte has changed.

    recover   manifest -> each segment: header, frames -> apply -> mend the tail -> manifest anew, without a footer
    append    one frame, handed to the system (and a roll before it, when the segment is full)
    commit    fdatasync: everything appended is durable; `durable_lsn` says up to where
    close     commit, then the manifest with the exact end: the footer of a clean close

After any error in append or commit the log has failed: what is on disk beyond `durable_lsn` is unknown, and
a second fdatasync may lie (after an error the kernel takes the pages for clean, and shows them to readers all
the same). It never writes again; the process must end. The next start reads what is there, and before it relies
on frames that no later frame proves durable, it writes the same bytes once more over themselves and syncs.

Not safe for use by several threads at once; the engine calls it from one at a time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from wal.files import Directory, File
from wal.frame import Frame, Scan, Tail, encode
from wal.segment import (
    HEADER_BYTES,
    MANIFEST_NAME,
    SEGMENT_ID_BYTES,
    STORE_ID_BYTES,
    CleanClose,
    Damage,
    Manifest,
    SegmentHeader,
    create_file,
    create_segment,
    decode_header,
    read_manifest,
    segment_name,
    segment_number,
    write_manifest,
)

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""A segment rolls before a frame that would take it beyond this."""

_TORN_COPY = r"[0-9]{8}\.log\.torn-[0-9]+"
_KEPT_NAMES = re.compile(rf"LOCK|MANIFEST|{_TORN_COPY}")
_TEMPORARY_NAMES = re.compile(rf"(MANIFEST|[0-9]{{8}}\.log|{_TORN_COPY})\.tmp")

_logger = logging.getLogger("holdfast.wal")

Apply = Callable[[Frame], None]
"""Takes one replayed commit; raises ValueError when its records make no sense."""

Progress = Callable[[int, int], None]
"""Told (bytes read, bytes in all) while replaying; may raise to stop the replay."""


class LogFailed(Exception):
    """A write or sync failed: nothing that was not durable before can be acknowledged any more."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What replay found.

    Attributes:
        records: number of records replayed.
        time_ms: engine time of the last commit; 0 when there was none.
        torn_bytes: length of the torn tail that was cut off.
    """

    records: int
    time_ms: int
    torn_bytes: int


@dataclass(slots=True)
class _Found:
    """The log as it was read, before anything on disk is changed."""

    header: SegmentHeader
    scan: Scan
    size_bytes: int
    earlier_bytes: int = 0
    records: int = 0
    time_ms: int = 0

    @property
    def name(self) -> str:
        return self.header.name


class Log:
    """The log of one data directory, open for appending."""

    def __init__(
        self,
        directory: Directory,
        manifest: Manifest,
        header: SegmentHeader,
        file: File,
        *,
        segment_bytes_max: int,
    ) -> None:
        """Private: use `recover`."""
        self._directory = directory
        self._manifest = manifest
        self._header = header
        self._file = file
        self._segment_bytes = HEADER_BYTES
        self._segment_bytes_max = segment_bytes_max
        self._sealed_bytes = 0
        self._failed = False
        self.last_lsn = header.first_lsn - 1
        self.durable_lsn = self.last_lsn
        self.recovery = Recovery(0, 0, 0)

    @classmethod
    def recover(
        cls,
        directory: Directory,
        apply: Apply,
        *,
        time_ms: int,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        progress: Progress | None = None,
    ) -> Log:
        """Replays what is in the directory and opens it for appending.

        Args:
            directory: the data directory, locked.
            apply: called with every frame, in order.
            time_ms: wall clock, milliseconds since 1970; names the copy of a torn tail.
            segment_bytes_max: size at which segments roll.
            progress: told how far the replay is.

        Returns:
            The log; everything replayed is durable.

        Raises:
            Damage: a file is missing, foreign or not what was written; the disk is unchanged.
            NewerFormat: written by a later version; the disk is unchanged.
            OSError: reading or mending failed; the next try starts from the same log.
        """
        names = directory.names()
        if MANIFEST_NAME in names:
            log = cls._reopen(directory, names, apply, time_ms, segment_bytes_max, progress)
        else:
            _check_names(directory, names, range(1, 1))
            log = cls._create(directory, segment_bytes_max)
        try:
            write_manifest(directory, log._manifest)
            log._remove_leftovers()
        except BaseException:
            log._file.close()
            raise
        return log

    @property
    def size_bytes(self) -> int:
        """Length of all segments together."""
        return self._sealed_bytes + self._segment_bytes

    def append(self, records: Sequence[bytes], time_ms: int) -> int:
        """Hands one frame to the system; durable only after the next `commit`.

        Args:
            records: msgpack of each record, at least one.
            time_ms: engine time, milliseconds since 1970.

        Returns:
            LSN of the last record.

        Raises:
            LogFailed: now or earlier a write or sync failed.
        """
        first_lsn = self.last_lsn + 1
        with self._failing():
            data = encode(self._header.identity, first_lsn, time_ms, self.durable_lsn, records)
            if self._segment_bytes > HEADER_BYTES and self._segment_bytes + len(data) > self._segment_bytes_max:
                self._roll()
                data = encode(self._header.identity, first_lsn, time_ms, self.durable_lsn, records)
            self._file.write(data)
        self._segment_bytes += len(data)
        self.last_lsn += len(records)
        return self.last_lsn

    def commit(self) -> None:
        """Returns when everything appended is on disk.

        Raises:
            LogFailed: now or earlier a write or sync failed.
        """
        with self._failing():
            self._file.sync()
        self.durable_lsn = self.last_lsn

    def close(self) -> None:
        """Commits, notes the clean close in the manifest, and gives up the directory.

        Raises:
            LogFailed: now or earlier a write or sync failed; the directory is given up all the same.
        """
        try:
            self.commit()
            footer = CleanClose(self.last_lsn, self._segment_bytes)
            with self._failing():
                write_manifest(self._directory, replace(self._manifest, clean_close=footer))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Gives up the directory as a crash would: no sync, no footer."""
        try:
            self._file.close()
        finally:
            self._directory.close()

    @classmethod
    def _create(cls, directory: Directory, segment_bytes_max: int) -> Log:
        store_id = directory.random_bytes(STORE_ID_BYTES)
        header = SegmentHeader(1, store_id, directory.random_bytes(SEGMENT_ID_BYTES), first_lsn=1)
        file = create_segment(directory, header)
        manifest = Manifest(store_id, ()).with_segment(header)
        return cls(directory, manifest, header, file, segment_bytes_max=segment_bytes_max)

    @classmethod
    def _reopen(
        cls,
        directory: Directory,
        names: list[str],
        apply: Apply,
        time_ms: int,
        segment_bytes_max: int,
        progress: Progress | None,
    ) -> Log:
        manifest = read_manifest(directory)
        _check_names(directory, names, manifest.numbers)
        found = _replay(directory, names, manifest, apply, progress or (lambda _done, _total: None))
        if found.scan.tail is Tail.CORRUPT:
            raise _damage(directory, found, found.scan.reason)
        if manifest.clean_close is not None:
            _check_footer(directory, manifest.clean_close, found)
        # From here on the disk is changed.
        file = _mend(directory, names, found, time_ms, clean=manifest.clean_close is not None)
        manifest = replace(manifest, clean_close=None)
        log = cls(directory, manifest, found.header, file, segment_bytes_max=segment_bytes_max)
        log._segment_bytes = max(HEADER_BYTES, found.scan.offset)
        log._sealed_bytes = found.earlier_bytes
        log.last_lsn = log.durable_lsn = found.scan.next_lsn - 1
        torn_bytes = len(found.scan.rest) if found.scan.tail is Tail.TORN else 0
        log.recovery = Recovery(found.records, found.time_ms, torn_bytes)
        return log

    def _roll(self) -> None:
        """Seals the segment and goes on in a new one; what was sealed is durable."""
        self._file.sync()
        self.durable_lsn = self.last_lsn
        header = SegmentHeader(
            number=self._header.number + 1,
            store_id=self._header.store_id,
            segment_id=self._directory.random_bytes(SEGMENT_ID_BYTES),
            first_lsn=self.last_lsn + 1,
            previous_id=self._header.segment_id,
            previous_bytes=self._segment_bytes,
        )
        file = create_segment(self._directory, header)
        self._file.close()
        self._file, self._header = file, header
        self._sealed_bytes += self._segment_bytes
        self._segment_bytes = HEADER_BYTES
        self._manifest = self._manifest.with_segment(header)
        write_manifest(self._directory, self._manifest)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Marks the log as failed when the block raises; raises LogFailed for OSError, and ever after."""
        if self._failed:
            raise LogFailed("an earlier write or sync of the log failed")
        try:
            yield
        except BaseException as error:
            self._failed = True
            if isinstance(error, OSError):
                raise LogFailed(f"writing the log in {self._directory.path} failed: {error}") from error
            raise

    def _remove_leftovers(self) -> None:
        """Removes what an interrupted create, roll or mend left behind: it was never part of the log."""
        # Not synced: what a power cut brings back, the next start removes, and no name is used before it is replaced.
        for name in self._directory.names():
            if _TEMPORARY_NAMES.fullmatch(name) or (segment_number(name) or 0) > self._header.number:
                self._directory.remove(name)


def _check_names(directory: Directory, names: list[str], listed: range) -> None:
    """Beside the listed segments there may be one without frames, from an interrupted roll; what is not ours stays."""
    for name in names:
        number = segment_number(name)
        if number is None:
            if not _KEPT_NAMES.fullmatch(name) and not _TEMPORARY_NAMES.fullmatch(name):
                _logger.warning("%s/%s is not a file of Holdfast; left alone", directory.path, name)
        elif number not in listed and (number != listed.stop or directory.size(name) > HEADER_BYTES):
            if not listed:
                raise Damage(directory.path, MANIFEST_NAME, 0, 1, f"the manifest is missing, but there is {name}")
            raise Damage(directory.path, name, 0, 0, "the manifest does not name this segment")


def _replay(directory: Directory, names: list[str], manifest: Manifest, apply: Apply, progress: Progress) -> _Found:
    """Reads and applies every segment; all but the last must be whole."""
    present = set(names)
    sizes = [directory.size(name) for name in map(segment_name, manifest.numbers) if name in present]
    total_bytes = sum(sizes)
    found: _Found | None = None
    for number, segment_id in manifest.segments:
        if found is not None and found.scan.tail is not Tail.END:
            raise _damage(directory, found, found.scan.reason or "the segment does not end with a frame")
        expected = _expected_header(manifest, number, segment_id, found)
        if expected.name not in present:
            raise Damage(directory.path, expected.name, 0, expected.first_lsn, "the segment is missing")
        last = number == manifest.numbers[-1] and manifest.clean_close is None
        found = _follow(found, _read_segment(directory, expected, found, may_be_torn=last))
        for frame in found.scan:
            try:
                apply(frame)
            except ValueError as error:
                reason = f"the commit of records {frame.first_lsn} to {frame.last_lsn} cannot be applied: {error}"
                raise _damage(directory, found, reason) from error
            found.records += len(frame.records)
            found.time_ms = frame.time_ms
            progress(found.earlier_bytes + frame.offset, total_bytes)
    assert found is not None, "a manifest names at least one segment"
    return found


def _expected_header(manifest: Manifest, number: int, segment_id: bytes, before: _Found | None) -> SegmentHeader:
    """The one header that fits here: all of it follows from the manifest and the segment before."""
    header = SegmentHeader(number, manifest.store_id, segment_id, first_lsn=1)
    if before is None:
        return header
    return replace(
        header,
        first_lsn=before.scan.next_lsn,
        previous_id=before.header.segment_id,
        previous_bytes=before.size_bytes,
    )


def _read_segment(directory: Directory, expected: SegmentHeader, before: _Found | None, *, may_be_torn: bool) -> _Found:
    """Reads a segment and checks that it is the one that belongs here; its frames are still to be scanned."""
    data = directory.read(expected.name)
    scan = Scan(data, HEADER_BYTES, expected.identity, expected.first_lsn)
    if may_be_torn and len(data) < HEADER_BYTES and expected.encode().startswith(data):
        scan.offset = 0
    else:
        header = decode_header(data, directory.path, expected.name, expected.first_lsn)
        if header != expected:
            raise _misfit(directory, header, expected, before)
    return _Found(expected, scan, len(data))


def _misfit(directory: Directory, header: SegmentHeader, expected: SegmentHeader, before: _Found | None) -> Damage:
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


def _follow(before: _Found | None, found: _Found) -> _Found:
    """Carries the sums of the segments before over to the next."""
    if before is not None:
        found.earlier_bytes = before.earlier_bytes + before.size_bytes
        found.records = before.records
        found.time_ms = before.time_ms
    return found


def _check_footer(directory: Directory, close: CleanClose, found: _Found) -> None:
    """After a clean close the log ends exactly where the manifest says; nobody was writing when it was cut."""
    ends = (found.scan.next_lsn - 1, found.scan.offset, found.size_bytes)
    if ends != (close.last_lsn, close.last_segment_bytes, close.last_segment_bytes):
        reason = found.scan.reason or "the segment ends elsewhere"
        raise _damage(
            directory,
            found,
            f"{reason}; it was closed cleanly with record {close.last_lsn} at {close.last_segment_bytes} bytes",
        )


def _damage(directory: Directory, found: _Found, reason: str) -> Damage:
    return Damage(directory.path, found.name, found.scan.offset, found.scan.next_lsn, reason)


def _mend(directory: Directory, names: list[str], found: _Found, time_ms: int, *, clean: bool) -> File:
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
        return create_segment(directory, found.header)
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


def _keep_copy(directory: Directory, names: list[str], found: _Found, time_ms: int) -> str:
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
