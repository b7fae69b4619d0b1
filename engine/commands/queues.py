"""Commands on queues."""

from __future__ import annotations

from engine.calls import Command
from engine.commands.grammar import KEY, NO_ROOM, OTHER_KIND, VALUES, Effect, Needs, Option, Row
from engine.commands.words import timeout_ms
from engine.frozen import frozen
from engine.replies import Error


@frozen
class QPush(Command):
    """Appends values to a queue."""

    key: bytes
    values: tuple[bytes, ...]


@frozen
class QPop(Command):
    """Takes the last value of a queue."""

    key: bytes


@frozen
class BQPop(Command):
    """Takes the first value of a queue, waiting for one; `timeout_ms` None waits for ever."""

    key: bytes
    timeout_ms: int | None = None


@frozen
class QLen(Command):
    """Counts the values of a queue."""

    key: bytes


ROWS: tuple[Row, ...] = (
    Row(
        name="QPUSH",
        command=QPush,
        summary="Makes the queue if need be and appends the values, in order.",
        line_answer="200, empty body",
        fields_answer="`key`, `value`: the length after",
        parameters=(KEY, VALUES),
        errors={**OTHER_KIND, **NO_ROOM},
        effect=Effect.CHANGES,
        needs=Needs.QUEUE,
    ),
    Row(
        name="QPOP",
        command=QPop,
        summary="Takes the last value of a queue (last in, first out); null when there is no such queue. An emptied"
        " queue still exists, until DELETE or SET.",
        line_answer='200 `{"value": "v"}`',
        fields_answer="`key`, `value`",
        parameters=(KEY,),
        errors={Error.QUEUE_IS_EMPTY: "the queue exists and holds nothing", **OTHER_KIND},
        effect=Effect.CHANGES,
        needs=Needs.QUEUE,
        takes=True,
    ),
    Row(
        name="BQPOP",
        command=BQPop,
        summary="Takes the first value of a queue (first in, first out); waits while there is none, and"
        " answers null when the timeout passes. Those who wait are served first come, first served.",
        line_answer='200 `{"value": "v"}`',
        fields_answer="`key`, `value`",
        parameters=(KEY,),
        options=(
            Option(
                "TIMEOUT",
                "timeout_ms",
                timeout_ms,
                "timeout",
                bare=True,
                help="seconds, any number up to 10^9, rounded up to a millisecond; 0 answers at once; left out,"
                " waits as long as the client stays",
            ),
        ),
        errors={
            **OTHER_KIND,
            Error.UNAVAILABLE: "too many clients are waiting already, or the server is shutting down",
        },
        effect=Effect.CHANGES,
        needs=Needs.QUEUE,
        takes=True,
        waits=True,
    ),
    Row(
        name="QLEN",
        command=QLen,
        summary="Counts the values that wait in a queue; 0 when there is no such queue.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=(KEY,),
        errors=OTHER_KIND,
        needs=Needs.QUEUE,
    ),
)
