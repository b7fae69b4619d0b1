"""A request body as JSON (RFC 8259), read strictly and without ever holding the event loop for long.

Two readers, one result. A small body goes through the stdlib's C scanner (`scan`), in the event loop. Every
other body is read by `parse_in_steps`, in a worker thread: the C scanner would hold the GIL, and with
it the event loop, for up to 5 s on a hostile 16 MiB body. The reader in steps is the authority: it
counts items and depth exactly, and whatever the C scanner refuses goes through it again, so that each
mistake has one wording and one verdict.

The rules that hold here:

- The result is made of bytes: strings and member names are their UTF-8, numbers the text that was sent.
- Strict: UTF-8 without a byte order mark, no member twice, no lone surrogate, no NaN, ASCII digits only.
- No regular expression runs over more than about `_STEP_BYTES` (0.5 ms) before Python code has its turn
  again and with it other threads; only a number may be as long as the longest value.
- Memory and time are bounded by the number of items, which is bounded by `tokens_max`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from engine.commands.grammar import show
from engine.limits import KIB, Limits
from engine.replies import Error

QUICK_BYTES_MAX = 80 * KIB
"""Longest body for the event loop: decoding and scanning so much text takes 0.2 ms. A value of 64 KiB is in it."""

QUICK_MARKS_MAX = 512
"""Most bytes of `MARKS` in a body for the event loop; each may cost 2 microseconds further on."""

_BACKSLASH = ord("\\")
_SPACE = " \t\n\r"

MARKS = b' ,[{\\"'
"""What starts an item, a word of a line, or an escape; the rest is text and costs next to nothing."""

_ITEMS_SLACK = 64
"""Items beyond the words of a command: the containers, the member names, options that are false."""

_STEP_BYTES = 128 * KIB

# Each step of a string is decoded alone: a run of text ends behind a whole character, whose continuation
# bytes `[\x80-\xbf]{0,3}+` takes along, and the two halves of an escaped surrogate pair stay together.
_SPACE_STEP = re.compile(rb"[ \t\n\r]{0,65536}+")
_STRING_STEP = re.compile(
    rb'(?:[^"\\\x00-\x1f]{1,64}+[\x80-\xbf]{0,3}+'
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb'|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})){0,2048}+'
)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS: tuple[tuple[bytes, bool | None], ...] = ((b"true", True), (b"false", False), (b"null", None))


class BadRequest(Exception):
    """A body that is no request at all.

    Attributes:
        status: 400 or 413.
        error: `invalid request` or `too large`, fixed texts that clients match on.
        detail: what was wrong and what was expected, for a person.
        in_fields: it has members of the fields dialect, and is answered in its form.
        index: of the command that refuses the unit it is in, from 0; None when there is no unit.
    """

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = status
        self.error = Error.TOO_LARGE.value if status == 413 else "invalid request"
        self.detail = detail
        self.in_fields = False
        self.index: int | None = None


class Number(bytes):
    """A JSON number as the text that was sent: `1.0` stays `1.0`, 30 digits stay 30 digits."""

    __slots__ = ()


Json: TypeAlias = "dict[bytes, Json] | list[Json] | bytes | bool | None"


def type_name(value: Json) -> str:
    """What a value is, for a person."""
    if isinstance(value, Number):
        return "a number"
    names = {dict: "an object", list: "a list", bytes: "a string", bool: "true or false"}
    return names.get(type(value), "null")


def is_quick(body: bytes) -> bool:
    """Tells whether a body is read well below 2 ms, and so may be in the event loop.

    Args:
        body: the request body.

    Returns:
        False when it is for `parse_in_steps` in a worker thread, where it lets other threads run all along.
    """
    if len(body) <= QUICK_MARKS_MAX:
        return True
    return len(body) <= QUICK_BYTES_MAX and len(body) - len(body.translate(None, MARKS)) <= QUICK_MARKS_MAX


def scan(body: bytes) -> tuple[object, int | None]:
    """Has the C scanner read a body that is all right, with no white space before the value, as nearly all are.

    A line takes it 0.4 microseconds; with a hook for each object, to find members given twice, it takes 1.2. Without
    the hook a member that is given again replaces the one before, and that shows in the number of quotes. With no
    backslash in the body, each of its strings stands between two quotes, and no quote is anything else: there are
    twice as many quotes as strings. The value has as many strings as the body, member names included, if every member
    is in it, and fewer if one was replaced, for then a name at least is missing.

    Args:
        body: for which `is_quick` says yes.

    Returns:
        The JSON value, for `as_bytes`: strings are still str; it may be nested too deep and hold lone surrogates.
        And the number of strings it must have, for `check_strings`; None if no member is given twice for certain.

    Raises:
        ValueError, RecursionError: it is not all right; `parse_in_steps` has the words for it.
    """
    text = body.decode()
    escaped = _BACKSLASH in body
    try:
        value, end = _scan_carefully(text, 0) if escaped else _scan(text, 0)
    except StopIteration:
        raise ValueError from None
    if end != len(text) and text[end:].strip(_SPACE):
        raise ValueError
    return value, None if escaped else body.count(b'"') // 2


def check_strings(value: object, strings: int | None) -> None:
    """Raises ValueError when a value does not have the strings that `scan` said it must have."""
    if strings is not None and strings != _count_strings(value):
        raise ValueError


def as_bytes(value: object, depth_left: int) -> Json:
    """Turns what `scan` made into bytes; ValueError for a lone surrogate and for too much depth."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict | list):
        if depth_left == 0:
            raise ValueError
        if isinstance(value, list):
            return [as_bytes(element, depth_left - 1) for element in value]
        return {name.encode(): as_bytes(member, depth_left - 1) for name, member in value.items()}
    assert value is None or isinstance(value, Number | bool)
    return value


