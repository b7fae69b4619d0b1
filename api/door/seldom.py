"""The same trouble again and again is said now and then only."""

from __future__ import annotations

import logging
import math

from api.door.timers import Timers

_logger = logging.getLogger("holdfast.http")

SELDOM_S = 30.0
"""Between two lines about the same lasting trouble."""


class Seldom:
    """Logs each kind of trouble at most once in `SELDOM_S`.

    Args:
        timers: has the time.
    """

    __slots__ = ("_next_s", "_timers")

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._next_s: dict[str, float] = {}

    def error(self, message: str, error: OSError) -> None:
        """Logs an error.

        Args:
            message: with one place for the error; says which kind it is.
            error: of the kernel.
        """
        now = self._timers.now
        if now >= self._next_s.get(message, -math.inf):
            self._next_s[message] = now + SELDOM_S
            _logger.error(message, error)
