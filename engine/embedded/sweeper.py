"""Expired keys leave the memory and the log: before a command that names them is decided, and in the background.

For every decision a key is gone the instant its time is up. What is done here frees its memory, and logs that it went.
"""

from __future__ import annotations

from typing import Any

from engine.embedded.committer import GROUP_BYTES_MAX, Committer
from engine.embedded.effects import Effects
from engine.store import ops
from engine.store.state import State

SWEEP_KEYS_MAX = 256
"""Expired keys removed in one go: some 1 ms of work. A million that expire at once go in slices between commands."""

SWEEP_BYTES_MAX = 1024 * 1024
"""Length of the keys removed in one go, about: a slice is one record, and keys can be long."""

SWEEP_INTERVAL_MS = 100
"""Pause after a sweep that found fewer keys than a slice: keys that expire one by one do not wake the actor each."""

_KEY_HEAD_BYTES = 5
"""What a key takes of a record beyond its own length, at most."""


class Sweeper:
    """Removes expired keys.

    Args:
        state: that holds them.
        committer: whose open group takes the records, and which knows the room there is.
        effects: of both.

    Attributes:
        expired_keys: number of keys removed since the start.
    """

    def __init__(self, state: State, committer: Committer[Any], effects: Effects) -> None:
        self.expired_keys = 0
        self._state = state
        self._committer = committer
        self._effects = effects
        self._next_ms = 0

    @property
    def deadline_ms(self) -> int | None:
        """Engine time at which there is something to sweep; None when it takes something else first."""
        next_ms = self._state.next_deadline_ms
        return max(next_ms, self._next_ms) if next_ms is not None and self._may_sweep() else None

    def sweep(self, now_ms: int) -> None:
        """Removes a slice of the expired keys.

        One slice a group, more only beside as many commands: else the actor would never sleep, and not only would the
        group grow, the commit thread would not get the interpreter (a SET among a million such keys took 4 s).
        """
        if now_ms < self._next_ms or not self._may_sweep():
            return
        keys = self._state.expired(now_ms, SWEEP_KEYS_MAX, SWEEP_BYTES_MAX)
        if not self.expire(keys):
            self._next_ms = now_ms + SWEEP_INTERVAL_MS
            return
        self._committer.open.swept_keys += len(keys)
        next_ms = self._state.next_deadline_ms
        if next_ms is None or next_ms > now_ms:
            self._next_ms = now_ms + SWEEP_INTERVAL_MS

    def expire(self, keys: tuple[bytes, ...]) -> bool:
        """Removes expired keys; says no when the disk is too full for that.

        Those that a command names go before it is decided: an answer that rests on their being gone leaves with
        the record of it. Else a crash before the next sweep, and a wall clock that was set back, would show them again.
        """
        if keys and not self._committer.has_room(expiry_bytes(keys)):
            return False
        if keys:
            self._effects.apply_one((ops.EXPIRE, keys))
            self.expired_keys += len(keys)
        return True

    def _may_sweep(self) -> bool:
        """Whether the open group takes another slice: no more than one, or as many keys as it has commands."""
        group = self._committer.open
        return group.swept_keys < max(SWEEP_KEYS_MAX, len(group.answers)) and group.records_bytes < GROUP_BYTES_MAX


def expiry_bytes(keys: tuple[bytes, ...]) -> int:
    """Length of the record that removes these keys, at most."""
    return sum(map(len, keys)) + len(keys) * _KEY_HEAD_BYTES
