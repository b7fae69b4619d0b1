"""Parked pops: per queue first come, first served; park, claim and abandon are all sync and in constant time.

A waiter stands in the line of its key and, if it has a timeout, among the deadlines. Claiming takes the oldest of a
line; abandoning takes one out of the middle. Both leave nothing behind, so a million clients that come, wait and go
cost nothing afterwards. (An OrderedDict is a linked list inside; a plain dict would look for its first entry past all
those removed before it.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from sortedcontainers import SortedList

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Waiter(Generic[T]):
    """One parked pop.

    Attributes:
        key: the queue it waits for.
        ticket: its place in the order of arrival, over all queues.
        deadline_ms: engine time at which it gives up; None waits for ever.
        owner: whom to answer.
    """

    key: bytes
    ticket: int
    deadline_ms: int | None
    owner: T


class Waiters(Generic[T]):
    """All parked pops of an engine."""

    def __init__(self) -> None:
        self._lines: dict[bytes, OrderedDict[int, Waiter[T]]] = {}
        self._deadlines: SortedList[tuple[int, int, bytes]] = SortedList()
        self._tickets = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        """Whether anybody waits for this queue."""
        return key in self._lines

    @property
    def next_deadline_ms(self) -> int | None:
        """When the next waiter gives up, or None."""
        return self._deadlines[0][0] if self._deadlines else None

    def park(self, key: bytes, deadline_ms: int | None, owner: T) -> Waiter[T]:
        """Puts a new waiter at the end of its queue's line."""
        self._tickets += 1
        waiter = Waiter(key, self._tickets, deadline_ms, owner)
        self._lines.setdefault(key, OrderedDict())[waiter.ticket] = waiter
        if deadline_ms is not None:
            self._deadlines.add((deadline_ms, waiter.ticket, key))
        self._count += 1
        return waiter

    def claim(self, key: bytes) -> Waiter[T]:
        """Takes the oldest waiter of a queue out; somebody must be waiting there."""
        waiter = next(iter(self._lines[key].values()))
        self.abandon(waiter)
        return waiter

    def abandon(self, waiter: Waiter[T]) -> None:
        """Takes a parked waiter out."""
        line = self._lines[waiter.key]
        del line[waiter.ticket]
        if not line:
            del self._lines[waiter.key]
        if waiter.deadline_ms is not None:
            self._deadlines.remove((waiter.deadline_ms, waiter.ticket, waiter.key))
        self._count -= 1

    def due(self, now_ms: int) -> Iterator[Waiter[T]]:
        """Takes out, one by one, those whose time is up, the earliest deadline first."""
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            _, ticket, key = self._deadlines[0]
            waiter = self._lines[key][ticket]
            self.abandon(waiter)
            yield waiter

    def drain(self) -> Iterator[Waiter[T]]:
        """Takes everybody out, in order of arrival within each queue; others may leave in between."""
        for key in list(self._lines):
            while key in self._lines:
                yield self.claim(key)
