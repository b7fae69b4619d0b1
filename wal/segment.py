"""Segments and the manifest: which files make up the log, and how each proves that it belongs.

A segment is a file `00000001.log`: one header, then frames. The header ties it to its store (the data
directory it was born in), to its number, to the LSN it starts with and to the exact end of the segment before
it; a file that was swapped, copied, cut or left out breaks that chain.

`MANIFEST` names the segments that make up the log, and after a clean close also where the last one ends: that
is the footer. It lives outside the segment because a flipped bit in a footer at the end of the log could not
be told from a crash in mid-write. The manifest is only ever replaced whole, so it is never torn.

Order of a roll: header synced under a temporary name, rename, directory synced, manifest replaced, then the
first frame. A segment the manifest does not name therefore never holds an acknowledged record.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from wal.files import Directory, File
from wal.frame import Identity

FORMAT_VERSION = 1
MANIFEST_NAME = "MANIFEST"
TEMPORARY_SUFFIX = ".tmp"

_SEGMENT_NAME = re.compile(r"([0-9]{8})\.log")
_MAGIC = b"HOLDFAST"
# magic, version, header bytes: these, and a checksum in the last four bytes of the header, are there in every version,
# so that a flipped bit is never taken for a newer format.
_HEADER_START = struct.Struct("<8sHH")
# magic, version, header bytes, number, store id, segment id, first lsn, previous id, previous bytes
_HEADER = struct.Struct("<8sHHI16s8sQ8sQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
STORE_ID_BYTES = 16
SEGMENT_ID_BYTES = 8


class Damage(Exception):
    """The log is not what was written. Nothing on disk was changed.

    Attributes:
        file: which file of the data directory.
        offset: where in it, in bytes.
        lsn: the first LSN that cannot be read.
        reason: what was found.
    """

    def __init__(self, directory: str, file: str, offset: int, lsn: int, reason: str) -> None:
        super().__init__(
            f"{directory}/{file} is damaged at offset {offset}, record {lsn}: {reason}. Nothing was changed on disk"
        )
        self.file = file
        self.offset = offset
        self.lsn = lsn
        self.reason = reason


class NewerFormat(Exception):
    """The data was written by a newer Holdfast. Nothing on disk was changed."""

    def __init__(self, directory: str, file: str, version: int) -> None:
        super().__init__(
            f"{directory}/{file} has format version {version}, this Holdfast reads up to {FORMAT_VERSION}."
            " Nothing was changed on disk"
        )


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first bytes of a segment.

    Attributes:
        number: 1, 2, 3...; the file's name says the same.
        store_id: of the data directory it was born in.
        segment_id: random; marks its frames and seeds their checksums.
        first_lsn: LSN of its first record.
        previous_id: segment id of the one before; zeros for none.
        previous_bytes: where the one before ends, in bytes; 0 for none.
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

    def encode(self) -> bytes:
        """The header as it stands on disk."""
        body = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            HEADER_BYTES,
            self.number,
            self.store_id,
            self.segment_id,
            self.first_lsn,
            self.previous_id,
            self.previous_bytes,
        )
        return body + _CRC.pack(zlib.crc32(body))


def segment_name(number: int) -> str:
    """File name of a segment, from its number."""
    return f"{number:08}.log"


def segment_number(name: str) -> int | None:
    """Number of a segment, from its file name; None when it is no segment's name."""
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def decode_header(data: bytes, directory: str, name: str, lsn: int) -> SegmentHeader:
    """Reads a segment's header.

    Args:
        data: the segment, or at least its header.
        directory: for messages.
        name: the segment's file name.
        lsn: the LSN it is expected to start with, for messages.

    Raises:
        NewerFormat: it has a format version of the future.
        Damage: it is no header.
    """
    if len(data) < HEADER_BYTES:
        raise Damage(directory, name, 0, lsn, "the segment's header is cut off")
    magic, version, header_bytes = _HEADER_START.unpack_from(data)
    if magic != _MAGIC:
        raise Damage(directory, name, 0, lsn, "this is no Holdfast segment")
    body_bytes = header_bytes - _CRC.size
    if body_bytes < _HEADER_START.size or not _has_crc(data[:header_bytes]):
        raise Damage(directory, name, 0, lsn, "the header's checksum does not match")
    if version > FORMAT_VERSION:
        raise NewerFormat(directory, name, version)
    if version != FORMAT_VERSION or header_bytes != HEADER_BYTES:
        raise Damage(directory, name, 0, lsn, "no version of Holdfast writes such a header")
    return SegmentHeader(*_HEADER.unpack_from(data)[3:])


