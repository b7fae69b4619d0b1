"""Keys, whatever they hold: Redis' own commands on them."""

from __future__ import annotations

import math
from typing import Any

from engine.calls import Command
from engine.commands.keys import Delete, Exists, Ttl
from engine.redis.translation import Native, Refusal, Translation, Undo
from engine.replies import Error, Failure, Integer, Reply


def _delete(command: Delete) -> tuple[bytes, ...]:
    # One that is named twice is removed once: Redis says so itself, and here it would take time for very many.
    return (b"UNLINK", *command.keys)


def _after_delete(_command: Delete, answer: Any) -> Reply:
    return Integer(answer) if answer else Failure(Error.KEY_NOT_FOUND)


def _exists(command: Exists) -> tuple[bytes, ...]:
    return (b"EXISTS", *command.keys)


def _after_exists(_command: Exists, answer: Any) -> Reply:
    return Integer(answer)


def _ttl(command: Ttl) -> tuple[bytes, ...]:
    return (b"PTTL", command.key)


def _after_ttl(_command: Ttl, answer: Any) -> Reply:
    return Integer(answer if answer < 0 else max(1, math.ceil(answer / 1000)))  # 0 is the last millisecond


TRANSLATIONS: dict[type[Command], Translation] = {
    Delete: Native(_delete, _after_delete, Undo.REPLACE, Refusal.ZERO),
    Exists: Native(_exists, _after_exists),
    Ttl: Native(_ttl, _after_ttl),
}
