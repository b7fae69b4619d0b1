"""The write-ahead log: recover -> append -> commit -> close.

A `Log` that exists has been replayed and can be appended to; `recover` is the only way to get one. It first
reads everything and decides, then changes the disk: when it refuses, not one byte has changed.

    recover   manifest -> snapshot, each segment: header, frames -> apply -> mend the tail -> manifest, without a footer
    append    one frame, handed to the system (and a roll before it, when the segment is full)
    commit    fdatasync: everything appended is durable; `durable_lsn` says up to where
    close     commit, then the manifest with the exact end: the footer of a clean close

Room. `room` says what may be appended, and whoever appends asks it first; `make_room` allocates ahead of need. On a
full disk only what lets data go should be appended (wal/open_segment.py).

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

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from wal.files import Directory, File
from wal.frame import Tail, encode
from wal.manifest import (
    MANIFEST_NAME,
    CleanClose,
    Manifest,
    Snapshot,
    encode_manifest,
    read_manifest,
    write_manifest,
)
from wal.open_segment import NO_DESCRIPTOR, NO_ROOM, OpenSegment, Room, check_size
from wal.replay import Apply, Progress, check_end, check_names, mend, replay
from wal.segment import (
    HEADER_BYTES,
    SEGMENT_ID_BYTES,
    STORE_ID_BYTES,
    SegmentHeader,
    create_file,
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
        size_bytes: int,
        segment_bytes_max: int,
    ) -> None:
        """Private: use `recover`."""
        self._directory = directory
        self._manifest = manifest
        self._open = OpenSegment(directory, header, file, size_bytes, segment_bytes_max)
        self._segment_bytes_max = segment_bytes_max
        self._roll_at_bytes = segment_bytes_max
        # Replaced, never changed: the statistics look at it while the commit thread rolls.
        self._sealed: dict[str, int] = {}
        self._failed = False
        self._folding: FoldPlan | None = None
        self.keep_bytes = 0
        """What `make_room` leaves on the disk for the next snapshot; whoever makes checkpoints sets it."""
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
            if MANIFEST_NAME not in names or directory.read(MANIFEST_NAME) != encode_manifest(log._manifest):
                write_manifest(directory, log._manifest)  # not otherwise: a full disk may have no room for it
            log._open.allocate()
        except BaseException:
            log._open.close()
            raise
        return log

    # What it holds

    @property
    def size_bytes(self) -> int:
        """Length of the snapshot and of all segments together, as far as they are written."""
        return self.snapshot_bytes + self.sealed_bytes + self._open.size_bytes

    @property
    def disk_bytes(self) -> int:
        """What they take of the disk, with the room that is allocated ahead."""
        return self.snapshot_bytes + self.sealed_bytes + self._open.disk_bytes

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
        return self._open.room

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
            data = encode(self._open.header.identity, first_lsn, time_ms, self.durable_lsn, records)
            if self._must_roll(len(data)):
                self._try_to_roll(len(data))
                data = encode(self._open.header.identity, first_lsn, time_ms, self.durable_lsn, records)
            self._open.write(data)
        self.last_lsn += len(records)
        return self.last_lsn

    def commit(self) -> None:
        """Returns when everything appended is on disk, in a file that is still in its place.

        Raises:
            LogFailed: now or earlier a write or sync failed, or somebody took the file away.
        """
        with self._failing():
            self._open.sync()
        self.durable_lsn = self.last_lsn

    def check_files(self) -> None:
        """Looks whether every file of the log is still in its place, with its length.

        Raises:
            LogFailed: somebody removed, renamed or cut one.
        """
        with self._failing():
            if not self._directory.is_in_place():
                raise OSError(f"{self._directory.path} was moved or removed by somebody else")
            self._open.check_in_place()
            expected = dict(self._sealed)
            if self._manifest.snapshot is not None:
                expected[snapshot_name(self._manifest.snapshot.number)] = self._manifest.snapshot.size_bytes
            for name, size_bytes in expected.items():
                check_size(self._directory, name, size_bytes, size_bytes)
            manifest_bytes = len(encode_manifest(self._manifest))
            check_size(self._directory, MANIFEST_NAME, manifest_bytes, manifest_bytes)

    def make_room(self, wanted_bytes: int = 0) -> None:
        """Allocates what comes next, ahead of need; that the disk is full is noted in `room`, not raised.

        Args:
            wanted_bytes: frames of this length together are to fit.

        Raises:
            LogFailed: the disk failed otherwise.
        """
        with self._failing():
            self._open.make_room(wanted_bytes, max(0, self.keep_bytes - self._folded_bytes()))

    def seal(self, pending_bytes: int = 0) -> None:
        """Begins a new segment, so that all that was appended can be folded; on a full disk a short one.

        Args:
            pending_bytes: frames of this length were admitted already, and have to fit.

        Raises:
            OSError: there is neither room nor a descriptor for it; the log goes on in the old one.
            LogFailed: now or earlier a write or sync failed.
        """
        refused = None
        with self._failing():
            if self._open.size_bytes > HEADER_BYTES:
                refused = self._try_to_roll(pending_bytes, squeeze=self._open.full)
                if refused is not None and self._open.full:
                    self._open.allocate()  # what was given back for it
        if refused is not None:
            raise refused

    def close(self) -> None:
        """Commits, notes the clean close in the manifest, and gives up the directory.

        On a full disk all stays as it is, without the note: the next start must have the room to take it back, and the
        reserve, which somebody else would take.

        Raises:
            LogFailed: now or earlier a write or sync failed; the directory is given up all the same.
        """
        try:
            if self._open.full:
                self.commit()
            else:
                self._close_cleanly()
        finally:
            self.abandon()

    def _close_cleanly(self) -> None:
        with self._failing():
            self._open.drop_spare()
            self._open.cut()
        self.commit()
        footer = CleanClose(self.last_lsn, self._open.size_bytes)
        with self._failing():
            refused = self._replace_manifest(replace(self._manifest, clean_close=footer))
        if refused is not None:
            _logger.warning("%s: everything is on disk, but not that the log was closed", refused)

    def abandon(self) -> None:
        """Gives up the directory as a crash would: no sync, no footer."""
        try:
            self._open.close()
        finally:
            self._directory.close()

    # Checkpoints

    def plan_fold(self) -> FoldPlan | None:
        """Says what a checkpoint has to fold; None when no segment is sealed."""
        sealed = self._manifest.segments[:-1]
        if not sealed:
            return None
        folded = replace(self._manifest, segments=sealed, clean_close=None)
        header = replace(
            self._open.header, number=sealed[-1][0], segment_id=self._directory.random_bytes(SEGMENT_ID_BYTES)
        )
        self._folding = FoldPlan(folded, header)
        return self._folding

    def install(self, plan: FoldPlan, snapshot: Snapshot) -> None:
        """Makes a snapshot that was written after a plan part of the log, in place of what it folds.

        Args:
            plan: as `plan_fold` gave it; nothing else was installed since.
            snapshot: as `write_snapshot` returned it.

        Raises:
            OSError: the disk has no room; the log is as it was.
            LogFailed: now or earlier a write or sync failed.
        """
        self._folding = None
        with self._failing():
            refused = self._give_name(plan) or self._replace_manifest(self._manifest.with_snapshot(snapshot))
        if refused is not None:
            for name in (plan.name, plan.temporary_name):
                with suppress(OSError):  # the next start removes it as well
                    self._directory.remove(name)
            raise refused
        folded = {segment_name(number) for number, _ in plan.manifest.segments}
        self._sealed = {name: size for name, size in self._sealed.items() if name not in folded}

    def discard(self, plan: FoldPlan) -> None:
        """Removes what a fold may have left when its process was killed; the next start would as well."""
        self._folding = None
        with suppress(OSError):
            self._directory.remove(plan.temporary_name)

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
        return cls(directory, manifest, header, file, size_bytes=HEADER_BYTES, segment_bytes_max=segment_bytes_max)

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
        size_bytes = max(HEADER_BYTES, found.scan.offset)
        log = cls(directory, manifest, found.header, file, size_bytes=size_bytes, segment_bytes_max=segment_bytes_max)
        log._sealed = {name: directory.size(name) for name in map(segment_name, manifest.numbers[:-1])}
        log.last_lsn = log.durable_lsn = found.scan.next_lsn - 1
        torn_bytes = len(found.scan.rest) if found.scan.tail is Tail.TORN else 0
        log.recovery = Recovery(found.records, found.time_ms, torn_bytes)
        return log

    # Rolling

    def _must_roll(self, frame_bytes: int) -> bool:
        if self._open.is_short_for(frame_bytes):  # also while it is empty: on a full disk it may have been made short
            return True
        return self._open.size_bytes > HEADER_BYTES and self._open.size_bytes + frame_bytes > self._roll_at_bytes

    def _try_to_roll(self, frame_bytes: int, *, squeeze: bool = False) -> OSError | None:
        """Rolls, or goes on in the old segment and says why the process or the disk has nothing left for a new one."""
        name = self._open.header.name
        refused = self._roll(frame_bytes, squeeze=squeeze)
        if refused is None:
            self._roll_at_bytes = self._segment_bytes_max
            return None
        if self._roll_at_bytes == self._segment_bytes_max:
            _logger.warning("%s: no new segment, going on in %s", refused, name)
        self._roll_at_bytes = self._open.size_bytes + self._segment_bytes_max // 16  # a try costs a sync
        return refused

    def _roll(self, frame_bytes: int, *, squeeze: bool) -> OSError | None:
        """Seals the segment, durably, and goes on in the spare; returns why not when there was no room for one.

        A failed sync of what was written is never for want of room, whatever it says.
        """
        with _refusal() as refused:
            self._open.prepare_spare(frame_bytes, squeeze=squeeze)
        if refused:
            return refused[0]
        self._open.cut()
        self._open.sync()
        self.durable_lsn = self.last_lsn
        before = self._open.header
        header = SegmentHeader(
            number=before.number + 1,
            store_id=before.store_id,
            segment_id=self._directory.random_bytes(SEGMENT_ID_BYTES),
            first_lsn=self.last_lsn + 1,
            previous_id=before.segment_id,
            previous_bytes=self._open.size_bytes,
        )
        with _refusal() as refused:
            spare = self._open.name_spare(header)
        if refused:
            return refused[0]
        error = self._replace_manifest(self._manifest.with_segment(header))
        if error is not None:
            self._open.give_up(spare)
            return error
        self._sealed = {**self._sealed, before.name: self._open.size_bytes}
        self._open.advance(spare)
        return None

    def _folded_bytes(self) -> int:
        """How much of a snapshot that is being written is on the disk already."""
        if self._folding is None:
            return 0
        try:
            return self._directory.size(self._folding.temporary_name)
        except FileNotFoundError:
            return 0

    def _give_name(self, plan: FoldPlan) -> OSError | None:
        """Gives a new snapshot its name, durably; returns why not when there was no room. No manifest names it yet."""
        with _refusal() as refused:
            self._directory.rename(plan.temporary_name, plan.name)
            self._directory.sync()
        return refused[0] if refused else None

    def _replace_manifest(self, manifest: Manifest) -> OSError | None:
        """Replaces the manifest; returns why not when there was no room and the old one still stands."""
        with _refusal() as refused:
            write_manifest(self._directory, manifest)
        if not refused:
            self._manifest = manifest
            return None
        if read_manifest(self._directory) != self._manifest:
            raise refused[0]
        return refused[0]

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


@contextmanager
def _refusal() -> Iterator[list[OSError]]:
    """Catches an error that says that there is no room or no descriptor left, and puts it into the list it yields."""
    refused: list[OSError] = []
    try:
        yield refused
    except OSError as error:
        if error.errno not in (*NO_ROOM, *NO_DESCRIPTOR):
            raise
        refused.append(error)


def _remove(directory: Directory, names: list[str]) -> None:
    """Removes files that are no part of the log."""
    # Not synced: what a power cut brings back, the next start removes, and no name is used before it is replaced.
    for name in names:
        directory.remove(name)
