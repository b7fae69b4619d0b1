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
        summary="Adds values at the end of a queue, in order. Makes the queue if there is none.",
        examples=("QPUSH mails anna",),
        more_examples=("QPUSH mails bert carla",),
        parameters=(KEY, VALUES),
        errors={**OTHER_KIND, **NO_ROOM},
        effect=Effect.CHANGES,
        needs=Needs.QUEUE,
    ),
    Row(
        name="QPOP",
        command=QPop,
        summary="Takes the **newest** value, at the end of a queue (last in, first out). Answers null if the queue was"
        " never made. A worker wants BQPOP.",
        examples=("QPUSH stack a b c", "QPOP stack"),
        more_examples=("QPOP stack",),
        parameters=(KEY,),
        errors={Error.QUEUE_IS_EMPTY: "the queue exists and is empty", **OTHER_KIND},
        effect=Effect.CHANGES,
        needs=Needs.QUEUE,
        takes=True,
    ),
    Row(
        name="BQPOP",
        command=BQPop,
        summary="Takes the oldest value, at the beginning of a queue (first in, first out). Waits while there is none,"
        " and answers null when the timeout has passed. Clients that wait are served in the order in which they came.",
        examples=("QPUSH jobs a b c", "BQPOP jobs", "BQPOP jobs 60"),
        more_examples=("BQPOP jobs 60", "BQPOP jobs 0"),
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
            Error.UNAVAILABLE: "too many clients wait already, or the server is shutting down",
        },
        effect=Effect.CHANGES,
        needs=Needs.QUEUE,
        takes=True,
        waits=True,
    ),
    Row(
        name="QLEN",
        command=QLen,
        summary="Counts the values in a queue. Answers 0 if there is no such queue.",
        examples=("QPUSH steps a b", "QLEN steps"),
        more_examples=("QLEN steps",),
        parameters=(KEY,),
        errors=OTHER_KIND,
        needs=Needs.QUEUE,
    ),
)
