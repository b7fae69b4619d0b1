"""A request body that is a JSON list, read element by element. Pure.

The rules are those of `json_body`, and so are its two readers. Here the C scanner gets pieces, each of many elements: a
piece ends behind an object that another one follows, as far as can be told without reading. If it can be
scanned with brackets around it, it is nothing but whole elements: a cut within a string leaves a quote too many, a cut
within a container leaves it open. What cannot be scanned is read in steps, element by element, until the piece is over.
"""

from __future__ import annotations

from typing import Any

from api.dialects.json_body import BadRequest, Json, Reader, scan
from engine.limits import KIB, Limits

PIECE_BYTES_MAX = 64 * KIB
"""Longest piece for the C scanner, which holds the GIL: it takes up to 2 ms, of whatever the piece is made."""

_BETWEEN = (b"},{", b"}, {")
"""How one object follows another in what programs write."""


class ListReader:
    """Reads one body: `for each more(): scan() and accept(), or else read()`.

    Args:
        body: as received.
        limits: as for `json_body.parse_in_steps`.
        items_max: JSON values and member names in all, at most.

    Raises:
        BadRequest: the body is over its limit or no UTF-8; its methods, at the first mistake.
    """

    def __init__(self, body: bytes, limits: Limits, items_max: int) -> None:
        self._reader = Reader(body, limits)
        self._element_items_max = self._reader.items_max
        self._items_max = self._reader.items_max = items_max
        self._started = False
        self._piece_end = 0

    @property
    def at(self) -> int:
        """Position in the body."""
        return self._reader.at

    @property
    def items(self) -> int:
        """JSON values and member names so far."""
        return self._reader.items

    @property
    def items_left(self) -> int:
        """How many JSON values and member names may still come."""
        return self._items_max - self._reader.items

    def more(self) -> bool:
        """Goes to the next element; False when there is none, and nothing else in the body either."""
        reader, started = self._reader, self._started
        if not started:
            self._start()
        following = reader.next()
        if started and following == b",":
            reader.at += 1
            reader.next()
            return True
        if not started and following != b"]":
            return True
        reader.expect(b"]", "',' or ']'")
        reader.end()
        return False

    def _start(self) -> None:
        reader = self._reader
        if reader.next() != b"[":
            reader.document()  # it may be no JSON at all
            raise BadRequest("expected a list of commands")
        reader.at += 1
        reader.items = reader.depth = 1
        self._started = True

    def scan(self) -> tuple[list[Any], int | None] | None:
        """Has the C scanner read the next elements.

        Returns:
            One or more elements as `json_body.scan` gives them, for `accept`; None when the next has to be read.
        """
        reader = self._reader
        if reader.at < self._piece_end:
            return None  # of a piece that was not accepted
        if reader.depth_max < 2:
            return None  # for an object is too deep in a list
        end = self._end_of_piece()
        if end <= reader.at:
            self._piece_end = reader.at + PIECE_BYTES_MAX  # or each element would look for one as far as here
            return None
        self._piece_end = end
        try:
            elements, strings = scan(b"[%b]" % reader.body[reader.at : end])
        except (ValueError, RecursionError):
            return None
        assert isinstance(elements, list)
        return elements, strings

    def _end_of_piece(self) -> int:
        body, start = self._reader.body, self._reader.at
        if len(body) - start <= PIECE_BYTES_MAX:
            return body.rfind(b"}", start) + 1
        stop = start + PIECE_BYTES_MAX
        cut = max(body.rfind(between, start, stop) for between in _BETWEEN)
        return 1 + (cut if cut >= 0 else body.rfind(b"}", start, stop))

    def accept(self, items: int) -> None:
        """Goes on behind the elements of `scan`.

        Args:
            items: JSON values and member names in them.
        """
        self._reader.at = self._piece_end
        self._reader.items += items

    def read(self) -> Json:
        """Reads the next element in steps.

        Returns:
            As `json_body.parse_in_steps`.
        """
        reader = self._reader
        reader.items_max = min(self._items_max, reader.items + self._element_items_max)
        if reader.items_max == self._items_max:
            reader.too_many = f"the body has more than {self._items_max} items"
        try:
            return reader.value()
        except RecursionError:  # only with a depth limit set higher than Python's own
            raise BadRequest("nested too deep") from None


def count_items(value: object) -> int:
    """Counts the JSON values and member names in a value that `json_body.scan` made."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count_items, value.values()))
    return 1 + sum(map(count_items, value)) if isinstance(value, list) else 1
