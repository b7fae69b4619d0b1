"""The files that make up an open log: what the manifest names, the segment that is open, and how much of it is durable.

What appends, rolls and makes checkpoints works on one such object. Rules that hold here:

- `durable_lsn` changes in `sync` only, when the sync has returned.
- The manifest here is the one on disk: it changes in `replace_manifest` and `roll_to` only, when the new one is
  durable.
- Want of room or of a descriptor is a refusal: it is returned, and the log is as it was. Every other error is raised,
  and the log has failed (`wal/log.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from wal.files import Directory
from wal.manifest import MANIFEST_NAME, CleanClose, Manifest, begin_manifest, encode_manifest, name_manifest
from wal.open_segment import NO_DESCRIPTOR, OpenSegment, check_size
from wal.segment import TEMPORARY_SUFFIX, SegmentHeader, snapshot_name
from wal.spare import NO_ROOM, Spare


class LogFiles:
    """One data directory's log, as it is on disk.

    Args:
        directory: the data directory, locked.
        manifest: names the files.
        open_segment: the last of them.
        sealed: lengths of the segments before it, in bytes, by name.
        last_lsn: of the last record in them; all of it is durable.
    """

    def __init__(
        self,
        directory: Directory,
        manifest: Manifest,
        open_segment: OpenSegment,
        sealed: dict[str, int],
        last_lsn: int,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.open = open_segment
        # Replaced, never changed: the statistics look at it while the commit thread rolls.
        self.sealed = sealed
        self.last_lsn = self.durable_lsn = last_lsn

    @property
    def sealed_bytes(self) -> int:
        """Length of the segments that are full."""
        return sum(self.sealed.values())

    @property
    def snapshot_bytes(self) -> int:
        """Length of the snapshot; 0 without one."""
        return 0 if self.manifest.snapshot is None else self.manifest.snapshot.size_bytes

    def sync(self) -> None:
        """Returns when everything appended is on disk, in a file that is still in its place; raises OSError if not."""
        self.open.sync()
        self.durable_lsn = self.last_lsn

    def replace_manifest(self, manifest: Manifest) -> OSError | None:
        """Replaces the manifest; returns why not when there was no room or no descriptor, and the old one still stands.

        Raises:
            OSError: the disk failed; which of the two a start will find, nobody knows.
        """
        with refusal() as refused:
            begin_manifest(self.directory, manifest)
            name_manifest(self.directory)
        if refused:
            with suppress(OSError):  # it is made anew the next time, and in nobody's way until then
                self.directory.remove(MANIFEST_NAME + TEMPORARY_SUFFIX)
            return refused[0]
        self.directory.sync()
        self.manifest = manifest
        return None

    def roll_to(self, spare: Spare, header: SegmentHeader) -> OSError | None:
        """Seals the open segment, and goes on in the spare.

        What the roll takes of the disk it has before anything is given up: a full disk refuses before the old segment
        is cut, so what was promised of it or of the spare still holds. Only on a file system that cannot replace a name
        when it is full, the cut has to be taken back.

        Returns:
            Why the disk refused; everything is as it was.
        """
        before, before_bytes = self.open.header, self.open.size_bytes
        manifest = self.manifest.with_segment(header)
        encoded = encode_manifest(manifest)
        with refusal() as refused:
            spare.prepare(header, encoded)
        if refused:
            return refused[0]
        rest_bytes = self.open.rest_bytes
        self.open.cut()  # no manifest may name the next one before this ends where its header says
        self.sync()
        with refusal() as refused:
            spare.name_manifest()
        if refused:
            self.open.take_back(rest_bytes)
            return refused[0]
        self.directory.sync()
        self.manifest = manifest
        self.sealed = {**self.sealed, before.name: before_bytes}
        self.open.advance(header, len(encoded))
        return None

    def note_clean_close(self) -> OSError | None:
        """Gives back what is allocated ahead, syncs, and notes the exact end in the manifest.

        Returns:
            Why the disk had no room for the note; everything is durable all the same.
        """
        self.open.drop_spare()
        self.open.cut()
        self.sync()
        footer = CleanClose(self.last_lsn, self.open.size_bytes)
        return self.replace_manifest(replace(self.manifest, clean_close=footer))

    def check_in_place(self) -> None:
        """Raises OSError unless every file is still in its place, with its length."""
        if not self.directory.is_in_place():
            raise OSError(f"{self.directory.path} was moved or removed by somebody else")
        self.open.check_in_place()
        expected = dict(self.sealed)
        if self.manifest.snapshot is not None:
            expected[snapshot_name(self.manifest.snapshot.number)] = self.manifest.snapshot.size_bytes
        expected[MANIFEST_NAME] = len(encode_manifest(self.manifest))
        for name, size_bytes in expected.items():
            check_size(self.directory, name, size_bytes, size_bytes)

    def close(self) -> None:
        """Closes the files and gives up the directory; syncs nothing."""
        try:
            self.open.close()
        finally:
            self.directory.close()


@contextmanager
def refusal() -> Iterator[list[OSError]]:
    """Catches an error that says that there is no room or no descriptor left, and puts it into the list it yields."""
    refused: list[OSError] = []
    try:
        yield refused
    except OSError as error:
        if error.errno not in (*NO_ROOM, *NO_DESCRIPTOR):
            raise
        refused.append(error)
