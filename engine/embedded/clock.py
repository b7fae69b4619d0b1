"""Engine time: one wall-clock reading, and monotonic progress from there on.

A clock that jumps while the engine runs moves no deadline, and time never runs behind what is in the log.
"""

from __future__ import annotations

import trio


class Clock:
    """Engine time: where the wall clock stood at the start, plus monotonic progress.

    Args:
        start_ms: the wall clock, milliseconds since 1970, or the last time in the log if that is later.
    """

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms
        self._start_s = trio.current_time()

    def now_ms(self) -> int:
        """Engine time in milliseconds since 1970."""
        # The small addition undoes the rounding of `when`: at that very time, now_ms is what was asked for.
        return self._start_ms + int((trio.current_time() - self._start_s) * 1000 + 0.001)

    def when(self, at_ms: int) -> float:
        """The trio time, in seconds, at which engine time is `at_ms`."""
        return self._start_s + (at_ms - self._start_ms) / 1000
