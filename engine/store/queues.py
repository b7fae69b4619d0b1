"""Queues: how commands on them decide, and the ops that push, pop, and put back what was popped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from engine.calls import Command
from engine.commands.queues import BQPop, QLen, QPop, QPush
from engine.commands.table import wrong_type
from engine.replies import NULL, Error, Integer, Ok, Value
from engine.store import ops
from engine.store.ops import BadOp, Op
from engine.store.store import (
    ITEM_OVERHEAD_BYTES,
    ITEM_RECORD_BYTES,
    QUEUE_OVERHEAD_BYTES,
    Decision,
    Queue,
    Store,
    refuse,
)

PUSH_BYTES_MAX = 1024 * 1024
"""A longer queue is several ops of a snapshot: a frame holds at least one op whole. Not much less, because each holds
the key as well, which may be far longer than the values."""


# Deciding


def _qpush(store: Store, command: QPush, now_ms: int) -> Decision:
    entry = store.live(command.key, now_ms)
    if entry is not None and type(entry) is not Queue:
        return (), wrong_type(command)
    if store.memory_bytes_max is not None:
        growth = sum(map(len, command.values)) + len(command.values) * ITEM_OVERHEAD_BYTES
        if entry is None:
            growth += len(command.key) + QUEUE_OVERHEAD_BYTES
        refusal = store.refusal_to_grow(growth)
        if refusal is not None:
            return (), refusal
    push: Op = (ops.PUSH, command.key, command.values)
    stale = entry is None and store.entries.get(command.key) is not None
    effects = ((ops.REMOVE, command.key), push) if stale else (push,)
    return (effects, Ok(length=len(command.values) + (len(entry) if entry is not None else 0)))


def _qpop(store: Store, command: QPop, now_ms: int) -> Decision:
    entry = store.live(command.key, now_ms)
    if entry is None:
        return (), NULL
    if type(entry) is not Queue:
        return (), wrong_type(command)
    if not entry:
        return refuse(Error.QUEUE_IS_EMPTY)
    return ((ops.POP_LAST, command.key),), Value(entry[-1])


def _bqpop(store: Store, command: BQPop, now_ms: int) -> Decision:
    entry = store.live(command.key, now_ms)
    if entry is not None and type(entry) is not Queue:
        return (), wrong_type(command)
    if entry:
        return ((ops.POP_FIRST, command.key),), Value(entry[0])
    return (), NULL if command.timeout_ms == 0 else None


def _qlen(store: Store, command: QLen, now_ms: int) -> Decision:
    entry = store.live(command.key, now_ms)
    if entry is not None and type(entry) is not Queue:
        return (), wrong_type(command)
    return (), Integer(0 if entry is None else len(entry))


# Applying


def _push(store: Store, op: Op) -> None:
    _, key, values = op
    entry = store.entries.get(key)
    if entry is None:
        entry = Queue()
        store.make_queue(key, entry)
    elif type(entry) is not Queue:
        raise BadOp("pushes to a plain value")
    entry.extend(values)
    store.account(entry, sum(map(len, values)), len(values))


def _pop_first(store: Store, op: Op) -> None:
    queue = _filled(store, op[1])
    store.account(queue, -len(queue.popleft()), -1)


def _pop_last(store: Store, op: Op) -> None:
    queue = _filled(store, op[1])
    store.account(queue, -len(queue.pop()), -1)


def _return_first(store: Store, op: Op) -> None:
    _, key, value = op
    queue = _existing(store, key)
    queue.appendleft(value)
    store.account(queue, len(value), 1)


def _return_last(store: Store, op: Op) -> None:
    _, key, value = op
    queue = _existing(store, key)
    queue.append(value)
    store.account(queue, len(value), 1)


def _existing(store: Store, key: bytes) -> Queue:
    queue = store.queue(key)
    if queue is None:
        raise BadOp("needs a queue where there is none")
    return queue


def _filled(store: Store, key: bytes) -> Queue:
    queue = _existing(store, key)
    if not queue:
        raise BadOp("pops from an empty queue")
    return queue


# Taking back


def _undo_push(store: Store, op: Op) -> Callable[[], None]:
    _, key, values = op
    is_new = store.queue(key) is None

    def undo() -> None:
        for _ in values:
            _pop_last(store, (ops.POP_LAST, key))
        if is_new:
            store.remove(key)

    return undo


def _undo_pop_first(store: Store, op: Op) -> Callable[[], None]:
    return partial(_return_first, store, (ops.RETURN_FIRST, op[1], _filled(store, op[1])[0]))


def _undo_pop_last(store: Store, op: Op) -> Callable[[], None]:
    return partial(_return_last, store, (ops.RETURN_LAST, op[1], _filled(store, op[1])[-1]))


def pushes(key: bytes, queue: Queue) -> Iterator[Op]:
    """The ops that make a queue; an empty one takes one as well."""
    values: list[bytes] = []
    values_bytes = 0
    for value in queue:
        value_bytes = len(value) + ITEM_RECORD_BYTES
        if values and values_bytes + value_bytes > PUSH_BYTES_MAX:
            yield (ops.PUSH, key, tuple(values))
            values, values_bytes = [], 0
        values.append(value)
        values_bytes += value_bytes
    yield (ops.PUSH, key, tuple(values))


DECIDE: dict[type[Command], Callable[[Store, Any, int], Decision]] = {
    QPush: _qpush,
    QPop: _qpop,
    BQPop: _bqpop,
    QLen: _qlen,
}
APPLY = {
    ops.PUSH: _push,
    ops.POP_FIRST: _pop_first,
    ops.POP_LAST: _pop_last,
    ops.RETURN_FIRST: _return_first,
    ops.RETURN_LAST: _return_last,
}
UNDO = {ops.PUSH: _undo_push, ops.POP_FIRST: _undo_pop_first, ops.POP_LAST: _undo_pop_last}
