"""Hash slots: which of the 16,384 parts of a cluster a key belongs to.

As the Redis Cluster specification has it: CRC-16/XMODEM of the key, or of what stands between its first `{` and the
`}` behind it, if that is anything.
"""

from __future__ import annotations

from binascii import crc_hqx
from functools import cache

SLOTS = 16384


def slot_of(key: bytes) -> int:
    """Returns the slot of a key, from 0 to 16,383."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


@cache
def slot_tags() -> tuple[bytes, ...]:
    """For each slot the smallest number that belongs to it: `{number}` makes a key of that slot. Takes 0.1 s once."""
    tags: dict[int, bytes] = {}
    number = 0
    while len(tags) < SLOTS:
        tag = b"%d" % number
        tags.setdefault(crc_hqx(tag, 0) % SLOTS, tag)
        number += 1
    return tuple(tags[slot] for slot in range(SLOTS))
