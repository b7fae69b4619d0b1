"""The lines of an export: JSON, one object a line, in UTF-8. Pure.

    {"format": "holdfast export", "version": 2, "source": "store 5e...", "time_ms": 1690000000000, "entries": 3}
    {"key": "k", "value": "v", "expires_ms": 1700000000000}
    {"queue": "q", "values": ["a", "b"]}
    {"keys": 1, "queues": 1, "values": 2, "checksum": "8f..."}

docs/export-format.md says what they mean.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, BinaryIO

from api.cli.output import json_bytes
from engine.moving.items import PIECE_VALUES_MAX, Item, MoveError, Piece, Plain, in_batches
from engine.moving.move import Source
from engine.moving.tally import Tally

FORMAT = "holdfast export"
VERSION = 2
"""Version 1 had no `time_ms`."""

LINE_BYTES_MAX = 512 * 1024 * 1024
"""Far above what the longest value takes that fits a record."""

TIME_MS_MAX = (1 << 63) - 1

HEADER = ("format", "version", "source", "time_ms", "entries")
NEEDED = {"format", "version", "source"}
LAST = ("keys", "queues", "values", "checksum")

_encode = json.JSONEncoder(ensure_ascii=False).encode


def _line(members: dict[str, Any]) -> bytes:
    return _encode(members).encode() + b"\n"


async def export(source: Source, write: Callable[[bytes], object], progress: Callable[[int, int], None]) -> Tally:
    """Writes everything as lines.

    Args:
        source: of the items.
        write: takes some lines at a time.
        progress: told (keys and queues so far, how many there are about).

    Returns:
        What was written.

    Raises:
        MoveError: it cannot be read; what was written has no last line.
    """
    # What comes in another order every time is another export every time: nobody may resume behind the lines of one
    # with those of the next.
    identity = source.identity if source.is_repeatable else f"{source.identity} export {secrets.token_hex(16)}"
    write(_line(dict(zip(HEADER, (FORMAT, VERSION, identity, source.time_ms, source.entries), strict=True))))
    tally = Tally()
    async with aclosing(source.batches()) as batches:
        async for batch in batches:
            tally.add(batch)
            write(b"".join([item_line(item) for item in batch]))
            progress(tally.entries, source.entries)
    tally.end()
    write(_line(dict(zip(LAST, _last(tally), strict=True))))
    return tally


def _last(tally: Tally) -> tuple[int | str, ...]:
    """What the last line says."""
    return tally.keys, tally.queues.count, tally.values, tally.checksum


def item_line(item: Item) -> bytes:
    """The line of an item."""
    if isinstance(item, Plain):
        key, value, deadline_ms = item
        members = {"key": json_bytes(key), "value": json_bytes(value)}
        return _line(members if deadline_ms is None else {**members, "expires_ms": deadline_ms})
    return _line({"queue": json_bytes(item.key), "values": [json_bytes(value) for value in item.values]})


class BadLine(ValueError):
    """It is no line of an export; the message says why."""


class LinesSource:
    """The lines of an export, as a source; the first one is read at once.

    Args:
        file: to read from.
        name: for messages.

    Raises:
        MoveError: it is no export.
    """

    is_repeatable = True

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        self._number = 0
        self._stated: tuple[Any, ...] | None = None
        self._queue: Piece | None = None
        with _Numbered(self):
            members = self._next_line()
            if members is None:
                self._number = 1
                raise BadLine("it is missing: there is nothing at all, where an export is expected")
            self.identity, self.time_ms, self.entries = _read_header(members)

    def check(self, tally: Tally) -> None:
        """Compares what came with what the last line says.

        Raises:
            MoveError: it is not the same.
        """
        assert self._stated is not None, "without a last line there would have been an error"
        for name, stated, came in zip(LAST, self._stated, _last(tally), strict=True):
            if stated != came:
                raise MoveError(
                    f"{self.name} is not as it was exported: {name} {came}, where the last line says {stated}"
                )

    async def batches(self) -> AsyncGenerator[list[Item], None]:
        """Yields all items, some at a time.

        Raises:
            MoveError: a line is none of an export, or lines are missing; what comes before it was yielded.
        """
        errors: list[MoveError] = []
        for batch in in_batches(self._items(errors)):
            yield batch
        for error in errors:
            raise error

    def _items(self, errors: list[MoveError]) -> Iterator[Item]:
        """Yields the items up to the last line, or to an error, which it puts into the list."""
        try:
            with _Numbered(self):
                while (members := self._next_line()) is not None:
                    if self._stated is not None:
                        raise BadLine("there is something behind the last line")
                    yield from self._read(members)
                if self._stated is None:
                    raise BadLine("it is cut off here: no last line with counts and a checksum follows")
        except MoveError as error:
            errors.append(error)

    def _read(self, members: dict[str, Any]) -> Iterator[Item]:
        names = members.keys()
        if names in ({"key", "value"}, {"key", "value", "expires_ms"}):
            self._queue = None
            deadline_ms = _time("expires_ms", members["expires_ms"]) if "expires_ms" in members else None
            yield Plain(_bytes(members["key"]), _bytes(members["value"]), deadline_ms)
        elif names == {"queue", "values"}:
            yield from self._read_queue(_bytes(members["queue"]), members["values"])
        elif names == set(LAST):
            self._stated = _read_last(members)
        else:
            raise BadLine(f"the members {', '.join(names) or '(none)'} make no line of an export")

    def _read_queue(self, key: bytes, values: Any) -> Iterator[Piece]:
        if type(values) is not list:
            raise BadLine("values are a list")
        offset, before = 0, self._queue
        if before is not None and before.key == key:
            offset = before.offset + len(before.values)
            if offset == 0 or not values:
                raise BadLine("a queue that goes on has values in each of its lines")
        read = tuple(map(_bytes, values))
        for first in range(0, max(1, len(read)), PIECE_VALUES_MAX):
            self._queue = Piece(key, offset + first, read[first : first + PIECE_VALUES_MAX])
            yield self._queue

    def _next_line(self) -> dict[str, Any] | None:
        """The members of the next line; None behind the last."""
        try:
            line = self._file.readline(LINE_BYTES_MAX)
        except OSError as error:
            raise MoveError(f"{self.name} cannot be read: {error.strerror}") from None
        if not line:
            return None
        self._number += 1
        if not line.endswith(b"\n"):
            raise BadLine("it is cut off" if len(line) < LINE_BYTES_MAX else "it is too long")
        try:
            members = _decode(line.decode())
        except ValueError as error:  # of json, and of UTF-8
            raise BadLine(f"it is not JSON: {error}") from None
        except RecursionError:
            raise BadLine("it is nested too deeply") from None
        if type(members) is not dict:
            raise BadLine("it is no object")
        return members


class _Numbered:
    """Turns BadLine into MoveError with the name of the source and the number of the line."""

    def __init__(self, source: LinesSource) -> None:
        self._source = source

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, BadLine):
            raise MoveError(f"{self._source.name}, line {self._source._number}: {error}") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise BadLine("a member is there twice")
    return members


def _refuse_constant(name: str) -> None:
    raise BadLine(f"{name} is not JSON")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant).decode


def _read_header(members: dict[str, Any]) -> tuple[str, int, int]:
    if members.get("format") != FORMAT:
        raise BadLine(f'an export begins with {{"format": "{FORMAT}", ...}}')
    version = members.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise BadLine(f"version {version} of the format is not known; this Holdfast knows 1 to {VERSION}")
    source, time_ms, entries = members.get("source"), members.get("time_ms", 0), members.get("entries", 0)
    names_fit = members.keys() >= NEEDED and members.keys() <= set(HEADER)
    if not names_fit or type(source) is not str or not _is_count(entries):
        raise BadLine(f"the first line has the members {', '.join(HEADER)}")
    return source, _time("time_ms", time_ms), entries


def _read_last(members: dict[str, Any]) -> tuple[Any, ...]:
    *counts, checksum = (members[name] for name in LAST)
    if not all(map(_is_count, counts)) or type(checksum) is not str:
        raise BadLine("the last line has counts and a checksum")
    return (*counts, checksum)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _time(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= TIME_MS_MAX:
        raise BadLine(f"{name} is a number of milliseconds since 1970")
    return value


def _bytes(value: Any) -> bytes:
    """A key or value from its JSON value."""
    try:
        if type(value) is str:
            return value.encode()
        if type(value) is dict and tuple(value) == ("base64",) and type(value["base64"]) is str:
            return base64.b64decode(value["base64"], validate=True)
    except ValueError as error:  # a lone surrogate, or no base64
        raise BadLine(f"a key or value is not readable: {error}") from None
    raise BadLine('a key or value is a string, or {"base64": "..."}')