def parse_in_steps(body: bytes, limits: Limits) -> Json:
    """Reads a body of any size, in steps that each hold the GIL for less than a millisecond or so.

    Args:
        body: the request body.
        limits: `body_bytes_max`, `json_depth_max`, `tokens_max` and the longest value hold here.

    Returns:
        The JSON value; see the rules above.

    Raises:
        BadRequest: not strict JSON, nested too deep, or too large.
    """
    reader = Reader(body, limits)
    try:
        return reader.document()
    except RecursionError:  # only with a depth limit set higher than Python's own
        raise BadRequest("nested too deep") from None


def take_steps(pattern: re.Pattern[bytes], data: bytes, at: int) -> tuple[list[bytes], int]:
    """Matches a pattern again and again from a position until it matches nothing.

    Args:
        pattern: matches a bounded number of bytes, and always matches (perhaps nothing).
        data: what to match.
        at: where to start, in bytes.

    Returns:
        The matched pieces, and the position behind the last one.
    """
    pieces = []
    while (match := pattern.match(data, at)) and match.end() > at:
        pieces.append(match.group())
        at = match.end()
    return pieces, at


class Reader:
    """Recursive descent over the bytes of one body.

    Args:
        body: as received.
        limits: as for `parse_in_steps`.

    Attributes:
        at: position of the next byte.
        depth: containers around it.
        items: JSON values and member names so far.
        items_max: how many of them are taken.
        too_many: what to say of more.

    Raises:
        BadRequest: the body is over its limit or no UTF-8; its methods, at the first mistake.
    """

    def __init__(self, body: bytes, limits: Limits) -> None:
        if len(body) > limits.body_bytes_max:
            raise BadRequest(f"the body has {len(body)} bytes, at most {limits.body_bytes_max} are taken", 413)
        _check_utf8(body)
        self.body = body
        self.at = 0
        self.depth = 0
        self.depth_max = limits.json_depth_max
        self.items = 0
        self.items_max = limits.tokens_max + _ITEMS_SLACK
        self.too_many = f"the body has more items than a command may have words, {limits.tokens_max}"
        self.number_bytes_max = max(limits.value_bytes_max, limits.key_bytes_max)

    def document(self) -> Json:
        """Reads the one value of the body."""
        value = self.value()
        self.end()
        return value

    def end(self) -> None:
        """Checks that nothing but white space is left."""
        if self.next() != b"":
            raise self.unexpected("the end of the body")

    def next(self) -> bytes:
        """Skips white space and returns the next byte, b"" at the end."""
        _, self.at = take_steps(_SPACE_STEP, self.body, self.at)
        return self.body[self.at : self.at + 1]

    def value(self) -> Json:
        """Reads the value that comes next."""
        self._count_item()
        first = self.next()
        if first == b'"':
            return self._string()
        if first == b"{":
            return self._nested(self._members)
        if first == b"[":
            return self._nested(self._elements)
        for word, value in _LITERALS:
            if self.body.startswith(word, self.at):
                self.at += len(word)
                return value
        return self._number()

    def _count_item(self) -> None:
        self.items += 1
        if self.items > self.items_max:
            raise BadRequest(self.too_many, 413)

    def _nested(self, read: Callable[[], Json]) -> Json:
        self.depth += 1
        if self.depth > self.depth_max:
            raise BadRequest(f"nested deeper than {self.depth_max} at byte {self.at}")
        self.at += 1
        value = read()
        self.depth -= 1
        return value

    def _elements(self) -> list[Json]:
        elements: list[Json] = []
        if self.next() != b"]":
            elements.append(self.value())
            while self.next() == b",":
                self.at += 1
                elements.append(self.value())
        self.expect(b"]", "',' or ']'")
        return elements

    def _members(self) -> dict[bytes, Json]:
        members: dict[bytes, Json] = {}
        if self.next() != b"}":
            self._member(members)
            while self.next() == b",":
                self.at += 1
                self._member(members)
        self.expect(b"}", "',' or '}'")
        return members

    def _member(self, members: dict[bytes, Json]) -> None:
        self._count_item()
        if self.next() != b'"':
            raise self.unexpected("a member name in double quotes")
        start = self.at
        name = self._string()
        if name in members:
            raise BadRequest(f"member {show(name)} is given twice, again at byte {start}")
        self.next()
        self.expect(b":", "':'")
        members[name] = self.value()

    def expect(self, byte: bytes, what: str) -> None:
        """Reads a byte that has to be there; `what` says so in the message."""
        if self.body[self.at : self.at + 1] != byte:
            raise self.unexpected(what)
        self.at += 1

    def _string(self) -> bytes:
        start = self.at
        pieces, self.at = take_steps(_STRING_STEP, self.body, start + 1)
        if self.at == len(self.body):
            raise BadRequest(f"not JSON: the string that starts at byte {start} has no end")
        self.expect(b'"', "a valid escape, or control characters escaped, in a string")
        try:
            return b"".join(_unescape(piece) if b"\\" in piece else piece for piece in pieces)
        except UnicodeEncodeError:
            raise BadRequest(f"lone surrogate in the string that starts at byte {start}") from None

    def _number(self) -> Number:
        match = _NUMBER.match(self.body, self.at, self.at + self.number_bytes_max + 1)
        if match is None:
            raise self.unexpected("a JSON value")
        if match.end() - self.at > self.number_bytes_max:
            raise BadRequest(f"the number at byte {self.at} has more than {self.number_bytes_max} digits", 413)
        self.at = match.end()
        return Number(match.group())

    def unexpected(self, expected: str) -> BadRequest:
        """Says what should be here."""
        if self.at == len(self.body):
            return BadRequest(f"not JSON: the body ends where {expected} was expected")
        return BadRequest(f"not JSON: expected {expected} at byte {self.at}")


