"""What the log file is told about a full disk: that it is, now and then, and that it is no longer."""

from __future__ import annotations

import logging
import math

from engine.commands.table import TABLE

COMPLAINT_INTERVAL_S = 30.0
"""Between two warnings that the disk is full."""

_STORING = [row.name for row in TABLE if row.stores]
_REFUSED = f"{', '.join(_STORING[:-1])} and {_STORING[-1]}"

_logger = logging.getLogger("holdfast.engine")


class FullDiskComplaints:
    """Warns that the disk is full, and once that it has room again."""

    def __init__(self) -> None:
        self._next_s = -math.inf
        self._complained = False

    def note(self, full: bool, now_s: float) -> None:
        """Takes note of how it is now, at a time of trio's clock in seconds."""
        if full and now_s >= self._next_s:
            self._next_s = now_s + COMPLAINT_INTERVAL_S
            self._complained = True
            _logger.warning(
                "the disk is full: %s are refused until there is room again; deleting may make some", _REFUSED
            )
        elif self._complained and not full:
            self._complained = False
            _logger.warning("the disk has room again")
