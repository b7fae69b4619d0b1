"""Backup: a copy of a log, as it is at one moment, that a server can be started on.

Sealed segments and the snapshot are given a second name where the file system can: nobody writes to them any more, and
a file stays as long as one of its names does. Of the last segment the whole frames are copied: all that was
acknowledged before the backup began is among them, for it was written by then. The manifest of the copy says where it
ends, as after a clean close, so that a single flipped bit in it will be found.

    placeholder for the manifest -> links and copies, synced -> verified -> manifest

Until the manifest is written, a start on the copy refuses: it is whole, or it is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from wal.files import LOCK_NAME, Directory
from wal.frame import Scan, Tail
from wal.manifest import MANIFEST_NAME, UNFINISHED, CleanClose, Manifest, write_manifest
from wal.replay import IMPORT_NAME, Apply, Progress, unfinished_import
from wal.segment import HEADER_BYTES, Damage, create_file
from wal.tools.check import Check, Report
from wal.tools.copying import link_or_copy
from wal.tools.rebuild import read_header
from wal.tools.view import NoLog, View, listed, look, view_as
from wal.tools.walk import settle


class NotEmpty(Exception):
    """There is something in the directory that the backup is to go to."""


class NotFinished(Exception):
    """There is something in the log that is not all there: it would be served from the backup as if it were."""


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds.

    Attributes:
        last_lsn: of its last record.
        size_bytes: length of the log.
        linked_bytes: how much of that are files that it shares with the original.
        report: what its verification found; None without one.
    """

    last_lsn: int
    size_bytes: int
    linked_bytes: int
    report: Report | None


def backup(
    directory: Directory,
    target: Directory,
    applying: Callable[[], Apply] | None,
    copying: Progress,
    verifying: Progress,
) -> Backup:
    """Copies a log.

    Args:
        directory: with or without its lock; a server may run on it.
        target: an empty one, locked; after an error it is empty again, as far as the disk lets us.
        applying: makes what the frames of the copy are applied to, to verify it; None does not verify.
        copying: told how far that is.
        verifying: told how far that is.

    Raises:
        NoLog: there is nothing to copy.
        NotFinished: an import into the log is not finished.
        NotEmpty: the target holds something.
        Damage: the log is damaged.
        NewerFormat: a later version wrote it.
        Restless: a server changes it faster than it can be looked at.
        OSError: the disk refused.
    """
    if set(target.names()) - {LOCK_NAME}:
        raise NotEmpty(f"{target.path} is not empty")
    if IMPORT_NAME in directory.names():
        raise NotFinished(unfinished_import(directory.path))
    with look(directory) as view:
        if view.manifest is None:
            raise NoLog(directory.path)
        # No power cut may bring a manifest back by which the server would write on in a segment that is shared here.
        directory.sync()
        try:
            create_file(target, MANIFEST_NAME, UNFINISHED).close()
            copied = _Copying(directory, view, view.manifest, target, copying)
            copied.run()
            report = None
            if applying is not None:
                with view_as(target, copied.manifest) as copies:
                    report = Check(copies, copied.manifest, applying(), verifying).run()
                _refuse_damage(directory, report)
            write_manifest(target, copied.manifest)
        except BaseException:
            with contextlib.suppress(OSError):
                _clear(target)
            raise
    return Backup(copied.last_lsn, copied.size_bytes, copied.linked_bytes, report)


class _Copying:
    """Brings the files of a log to their new place; `manifest` is that of the copy when it has run."""

    def __init__(
        self, directory: Directory, view: View, manifest: Manifest, target: Directory, progress: Progress
    ) -> None:
        self.manifest = manifest
        self.last_lsn = self.size_bytes = self.linked_bytes = 0
        self._directory = directory
        self._view = view
        self._target = target
        self._progress = progress
        self._total_bytes = sum(view.size(name) for name in listed(manifest) if name in view.names())

    def run(self) -> None:
        """Raises Damage, OSError."""
        *sealed, last = listed(self.manifest)
        for name in sealed:
            if name not in self._view.names():
                raise Damage(self._directory.path, name, 0, 0, "the file is missing")
            if link_or_copy(self._directory, name, self._view, self._target, name, self._say):
                self.linked_bytes += self._view.size(name)
            self.size_bytes += self._view.size(name)
        data, last_lsn = _whole_frames(self._view, self.manifest, last)
        create_file(self._target, last, data).close()  # makes sure of the other names as well
        self.size_bytes += len(data)
        self._progress(self.size_bytes, self._total_bytes)
        self.last_lsn = last_lsn
        self.manifest = replace(self.manifest, clean_close=CleanClose(last_lsn, len(data)))

    def _say(self, copied_bytes: int) -> None:
        self._progress(self.size_bytes + copied_bytes, self._total_bytes)


def _refuse_damage(directory: Directory, report: Report) -> None:
    """Damage found in a copy was there before."""
    for damage in report.damage:
        raise Damage(directory.path, damage.file, damage.offset, damage.lsn, damage.reason)


def _whole_frames(view: View, manifest: Manifest, name: str) -> tuple[bytes, int]:
    """The last segment up to the end of its last whole frame, and the LSN of that one's last record."""
    if name not in view.names():
        raise Damage(view.path, name, 0, 0, "the segment is missing")
    header = read_header(view, name)
    if header is None or (header.number, header.segment_id) != manifest.segments[-1]:
        raise Damage(view.path, name, 0, 0, "the segment is not the one that the manifest names")
    data = view.read(name)
    scan = Scan(data, HEADER_BYTES, header.identity, header.first_lsn)
    for _ in scan:
        pass
    if scan.tail is Tail.CORRUPT:
        scan = settle(view, name, header.identity, scan)
        data = view.read(name, 0, scan.offset)  # what was missed is there now
    end = CleanClose(scan.next_lsn - 1, scan.offset)
    if scan.tail is Tail.CORRUPT:
        raise Damage(view.path, name, scan.offset, scan.next_lsn, scan.reason)
    if manifest.clean_close not in (None, end) and view.is_current():
        raise Damage(view.path, name, scan.offset, scan.next_lsn, "the log does not end where it was closed")
    return data[: scan.offset], end.last_lsn


def _clear(target: Directory) -> None:
    """Takes back what was copied; the placeholder goes last."""
    names = target.names()
    for name in sorted(names, key=lambda name: name == MANIFEST_NAME):
        if name != LOCK_NAME:
            target.remove(name)
    target.sync()
