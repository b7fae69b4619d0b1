"""The segment that is appended to, the room it has on the disk, and the spare that comes after it.

A segment is allocated whole when it is made, and the spare (wal/spare.py) when half of it is used. So a full disk is
seen while there is still half a segment left, which is the reserve of what must go on.

`room` is a promise: frames of that length will be written, whatever becomes of the disk meanwhile. So nothing here or
in a roll gives up room before as much is sure elsewhere; but for what is squeezed, of which the caller says how much it
has promised.

A file system that cannot allocate is taken as it is: a full disk is then only seen by a write that fails.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from wal.files import Directory, File
from wal.segment import HEADER_BYTES, SegmentHeader
from wal.spare import MANIFEST_GROWTH_BYTES, NO_ROOM, Spare

ALLOCATE_BYTES_MIN = 64 * 1024
"""Room is taken from the disk in pieces no smaller than this."""

RESERVE_SHARE = 16
"""On a full disk, this part of a segment is kept for what cannot be refused: values that come back."""

NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_CANNOT_ALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Room:
    """What may be appended without asking the disk for more.

    Attributes:
        frames_bytes: frames of this length together fit, however they are divided.
        full: the disk had no room for the next segment when it was last asked.
        free_bytes: what a new snapshot could take, when the disk was last asked.
    """

    frames_bytes: int
    full: bool = False
    free_bytes: int = 0


_ENDLESS = Room(1 << 62, free_bytes=1 << 62)


class OpenSegment:
    """One data directory's open segment, and its spare.

    Args:
        directory: the data directory.
        header: of the segment.
        file: open at its end.
        size_bytes: how long it is, its header included.
        segment_bytes_max: size at which segments roll.
        manifest_bytes: length of the manifest that names it last.
    """

    def __init__(
        self,
        directory: Directory,
        header: SegmentHeader,
        file: File,
        size_bytes: int,
        segment_bytes_max: int,
        manifest_bytes: int,
    ) -> None:
        self.header = header
        self.size_bytes = size_bytes
        self.full = False
        self._directory = directory
        self._file = file
        self._allocated_bytes = size_bytes
        self._piece_bytes = max(segment_bytes_max, ALLOCATE_BYTES_MIN)
        self._manifest_bytes = manifest_bytes
        self._spare: Spare | None = None
        self._free_bytes = 0
        self._can_allocate = True

    @property
    def disk_bytes(self) -> int:
        """What the segment and its spare take of the disk."""
        spare = self._spare
        return self._allocated_bytes + (0 if spare is None else spare.size_bytes + spare.manifest_bytes)

    @property
    def room(self) -> Room:
        """What may be written."""
        if not self._can_allocate:
            return _ENDLESS
        frames_bytes = max(self.rest_bytes, self._spare_bytes - HEADER_BYTES)
        if not self.full:
            return Room(frames_bytes, free_bytes=self._free_bytes)
        kept_bytes = min(self._piece_bytes // RESERVE_SHARE, frames_bytes // 2)  # a start may have found very little
        return Room(max(0, frames_bytes - kept_bytes), full=True, free_bytes=self._free_bytes + self.rest_bytes // 2)

    @property
    def rest_bytes(self) -> int:
        """What is allocated here and not written."""
        return self._allocated_bytes - self.size_bytes

    @property
    def spare_bytes(self) -> int | None:
        """Frames of this length fit into the spare, as far as it is allocated; None when there is none."""
        spare = self._spare
        return None if spare is None else max(0, spare.size_bytes - HEADER_BYTES)

    def write(self, frame: bytes) -> None:
        """Hands a frame to the system; what is not allocated for it yet is allocated first."""
        if self.size_bytes + len(frame) > self._allocated_bytes:
            self._check_length()  # behind a cut, the write would make the file as long as it should be
        self._allocate(self.size_bytes + len(frame))
        self._file.write(frame)
        self.size_bytes += len(frame)
        self._allocated_bytes = max(self._allocated_bytes, self.size_bytes)

    def sync(self) -> None:
        """Returns when all that was written is on disk, in a file that is still in its place.

        Raises:
            OSError: the sync failed, or somebody removed, replaced or cut the file.
        """
        self._file.sync()
        self.check_in_place()

    def check_in_place(self) -> None:
        """Raises OSError when somebody removed, replaced or cut the file."""
        size_bytes = self._directory.length_of(self.header.name, self._file)
        if size_bytes is None:
            raise OSError(f"{self._directory.path}/{self.header.name} was removed or replaced by somebody else")
        if size_bytes < self._allocated_bytes:
            raise _cut(self._directory, self.header.name, size_bytes)

    def make_room(self, wanted_bytes: int, keep_bytes: int) -> None:
        """Makes the spare when it is time, or when `wanted_bytes` would not fit; notes whether the disk is full.

        Args:
            wanted_bytes: frames of this length together are to fit.
            keep_bytes: what has to be left on the disk.

        Raises:
            OSError: the disk failed otherwise.
        """
        room_bytes = max(self.rest_bytes, self._spare_bytes - HEADER_BYTES)
        timely = self._spare is not None or self.rest_bytes >= self._piece_bytes // 2
        if not self._can_allocate or (timely and room_bytes >= wanted_bytes and not self.full):
            return
        spare_bytes = max(self._piece_bytes, HEADER_BYTES + wanted_bytes)
        self._free_bytes = self._directory.free_bytes()
        if self._free_bytes < spare_bytes - self._spare_bytes + keep_bytes:
            self.full = True
            return
        try:
            self._make_spare(spare_bytes)
            self.full = False
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:
                self._extend(max(self._piece_bytes, wanted_bytes))
            elif error.errno in (*NO_ROOM, errno.EFBIG):  # no file may be as long as what was wanted
                self._note_full()
            else:
                raise

    def allocate(self) -> None:
        """Allocates the segment whole, or on a full disk as much of it as there is."""
        rest_bytes = max(self._piece_bytes - self.size_bytes, ALLOCATE_BYTES_MIN)
        self._free_bytes = self._directory.free_bytes()
        while rest_bytes >= ALLOCATE_BYTES_MIN // 16:
            try:
                self._allocate(self.size_bytes + rest_bytes)
                break
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
            self._note_full()
            rest_bytes //= 2

    def prepare_spare(self, frame_bytes: int, *, squeeze: bool) -> Spare:
        """Makes the spare unless there is one.

        Args:
            frame_bytes: what is to fit in any case.
            squeeze: on a full disk, give back the rest of this segment but for as much, and make a short one of that.

        Returns:
            The spare.

        Raises:
            OSError: there is no room or no descriptor; what is to fit does so here.
        """
        if self._spare is None:
            spare_bytes = max(self._piece_bytes, HEADER_BYTES + max(frame_bytes, self.rest_bytes))
            if squeeze:
                spare_bytes = HEADER_BYTES + max(frame_bytes, self.rest_bytes // 4)
                self.cut(keep_bytes=frame_bytes)
            self._make_spare(spare_bytes)
        assert self._spare is not None
        if self._can_allocate and self._spare_bytes - HEADER_BYTES < frame_bytes <= self.rest_bytes:
            raise OSError(errno.ENOSPC, "the next segment has less room than was promised of this one")
        return self._spare

    def cut(self, keep_bytes: int = 0) -> None:
        """Gives back what is allocated here and not written, or all of it but so much; needs a sync."""
        self._check_length()  # behind a cut, this would make the file as long as it should be
        if self.rest_bytes > keep_bytes:
            self._allocated_bytes = self.size_bytes + keep_bytes
            self._file.truncate(self._allocated_bytes)

    def take_back(self, rest_bytes: int) -> None:
        """Allocates once more what was cut, or as much of it as there still is."""
        try:
            self._allocate(self.size_bytes + rest_bytes)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.allocate()

    def advance(self, header: SegmentHeader, manifest_bytes: int) -> None:
        """Goes on in the spare.

        Args:
            header: that it was given.
            manifest_bytes: length of the manifest that names it.
        """
        assert self._spare is not None
        self._file.close()
        self.header, self._file = header, self._spare.file
        self.size_bytes = HEADER_BYTES
        self._allocated_bytes = max(HEADER_BYTES, self._spare_bytes)
        self._manifest_bytes = manifest_bytes
        self._spare = None

    def drop_spare(self) -> None:
        """Removes the spare, if there is one."""
        if self._spare is not None:
            self._spare.drop()
            self._spare = None

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._spare is not None:
            self._spare.close()

    @property
    def _spare_bytes(self) -> int:
        spare = self._spare
        return 0 if spare is None else spare.size_bytes

    def _make_spare(self, size_bytes: int) -> None:
        if self._spare is None:
            self._spare = Spare(self._directory, self.header.number + 1)
        try:
            if self._can_allocate and size_bytes > self._spare_bytes:
                self._spare.allocate(size_bytes, self._manifest_bytes + MANIFEST_GROWTH_BYTES)
        except OSError as error:
            if error.errno in _CANNOT_ALLOCATE:
                self._can_allocate = False
                return
            if self._spare_bytes == 0:
                self.drop_spare()
            raise

    def _allocate(self, size_bytes: int) -> None:
        """Allocates this segment up to a length."""
        if not self._can_allocate or size_bytes <= self._allocated_bytes:
            return
        try:
            self._file.allocate(size_bytes)
            self._allocated_bytes = size_bytes
        except OSError as error:
            if error.errno in _CANNOT_ALLOCATE:
                self._can_allocate = False
                return
            if error.errno in NO_ROOM:
                self._file.truncate(self._allocated_bytes)  # it may have taken what there was
            raise

    def _extend(self, more_bytes: int) -> None:
        """Allocates more of this segment, for want of a descriptor for the next."""
        try:
            self._allocate(self.size_bytes + more_bytes)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._note_full()

    def _check_length(self) -> None:
        check_size(self._directory, self.header.name, self._allocated_bytes)

    def _note_full(self) -> None:
        self.full = True
        self._free_bytes = self._directory.free_bytes()


def check_size(directory: Directory, name: str, at_least: int, at_most: int | None = None) -> None:
    """Raises OSError unless a file is there, with a length in these bounds."""
    try:
        size_bytes = directory.size(name)
    except FileNotFoundError:
        raise OSError(f"{directory.path}/{name} was removed by somebody else") from None
    if size_bytes < at_least or (at_most is not None and size_bytes > at_most):
        raise _cut(directory, name, size_bytes)


def _cut(directory: Directory, name: str, size_bytes: int) -> OSError:
    return OSError(f"{directory.path}/{name} was cut or written by somebody else, to {size_bytes} bytes")
