"""Bytes that are in memory because of what clients do or do not do: counted over all connections, and bounded.

Beyond a bound the connection that holds most is closed: so those who hold little are never shut out by those who hold
much.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import ClassVar, Protocol

from engine.limits import KIB, MIB

RECEIVE_BYTES = 64 * KIB
SCARCE_BYTES = 2 * KIB
"""What is received from a client in one go, and what when much is held already."""

_STALE_MAX = 64
"""Entries of the heap that may be out of date, beside as many as there are holders."""


class Holder(Protocol):
    """Who holds bytes."""

    def close(self) -> None:
        """Gives them up, and calls `HeldBytes.forget`."""


class HeldBytes:
    """What each connection holds, if it holds any.

    To find the one that holds most takes no look at all others: ten thousand may hold some, and each answer may be one
    too many.

    Attributes:
        bytes_max: what all of them together may hold.
    """

    __slots__ = ("_all_bytes", "_heap", "_held", "_holders", "_serial")

    bytes_max: ClassVar[int]

    def __init__(self) -> None:
        self._all_bytes = 0
        self._held: dict[Holder, tuple[int, int]] = {}  # bytes, serial of the entry in the heap
        self._holders: dict[int, Holder] = {}  # by that serial; the heap shall keep no connection that is closed
        self._heap: list[tuple[int, int]] = []  # bytes below zero, serial
        self._serial = 0

    def note(self, holder: Holder, held_bytes: int) -> None:
        """Counts what a connection has now, and makes room when all of it is too much: also by closing this one.

        Args:
            holder: whose it is.
            held_bytes: all that it has.
        """
        self.forget(holder)
        if not held_bytes:
            return
        self._serial += 1
        self._all_bytes += held_bytes
        self._held[holder] = held_bytes, self._serial
        self._holders[self._serial] = holder
        heappush(self._heap, (-held_bytes, self._serial))
        if len(self._heap) > 2 * len(self._held) + _STALE_MAX:
            self._heap = [entry for entry in self._heap if entry[1] in self._holders]
            heapify(self._heap)
        while self._all_bytes > self.bytes_max:
            worst = self._holders.get(heappop(self._heap)[1])
            if worst is not None:
                worst.close()

    def forget(self, holder: Holder) -> None:
        """Takes a connection out: it closes, or holds nothing any more."""
        held_bytes, serial = self._held.pop(holder, (0, 0))
        self._all_bytes -= held_bytes
        self._holders.pop(serial, None)


class UnsentBytes(HeldBytes):
    """Answers in memory that the kernel does not take: the one that has read least is closed (F5)."""

    __slots__ = ()

    bytes_max = 256 * MIB


class AheadBytes(HeldBytes):
    """What came and is no request yet, or may not be started yet: whoever sent most of it is closed (F6).

    That is the last resort: when half of the bound is used up, little is received from each, so that those who only
    have to wait for their turn are not closed.

    Attributes:
        receive_bytes: how much may be received in one go.
    """

    __slots__ = ("receive_bytes",)

    bytes_max = 64 * MIB

    def __init__(self) -> None:
        super().__init__()
        self.receive_bytes = RECEIVE_BYTES

    def note(self, holder: Holder, held_bytes: int) -> None:
        """Part of `HeldBytes`."""
        super().note(holder, held_bytes)
        self._limit()

    def forget(self, holder: Holder) -> None:
        """Part of `HeldBytes`."""
        super().forget(holder)
        self._limit()

    def _limit(self) -> None:
        self.receive_bytes = RECEIVE_BYTES if self._all_bytes < self.bytes_max // 2 else SCARCE_BYTES
