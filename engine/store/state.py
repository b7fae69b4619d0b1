"""The state machine: `decide` says what a command does, `apply` does it. Pure and deterministic.

    decide(command, now_ms) -> Decision(ops, reply)      reads the state, changes nothing
    apply(op)                                            changes the state, asks nothing

Replay calls the same `apply`. There is no trio, clock, file or random here, and no await, so nothing can
come between a decision and its effects. What each command decides and each op does stands in the files of the
families: values, keys, queues, server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any

from engine.calls import Command
from engine.store import keys, ops, queues, server, values
from engine.store.keyspace import SHARDS
from engine.store.ops import BadOp, Op, Record
from engine.store.store import Decision, Queue, Store

_DECIDE: dict[type[Command], Callable[[Store, Any, int], Decision]] = {
    **values.DECIDE,
    **keys.DECIDE,
    **queues.DECIDE,
    **server.DECIDE,
}

_APPLY: dict[int, Callable[[Store, Op], None]] = {**values.APPLY, **keys.APPLY, **queues.APPLY}

_UNDO: dict[int, Callable[[Store, Op], Callable[[], None]]] = {**values.UNDO, **keys.UNDO, **queues.UNDO}


class State(Store):
    """What is stored, and how it changes: only by ops."""

    def decide(self, command: Command, now_ms: int) -> Decision:
        """Says what a command does at this instant.

        Args:
            command: as parsed.
            now_ms: engine time, milliseconds since 1970.
        """
        return _DECIDE[type(command)](self, command, now_ms)

    def apply(self, op: Op) -> None:
        """Applies one effect.

        Raises:
            BadOp: the effect does not fit the state; a log that was written by decisions never holds one.
        """
        _APPLY[op[0]](self, op)

    def undo_of(self, op: Op) -> Callable[[], None]:
        """What will take an op back, made before it is applied; for the effects that commands have, and no others."""
        return _UNDO[op[0]](self, op)

    # Replay and snapshots

    def replay(self, records: Sequence[Record]) -> None:
        """Checks and applies records as they were read from the log, in order.

        Does what `ops.check` and `apply` do, but quicker for what a log is mostly full of: plain values.

        Raises:
            BadOp: one of them is no op, or does not fit the state. The state is of no use from then on.
        """
        shards = self.entries.shards
        deadlines = self.deadlines
        put = ops.PUT
        new_count = new_bytes = 0
        left = iter(records)
        try:
            for record in left:
                if len(record) == 4:
                    code, key, value, deadline_ms = record
                    # The checks of `ops.check`, and `is`: a 1 that is another object only takes the longer way.
                    if (
                        code is put
                        and type(key) is bytes
                        and type(value) is bytes
                        and (deadline_ms is None or (type(deadline_ms) is int and deadline_ms >= 0))
                    ):
                        shard = shards[hash(key) % SHARDS]
                        if key not in shard:
                            shard[key] = value
                            new_count += 1
                            new_bytes += len(key) + len(value)
                            if deadline_ms is not None:
                                deadlines.add(key, deadline_ms)
                            continue
                        old = shard[key]
                        if deadline_ms is None and type(old) is bytes and not deadlines:
                            shard[key] = value
                            new_bytes += len(value) - len(old)
                            continue
                self.apply(ops.check(record))
        except BadOp as error:
            error.index = len(records) - length_hint(left) - 1
            raise
        self.value_count += new_count
        self.data_bytes += new_bytes

    def order_deadlines(self) -> None:
        """Does after a replay what would otherwise hold up the first command: a million deadlines take 2 s to order."""
        self.deadlines.order()

    def dump(self) -> Iterator[tuple[Any, ...]]:
        """Everything, in a fixed order: equal dumps are equal states."""
        for key in sorted(self.entries):
            entry = self.entries.get(key)
            if type(entry) is Queue:
                yield ("queue", key, tuple(entry))
            else:
                yield ("value", key, entry, self.deadlines.get(key))

    def snapshot_ops(self) -> Iterator[Op]:
        """The ops that make an empty state equal to this one; for equal states the same, in the same order."""
        for key in sorted(self.entries):
            entry = self.entries.get(key)
            if type(entry) is Queue:
                yield from queues.pushes(key, entry)
            else:
                yield (ops.PUT, key, entry, self.deadlines.get(key))
