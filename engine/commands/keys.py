"""Commands on keys, whatever they hold."""

from __future__ import annotations

from engine.calls import Command
from engine.commands.grammar import KEY, KEYS, Effect, Row
from engine.frozen import frozen
from engine.replies import Error


@frozen
class Delete(Command):
    """Removes keys or queues."""

    keys: tuple[bytes, ...]


@frozen
class Exists(Command):
    """Counts those that exist."""

    keys: tuple[bytes, ...]


@frozen
class Ttl(Command):
    """Asks how long a key has left."""

    key: bytes


@frozen
class Persist(Command):
    """Takes away the expiry of a key."""

    key: bytes


ROWS: tuple[Row, ...] = (
    Row(
        name="DELETE",
        command=Delete,
        summary="Removes keys and queues, and answers how many there were.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=(KEYS,),
        aliases=("DEL",),
        errors={Error.KEY_NOT_FOUND: "none of the keys exists"},
        effect=Effect.CHANGES,
        adds_up=True,
    ),
    Row(
        name="EXISTS",
        command=Exists,
        summary="Counts the keys and queues that exist; a key named twice counts twice.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=(KEYS,),
        adds_up=True,
    ),
    Row(
        name="TTL",
        command=Ttl,
        summary="Seconds a key has left, rounded up; -1 when it does not expire, -2 when it does not exist.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=(KEY,),
    ),
    Row(
        name="PERSIST",
        command=Persist,
        summary="Takes away the expiry of a key; 1 when it had one, 0 when it had none or does not exist.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=(KEY,),
        effect=Effect.CHANGES,
    ),
)
