"""Commands on plain values."""

from __future__ import annotations

from enum import Enum

from engine.calls import Command
from engine.commands.grammar import KEY, NO_KEY, NO_ROOM, OTHER_KIND, VALUE, Effect, Needs, Option, Row
from engine.commands.words import milliseconds, seconds
from engine.frozen import frozen
from engine.replies import Error


class Condition(Enum):
    """When a SET may write."""

    IF_MISSING = "NX"
    IF_PRESENT = "XX"


@frozen
class Set(Command):
    """Writes a value; drops an older expiry."""

    key: bytes
    value: bytes
    ttl_ms: int | None = None
    condition: Condition | None = None


@frozen
class Get(Command):
    """Reads a value."""

    key: bytes


@frozen
class StrLen(Command):
    """Asks how long a value is."""

    key: bytes


def _condition(name: str, _argument: bytes) -> Condition:
    return Condition(name)


ROWS: tuple[Row, ...] = (
    Row(
        name="SET",
        command=Set,
        summary="Writes the value of a key, whatever it held before; an older expiry is dropped.",
        line_answer="200, empty body",
        fields_answer="`key`",
        parameters=(KEY, VALUE),
        options=(
            Option(
                "EX", "ttl_ms", seconds, "s", help="expires in so many seconds, at most 10^12; `EX60` in one word too"
            ),
            Option("PX", "ttl_ms", milliseconds, "ms", help="expires in so many milliseconds; `PX500` in one word too"),
            Option("NX", "condition", _condition, help="only if the key does not exist"),
            Option("XX", "condition", _condition, help="only if the key exists"),
        ),
        errors={
            Error.KEY_ALREADY_EXISTS: "`NX`, and the key exists",
            Error.KEY_NOT_FOUND: "`XX`, and the key does not exist",
            **NO_ROOM,
        },
        effect=Effect.CHANGES,
    ),
    Row(
        name="GET",
        command=Get,
        summary="Reads the value of a key.",
        line_answer='200 `{"value": "v"}`',
        fields_answer="`key`, `value`",
        parameters=(KEY,),
        errors={**NO_KEY, **OTHER_KIND},
        needs=Needs.VALUE,
    ),
    Row(
        name="STRLEN",
        command=StrLen,
        summary="Length of the value of a key in bytes; 0 when there is no such key.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=(KEY,),
        errors=OTHER_KIND,
        needs=Needs.VALUE,
    ),
)
