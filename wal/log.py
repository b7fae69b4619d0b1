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

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from wal.files import Directory, File
from wal.frame import Tail, encode
from wal.replay import TEMPORARY_NAMES, Apply, Progress, check_end, check_names, mend, replay
from wal.segment import (
    HEADER_BYTES,
    MANIFEST_NAME,
    SEGMENT_ID_BYTES,
    STORE_ID_BYTES,
    CleanClose,
    Manifest,
    SegmentHeader,
    create_segment,
    read_manifest,
    segment_number,
    write_manifest,
)

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""A segment rolls before a frame that would take it beyond this."""


_logger = logging.getLogger("holdfast.wal")


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
        self._roll_at_bytes = segment_bytes_max
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
            check_names(directory, names, range(1, 1))
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
            if self._segment_bytes > HEADER_BYTES and self._segment_bytes + len(data) > self._roll_at_bytes:
                self._try_to_roll()
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
        check_names(directory, names, manifest.numbers)
        found = replay(directory, names, manifest, apply, progress or (lambda _done, _total: None))
        check_end(directory, manifest.clean_close, found)
        # From here on the disk is changed.
        file = mend(directory, names, found, time_ms, clean=manifest.clean_close is not None)
        manifest = replace(manifest, clean_close=None)
        log = cls(directory, manifest, found.header, file, segment_bytes_max=segment_bytes_max)
        log._segment_bytes = max(HEADER_BYTES, found.scan.offset)
        log._sealed_bytes = found.earlier_bytes
        log.last_lsn = log.durable_lsn = found.scan.next_lsn - 1
        torn_bytes = len(found.scan.rest) if found.scan.tail is Tail.TORN else 0
        log.recovery = Recovery(found.records, found.time_ms, torn_bytes)
        return log

    def _try_to_roll(self) -> None:
        """Rolls, or goes on in the old segment for as long as the process is out of file descriptors."""
        try:
            self._roll()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if self._roll_at_bytes == self._segment_bytes_max:
                _logger.warning("%s: no descriptor for a new segment, going on in %s", error, self._header.name)
            self._roll_at_bytes = self._segment_bytes + self._segment_bytes_max // 16  # a try costs a sync
        else:
            self._roll_at_bytes = self._segment_bytes_max

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
        manifest = self._manifest.with_segment(header)
        try:
            write_manifest(self._directory, manifest)
        except BaseException:
            file.close()  # not named, so not part of the log: the next roll, or the next start, makes it afresh
            raise
        self._file.close()
        self._file, self._header, self._manifest = file, header, manifest
        self._sealed_bytes += self._segment_bytes
        self._segment_bytes = HEADER_BYTES

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
            if TEMPORARY_NAMES.fullmatch(name) or (segment_number(name) or 0) > self._header.number:
                self._directory.remove(name)
