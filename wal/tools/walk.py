"""Reading frames also where they are damaged: past a hole, to the next frame that is whole.

Replay stops at the first bytes that are no frame. Whoever looks at a damaged log wants to know what stands behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wal.files import Readable
from wal.frame import FRAME_BYTES_MAX, HEAD_BYTES, Frame, Identity, Scan, Tail
from wal.snapshot import READ_BYTES

WINDOW_BYTES_MAX = FRAME_BYTES_MAX + HEAD_BYTES
"""Read at once: enough for any frame."""


class Hole(NamedTuple):
    """Bytes that are no frame, or of length 0 a frame with another LSN than the next.

    Attributes:
        offset: where it starts in its file, in bytes.
        end: where the next frame starts, or where there is nothing more but zeros.
        lsn: of the record that is missing.
        tail: what a replay takes it for.
        reason: what was found instead of a frame.
    """

    offset: int
    end: int
    lsn: int
    tail: Tail
    reason: str


def walk(source: Readable, name: str, identity: Identity, offset: int, lsn: int | None) -> Iterator[Frame | Hole]:
    """Yields the frames of a segment or snapshot and the holes between them, in the order in which they stand there.

    Args:
        source: where the file is.
        name: of the file; it may grow meanwhile.
        identity: of its frames.
        offset: where to begin, in bytes.
        lsn: of the first record; None takes whatever is there.

    Raises:
        OSError: reading failed.
    """
    size = source.size(name)
    count = READ_BYTES
    while offset < size:
        scan = Scan(source.read(name, offset, count), 0, identity, lsn or 0, offset)
        for frame in scan:
            yield frame._replace(offset=offset + frame.offset, end=offset + frame.end)
        if scan.offset > 0:
            offset, lsn, count = offset + scan.offset, scan.next_lsn, READ_BYTES
        elif offset + count < size and count < WINDOW_BYTES_MAX:
            count = min(count * 4, WINDOW_BYTES_MAX)  # it may go on beyond what was read
        elif lsn is not None and _arrives(source, name, identity, offset, lsn):
            size = source.size(name)
        else:
            later = next(scan.later(), None)
            end = len(scan.rest) if later is None else later.offset
            if lsn is not None or end > 0:
                assert scan.tail is not None, "the iteration is over"
                yield Hole(offset, offset + end, lsn or 0, scan.tail, scan.reason)
            if later is None:
                return
            offset, lsn, count = offset + end, later.first_lsn, READ_BYTES


def settle(source: Readable, name: str, identity: Identity, scan: Scan) -> Scan:
    """Tells damage at the end of a segment from a frame that was being written while the segment was read.

    A server may write between two reads of the system's, so that a reader sees a frame and not the one before it.
    That one had been written by then: whoever reads again sees it.

    Args:
        source: where the segment is.
        name: of the segment.
        identity: of its frames.
        scan: of the whole segment, exhausted.

    Returns:
        The scan, or a later one of the segment as it is now.
    """
    while scan.tail is Tail.CORRUPT:
        again = Scan(source.read(name), scan.offset, identity, scan.next_lsn)
        for _ in again:
            pass
        if again.offset == scan.offset:
            return again
        scan = again
    return scan


def _arrives(source: Readable, name: str, identity: Identity, offset: int, lsn: int) -> bool:
    """Whether a frame is there now: it was being written when the file was read."""
    data = source.read(name, offset, WINDOW_BYTES_MAX)
    return next(iter(Scan(data, 0, identity, lsn)), None) is not None
