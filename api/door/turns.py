"""How long the door works in one go, and who goes on in the next.

Theory of operation. One packet can bring a thousand requests that are answered at once, and one client can send packet
after packet. So a turn of the event loop is bounded by time, over all connections. Each that is ready does one request
at least, however many there are, and more of them while its share of the turn lasts. What it has beyond that is put
off: a task of its own goes on with it, round and round, a share each, beside the turns for those who come with
something new. So nobody waits for what another has sent ahead.

    porter:  ready ones, a request each, and the share    +-- in each turn of the event loop, so that
    rest:    those who were put off, a share each       --+   actor, commits and all other tasks have theirs
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import trio

from engine.sleeper import Sleeper

TURN_S = 0.002
"""How long the porter works before others have their turn, and again the rest; each by a request longer."""

SHARE_S = 0.0005
"""How long one goes on that was put off, when there are many."""


class Unfinished(Protocol):
    """Who has more to do."""

    def go_on(self) -> None:
        """Does more of it, for a share, and is put off again or not."""


class Turns:
    """Who was put off.

    Attributes:
        clock: seconds of real time; trio's may stand still in tests, and is read once a turn only.
        share_s: how long one that has several requests may go on in the turn that is running.
    """

    __slots__ = ("_going", "_over_at", "_rest", "_sleeper", "clock", "share_s")

    def __init__(self) -> None:
        self.clock = perf_counter
        self.share_s = TURN_S
        self._going: Unfinished | None = None
        self._over_at = 0.0
        self._rest: deque[Unfinished] = deque()
        self._sleeper = Sleeper()

    def begin(self, count: int) -> float:
        """Begins a turn.

        Args:
            count: of those who share it.

        Returns:
            When it is over, by `clock`.
        """
        self.share_s = TURN_S / (count or 1)
        self._going = None
        return self.clock() + TURN_S

    def is_over_for(self, one: Unfinished) -> bool:
        """Says whether one that has several requests has used up its share of the turn.

        Args:
            one: whose turn it is; its share begins when it asks first.
        """
        now = self.clock()
        if self._going is one:
            return now >= self._over_at
        self._going = one
        self._over_at = now + self.share_s
        return False

    def put_off(self, one: Unfinished) -> None:
        """Has `go_on` called in a later turn, once."""
        self._rest.append(one)
        self._sleeper.wake()

    async def work_off(self, start_turn: Callable[[], None]) -> None:
        """Goes on with those who were put off, for ever.

        Args:
            start_turn: called at the beginning of each turn.
        """
        rest, clock = self._rest, self.clock
        while True:
            if not rest:
                await self._sleeper.sleep()
            start_turn()
            over_at = self.begin(len(rest))
            self.share_s = max(self.share_s, SHARE_S)
            for _ in range(len(rest)):
                self._going = None
                rest.popleft().go_on()
                if clock() >= over_at:
                    break
            await trio.lowlevel.checkpoint()
