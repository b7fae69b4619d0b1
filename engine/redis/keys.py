"""Keys, whatever they hold: Redis' own commands on them."""

from __future__ import annotations

import math
from typing import Any

from engine.calls import Command
from engine.commands.keys import Delete, Exists, Persist, Ttl
from engine.redis.translation import Native, Refusal, Translation, Undo, integer, on_key, on_keys
from engine.replies import Error, Failure, Integer, Reply


def _after_delete(_command: Delete, answer: Any) -> Reply:
    return Integer(answer) if answer else Failure(Error.KEY_NOT_FOUND)


def _after_ttl(_command: Ttl, answer: Any) -> Reply:
    return Integer(answer if answer < 0 else max(1, math.ceil(answer / 1000)))  # 0 is the last millisecond


TRANSLATIONS: dict[type[Command], Translation] = {
    # A key that is named twice is removed once: Redis says so itself, and here it would take time for very many.
    Delete: Native(on_keys(b"UNLINK"), _after_delete, Undo.REPLACE, Refusal.ZERO),
    Exists: Native(on_keys(b"EXISTS"), integer),
    Ttl: Native(on_key(b"PTTL"), _after_ttl),
    Persist: Native(on_key(b"PERSIST"), integer, Undo.EXPIRY),
}
