"""Bytes that connections hold, and who goes when they are too many (api/door/held.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.door.held import HeldBytes, Holder

_MAX = 100


class _Held(HeldBytes):
    __slots__ = ()
    bytes_max = _MAX


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 120)), max_size=200))
def test_those_who_hold_most_go_until_all_others_are_within_the_bound(steps: list[tuple[int, int]]) -> None:
    """F5, F6: whatever is noted and forgotten in between."""
    held = _Held()
    there: dict[Holder, int] = {}
    closed: list[int] = []

    class Mine:
        def close(self) -> None:
            assert there[self] == max(there.values())
            closed.append(there.pop(self))
            held.forget(self)

    holders = [Mine() for _ in range(6)]
    for number, size in steps:
        holder = holders[number]
        there[holder] = size
        before = len(closed)
        must = sum(there.values()) > _MAX
        held.note(holder, size)
        assert sum(there.values()) <= _MAX
        assert (len(closed) > before) == must
        if size == 7:
            held.forget(holder)
            there.pop(holder, None)
