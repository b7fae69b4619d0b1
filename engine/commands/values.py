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
        summary="Writes a value. It replaces what the key held, a queue too, and drops an older expiry.",
        examples=("SET color red", "SET color blue NX"),
        more_examples=("SET color red EX 60",),
        parameters=(KEY, VALUE),
        options=(
            Option(
                "EX",
                "ttl_ms",
                seconds,
                "s",
                help="the value expires after so many seconds, at most 10^12; `EX60` in one word works too",
            ),
            Option(
                "PX",
                "ttl_ms",
                milliseconds,
                "ms",
                help="the value expires after so many milliseconds; `PX500` works too",
            ),
            Option("NX", "condition", _condition, help="writes only if the key does not exist"),
            Option("XX", "condition", _condition, help="writes only if the key exists"),
        ),
        errors={
            Error.KEY_ALREADY_EXISTS: "you say `NX` and the key exists",
            Error.KEY_NOT_FOUND: "you say `XX` and the key does not exist",
            **NO_ROOM,
        },
        effect=Effect.CHANGES,
    ),
    Row(
        name="GET",
        command=Get,
        summary="Reads a value.",
        examples=("SET color red", "GET color"),
        more_examples=("GET color",),
        parameters=(KEY,),
        errors={**NO_KEY, **OTHER_KIND},
        needs=Needs.VALUE,
    ),
    Row(
        name="STRLEN",
        command=StrLen,
        summary="Answers the length of a value in bytes, and 0 if there is no such key.",
        examples=("SET color red", "STRLEN color"),
        more_examples=("STRLEN shape",),
        parameters=(KEY,),
        errors=OTHER_KIND,
        needs=Needs.VALUE,
    ),
)
