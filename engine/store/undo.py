"""The journal of a unit: ops that are applied to the memory alone, until it is known whether they stay.

For each op it keeps what is needed to take it back, which is never more than the op itself holds: a value or a queue
that was replaced is kept as it is, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State

PAUSE_OPS = 512
"""Ops taken back between two pauses: some 1 ms of work."""


class Journal:
    """The ops of one unit.

    Args:
        state: what they are applied to.

    Attributes:
        effects: the ops, in their order.
        records: the same, packed.
        records_bytes: their length together.
    """

    def __init__(self, state: State) -> None:
        self.effects: list[Op] = []
        self.records: list[bytes] = []
        self.records_bytes = 0
        self._state = state
        self._undos: list[Callable[[], None]] = []

    def apply(self, op: Op) -> None:
        """Applies an op; what cannot be packed raises before."""
        record = ops.pack(op)
        undo = self._state.undo_of(op)
        self._state.apply(op)
        self._undos.append(undo)
        self.effects.append(op)
        self.records.append(record)
        self.records_bytes += len(record)

    def roll_back(self) -> Iterator[None]:
        """Takes everything back, the last op first, with pauses; until then nothing else may change the state."""
        while self._undos:
            self._undos.pop()()
            if len(self._undos) % PAUSE_OPS == 0:
                yield
