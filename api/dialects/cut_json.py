"""JSON in a line that is not quoted and has spaces in it: `QPUSH jobs {"id": 1}` would push two halves. Pure."""

from __future__ import annotations

import json
from typing import NoReturn

from api.dialects.json_body import MARKS, BadRequest, Reader
from engine.commands.grammar import CommandError
from engine.limits import KIB, Limits

BEGINS = b"[{"
"""How a word begins that may be the beginning of such a value; a string begins with a quote, and so is quoted."""

_TRIALS = 2
"""How often a line is read in search of JSON, all beginnings together."""

_SHORT_BYTES_MAX = 64 * KIB
"""Longest line for the C scanner, which holds the GIL."""

_PADDING = 1
_SHOWN_CHARACTERS_MAX = 80


class CutJson:
    """Looks for such values in one line.

    A word is tried when it begins as JSON does. A line of such words alone would be tried again and again, so there is
    a bound on what is read in all.

    Args:
        line: of words.
    """

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._text = line.decode("latin-1") if len(line) <= _SHORT_BYTES_MAX else None  # a character is a byte
        self._reader: Reader | None = None
        self._bytes_left = _TRIALS * len(line)

    def check(self, at: int, end: int) -> None:
        """Refuses a value that begins with a word and ends with another one.

        Args:
            at: where the word begins.
            end: behind it.

        Raises:
            CommandError: with the quotes that it needs.
        """
        json_end = self._end_in_steps(at) if self._text is None else self._end_by_scanner(self._text, at)
        if json_end > end and self._line[json_end : json_end + 1] in (b" ", b""):
            value = self._line[at:json_end].decode()
            in_quotes = _shortened(value.replace("'", "\\'"))
            raise CommandError(
                f"{_shortened(value)} is one JSON value, but a line is split at its spaces: put it in single quotes,"
                f" '{in_quotes}', or send it as a string in the member 'value'"
            )

    def _end_by_scanner(self, text: str, at: int) -> int:
        """Finds the end of the value that begins here; -1 when there is none."""
        if self._bytes_left <= 0:
            return -1
        end, read_to = _scan(text, at)
        self._bytes_left -= read_to - at
        return end

    def _end_in_steps(self, at: int) -> int:
        """Does so without holding the GIL for long."""
        if self._reader is None:
            line = b" " * _PADDING + self._line  # a body may not begin with a byte order mark, a line may
            self._reader = Reader(line, Limits(body_bytes_max=len(line)))
            self._reader.items_max = _TRIALS * (len(line) - len(line.translate(None, MARKS)))
        reader = self._reader
        reader.at, reader.depth = at + _PADDING, 0
        try:
            reader.value()
        except (BadRequest, RecursionError):
            return -1
        return reader.at - _PADDING


def _refuse(_constant: str) -> NoReturn:
    raise ValueError


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)


def _scan(text: str, at: int) -> tuple[int, int]:
    """Says where the value that begins here ends, -1 when there is none, and how far was read."""
    try:
        _, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return -1, error.pos + 1
    except (ValueError, RecursionError):
        return -1, len(text)
    return end, end


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}..."
