"""Keys, whatever they hold: how commands on them decide, and the ops that remove some, or say when they expire."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from engine.calls import Command
from engine.commands.keys import Delete, Exists, Persist, Ttl
from engine.replies import Error, Integer
from engine.store import ops
from engine.store.ops import Op
from engine.store.store import Decision, Store, refuse
from engine.store.values import undo_replacement


def _delete(store: Store, command: Delete, now_ms: int) -> Decision:
    keys = [key for key in dict.fromkeys(command.keys) if store.live(key, now_ms) is not None]
    if not keys:
        return refuse(Error.KEY_NOT_FOUND)
    return (tuple((ops.REMOVE, key) for key in keys), Integer(len(keys)))


def _exists(store: Store, command: Exists, now_ms: int) -> Decision:
    return (), Integer(sum(store.live(key, now_ms) is not None for key in command.keys))


def _ttl(store: Store, command: Ttl, now_ms: int) -> Decision:
    if store.live(command.key, now_ms) is None:
        return (), Integer(-2)
    deadline_ms = store.deadlines.get(command.key)
    return (), Integer(-1 if deadline_ms is None else math.ceil((deadline_ms - now_ms) / 1000))


def _persist(store: Store, command: Persist, now_ms: int) -> Decision:
    if store.live(command.key, now_ms) is None or store.deadlines.get(command.key) is None:
        return (), Integer(0)
    return ((ops.DEADLINE, command.key, None),), Integer(1)


def _deadline(store: Store, op: Op) -> None:
    store.set_deadline(op[1], op[2])


def _undo_deadline(store: Store, op: Op) -> Callable[[], None]:
    return partial(store.set_deadline, op[1], store.deadlines.get(op[1]))


def _remove(store: Store, op: Op) -> None:
    store.remove(op[1])


def _expire(store: Store, op: Op) -> None:
    for key in op[1]:
        store.remove(key)


DECIDE: dict[type[Command], Callable[[Store, Any, int], Decision]] = {
    Delete: _delete,
    Exists: _exists,
    Ttl: _ttl,
    Persist: _persist,
}
APPLY = {ops.REMOVE: _remove, ops.EXPIRE: _expire, ops.DEADLINE: _deadline}
UNDO = {ops.REMOVE: undo_replacement, ops.DEADLINE: _undo_deadline}
