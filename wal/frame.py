"""Frames: how one commit looks on disk. Pure functions over bytes; no file is touched here.

    frame   = mark (4) | length u32 | crc u32 | payload (length bytes)          little-endian
    payload = msgpack [first_lsn, time_ms, durable_lsn, [record, ...]]

`mark` is the segment's own, random, its first byte never 0: preallocated zeros are no frame, and the search for
a later frame behind damage is one `bytes.find`. `crc` is CRC-32 over length and payload, started from the
segment's seed, so that a frame of another segment or another life of this one never fits. `durable_lsn` is
the last LSN known to be on disk when the frame was written.

Telling a torn tail from damage (`scan`): bytes that are no frame, with nothing valid behind them, are what a
crash in mid-write leaves: TORN. If a later frame says that the missing LSN was durable when it was written, a
crash cannot have torn it: CORRUPT. A later frame that does not say so was itself never acknowledged (the
kernel may write pages out of order), so that is TORN as well.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import msgpack

FRAME_BYTES_MAX = 512 * 1024 * 1024
"""A length above this is damage, never an allocation. Far above what one group commit may hold."""

_HEAD = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")
HEAD_BYTES = _HEAD.size
CUT_OFF = "is cut off"
"""How the reason ends when a frame may be whole in a longer piece of the file."""

_ZEROS = bytes(64 * 1024)
_TUPLES = {tuple}

Record = tuple[Any, ...]
"""One logged effect as msgpack gives it back; what it means is the engine's business."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What ties frames to their segment: the mark they start with and the seed of their CRC."""

    mark: bytes
    seed: int


class Frame(NamedTuple):
    """One commit, read back. A tuple, because replay makes one for every commit there ever was.

    Attributes:
        offset: where it starts in its segment, in bytes.
        end: where it ends.
        first_lsn: LSN of the first record; the others follow one by one.
        time_ms: engine time at the commit, milliseconds since 1970.
        durable_lsn: last LSN known to be on disk when it was written.
        records: the logged effects, in order.
    """

    offset: int
    end: int
    first_lsn: int
    time_ms: int
    durable_lsn: int
    records: tuple[Record, ...]

    @property
    def last_lsn(self) -> int:
        """LSN of the last record."""
        return self.first_lsn + len(self.records) - 1


class Tail(Enum):
    """How the frames of a segment end."""

    END = "end"
    ZEROS = "zeros"
    TORN = "torn"
    CORRUPT = "corrupt"


def encode(identity: Identity, first_lsn: int, time_ms: int, durable_lsn: int, records: Sequence[bytes]) -> bytes:
    """Builds a frame from records that are packed already.

    Args:
        identity: of the segment it goes to.
        first_lsn: LSN of the first record.
        time_ms: engine time, milliseconds since 1970.
        durable_lsn: last LSN known to be on disk.
        records: msgpack of each record; at least one.

    Returns:
        The bytes to append.
    """
    assert records, "a frame holds at least one record"
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(4)
    packer.pack(first_lsn)
    packer.pack(time_ms)
    packer.pack(durable_lsn)
    packer.pack_array_header(len(records))
    payload = b"".join((packer.bytes(), *records))
    assert len(payload) <= FRAME_BYTES_MAX, "a group commit is bounded far below the frame limit"
    crc = zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload)), identity.seed))
    return _HEAD.pack(identity.mark, len(payload), crc) + payload


