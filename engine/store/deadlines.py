"""When keys expire, by key and in order of time.

The order is made when it is first asked for, and kept from then on: to sort a million deadlines at once is much quicker
than to put each into its place, and replay, which knows no time, asks for none.
"""

from __future__ import annotations

from itertools import islice

from sortedcontainers import SortedList

from engine.store.keyspace import Keyspace


class Deadlines:
    """The deadlines of one store, at most one for each key.

    Attributes:
        count: how many there are, as `len` says, for those who ask all the time.
    """

    __slots__ = ("_by_key", "_in_order", "count")

    def __init__(self) -> None:
        self._by_key: Keyspace[int] = Keyspace()
        self._in_order: SortedList[tuple[int, bytes]] | None = None
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def get(self, key: bytes) -> int | None:
        """When a key expires, in milliseconds since 1970, or None."""
        return self._by_key.get(key) if self.count else None

    def add(self, key: bytes, deadline_ms: int) -> None:
        """Sets the deadline of a key that has none."""
        self._by_key[key] = deadline_ms
        self.count += 1
        if self._in_order is not None:
            self._in_order.add((deadline_ms, key))

    def drop(self, key: bytes) -> None:
        """Takes the deadline of a key out, if it has one."""
        if not self.count:
            return
        deadline_ms = self._by_key.pop(key)
        if deadline_ms is None:
            return
        self.count -= 1
        if self._in_order is not None:
            self._in_order.remove((deadline_ms, key))

    @property
    def next_ms(self) -> int | None:
        """When the next key expires, or None."""
        return self.order()[0][0] if self.count else None

    def due(self, now_ms: int, count_max: int, bytes_max: int) -> tuple[bytes, ...]:
        """Keys whose time is up, the longest expired first: `count_max` at most, of some `bytes_max` bytes together."""
        due: list[bytes] = []
        for deadline_ms, key in islice(self.order(), count_max):
            if deadline_ms > now_ms or bytes_max <= 0:
                break
            due.append(key)
            bytes_max -= len(key)
        return tuple(due)

    def order(self) -> SortedList[tuple[int, bytes]]:
        """All of them, the next first."""
        if self._in_order is None:
            self._in_order = SortedList((deadline_ms, key) for key, deadline_ms in self._by_key.items())
        return self._in_order
