"""The spare: all that a roll takes of the disk and of the process, made ahead of it.

Two files, both open, and both with the disk's room for what they are to hold: the next segment, and the manifest that
will name it. So a log that has to roll on a full disk, or in a process that may open no more files, can do so. Until
the manifest is in its place the spare is nothing: a crash leaves temporary files, or a segment without frames, and the
next start removes them. A try that is refused leaves the spare as it was, room and all, for the next one.
"""

from __future__ import annotations

import errno
from contextlib import suppress

from wal.files import Directory, File
from wal.manifest import MANIFEST_NAME
from wal.segment import TEMPORARY_SUFFIX, SegmentHeader, begin_file, segment_name

NEXT_MANIFEST_NAME = "MANIFEST.next"
"""The spare's manifest is made under a name of its own: a checkpoint makes another one meanwhile."""

MANIFEST_GROWTH_BYTES = 256
"""By how much a manifest grows at most while a segment is open: an entry for the next segment, one for a snapshot."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Spare:
    """The next segment and its manifest, empty and without room at first.

    Args:
        directory: the data directory.
        number: of the segment.

    Raises:
        OSError: there is no room or no descriptor; nothing was made.
    """

    def __init__(self, directory: Directory, number: int) -> None:
        self._directory = directory
        self._name = segment_name(number)
        self._is_named = False
        self.size_bytes = 0
        """Length that is allocated for the segment."""
        self.manifest_bytes = 0
        """Length that is allocated for the manifest."""
        self._manifest = begin_file(directory, NEXT_MANIFEST_NAME)
        try:
            self.file: File = begin_file(directory, self._name)
        except OSError:
            self._manifest.close()
            self._remove(NEXT_MANIFEST_NAME + TEMPORARY_SUFFIX)
            raise

    def allocate(self, size_bytes: int, manifest_bytes: int) -> None:
        """Takes the disk's room for what the two are to hold.

        Raises:
            OSError: there is none, or the file system cannot; what there was stays.
        """
        if manifest_bytes > self.manifest_bytes:
            self._manifest.allocate(manifest_bytes)
            self.manifest_bytes = manifest_bytes
        try:
            self.file.allocate(size_bytes)
        except OSError as error:
            if error.errno in NO_ROOM and self.size_bytes:
                self.file.truncate(self.size_bytes)  # it may have taken what there was
            raise
        self.size_bytes = size_bytes

    def prepare(self, header: SegmentHeader, manifest: bytes) -> None:
        """Brings everything to the disk that the roll needs there: only the manifest's name is missing then.

        Raises:
            OSError: the disk refused; this may be tried again, with another header and manifest.
        """
        _fill(self._manifest, manifest)
        self._manifest.truncate(len(manifest))
        self._manifest.sync()
        _fill(self.file, header.encode())
        self.file.sync()
        if not self._is_named:
            self._directory.rename(self._name + TEMPORARY_SUFFIX, self._name)
            self._is_named = True
        self._directory.sync()

    def name_manifest(self) -> None:
        """Puts the manifest in the place of the one that stands; durable after a sync of the directory.

        Raises:
            OSError: the disk refused; the old one stands.
        """
        self._directory.rename(NEXT_MANIFEST_NAME + TEMPORARY_SUFFIX, MANIFEST_NAME)
        self._manifest.close()

    def drop(self) -> None:
        """Gives everything back; what stays is in nobody's way until the next start."""
        self.close()
        self._remove(self._name if self._is_named else self._name + TEMPORARY_SUFFIX)
        self._remove(NEXT_MANIFEST_NAME + TEMPORARY_SUFFIX)

    def close(self) -> None:
        """Closes the files."""
        self.file.close()
        self._manifest.close()

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            self._directory.remove(name)


def _fill(file: File, data: bytes) -> None:
    """Writes the first bytes of a file, also when an earlier try has done so."""
    file.rewind()
    file.write(data)