class Scan:
    """Iterates over the frames of a segment; when it is exhausted, says how they ended.

    Args:
        data: the segment.
        offset: where to begin in it, in bytes.
        identity: of the segment.
        next_lsn: the LSN of the first frame.
        base: where `data` begins in its file, for messages.

    Attributes:
        offset: end of the last valid frame, in bytes.
        next_lsn: the LSN the next frame must start with.
        durable_offset: what stands before it was on disk when a later frame was written, in bytes.
        tail: set when the iteration is over.
        reason: for TORN and CORRUPT, what was found instead of a frame.
    """

    def __init__(self, data: bytes, offset: int, identity: Identity, next_lsn: int, base: int = 0) -> None:
        self._data = data
        self._view = memoryview(data)
        self._mark = identity.mark
        self._seed = identity.seed
        self._base = base
        self.offset = offset
        self.next_lsn = next_lsn
        self.durable_offset = offset
        self.tail: Tail | None = None
        self.reason = ""

    def __iter__(self) -> Iterator[Frame]:
        size = len(self._data)
        while self.offset < size:
            frame = self._read(self.offset)
            if isinstance(frame, str):
                self._classify(frame)
                return
            if frame.first_lsn != self.next_lsn:
                self._classify(f"the frame starts with LSN {frame.first_lsn}")
                return
            yield frame
            if frame.durable_lsn == frame.first_lsn - 1:  # the first frame after a sync
                self.durable_offset = frame.offset
            self.offset = frame.end
            self.next_lsn += len(frame.records)
        self.tail = Tail.END

    @property
    def rest(self) -> bytes:
        """What stands behind the last valid frame, without the zeros at its end: they are space, never written."""
        return self._data[self.offset : self._zeros_offset()]

    @property
    def unproven(self) -> bytes:
        """The valid frames at the end of which no later frame says that they had been on disk."""
        return self._data[self.durable_offset : self.offset]

    def later(self) -> Iterator[Frame]:
        """Whatever is a valid frame where the iteration ended or further on, at any offset and with any LSN."""
        return self._later(self._zeros_offset())

    def _read(self, offset: int) -> Frame | str:
        """Reads the frame at `offset`, or says why there is none."""
        data = self._data
        head_end = offset + HEAD_BYTES
        if head_end > len(data):
            return f"the frame's head {CUT_OFF}"
        mark, length, crc = _HEAD.unpack_from(data, offset)
        if mark != self._mark:
            return "no frame starts here"
        if length == 0 or length > FRAME_BYTES_MAX:
            return f"the frame's length {length} is not possible"
        end = head_end + length
        if end > len(data):
            return f"the frame's end {CUT_OFF}"
        payload = self._view[head_end:end]
        if zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length), self._seed)) != crc:
            return "the frame's checksum does not match"
        try:
            first_lsn, time_ms, durable_lsn, records = msgpack.unpackb(payload, use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            return f"the frame's payload is not readable ({error})"
        if not (
            (type(first_lsn) is type(time_ms) is type(durable_lsn) is int)
            and (first_lsn >= 0 <= time_ms)
            and durable_lsn >= 0
        ):
            return "the frame's numbers are not numbers"
        if type(records) is not tuple or {*map(type, records)} != _TUPLES:
            return "the frame's records are not records"
        return Frame(offset, end, first_lsn, time_ms, durable_lsn, records)

    def _classify(self, reason: str) -> None:
        self.reason = reason
        zeros_offset = self._zeros_offset()
        if zeros_offset == self.offset:
            self.tail = Tail.ZEROS
        elif self._covered_later(zeros_offset):
            self.tail = Tail.CORRUPT
        else:
            self.tail = Tail.TORN

    def _zeros_offset(self) -> int:
        """Where, behind the last valid frame, nothing but zeros follows; finds it without a copy of them."""
        end = len(self._data)
        while end - self.offset >= len(_ZEROS) and self._data.endswith(_ZEROS, self.offset, end):
            end -= len(_ZEROS)
        start = max(self.offset, end - len(_ZEROS))
        return start + len(self._data[start:end].rstrip(b"\0"))

    def _covered_later(self, end: int) -> bool:
        """Whether a valid frame, here or further on, says that the LSN missing here had been durable.

        Args:
            end: where nothing but zeros follows; no frame starts there, though the last one may well end in zeros.
        """
        for frame in self._later(end):
            if frame.durable_lsn >= self.next_lsn:
                at = self._base + frame.offset
                self.reason += f"; the frame at offset {at} shows that LSN {self.next_lsn} had been on disk"
                return True
        return False

    def _later(self, end: int) -> Iterator[Frame]:
        at = self._data.find(self._mark, self.offset, end)
        while at != -1:
            found = self._read(at)
            if not isinstance(found, str):
                yield found
            at = self._data.find(self._mark, at + 1, end)
