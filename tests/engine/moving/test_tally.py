"""Counts and checksums: what is the same has the same, and what is not is found, whatever expires meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import pytest

from engine.moving.items import Item, MoveError, Piece, Plain
from engine.moving.tally import Difference, Tally, differences

NOW_MS = 1_700_000_000_500
SOON_MS = 1_700_000_001_000

ITEMS: list[Item] = [
    Plain(b"a", b"1", None),
    Plain(b"b", b"2", NOW_MS + 60_000),
    Piece(b"q", 0, (b"x", b"", b"y")),
    Piece(b"r", 0, ()),
]


def tally_of(items: Sequence[Item]) -> Tally:
    tally = Tally()
    tally.add(items)
    tally.end()
    return tally


def test_the_checksum_is_the_one_that_the_documentation_describes() -> None:
    def number(data: bytes) -> int:
        return int.from_bytes(blake2b(data, digest_size=16).digest(), "big")

    def eight(value: int) -> bytes:
        return value.to_bytes(8, "big")

    numbers = [
        number(b"key" + eight(1) + b"a" + b"\xff" * 8 + b"1"),
        number(b"key" + eight(1) + b"b" + eight(NOW_MS + 60_000) + b"2"),
        number(b"queue" + eight(1) + b"q" + eight(1) + b"x" + eight(0) + eight(1) + b"y"),
        number(b"queue" + eight(1) + b"r"),
    ]
    tally = tally_of(ITEMS)
    assert tally.checksum == f"{sum(numbers) % 2**128:032x}"
    assert (tally.keys, tally.queues.count, tally.values, tally.entries) == (2, 2, 3, 4)


def test_the_order_of_keys_and_where_a_queue_is_cut_make_no_difference() -> None:
    pieces: list[Item] = [Piece(b"q", 0, (b"x",)), Piece(b"q", 1, (b"",)), Piece(b"q", 2, (b"y",))]
    other: list[Item] = [ITEMS[3], *pieces, ITEMS[1], ITEMS[0]]
    assert differences(tally_of(ITEMS), tally_of(other), NOW_MS) == []
    assert tally_of(other).checksum == tally_of(ITEMS).checksum


def test_a_piece_that_is_missing_is_refused() -> None:
    broken: list[list[Item]] = [
        [Piece(b"q", 1, (b"x",))],
        [Piece(b"q", 0, (b"x",)), Piece(b"q", 2, (b"z",))],
        [Piece(b"q", 0, (b"x",)), Plain(b"a", b"", None), Piece(b"q", 1, (b"y",))],
    ]
    for items in broken:
        with pytest.raises(MoveError, match="a piece of the queue 'q' is missing before value"):
            tally_of(items)


PERMANENT, EXPIRING, QUEUES, VALUES = "keys without expiry", "keys with expiry", "queues", "values in queues"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ITEMS[1:], [Difference(PERMANENT, 1, 0)]),
        ([*ITEMS, Plain(b"c", b"", None)], [Difference(PERMANENT, 1, 2)]),
        ([Plain(b"a", b"2", None), *ITEMS[1:]], [Difference(PERMANENT, 1, 1)]),
        ([Plain(b"a1", b"", None), *ITEMS[1:]], [Difference(PERMANENT, 1, 1)]),
        ([ITEMS[0], *ITEMS[2:]], [Difference(EXPIRING, 1, 0)]),
        ([*ITEMS, Plain(b"b", b"2", NOW_MS + 60_001)], [Difference(EXPIRING, 1, 2)]),
        ([ITEMS[0], Plain(b"b", b"2", NOW_MS + 60_001), *ITEMS[2:]], [Difference(EXPIRING, 1, 1)]),
        ([ITEMS[0], Plain(b"b", b"2", None), *ITEMS[2:]], [Difference(PERMANENT, 1, 2), Difference(EXPIRING, 1, 0)]),
        (ITEMS[:3], [Difference(QUEUES, 2, 1)]),
        ([*ITEMS[:2], Piece(b"q", 0, (b"x", b"y", b"")), ITEMS[3]], [Difference(QUEUES, 2, 2)]),
        ([*ITEMS[:2], Piece(b"q", 0, (b"x", b"")), ITEMS[3]], [Difference(QUEUES, 2, 2), Difference(VALUES, 3, 2)]),
        ([*ITEMS, ITEMS[2]], [Difference(QUEUES, 2, 3), Difference(VALUES, 3, 6)]),
    ],
)
def test_whatever_is_not_the_same_is_named(found: list[Item], expected: list[Difference]) -> None:
    assert differences(tally_of(ITEMS), tally_of(found), NOW_MS) == expected


def test_a_difference_says_what_is_there_and_what_should_be() -> None:
    assert str(Difference(QUEUES, 1_000, 999)) == "queues: 999 instead of 1,000"
    assert str(Difference(QUEUES, 5, 5)) == "queues: 5, but not the same as in the source"


def test_what_has_expired_by_then_makes_no_difference_and_what_has_not_does() -> None:
    lasting = Plain(b"c", b"", SOON_MS)
    for deadline_ms in (1, NOW_MS - 1, NOW_MS, SOON_MS - 1):
        ours = tally_of([*ITEMS, lasting, Plain(b"d", b"", deadline_ms)])
        assert differences(ours, tally_of([*ITEMS, lasting]), NOW_MS) == []
        assert differences(ours, ours, NOW_MS) == []
        assert (ours.until(NOW_MS), ours.after(NOW_MS).count) == (1, 2)
        assert differences(ours, tally_of(ITEMS), NOW_MS) == [Difference(EXPIRING, 2, 1)]


def test_what_is_nothing_of_holdfasts_is_a_difference() -> None:
    found = tally_of(ITEMS)
    found.foreign = 3
    assert differences(tally_of(ITEMS), found, NOW_MS) == [Difference("keys of other kinds", 0, 3)]
