"""Plain values: how commands on them decide, and the op that sets one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from engine.calls import Command
from engine.commands.table import wrong_type
from engine.commands.values import Condition, Get, Set, StrLen
from engine.replies import OK, Error, Integer, Value
from engine.store import ops
from engine.store.ops import Op
from engine.store.store import Decision, Queue, Store, refuse, value_cost


def _set(store: Store, command: Set, now_ms: int) -> Decision:
    if command.condition is not None:
        present = store.live(command.key, now_ms) is not None
        if command.condition is Condition.IF_MISSING and present:
            return refuse(Error.KEY_ALREADY_EXISTS)
        if command.condition is Condition.IF_PRESENT and not present:
            return refuse(Error.KEY_NOT_FOUND)
    deadline_ms = None if command.ttl_ms is None else now_ms + command.ttl_ms
    if store.memory_bytes_max is not None:
        growth = value_cost(command.key, command.value, deadline_ms) - store.cost(command.key)
        refusal = store.refusal_to_grow(growth)
        if refusal is not None:
            return (), refusal
    return ((ops.PUT, command.key, command.value, deadline_ms),), OK


def _get(store: Store, command: Get, now_ms: int) -> Decision:
    entry = store.live(command.key, now_ms)
    if entry is None:
        return refuse(Error.KEY_NOT_FOUND)
    if type(entry) is Queue:
        return (), wrong_type(command)
    return (), Value(entry)  # type: ignore[arg-type]  # an entry that is no queue is bytes


def _strlen(store: Store, command: StrLen, now_ms: int) -> Decision:
    entry = store.live(command.key, now_ms)
    if type(entry) is Queue:
        return (), wrong_type(command)
    return (), Integer(0 if entry is None else len(entry))


def undo_replacement(store: Store, op: Op) -> Callable[[], None]:
    """What takes back an op that replaces or removes whatever its key holds."""
    key = op[1]
    return partial(store.put_back, key, *store.held(key))


# A row maps each command to a function that takes that very type; a dict's type cannot say so, hence Any.
DECIDE: dict[type[Command], Callable[[Store, Any, int], Decision]] = {Set: _set, Get: _get, StrLen: _strlen}
APPLY = {ops.PUT: Store.put}
UNDO = {ops.PUT: undo_replacement}
