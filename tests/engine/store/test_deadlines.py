from __future__ import annotations

import random

import pytest

from engine.store.deadlines import Deadlines


def test_the_order_is_the_same_whenever_it_is_first_asked_for() -> None:
    """D5: kept from the first deadline on, or made of all at the end."""
    rng = random.Random(5)
    early, late = Deadlines(), Deadlines()
    early.order()
    twin: dict[bytes, int] = {}
    for _ in range(3_000):
        key = b"%d" % rng.randrange(300)
        for deadlines in (early, late):
            deadlines.drop(key)
        twin.pop(key, None)
        if rng.random() < 0.7:
            deadline_ms = rng.randrange(100)
            for deadlines in (early, late):
                deadlines.add(key, deadline_ms)
            twin[key] = deadline_ms
        assert early.get(key) == late.get(key) == twin.get(key)
    expected = sorted((deadline_ms, key) for key, deadline_ms in twin.items())
    assert list(early.order()) == list(late.order()) == expected
    assert len(early) == len(late) == len(twin)
    assert early.next_ms == late.next_ms == expected[0][0]


@pytest.mark.parametrize("ordered", [False, True])
def test_without_a_deadline_there_is_nothing_next_and_nothing_due(ordered: bool) -> None:
    deadlines = Deadlines()
    deadlines.add(b"k", 5)
    if ordered:
        deadlines.order()
    deadlines.drop(b"k")
    deadlines.drop(b"k")
    assert (len(deadlines), deadlines.get(b"k"), deadlines.next_ms) == (0, None, None)
    assert deadlines.due(10, 10, 100) == ()


def test_what_is_due_comes_in_order_and_in_slices() -> None:
    """D5"""
    deadlines = Deadlines()
    for key, deadline_ms in ((b"kkk", 3), (b"a", 1), (b"b", 1), (b"c", 2)):
        deadlines.add(key, deadline_ms)
    assert deadlines.due(0, 10, 100) == ()
    assert deadlines.due(2, 10, 100) == (b"a", b"b", b"c")
    assert deadlines.due(3, 2, 100) == (b"a", b"b")
    assert deadlines.due(3, 10, 3) == (b"a", b"b", b"c")
