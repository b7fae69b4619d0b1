"""The lines of an export: what was exported comes back, and what is no export is refused, with the line's number."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from api.cli.export_lines import LinesSource, export
from engine.moving.items import Item, MoveError, Piece, Plain
from engine.moving.tally import Tally
from engine.store import ops
from tests.harness.logs import TIME_MS
from tests.harness.moving import Items, everything, silent, state_of

SMALL = Items(
    state_of(
        [
            (ops.PUT, b"k", "grün\n".encode(), None),
            (ops.PUT, b"\xff", b"\x00", 1_700_000_000_000),
            (ops.PUSH, b"q", (b"a", b"\xfe")),
            (ops.PUSH, b"r", ()),
        ]
    )
)


async def exported(source: Items) -> bytes:
    out = io.BytesIO()
    await export(source, out.write, silent)
    return out.getvalue()


async def imported(lines: bytes) -> tuple[list[Item], MoveError | None]:
    """The items, and how it ended."""
    found: list[Item] = []
    try:
        source = LinesSource(io.BytesIO(lines), "a file")
        async for batch in source.batches():
            found += batch
        tally = Tally()
        tally.add(found)
        tally.end()
        source.check(tally)
    except MoveError as error:
        return found, error
    return found, None


async def test_an_export_is_these_lines() -> None:
    lines = (await exported(SMALL)).decode().splitlines()
    assert lines == [
        f'{{"format": "holdfast export", "version": 2, "source": "{SMALL.identity}", "time_ms": 0, "entries": 4}}',
        '{"key": "k", "value": "grün\\n"}',
        '{"queue": "q", "values": ["a", {"base64": "/g=="}]}',
        '{"queue": "r", "values": []}',
        '{"key": {"base64": "/w=="}, "value": "\\u0000", "expires_ms": 1700000000000}',
        '{"keys": 2, "queues": 2, "values": 2, "checksum": "b45198c75369f1928153d6b042d44c99"}',
    ]


async def test_everything_comes_back_as_it_was() -> None:
    source = Items(state_of(everything(TIME_MS)))
    lines = await exported(source)
    assert max(map(len, lines.splitlines())) < 6 * 1100 * 1024  # a byte takes six at the most
    found, error = await imported(lines)
    assert error is None
    assert found == source.items
    assert sum(type(item) is Piece and item.key == b"long" for item in found) == 3
    assert sum(type(item) is Piece and item.key == b"fat" for item in found) == 3


async def test_the_same_state_is_the_same_bytes_and_what_has_no_order_is_another_export_each_time() -> None:
    source = Items(state_of(everything(TIME_MS)))
    assert await exported(source) == await exported(source)
    source.is_repeatable = False
    first, second = (await exported(source)).splitlines(), (await exported(source)).splitlines()
    assert first[0] != second[0]
    assert first[1:] == second[1:]
    assert LinesSource(io.BytesIO(first[0] + b"\n"), "").identity.startswith(f"{source.identity} export ")


async def test_members_stand_in_any_order_and_long_lines_become_pieces() -> None:
    values = [str(number) for number in range(2_500)]
    lines: list[dict[str, Any]] = [
        {"source": "me", "version": 1, "format": "holdfast export"},
        {"value": "1", "expires_ms": 5, "key": "a"},
        {"values": values, "queue": "q"},
        {"values": ["more"], "queue": "q"},
    ]
    found, error = await imported(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert found[0] == Plain(b"a", b"1", 5)
    assert [(item.offset, len(item.values)) for item in found if isinstance(item, Piece)] == [
        (0, 1000),
        (1000, 1000),
        (2000, 500),
        (2500, 1),
    ]
    assert "line 4: it is cut off here" in str(error)


async def test_an_export_that_is_cut_anywhere_is_refused_behind_what_was_there() -> None:
    lines = await exported(SMALL)
    ends = [at + 1 for at in range(len(lines)) if lines[at : at + 1] == b"\n"]
    for size in range(len(lines)):
        found, error = await imported(lines[:size])
        assert error is not None, size
        assert ", line " in str(error)
        assert found == SMALL.items[: max(0, sum(end <= size for end in ends) - 1)], size


async def test_an_export_that_was_changed_is_refused() -> None:
    lines = await exported(SMALL)
    changes = [
        (b'"a"', b'"b"', "checksum .*, where the last line says "),
        (b"1700000000000", b"1700000000001", "checksum"),
        (b'"k"', b'"l"', "checksum"),
        (b'{"queue": "r", "values": []}\n', b"", "queues 1, where the last line says 2"),
        (b'"keys": 2', b'"keys": 3', "keys 2, where the last line says 3"),
        (b'{"key": "k", "value": "gr\xc3\xbcn\\n"}\n', b"", "keys 1, where the last line says 2"),
    ]
    for old, new, complaint in changes:
        assert old in lines
        _, error = await imported(lines.replace(old, new))
        with pytest.raises(MoveError, match=complaint):
            raise error or AssertionError


GOOD = b'{"format": "holdfast export", "version": 1, "source": "me", "entries": 1}\n'
LAST = b'{"keys": 0, "queues": 0, "values": 0, "checksum": "00000000000000000000000000000000"}\n'


async def test_the_first_line_says_what_the_clock_of_the_source_said_and_need_not() -> None:
    lines = await exported(Items(state_of([]), time_ms=TIME_MS))
    assert LinesSource(io.BytesIO(lines), "a file").time_ms == TIME_MS
    assert LinesSource(io.BytesIO(GOOD), "of version 1").time_ms == 0


async def test_an_export_of_nothing_is_one() -> None:
    assert await imported(GOOD + LAST) == ([], None)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'"key"',
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"key": "k"}',
        b'{"key": "k", "value": "v", "more": 1}',
        b'{"key": "k", "key": "k", "value": "v"}',
        b'{"key": "k", "value": 1}',
        b'{"key": "k", "value": null}',
        b'{"key": "\\ud800", "value": "v"}',
        b'{"key": {"base64": "?"}, "value": "v"}',
        b'{"key": {"base64": "/w"}, "value": "v"}',
        b'{"key": {"base64": "/w==", "more": ""}, "value": "v"}',
        b'{"key": "k", "value": "v", "expires_ms": null}',
        b'{"key": "k", "value": "v", "expires_ms": -1}',
        b'{"key": "k", "value": "v", "expires_ms": 1.5}',
        b'{"key": "k", "value": "v", "expires_ms": true}',
        b'{"key": "k", "value": "v", "expires_ms": 9223372036854775808}',
        b'{"key": "k", "value": "v", "expires_ms": NaN}',
        b'{"queue": "q", "values": "a"}',
        b'{"queue": "q", "values": [1]}',
        b'{"queue": "q", "values": [["a"]]}',
        b'{"queue": "before", "values": []}',
        b'{"queue": "empty", "values": ["a"]}',
        b'{"keys": 0, "queues": 0, "values": 0}',
        b'{"keys": "0", "queues": 0, "values": 0, "checksum": ""}',
        b'{"keys": 0, "queues": 0, "values": 0, "checksum": 0}',
        GOOD.rstrip(),
    ],
)
async def test_what_is_no_line_of_an_export_is_refused_with_its_number(line: bytes) -> None:
    before = b'{"queue": "empty", "values": []}\n' if b'"empty"' in line else b'{"queue": "before", "values": ["a"]}\n'
    found, error = await imported(GOOD + before + line + b"\n" + LAST)
    assert len(found) == 1
    assert str(error).startswith("a file, line 3: ")


async def test_nothing_comes_behind_the_last_line() -> None:
    for more in (LAST, b'{"key": "k", "value": "v"}\n', b"{}\n"):
        _, error = await imported(GOOD + LAST + more)
        assert str(error) == "a file, line 3: there is something behind the last line"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"", "it is missing: there is nothing at all"),
        (b"{}\n", "an export begins with"),
        (b'{"format": "other", "version": 1, "source": "", "entries": 0}\n', "an export begins with"),
        (b'{"format": "holdfast export", "version": 3}\n', "version 3 of the format is not known"),
        (b'{"format": "holdfast export", "version": "1"}\n', "version 1 of the format is not known"),
        (b'{"format": "holdfast export", "version": true}\n', "version True of the format is not known"),
        (b'{"format": "holdfast export", "version": 2, "source": "", "time_ms": -1}\n', "time_ms is a number"),
        (
            b'{"format": "holdfast export", "version": 2, "time_ms": 1, "entries": 0}\n',
            "the first line has the members",
        ),
        (b'{"format": "holdfast export", "version": 1, "source": 1, "entries": 0}\n', "the first line has the members"),
        (b'{"format": "holdfast export", "version": 1, "source": "", "entries": -1}\n', "the first line has"),
        (b'{"format": "holdfast export", "version": 1, "source": "", "more": 0}\n', "the first line has"),
    ],
)
async def test_what_does_not_begin_as_an_export_is_none(line: bytes, complaint: str) -> None:
    with pytest.raises(MoveError, match=f"a file, line [01]: {complaint}"):
        LinesSource(io.BytesIO(line), "a file")
