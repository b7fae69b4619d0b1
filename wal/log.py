"""The write-ahead log: recover -> append -> commit -> close.

A `Log` that exists has been replayed and can be appended to; `recover` is the only way to get one. It first
reads everything and decides, then changes the disk: when it refuses, not one byte has changed.

    recover   manifest -> snapshot, each segment: header, frames -> apply -> mend the tail -> manifest, without a footer
    append    one frame, handed to the system (and a roll before it, when the segment is full)
    commit    fdatasync: everything appended is durable; `durable_lsn` says up to where
    close     commit, then the manifest with the exact end: the footer of a clean close

Room. A segment is allocated whole when it is made, and the next one (the spare) when half of it is used. So a full disk
is seen while there is still half a segment for what must go on: `room` says what may be appended, and whoever
appends asks it first. When there is no spare, only what lets data go should be appended.

Checkpoints. `plan_fold` says what another process is to fold into a snapshot; `install` makes it part of the log in
place of what was folded, which `remove_folded` then removes.

After any error in append or commit the log has failed: what is on disk beyond `durable_lsn` is unknown, and
a second fdatasync may lie (after an error the kernel takes the pages for clean, and shows them to readers all
the same). It never writes again; the process must end. The next start reads what is there, and before it relies
on frames that no later frame proves durable, it writes the same bytes once more over themselves and syncs. A file of
the log that somebody removed, renamed or cut is such an error: nothing is acknowledged into a file nobody will find.

Not safe for use by several threads at once, but for `remove_folded`; the engine calls it from one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from wal.files import Directory, File
from wal.frame import Tail, encode
from wal.manifest import MANIFEST_NAME, CleanClose, Manifest, Snapshot, read_manifest, write_manifest
from wal.replay import Apply, Progress, check_end, check_names, mend, replay
from wal.segment import (
    HEADER_BYTES,
    SEGMENT_ID_BYTES,
    STORE_ID_BYTES,
    TEMPORARY_SUFFIX,
    SegmentHeader,
    begin_file,
    create_file,
    finish_file,
    segment_name,
    segment_number,
    snapshot_name,
    snapshot_number,
)
from wal.snapshot import FoldPlan

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""A segment rolls before a frame that would take it beyond this."""

SEGMENT_BYTES_MIN = 2 * 1024 * 1024
"""Segments are not made smaller than this for a small disk: the longest value by default has to fit one."""

DISK_SHARE = 32
"""A segment takes at most this part of the disk, because a spare one and half of the open one are held in reserve."""

ALLOCATE_BYTES_MIN = 64 * 1024
"""Room is taken from the disk in pieces no smaller than this."""

