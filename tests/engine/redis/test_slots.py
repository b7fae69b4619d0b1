"""Hash slots, and how keys and queues are named in Redis."""

from __future__ import annotations

import pytest

from engine.redis.format import MARK_PREFIX, is_mark, is_receipts_key, new_mark, receipts_key
from engine.redis.slots import SLOTS, slot_of, slot_tags


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the check value of the specification
        (b"", 0),
        (b"foo", 12182),
        (b"{user1000}.following", 3443),
        (b"{user1000}.followers", 3443),
        (b"user1000", 3443),
        (b"foo{}{bar}", 8363),
        (b"foo{{bar}}zap", 4015),
        (b"{bar", 4015),
        (b"foo{bar}{zap}", 5061),
        (b"bar", 5061),
        (b"\x00\xff\xfe", 3374),
    ],
)
def test_a_key_has_the_slot_that_redis_says(key: bytes, slot: int) -> None:
    """As `CLUSTER KEYSLOT` answers."""
    assert slot_of(key) == slot


def test_each_slot_has_a_tag_of_its_own() -> None:
    tags = slot_tags()
    assert [slot_of(b"{%b}" % tag) for tag in tags] == list(range(SLOTS))
    assert len(set(tags)) == SLOTS


def test_a_mark_is_new_every_time() -> None:
    marks = {new_mark() for _ in range(100)}
    assert len(marks) == 100
    assert {len(mark) for mark in marks} == {len(MARK_PREFIX) + 32}
    assert all(map(is_mark, marks))
    assert not is_mark(b"a value")
    assert not is_mark(b"")


def test_receipts_lie_in_the_slot_they_are_for() -> None:
    for slot in (0, 1, 5000, SLOTS - 1):
        key = receipts_key(slot, b"front")
        assert slot_of(key) == slot
        assert is_receipts_key(key)
        assert is_receipts_key(key + b":unit:1")
    for key in (b"", b"k", b"holdfast:popped:front", b"{x}holdfast:popped:front", b"a{1}holdfast:popped:front"):
        assert not is_receipts_key(key)
