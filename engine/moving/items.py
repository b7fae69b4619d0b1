"""What is moved: a stream of plain values and of pieces of queues.

The pieces of a queue follow one another directly, first to last, and say where they belong in it; so one that was
written already can be told, and is not written twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

PIECE_VALUES_MAX = 1000
"""Values of one piece."""

PIECE_BYTES_MAX = 1024 * 1024
"""Bytes of one piece, though one value may have more."""

BATCH_ITEMS_MAX = 500
"""Items that are handed on together."""

BATCH_BYTES_MAX = 4 * 1024 * 1024
"""Bytes that are handed on together; the last item may go beyond."""


class MoveError(Exception):
    """It cannot be moved, or not all of it; the message says why."""


class InUse(MoveError):  # what it is
    """Somebody may write there meanwhile."""


class Plain(NamedTuple):
    """A key with a plain value.

    Attributes:
        key: of the value.
        value: stored under it.
        deadline_ms: when it expires, milliseconds since 1970; None is never.
    """

    key: bytes
    value: bytes
    deadline_ms: int | None


class Piece(NamedTuple):
    """Some values of a queue, first to last.

    Attributes:
        key: of the queue.
        offset: how many values come before them; with 0 the queue begins.
        values: none only in an empty queue.
    """

    key: bytes
    offset: int
    values: tuple[bytes, ...]


Item = Plain | Piece


def earlier(item: Item, by_ms: int) -> Item:
    """The same with an earlier deadline, if it has one."""
    if isinstance(item, Plain) and item.deadline_ms is not None:
        return item._replace(deadline_ms=max(0, item.deadline_ms - by_ms))
    return item


def size_of(item: Item) -> int:
    """Length of key and values, in bytes."""
    return len(item.key) + (len(item.value) if isinstance(item, Plain) else sum(map(len, item.values)))


def in_batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yields items some at a time."""
    batch: list[Item] = []
    left_bytes = BATCH_BYTES_MAX
    for item in items:
        batch.append(item)
        left_bytes -= size_of(item)
        if len(batch) == BATCH_ITEMS_MAX or left_bytes <= 0:
            yield batch
            batch, left_bytes = [], BATCH_BYTES_MAX
    if batch:
        yield batch