def create_segment(directory: Directory, header: SegmentHeader) -> File:
    """Makes a segment that survives a power cut, header included, and returns it open for appending."""
    return create_file(directory, header.name, header.encode())


@dataclass(frozen=True, slots=True)
class CleanClose:
    """Where the log ended when it was closed: everything beyond is damage, and so is anything less."""

    last_lsn: int
    last_segment_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes up the log.

    Attributes:
        store_id: random, made with the data directory.
        segments: number and segment id of each, oldest first, without gaps.
        clean_close: set by a clean close, taken back before the next append.
    """

    store_id: bytes
    segments: tuple[tuple[int, bytes], ...]
    clean_close: CleanClose | None = None

    @property
    def numbers(self) -> range:
        """Numbers of the segments."""
        return range(self.segments[0][0], self.segments[-1][0] + 1)

    def with_segment(self, header: SegmentHeader) -> Manifest:
        """The manifest after a roll to the segment with this header."""
        return replace(self, segments=(*self.segments, (header.number, header.segment_id)), clean_close=None)


def write_manifest(directory: Directory, manifest: Manifest) -> None:
    """Replaces the manifest, whole and durably."""
    close = manifest.clean_close
    body = _MAGIC + msgpack.packb(
        (
            FORMAT_VERSION,
            manifest.store_id,
            manifest.segments,
            None if close is None else (close.last_lsn, close.last_segment_bytes),
        )
    )
    create_file(directory, MANIFEST_NAME, body + _CRC.pack(zlib.crc32(body))).close()


def read_manifest(directory: Directory) -> Manifest:
    """Reads the manifest.

    Raises:
        NewerFormat: it has a format version of the future.
        Damage: it is not what was written.
    """
    data = directory.read(MANIFEST_NAME)
    if not data.startswith(_MAGIC) or not _has_crc(data):
        raise Damage(directory.path, MANIFEST_NAME, 0, 0, "the manifest's checksum does not match")
    try:
        version, *fields = msgpack.unpackb(data[len(_MAGIC) : -_CRC.size], use_list=False)
        if type(version) is int and version > FORMAT_VERSION:
            raise NewerFormat(directory.path, MANIFEST_NAME, version)
        return _manifest(version, *fields)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        reason = f"no version of Holdfast writes such a manifest ({error})"
        raise Damage(directory.path, MANIFEST_NAME, 0, 0, reason) from error


def _manifest(version: int, store_id: bytes, segments: Sequence[tuple[int, bytes]], close: Any) -> Manifest:
    """Builds a manifest from what was read; raises ValueError or TypeError when that is none."""
    numbers = [number for number, _ in segments]
    ids = [store_id, *(segment_id for _, segment_id in segments)]
    if version != FORMAT_VERSION or not all(type(one) is bytes for one in ids):
        raise ValueError("a field is of the wrong type")
    if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ValueError("the segments' numbers have gaps")
    return Manifest(store_id, tuple(segments), None if close is None else CleanClose(*close))


def _has_crc(data: bytes) -> bool:
    """Whether the last four bytes are the checksum of those before."""
    return data[-_CRC.size :] == _CRC.pack(zlib.crc32(data[: -_CRC.size]))


def create_file(directory: Directory, name: str, data: bytes) -> File:
    """Makes or replaces a file so that it survives a power cut whole or not at all; returns it open for appending."""
    temporary = name + TEMPORARY_SUFFIX
    if temporary in directory.names():  # a crash left it; it is ours and goes
        directory.remove(temporary)
    file = directory.create(temporary)
    try:
        file.write(data)
        file.sync()
        directory.rename(temporary, name)
        directory.sync()
    except BaseException:
        file.close()
        raise
    return file
