"""The write-ahead log: recover -> append -> commit -> close.

A `Log` that exists has been replayed and can be appended to; `recover` is the only way to get one. It first
reads everything and decides, then changes the disk: when it refuses, not one byte has changed.

    recover   manifest -> snapshot, each segment: header, frames -> apply -> mend the tail -> manifest, without a footer
              (wal/recovery.py)
    append    one frame, handed to the system, and a roll before it when the segment is full (wal/roll.py)
    commit    fdatasync: everything appended is durable; `durable_lsn` says up to where
    close     commit, then the manifest with the exact end: the footer of a clean close

Room. `room` says what may be appended, and whoever appends asks it first; `make_room` allocates ahead of need. On a
full disk only what lets data go should be appended (wal/open_segment.py).

Checkpoints. `plan_fold` says what another process is to fold into a snapshot; `install` makes it part of the log in
place of what was folded, which `remove_folded` then removes (wal/checkpoint.py).

All of these work on the same files (wal/log_files.py), and pass on what the system says; what follows is decided
here, in `_failing`. After any error in append or commit the log has failed: what is on disk beyond `durable_lsn` is
unknown, and a second fdatasync may lie (after an error the kernel takes the pages for clean, and shows them to readers
all the same). It never writes again; the process must end. The next start reads what is there, and before it relies on
frames that no later frame proves durable, it writes the same bytes once more over themselves and syncs. A file of the
log that somebody removed, renamed or cut is such an error: nothing is acknowledged into a file nobody will find.

Threads. Whatever appends, syncs, rolls or installs is called from one thread at a time. Beside it, others may call
`remove_folded` and `discard`, which touch no file that the log still uses, and read what they need of it once; and may
read the properties: they are made of numbers and of objects that are replaced, never changed, so at worst one is a
moment old.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wal import checkpoint
from wal.files import Directory
from wal.frame import encode
from wal.log_files import LogFiles
from wal.manifest import Snapshot
from wal.open_segment import Room
from wal.recovery import Recovery, recover
from wal.replay import Apply, Progress
from wal.roll import Roller
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


def segment_bytes_for(capacity_bytes: int) -> int:
    """The size of segments that suits a disk of this size, in bytes."""
    return max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES_MAX, capacity_bytes // DISK_SHARE))


class Log:
    """The log of one data directory, open for appending."""

    def __init__(self, files: LogFiles, recovery: Recovery, segment_bytes_max: int) -> None:
        """Private: use `recover`."""
        self._files = files
        self._open = files.open
        self._roller = Roller(files, segment_bytes_max)
        self._folding: FoldPlan | None = None
        self._failed = False
        self.segment_bytes_max = segment_bytes_max
        """Size at which segments roll."""
        self.keep_bytes = 0
        """What `make_room` leaves on the disk for the next snapshot; whoever makes checkpoints sets it."""
        self.recovery = recovery
        """What replay found."""

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
        files, recovery = recover(directory, apply, progress, time_ms=time_ms, segment_bytes_max=segment_bytes_max)
        return cls(files, recovery, segment_bytes_max)

    # What it holds

    @property
    def last_lsn(self) -> int:
        """LSN of the last record appended; 0 before the first."""
        return self._files.last_lsn

    @property
    def durable_lsn(self) -> int:
        """LSN up to which all is known to be on disk."""
        return self._files.durable_lsn

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
        return self._files.snapshot_bytes

    @property
    def sealed_bytes(self) -> int:
        """Length of the segments that are full."""
        return self._files.sealed_bytes

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
        files = self._files
        first_lsn = files.last_lsn + 1
        with self._failing():
            data = encode(self._open.header.identity, first_lsn, time_ms, files.durable_lsn, records)
            if self._roller.is_due(len(data)):
                self._roller.roll(len(data))
                data = encode(self._open.header.identity, first_lsn, time_ms, files.durable_lsn, records)
            self._open.write(data)
            files.last_lsn += len(records)
        return files.last_lsn

    def commit(self) -> None:
        """Returns when everything appended is on disk, in a file that is still in its place.

        Raises:
            LogFailed: now or earlier a write or sync failed, or somebody took the file away.
        """
        with self._failing():
            self._files.sync()

    def check_files(self) -> None:
        """Looks whether every file of the log is still in its place, with its length.

        Raises:
            LogFailed: somebody removed, renamed or cut one.
        """
        with self._failing():
            self._files.check_in_place()

    def make_room(self, wanted_bytes: int = 0) -> None:
        """Allocates what comes next, ahead of need; that the disk is full is noted in `room`, not raised.

        Args:
            wanted_bytes: frames of this length together are to fit.

        Raises:
            LogFailed: the disk failed otherwise.
        """
        with self._failing():
            keep_bytes, folding = self.keep_bytes, self._folding  # once: `discard` may run beside this
            if folding is not None:
                keep_bytes = max(0, keep_bytes - checkpoint.written_bytes(self._files.directory, folding))
            self._open.make_room(wanted_bytes, keep_bytes)

    def seal(self, pending_bytes: int = 0) -> None:
        """Begins a new segment, so that all that was appended can be folded; on a full disk a short one.

        Args:
            pending_bytes: frames of this length were admitted already, or may be by then, and have to fit in any case.

        Raises:
            OSError: there is neither room nor a descriptor for it; the log goes on in the old one.
            LogFailed: now or earlier a write or sync failed.
        """
        with self._failing():
            refused = self._roller.seal(pending_bytes)
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
                with self._failing():
                    refused = self._files.note_clean_close()
                if refused is not None:
                    _logger.warning("%s: everything is on disk, but not that the log was closed", refused)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Gives up the directory as a crash would: no sync, no footer."""
        self._files.close()

    # Checkpoints

    def plan_fold(self) -> FoldPlan | None:
        """Says what a checkpoint has to fold; None when no segment is sealed."""
        self._folding = checkpoint.plan_fold(self._files)
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
            refused = checkpoint.install(self._files, plan, snapshot)
        if refused is not None:
            raise refused

    def discard(self, plan: FoldPlan) -> None:
        """Removes what a fold may have left when its process was killed; the next start would as well."""
        self._folding = None
        checkpoint.discard(self._files.directory, plan)

    def remove_folded(self) -> None:
        """Removes what the last `install` made superfluous; the manifest that does not name it is durable.

        Raises:
            OSError: the disk refused; the next checkpoint or start tries again.
        """
        snapshot = self._files.manifest.snapshot
        assert snapshot is not None
        checkpoint.remove_folded(self._files.directory, snapshot)

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
                raise LogFailed(f"writing the log in {self._files.directory.path} failed: {error}") from error
            raise
