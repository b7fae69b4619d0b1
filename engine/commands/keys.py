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
        summary="Removes keys and queues. Answers how many it removed.",
        examples=("SET color red", "DELETE color shape"),
        more_examples=("DELETE color",),
        parameters=(KEYS,),
        aliases=("DEL",),
        errors={Error.KEY_NOT_FOUND: "none of the keys exists"},
        effect=Effect.CHANGES,
        adds_up=True,
    ),
    Row(
        name="EXISTS",
        command=Exists,
        summary="Counts how many of the keys exist, queues too. A key that you name twice counts twice.",
        examples=("SET color red", "EXISTS color shape"),
        more_examples=("EXISTS color shape",),
        parameters=(KEYS,),
        adds_up=True,
    ),
    Row(
        name="TTL",
        command=Ttl,
        summary="Answers how many seconds a key has left, rounded up: -1 if it never expires, -2 if it does not exist.",
        examples=("SET color red EX 60", "TTL color"),
        more_examples=("TTL shape",),
        parameters=(KEY,),
    ),
    Row(
        name="PERSIST",
        command=Persist,
        summary="Removes the expiry of a key. Answers 1, or 0 if there is no such key or no expiry.",
        examples=("SET color red EX 60", "PERSIST color"),
        more_examples=("PERSIST color",),
        parameters=(KEY,),
        effect=Effect.CHANGES,
    ),
)