RESERVE_SHARE = 16
"""On a full disk, this part of a segment is kept for what cannot be refused: values that come back."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_CANNOT_ALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL)

_logger = logging.getLogger("holdfast.wal")


class LogFailed(Exception):
    """A write or sync failed: nothing that was not durable before can be acknowledged any more."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What replay found.

    Attributes:
        records: number of records replayed, those of the snapshot included.
        time_ms: engine time of the last commit; 0 when there was none.
        torn_bytes: length of the torn tail that was cut off.
    """

    records: int
    time_ms: int
    torn_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """What may be appended without asking the disk for more.

    Attributes:
        frames_bytes: frames of this length together fit, however they are divided.
        full: the disk had no room for the next segment when it was last asked.
        free_bytes: what a new snapshot could take then.
    """

    frames_bytes: int
    full: bool = False
    free_bytes: int = 0


_ENDLESS = Room(1 << 62)
"""On a file system that cannot allocate, a full disk is only seen by a failed write."""


def segment_bytes_for(capacity_bytes: int) -> int:
    """The size of segments that suits a disk of this size, in bytes."""
    return max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES_MAX, capacity_bytes // DISK_SHARE))


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
        self._allocated_bytes = HEADER_BYTES
        self._segment_bytes_max = segment_bytes_max
        self._spare: File | None = None
        self._spare_bytes = 0
        self._sealed: dict[str, int] = {}
        self._failed = False
        self._full = False
        self._free_bytes = 0
        self._can_allocate = True
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
            apply: called with every frame, in order, those of the snapshot first.
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
            log = cls._create(directory, check_names(directory, names, None), segment_bytes_max)
        try:
            write_manifest(directory, log._manifest)
            log._allocate_open()
        except BaseException:
            log._file.close()
            raise
        return log

    # What it holds

    @property
    def size_bytes(self) -> int:
        """Length of the snapshot and of all segments together, as far as they are written."""
        return self.snapshot_bytes + self.sealed_bytes + self._segment_bytes

    @property
    def disk_bytes(self) -> int:
        """What they take of the disk, with the room that is allocated ahead."""
        return self.snapshot_bytes + self.sealed_bytes + self._allocated_bytes + self._spare_bytes

    @property
    def snapshot_bytes(self) -> int:
        """Length of the snapshot; 0 without one."""
        return 0 if self._manifest.snapshot is None else self._manifest.snapshot.size_bytes

    @property
    def sealed_bytes(self) -> int:
        """Length of the segments that are full."""
        return sum(self._sealed.values())

    @property
    def segment_bytes_max(self) -> int:
        """Size at which segments roll."""
        return self._segment_bytes_max

    @property
    def room(self) -> Room:
        """What may be appended."""
        if not self._can_allocate:
            return _ENDLESS
        rest = self._allocated_bytes - self._segment_bytes
        if not self._full:
            return Room(max(rest, self._spare_bytes - HEADER_BYTES))
        kept = self._piece_bytes // RESERVE_SHARE
        return Room(max(0, rest - kept), full=True, free_bytes=self._free_bytes + rest // 2)

    # Appending

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
            if self._segment_bytes > HEADER_BYTES and self._must_roll(len(data)):
                self._try_to_roll(max(self._piece_bytes, HEADER_BYTES + len(data)))
                data = encode(self._header.identity, first_lsn, time_ms, self.durable_lsn, records)
            self._allocate(self._segment_bytes + len(data))
            self._file.write(data)
        self._segment_bytes += len(data)
        self.last_lsn += len(records)
        return self.last_lsn

    def commit(self) -> None:
        """Returns when everything appended is on disk, in a file that is still in its place.

        Raises:
            LogFailed: now or earlier a write or sync failed, or somebody took the file away.
        """
        with self._failing():
            self._file.sync()
            self._check_open_file()
        self.durable_lsn = self.last_lsn

    def check_files(self) -> None:
        """Looks whether every file of the log is still in its place, with its length.

        Raises:
            LogFailed: somebody removed, renamed or cut one.
        """
        with self._failing():
            if not self._directory.is_in_place():
                raise LogFailed(f"the data directory {self._directory.path} was moved or removed by somebody else")
            self._check_open_file()
            expected = dict(self._sealed)
            if self._manifest.snapshot is not None:
                expected[snapshot_name(self._manifest.snapshot.number)] = self._manifest.snapshot.size_bytes
            for name, size_bytes in expected.items():
                self._check_size(name, size_bytes, size_bytes)
            self._check_size(MANIFEST_NAME, 1)

    def make_room(self, wanted_bytes: int = 0) -> None:
        """Allocates what comes next, ahead of need; that the disk is full is noted in `room`, not raised.

        Args:
            wanted_bytes: frames of this length together are to fit.

        Raises:
            LogFailed: the disk failed otherwise.
        """
        with self._failing():
            rest = self._allocated_bytes - self._segment_bytes
            room = max(rest, self._spare_bytes - HEADER_BYTES)
            enough = room >= wanted_bytes and (self._spare is not None or rest >= self._piece_bytes // 2)
            if not self._can_allocate or (enough and not self._full):
                return
            try:
                self._make_spare(max(self._piece_bytes, HEADER_BYTES + wanted_bytes))
                self._full = False
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._extend_open(max(self._piece_bytes, wanted_bytes))
                elif error.errno in _NO_ROOM:
                    self._note_full()
                else:
                    raise

    def seal(self) -> None:
        """Begins a new segment, so that all that was appended can be folded; on a full disk a short one.

        Raises:
            LogFailed: now or earlier a write or sync failed.
        """
        with self._failing():
            if self._segment_bytes == HEADER_BYTES:
                return
            if not self._full:
                self._try_to_roll(self._piece_bytes)
                return
            # The rest of the open segment is the reserve: a quarter will do for the next, the snapshot needs more.
            rest = self._allocated_bytes - self._segment_bytes
            self._cut_open()
            self._try_to_roll(max(HEADER_BYTES, rest // 4))
            self._allocate_open()

    def close(self) -> None:
        """Commits, notes the clean close in the manifest, and gives up the directory.

        Raises:
            LogFailed: now or earlier a write or sync failed; the directory is given up all the same.
        """
        try:
            with self._failing():
                self._drop_spare()
                self._cut_open()
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
            if self._spare is not None:
                self._spare.close()
        finally:
            self._directory.close()

    # Checkpoints

    def plan_fold(self) -> FoldPlan | None:
        """Says what a checkpoint has to fold; None when no segment is sealed."""
        sealed = self._manifest.segments[:-1]
        if not sealed:
            return None
        folded = replace(self._manifest, segments=sealed, clean_close=None)
        header = replace(self._header, number=sealed[-1][0], segment_id=self._directory.random_bytes(SEGMENT_ID_BYTES))
        return FoldPlan(folded, header)

    def install(self, plan: FoldPlan, snapshot: Snapshot) -> None:
        """Makes a snapshot that was written after a plan part of the log, in place of what it folds.

        Args:
            plan: as `plan_fold` gave it; nothing else was installed since.
            snapshot: as `write_snapshot` returned it.

        Raises:
            OSError: the disk has no room; the log is as it was.
            LogFailed: now or earlier a write or sync failed.
        """
        with self._failing():
            refused = self._give_name(plan) or self._replace_manifest(self._manifest.with_snapshot(snapshot))
        if refused is not None:
            with contextlib.suppress(OSError):  # the next start removes it as well
                self._directory.remove(plan.name)
            raise refused
        for number, _ in plan.manifest.segments:
            del self._sealed[segment_name(number)]

    def remove_folded(self) -> None:
        """Removes what the last `install` made superfluous; the manifest that does not name it is durable.

        Raises:
            OSError: the disk refused; the next checkpoint or start tries again.
        """
        snapshot = self._manifest.snapshot
        assert snapshot is not None
        for name in self._directory.names():
            number = segment_number(name)
            folded = number is not None and number <= snapshot.number
            if folded or (snapshot_number(name) or snapshot.number) < snapshot.number:
                self._directory.remove(name)
        self._directory.sync()

    # Opening

    @classmethod
    def _create(cls, directory: Directory, leftovers: list[str], segment_bytes_max: int) -> Log:
        _remove(directory, leftovers)
        store_id = directory.random_bytes(STORE_ID_BYTES)
        header = SegmentHeader(1, store_id, directory.random_bytes(SEGMENT_ID_BYTES), first_lsn=1)
        file = create_file(directory, header.name, header.encode())
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
        leftovers = check_names(directory, names, manifest)
        found = replay(directory, manifest, apply, progress or (lambda _done, _total: None))
        check_end(directory, manifest.clean_close, found)
        # From here on the disk is changed. First room is made: on a full disk all the rest may need it.
        directory.sync()  # the manifest that does not name the leftovers may be durable only now
        _remove(directory, leftovers)
        file = mend(directory, names, found, time_ms, clean=manifest.clean_close is not None)
        manifest = replace(manifest, clean_close=None)
        log = cls(directory, manifest, found.header, file, segment_bytes_max=segment_bytes_max)
        log._segment_bytes = log._allocated_bytes = max(HEADER_BYTES, found.scan.offset)
        log._sealed = {name: directory.size(name) for name in map(segment_name, manifest.numbers[:-1])}
        log.last_lsn = log.durable_lsn = found.scan.next_lsn - 1
        torn_bytes = len(found.scan.rest) if found.scan.tail is Tail.TORN else 0
        log.recovery = Recovery(found.records, found.time_ms, torn_bytes)
        return log

    # Rolling

    def _must_roll(self, frame_bytes: int) -> bool:
        end = self._segment_bytes + frame_bytes
        return end > self._roll_at_bytes or (self._spare is not None and end > self._allocated_bytes)

    def _try_to_roll(self, spare_bytes: int) -> None:
        """Rolls, or goes on in the old segment while the process or the disk has nothing left for a new one."""
        try:
            self._roll(spare_bytes)
        except OSError as error:
            if error.errno not in (*_NO_DESCRIPTOR, *_NO_ROOM):
                raise
            if self._roll_at_bytes == self._segment_bytes_max:
                _logger.warning("%s: no new segment, going on in %s", error, self._header.name)
            self._roll_at_bytes = self._segment_bytes + self._segment_bytes_max // 16  # a try costs a sync
        else:
            self._roll_at_bytes = self._segment_bytes_max

    def _roll(self, spare_bytes: int) -> None:
        """Seals the segment, durably, and goes on in a new one, of `spare_bytes` if it is still to be made."""
        if self._spare is None:
            self._make_spare(spare_bytes)
        self._cut_open()
        self._file.sync()
        self._check_open_file()
        self.durable_lsn = self.last_lsn
        header = SegmentHeader(
            number=self._header.number + 1,
            store_id=self._header.store_id,
            segment_id=self._directory.random_bytes(SEGMENT_ID_BYTES),
            first_lsn=self.last_lsn + 1,
            previous_id=self._header.segment_id,
            previous_bytes=self._segment_bytes,
        )
        allocated_bytes = max(HEADER_BYTES, self._spare_bytes)
        file = finish_file(self._directory, header.name, self._take_spare(), header.encode())
        manifest = self._manifest.with_segment(header)
        refused = self._replace_manifest(manifest)
        if refused is not None:
            file.close()  # not named, so not part of the log: the next roll, or the next start, makes it afresh
            raise refused
        self._file.close()
        self._sealed[self._header.name] = self._segment_bytes
        self._file, self._header = file, header
        self._segment_bytes, self._allocated_bytes = HEADER_BYTES, allocated_bytes

    def _give_name(self, plan: FoldPlan) -> OSError | None:
        """Gives a new snapshot its name, durably; returns why not when there was no room. No manifest names it yet."""
        try:
            self._directory.rename(plan.temporary_name, plan.name)
            self._directory.sync()
        except OSError as error:
            if error.errno not in (*_NO_DESCRIPTOR, *_NO_ROOM):
                raise
            with contextlib.suppress(OSError):
                self._directory.remove(plan.temporary_name)
            return error
        return None

    def _replace_manifest(self, manifest: Manifest) -> OSError | None:
        """Replaces the manifest; returns why not when there was no room and the old one still stands."""
        try:
            write_manifest(self._directory, manifest)
        except OSError as error:
            if error.errno not in (*_NO_DESCRIPTOR, *_NO_ROOM) or read_manifest(self._directory) != self._manifest:
                raise
            return error
        self._manifest = manifest
        return None

    # Room

    @property
    def _piece_bytes(self) -> int:
        """What is allocated for a segment."""
        return max(self._segment_bytes_max, ALLOCATE_BYTES_MIN)

    def _make_spare(self, size_bytes: int) -> None:
        """Makes the file of the next segment and allocates it, as far as the file system can."""
        self._drop_spare()
        self._spare = begin_file(self._directory, segment_name(self._header.number + 1))
        try:
            if self._can_allocate:
                self._spare.allocate(size_bytes)
                self._spare_bytes = size_bytes
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                self._drop_spare()
                raise
            self._can_allocate = False

    def _take_spare(self) -> File:
        spare = self._spare
        assert spare is not None
        self._spare, self._spare_bytes = None, 0
        return spare

    def _drop_spare(self) -> None:
        """Removes the file of the next segment, if there is one."""
        if self._spare is not None:
            self._take_spare().close()
            self._directory.remove(segment_name(self._header.number + 1) + TEMPORARY_SUFFIX)

    def _allocate(self, size_bytes: int) -> None:
        """Allocates the open segment up to a length."""
        if not self._can_allocate or size_bytes <= self._allocated_bytes:
            return
        try:
            self._file.allocate(size_bytes)
            self._allocated_bytes = size_bytes
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
            self._can_allocate = False

    def _allocate_open(self) -> None:
        """Allocates the open segment whole, or on a full disk as much of it as there is."""
        rest = max(self._piece_bytes - self._segment_bytes, ALLOCATE_BYTES_MIN)
        while rest >= ALLOCATE_BYTES_MIN // 16:
            try:
                self._allocate(self._segment_bytes + rest)
                break
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
            self._note_full()
            self._file.truncate(self._allocated_bytes)  # an attempt that failed may have taken what there was
            rest //= 2

    def _cut_open(self) -> None:
        """Gives back what is allocated of the open segment and not written."""
        if self._allocated_bytes > self._segment_bytes:
            self._file.truncate(self._segment_bytes)
            self._allocated_bytes = self._segment_bytes

    def _extend_open(self, more_bytes: int) -> None:
        try:
            self._allocate(self._segment_bytes + more_bytes)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._note_full()

    def _note_full(self) -> None:
        self._full = True
        self._free_bytes = self._directory.free_bytes()

    # Failing

    def _check_open_file(self) -> None:
        if not self._directory.leads_to(self._header.name, self._file):
            raise LogFailed(f"{self._directory.path}/{self._header.name} was removed or replaced by somebody else")
        self._check_size(self._header.name, self._segment_bytes)

    def _check_size(self, name: str, at_least: int, at_most: int | None = None) -> None:
        try:
            size_bytes = self._directory.size(name)
        except FileNotFoundError:
            raise LogFailed(f"{self._directory.path}/{name} was removed by somebody else") from None
        if size_bytes < at_least or (at_most is not None and size_bytes > at_most):
            raise LogFailed(f"{self._directory.path}/{name} was cut or written by somebody else: {size_bytes} bytes")

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


def _remove(directory: Directory, names: list[str]) -> None:
    """Removes files that are no part of the log."""
    # Not synced: what a power cut brings back, the next start removes, and no name is used before it is replaced.
    for name in names:
        directory.remove(name)