def _unescape(piece: bytes) -> bytes:
    text: str = json.loads(f'"{piece.decode()}"')
    return text.encode()


def _check_utf8(body: bytes) -> None:
    if body.startswith(codecs.BOM_UTF8):
        raise BadRequest("the body starts with a byte order mark")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(body), _STEP_BYTES):
            decoder.decode(body[at : at + _STEP_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise BadRequest("the body is not valid UTF-8") from None


def _count_strings(value: object) -> int:
    """Counts the strings in a value of the C scanner, member names included."""
    if type(value) is dict:
        count, inner = len(value), iter(value.values())
    elif type(value) is list:
        count, inner = 0, iter(value)
    else:
        return 1 if type(value) is str else 0
    for one in inner:
        count += 1 if type(one) is str else _count_strings(one)
    return count


def _as_number(text: str) -> Number:
    return Number(text.encode("ascii"))


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError
    return members


def _refuse(_constant: str) -> None:
    raise ValueError


def _scanner(hook: Callable[[list[tuple[str, object]]], dict[str, object]] | None) -> Callable[[str, int], Any]:
    decoder = json.JSONDecoder(
        parse_int=_as_number, parse_float=_as_number, parse_constant=_refuse, object_pairs_hook=hook
    )
    scanner: Callable[[str, int], Any] = decoder.scan_once  # type: ignore[attr-defined]  # not in its stub
    return scanner


_scan, _scan_carefully = _scanner(None), _scanner(_unique)
