"""The state and the log together: what is applied is logged, in the same order, and nothing else changes the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.embedded.committer import Committer
from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State


class Effects:
    """Applies ops, and puts their records into the open group.

    Args:
        state: what they change.
        committer: whose open group takes the records.
    """

    def __init__(self, state: State, committer: Committer[Any]) -> None:
        self._state = state
        self._committer = committer

    def apply(self, effects: Sequence[Op], records: list[bytes], records_bytes: int) -> None:
        """Takes records that are packed already: what cannot be packed must not have been applied."""
        for op in effects:
            self._state.apply(op)
        self._committer.open.add(records, records_bytes)

    def apply_one(self, op: Op) -> None:
        """Does what no command asked for by itself, and what cannot be refused."""
        record = ops.pack(op)
        self.apply((op,), [record], len(record))
