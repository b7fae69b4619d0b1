"""The journal of a unit: ops that are applied to the memory alone, until it is known whether they stay.

For each op it keeps what is needed to take it back, which is never more than the op itself holds: a value or a queue
that was replaced is kept as it is, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

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
        undo = _UNDO[op[0]](self._state, op)
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


def _undo_replacement(state: State, op: Op) -> Callable[[], None]:
    key = op[1]
    return partial(state.put_back, key, *state.held(key))


def _undo_push(state: State, op: Op) -> Callable[[], None]:
    _, key, values = op
    is_new = state.queue(key) is None

    def undo() -> None:
        for _ in values:
            state.apply((ops.POP_LAST, key))
        if is_new:
            state.apply((ops.REMOVE, key))

    return undo


def _undo_pop_first(state: State, op: Op) -> Callable[[], None]:
    queue = state.queue(op[1])
    assert queue is not None
    return partial(state.apply, (ops.RETURN_FIRST, op[1], queue[0]))


def _undo_pop_last(state: State, op: Op) -> Callable[[], None]:
    queue = state.queue(op[1])
    assert queue is not None
    return partial(state.apply, (ops.RETURN_LAST, op[1], queue[-1]))


_UNDO = {
    ops.PUT: _undo_replacement,
    ops.REMOVE: _undo_replacement,
    ops.PUSH: _undo_push,
    ops.POP_FIRST: _undo_pop_first,
    ops.POP_LAST: _undo_pop_last,
}
"""What takes an op back, made before it is applied; commands have no other effects."""
