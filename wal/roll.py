"""Rolling: the open segment is sealed, and the log goes on in a new one.

    spare there -> it gets its header and name, its manifest is on disk -> old segment cut and synced
    -> the manifest takes its place -> appends go there

A crash before the manifest names the new segment leaves one without frames, which the next start removes. The disk or
the process may have nothing left for a new segment; then the log goes on in the old one, longer than it should be, and
tries again a sixteenth of a segment later. A roll that is refused costs no room that was there before it.
"""

from __future__ import annotations

import logging

from wal.log_files import LogFiles, refusal
from wal.segment import HEADER_BYTES, SEGMENT_ID_BYTES, SegmentHeader

RETRY_SHARE = 16
"""After a refusal the log rolls only when this part of a segment has been written since: a try costs a sync."""

_logger = logging.getLogger("holdfast.wal")


class Roller:
    """Says when a log rolls, and rolls it.

    Args:
        files: of the log.
        segment_bytes_max: size at which segments roll.
    """

    def __init__(self, files: LogFiles, segment_bytes_max: int) -> None:
        self._segment_bytes_max = segment_bytes_max
        self._files = files
        self._roll_at_bytes = segment_bytes_max

    def is_due(self, frame_bytes: int) -> bool:
        """Whether the log is to roll before a frame of this length."""
        segment = self._files.open
        spare_bytes = segment.spare_bytes
        if spare_bytes is not None and segment.rest_bytes < min(frame_bytes, spare_bytes):
            return True  # also while it is empty: on a full disk it may have been made short
        if spare_bytes is not None and segment.rest_bytes > spare_bytes:
            return False  # what was promised of this one would not fit into that one
        return segment.size_bytes > HEADER_BYTES and segment.size_bytes + frame_bytes > self._roll_at_bytes

    def roll(self, frame_bytes: int, *, squeeze: bool = False) -> OSError | None:
        """Rolls, or goes on in the old segment and says why the process or the disk has nothing left for a new one.

        Args:
            frame_bytes: what is to fit into the new one in any case.
            squeeze: on a full disk, make a short one of what is left of the old one.

        Raises:
            OSError: a write failed, or the sync of what was written before, which is never for want of room, whatever
                it says.
        """
        refused = self._try(frame_bytes, squeeze=squeeze)
        if refused is None:
            self._roll_at_bytes = self._segment_bytes_max
            return None
        if self._roll_at_bytes == self._segment_bytes_max:
            _logger.warning("%s: no new segment, going on in %s", refused, self._files.open.header.name)
        self._roll_at_bytes = self._files.open.size_bytes + self._segment_bytes_max // RETRY_SHARE
        return refused

    def seal(self, pending_bytes: int) -> OSError | None:
        """Rolls, unless nothing was written yet; on a full disk to a short segment. See `Log.seal`."""
        segment = self._files.open
        if segment.size_bytes == HEADER_BYTES:
            return None
        squeeze = segment.full and segment.spare_bytes is None
        refused = self.roll(pending_bytes, squeeze=squeeze)
        if refused is not None and squeeze:
            segment.drop_spare()
            segment.allocate()  # what was given back for it
        return refused

    def _try(self, frame_bytes: int, *, squeeze: bool) -> OSError | None:
        """Rolls; returns why not when there was no room."""
        files = self._files
        with refusal() as refused:
            spare = files.open.prepare_spare(frame_bytes, squeeze=squeeze)
        error = refused[0] if refused else files.roll_to(spare, self._next_header())
        if error is not None and files.open.rest_bytes < frame_bytes:
            files.open.drop_spare()  # the last that can be done: the old segment may find its room
        return error

    def _next_header(self) -> SegmentHeader:
        before = self._files.open.header
        return SegmentHeader(
            number=before.number + 1,
            store_id=before.store_id,
            segment_id=self._files.directory.random_bytes(SEGMENT_ID_BYTES),
            first_lsn=self._files.last_lsn + 1,
            previous_id=before.segment_id,
            previous_bytes=self._files.open.size_bytes,
        )
