"""The deadlines of all connections, looked at a few times a second.

A deadline moves with each request, so to move it must cost next to nothing: it is an attribute, and nobody is told.
Only an earlier one than the timer of the connection is armed; what is looked at too early is put back.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio

from api.door.settings import TURN_MAX


class Timed(Protocol):
    """What has a deadline.

    Attributes:
        deadline: when to look at it again, in trio's time.
        timer: when that is done; no later than at the deadline.
    """

    deadline: float
    timer: float

    def on_deadline(self) -> None:
        """Does what is due when the deadline has passed."""


class Timers:
    """Timers, by the tick behind which they are due.

    Args:
        tick_s: how exact they are.
        keep_alive_s: how long a connection may be idle.

    Attributes:
        now: the time in the turn of the event loop that is running, by trio's clock.
        idle_deadline: of connections that become idle in it.
    """

    __slots__ = ("_keep_alive_s", "_tick_s", "_timed", "idle_deadline", "now")

    def __init__(self, tick_s: float, keep_alive_s: float) -> None:
        self._tick_s = tick_s
        self._keep_alive_s = keep_alive_s
        self._timed: dict[int, set[Timed]] = {}
        self.start_turn()

    def start_turn(self) -> None:
        """Reads the clock, once for all that is done in this turn."""
        self.now = trio.current_time()
        self.idle_deadline = self.now + self._keep_alive_s

    def arm(self, timed: Timed, deadline: float) -> None:
        """Has something looked at when a deadline has passed.

        Args:
            timed: with a later timer, or none.
            deadline: in trio's time.
        """
        self.disarm(timed)
        timed.timer = deadline
        self._timed.setdefault(self._tick_behind(deadline), set()).add(timed)

    def disarm(self, timed: Timed) -> None:
        """Has it not looked at any more; harmless when it is not armed."""
        if timed.timer < math.inf:
            self._timed.get(self._tick_behind(timed.timer), set()).discard(timed)

    def _tick_behind(self, deadline: float) -> int:
        return int(deadline / self._tick_s) + 1

    async def look(self) -> None:
        """Looks at what is due, a turn's worth at a time."""
        tick = int(self.now / self._tick_s)
        due = [timed for at in list(self._timed) if at <= tick for timed in self._timed.pop(at)]
        for number, timed in enumerate(due):
            timed.timer = math.inf
            if timed.deadline <= self.now:
                timed.on_deadline()
            elif timed.deadline < math.inf:
                self.arm(timed, timed.deadline)
            if number % TURN_MAX == TURN_MAX - 1:
                await trio.lowlevel.checkpoint()
