"""The segment that is appended to, the room it has on the disk, and the spare that comes after it.

A segment is allocated whole when it is made, and the spare, the file of the next one, when half of it is used. So a
full disk is seen while there is still half a segment left, which is the reserve of what must go on. The spare has the
temporary name of the next segment: until a roll gives it its header and its name, it is nothing.

A file system that cannot allocate is taken as it is: a full disk is then only seen by a write that fails.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass

from wal.files import Directory, File
from wal.segment import (
    HEADER_BYTES,
    TEMPORARY_SUFFIX,
    SegmentHeader,
    begin_file,
    finish_file,
    segment_name,
)

ALLOCATE_BYTES_MIN = 64 * 1024
"""Room is taken from the disk in pieces no smaller than this."""

RESERVE_SHARE = 16
"""On a full disk, this part of a segment is kept for what cannot be refused: values that come back."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
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


@dataclass(frozen=True, slots=True)
class NamedSpare:
    """A spare that has become a segment, without frames."""

    file: File
    header: SegmentHeader
    allocated_bytes: int


class OpenSegment:
    """One data directory's open segment, and its spare.

    Args:
        directory: the data directory.
        header: of the segment.
        file: open at its end.
        size_bytes: how long it is, its header included.
        segment_bytes_max: size at which segments roll.
    """

    def __init__(
        self, directory: Directory, header: SegmentHeader, file: File, size_bytes: int, segment_bytes_max: int
    ) -> None:
        self.header = header
        self.size_bytes = size_bytes
        self.full = False
        self._directory = directory
        self._file = file
        self._allocated_bytes = size_bytes
        self._piece_bytes = max(segment_bytes_max, ALLOCATE_BYTES_MIN)
        self._spare: File | None = None
        self._spare_bytes = 0
        self._free_bytes = 0
        self._can_allocate = True

    @property
    def disk_bytes(self) -> int:
        """What the segment and its spare take of the disk."""
        return self._allocated_bytes + self._spare_bytes

    @property
    def room(self) -> Room:
        """What may be written."""
        if not self._can_allocate:
            return _ENDLESS
        frames_bytes = max(self._rest_bytes, self._spare_bytes - HEADER_BYTES)
        if not self.full:
            return Room(frames_bytes, free_bytes=self._free_bytes)
        kept_bytes = min(self._piece_bytes // RESERVE_SHARE, frames_bytes // 2)  # a start may have found very little
        return Room(max(0, frames_bytes - kept_bytes), full=True, free_bytes=self._free_bytes + self._rest_bytes // 2)

    def is_short_for(self, frame_bytes: int) -> bool:
        """Whether a frame needs more than is allocated here, while there is a spare that has more."""
        return self._rest_bytes < min(frame_bytes, self._spare_bytes - HEADER_BYTES)

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
        room_bytes = max(self._rest_bytes, self._spare_bytes - HEADER_BYTES)
        timely = self._spare is not None or self._rest_bytes >= self._piece_bytes // 2
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

    def prepare_spare(self, frame_bytes: int, *, squeeze: bool) -> None:
        """Makes the spare unless there is one.

        Args:
            frame_bytes: what is to fit in any case.
            squeeze: on a full disk, give back the rest of this segment first and take a quarter of it for the spare.

        Raises:
            OSError: there is no room or no descriptor; nothing else has changed.
        """
        if self._spare is not None:
            return
        spare_bytes = max(self._piece_bytes, HEADER_BYTES + frame_bytes)
        if squeeze:
            spare_bytes = max(HEADER_BYTES + frame_bytes, self._rest_bytes // 4)
            self.cut()
        self._make_spare(spare_bytes)

    def cut(self) -> None:
        """Gives back what is allocated here and not written; needs a sync."""
        self._check_length()  # behind a cut, this would make the file as long as it should be
        if self._allocated_bytes > self.size_bytes:
            self._file.truncate(self.size_bytes)
            self._allocated_bytes = self.size_bytes

    def name_spare(self, header: SegmentHeader) -> NamedSpare:
        """Gives the spare its header and its name, durably.

        Returns:
            What to go on with, open for appending.

        Raises:
            OSError: the disk refused; the spare is lost.
        """
        assert self._spare is not None
        file, allocated_bytes = self._spare, max(HEADER_BYTES, self._spare_bytes)
        self._spare, self._spare_bytes = None, 0
        try:
            file = finish_file(self._directory, header.name, file, header.encode())
        except OSError:
            self._remove(header.name + TEMPORARY_SUFFIX, header.name)
            raise
        return NamedSpare(file, header, allocated_bytes)

    def give_up(self, spare: NamedSpare) -> None:
        """Removes what `name_spare` returned, when it cannot become part of the log."""
        spare.file.close()
        self._remove(spare.header.name)

    def advance(self, spare: NamedSpare) -> None:
        """Goes on in what `name_spare` returned."""
        self._file.close()
        self.header, self._file = spare.header, spare.file
        self.size_bytes = HEADER_BYTES
        self._allocated_bytes = spare.allocated_bytes

    def drop_spare(self) -> None:
        """Removes the spare, if there is one."""
        self._spare_bytes = 0
        if self._spare is not None:
            self._spare.close()
            self._spare = None
            self._directory.remove(segment_name(self.header.number + 1) + TEMPORARY_SUFFIX)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._spare is not None:
            self._spare.close()

    @property
    def _rest_bytes(self) -> int:
        return self._allocated_bytes - self.size_bytes

    def _remove(self, *names: str) -> None:
        """Gives back the room of what is no part of the log; what stays is in nobody's way until the next start."""
        for name in names:
            with suppress(OSError):
                self._directory.remove(name)

    def _make_spare(self, size_bytes: int) -> None:
        if self._spare is None:
            self._spare = begin_file(self._directory, segment_name(self.header.number + 1))
        try:
            if self._can_allocate and size_bytes > self._spare_bytes:
                self._spare.allocate(size_bytes)
                self._spare_bytes = size_bytes
        except OSError as error:
            if error.errno in _CANNOT_ALLOCATE:
                self._can_allocate = False
                return
            if self._spare_bytes == 0:
                self.drop_spare()
            elif error.errno in NO_ROOM:
                self._spare.truncate(self._spare_bytes)  # the one there was stays in reserve
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
