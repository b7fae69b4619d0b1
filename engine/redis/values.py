"""Plain values: strings of Redis, under their own keys."""

from __future__ import annotations

from typing import Any

from engine.calls import Command
from engine.commands.values import Condition, Get, Set, StrLen
from engine.redis.translation import Native, Refusal, Translation, Undo, integer, on_key
from engine.replies import OK, Error, Failure, Reply, Value

KEY_NOT_FOUND = Failure(Error.KEY_NOT_FOUND)


def _set(command: Set) -> tuple[bytes, ...]:
    words: tuple[bytes, ...] = (b"SET", command.key, command.value)
    if command.ttl_ms is not None:
        words += (b"PX", b"%d" % command.ttl_ms)
    if command.condition is not None:
        words += (command.condition.value.encode(),)
    return words


def _after_set(command: Set, answer: Any) -> Reply:
    if answer is not None:
        return OK
    return Failure(Error.KEY_ALREADY_EXISTS) if command.condition is Condition.IF_MISSING else KEY_NOT_FOUND


def _after_get(_command: Get, answer: Any) -> Reply:
    return KEY_NOT_FOUND if answer is None else Value(answer)


TRANSLATIONS: dict[type[Command], Translation] = {
    Set: Native(_set, _after_set, Undo.REPLACE, Refusal.NULL),
    Get: Native(on_key(b"GET"), _after_get),
    StrLen: Native(on_key(b"STRLEN"), integer),
}
