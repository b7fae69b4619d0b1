"""Segments and snapshots: their names, their header, and how a file comes to be.

A segment is a file `00000001.log`: one header, then frames. The header ties it to its store (the data
directory it was born in), to its number, to the LSN it starts with and to the exact end of the segment before
it; a file that was swapped, copied, cut or left out breaks that chain.

A snapshot `00000005.snapshot` stands for the segments up to that number. Its header says, word for word, what the
header of the segment that follows says: the LSN that comes next, and the end of the last segment folded into it.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from wal.files import Directory, File
from wal.frame import Identity

HEADER_VERSION = 1
TEMPORARY_SUFFIX = ".tmp"
SEGMENT_MAGIC = b"HOLDFAST"
SNAPSHOT_MAGIC = b"HOLDSNAP"

_SEGMENT_NAME = re.compile(r"([0-9]{8})\.log")
_SNAPSHOT_NAME = re.compile(r"([0-9]{8})\.snapshot")
# magic, version, header bytes: these, and a checksum in the last four bytes of the header, are there in every version,
# so that a flipped bit is never taken for a newer format.
_HEADER_START = struct.Struct("<8sHH")
# magic, version, header bytes, number, store id, segment id, first lsn, previous id, previous bytes
_HEADER = struct.Struct("<8sHHI16s8sQ8sQ")
_CRC = struct.Struct("<I")
CRC_BYTES = _CRC.size
HEADER_BYTES = _HEADER.size + _CRC.size
STORE_ID_BYTES = 16
SEGMENT_ID_BYTES = 8


class Damage(Exception):
    """The log is not what was written. Nothing on disk was changed.

    Attributes:
        directory: the data directory.
        file: which file of it.
        offset: where in it, in bytes.
        lsn: the first LSN that cannot be read.
        reason: what was found.
    """

    def __init__(self, directory: str, file: str, offset: int, lsn: int, reason: str) -> None:
        super().__init__(
            f"{directory}/{file} is damaged at offset {offset}, record {lsn}: {reason}. Nothing was changed on disk"
        )
        self.directory = directory
        self.file = file
        self.offset = offset
        self.lsn = lsn
        self.reason = reason


class NewerFormat(Exception):
    """The data was written by a newer Holdfast. Nothing on disk was changed."""

    def __init__(self, directory: str, file: str, version: int, known: int) -> None:
        super().__init__(
            f"{directory}/{file} has format version {version}, this Holdfast reads up to {known}."
            " Nothing was changed on disk. Start the version of Holdfast that wrote it, or a later one. To go back to"
            " this version, restore a backup that it made; or run `holdfast export` of the newer version, and"
            " `holdfast import` of this one into an empty directory"
        )


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first bytes of a segment or a snapshot.

    Attributes:
        number: 1, 2, 3...; the file's name says the same.
        store_id: of the data directory it was born in.
        segment_id: random; marks its frames and seeds their checksums.
        first_lsn: LSN of its first record; of a snapshot, the LSN that comes after it.
        previous_id: segment id of the one before, or of the last one folded; zeros for none.
        previous_bytes: where that one ends, in bytes; 0 for none.
    """

    number: int
    store_id: bytes
    segment_id: bytes
    first_lsn: int
    previous_id: bytes = bytes(SEGMENT_ID_BYTES)
    previous_bytes: int = 0

    @property
    def name(self) -> str:
        """File name of the segment."""
        return segment_name(self.number)

    @property
    def identity(self) -> Identity:
        """What its frames are marked and seeded with."""
        # The first byte of a mark is never 0, so that preallocated zeros hold no mark.
        mark = bytes([self.segment_id[0] | 0x80]) + self.segment_id[1:4]
        return Identity(mark, zlib.crc32(self.store_id + self.segment_id + self.number.to_bytes(4, "little")))

    def encode(self, magic: bytes = SEGMENT_MAGIC) -> bytes:
        """The header as it stands on disk."""
        body = _HEADER.pack(
            magic,
            HEADER_VERSION,
            HEADER_BYTES,
            self.number,
            self.store_id,
            self.segment_id,
            self.first_lsn,
            self.previous_id,
            self.previous_bytes,
        )
        return with_crc(body)


def segment_name(number: int) -> str:
    """File name of a segment, from its number."""
    return f"{number:08}.log"


def segment_number(name: str) -> int | None:
    """Number of a segment, from its file name; None when it is no segment's name."""
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def snapshot_name(number: int) -> str:
    """File name of the snapshot that stands for the segments up to this number."""
    return f"{number:08}.snapshot"


def snapshot_number(name: str) -> int | None:
    """Number of a snapshot, from its file name; None when it is no snapshot's name."""
    match = _SNAPSHOT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def decode_header(data: bytes, directory: str, name: str, lsn: int, magic: bytes = SEGMENT_MAGIC) -> SegmentHeader:
    """Reads the header of a segment, or of a snapshot with its magic.

    Args:
        data: the segment, or at least its header.
        directory: for messages.
        name: the segment's file name.
        lsn: the LSN it is expected to start with, for messages.
        magic: its first bytes.

    Raises:
        NewerFormat: it has a format version of the future.
        Damage: it is no header.
    """
    if len(data) < HEADER_BYTES:
        raise Damage(directory, name, 0, lsn, "the header is cut off")
    found, version, header_bytes = _HEADER_START.unpack_from(data)
    if found != magic:
        raise Damage(directory, name, 0, lsn, "this is no such file of Holdfast's")
    body_bytes = header_bytes - _CRC.size
    if body_bytes < _HEADER_START.size or header_bytes > len(data) or not has_crc(data[:header_bytes]):
        raise Damage(directory, name, 0, lsn, "the header's checksum does not match")
    if version > HEADER_VERSION:
        raise NewerFormat(directory, name, version, HEADER_VERSION)
    if version != HEADER_VERSION or header_bytes != HEADER_BYTES:
        raise Damage(directory, name, 0, lsn, "no version of Holdfast writes such a header")
    return SegmentHeader(*_HEADER.unpack_from(data)[3:])


def with_crc(body: bytes) -> bytes:
    """Adds the checksum in the last four bytes."""
    return body + _CRC.pack(zlib.crc32(body))


def has_crc(data: bytes) -> bool:
    """Whether the last four bytes are the checksum of those before."""
    return data[-_CRC.size :] == _CRC.pack(zlib.crc32(data[: -_CRC.size]))


def begin_file(directory: Directory, name: str) -> File:
    """Makes a file under its temporary name; what a crash or a failure left there is ours, and goes."""
    temporary = name + TEMPORARY_SUFFIX
    try:
        return directory.create(temporary)
    except FileExistsError:
        directory.remove(temporary)
    return directory.create(temporary)


def finish_file(directory: Directory, name: str, file: File, data: bytes) -> File:
    """Writes the first bytes of a file that was begun, and gives it its name; a power cut finds all of it or nothing.

    Returns:
        The file, open for appending; when this raises, it has been closed.
    """
    try:
        file.write(data)
        file.sync()
        directory.rename(name + TEMPORARY_SUFFIX, name)
        directory.sync()
    except BaseException:
        file.close()
        raise
    return file


def create_file(directory: Directory, name: str, data: bytes) -> File:
    """Makes or replaces a file so that it survives a power cut whole or not at all; returns it open for appending."""
    return finish_file(directory, name, begin_file(directory, name), data)
