"""Answers in memory that clients do not read: counted over all connections, and bounded (F5)."""

from __future__ import annotations

from typing import Protocol

from engine.limits import MIB

UNSENT_BYTES_MAX = 256 * MIB
"""Answers in memory that the kernel does not take, over all connections."""


class Holder(Protocol):
    """Who has unsent bytes."""

    def close(self) -> None:
        """Gives them up, and calls `UnsentBytes.forget`."""


class UnsentBytes:
    """The unsent bytes of each connection that has some. Beyond the bound the one that has read least is closed."""

    __slots__ = ("_all_bytes", "_held")

    def __init__(self) -> None:
        self._held: dict[Holder, int] = {}
        self._all_bytes = 0

    def note(self, holder: Holder, held_bytes: int) -> None:
        """Counts what a connection has now, and makes room when all of it is too much: also by closing this one.

        Args:
            holder: whose it is.
            held_bytes: all that it has.
        """
        self._all_bytes += held_bytes - self._held.pop(holder, 0)
        if held_bytes:
            self._held[holder] = held_bytes
        while self._all_bytes > UNSENT_BYTES_MAX:
            max(self._held, key=self._held.__getitem__).close()

    def forget(self, holder: Holder) -> None:
        """Takes a connection out that closes."""
        self._all_bytes -= self._held.pop(holder, 0)
