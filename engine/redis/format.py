"""How Holdfast's keys and queues lie in Redis, so that any front, and any other client, finds them.

A plain value is a Redis string under its own key, its expiry is the key's. A queue is a Redis list under its own key
whose first element is its mark, `holdfast:queue:` and 32 hex digits; its values follow, first to last. The mark is why
an emptied queue still exists, and it tells a queue from one of the same name that was made later.

Beside them lie a front's receipts, `{tag}holdfast:popped:<front>`: what it has popped and not handed over yet, should
the answer get lost on the way (engine/redis/lua/). And while something is moved in from elsewhere, the key
`holdfast:import` says how far that is (engine/moving/redis.py). They are nobody's data.
"""

from __future__ import annotations

import re
import secrets

from engine.redis.slots import slot_tags

MARK_PREFIX = b"holdfast:queue:"

IMPORT_KEY = b"holdfast:import"
"""Says that something is being moved in, from where, and how far that is."""

_RECEIPTS = re.compile(rb"\{[0-9]+\}holdfast:popped:.*", re.DOTALL)


def new_mark() -> bytes:
    """Makes the mark of a new queue."""
    return MARK_PREFIX + secrets.token_hex(16).encode()


def is_mark(element: bytes) -> bool:
    """Tells whether the first element of a list makes it a queue."""
    return element.startswith(MARK_PREFIX)


def receipts_key(slot: int, front: bytes) -> bytes:
    """The key of a front's receipts for pops of a slot; it belongs to that slot itself."""
    return b"{%b}holdfast:popped:%b" % (slot_tags()[slot], front)


def is_receipts_key(key: bytes) -> bool:
    """Tells whether a key holds receipts, and no data."""
    return _RECEIPTS.fullmatch(key) is not None


def is_own_key(key: bytes) -> bool:
    """Tells whether a key is Holdfast's own, and no data."""
    return key == IMPORT_KEY or is_receipts_key(key)
