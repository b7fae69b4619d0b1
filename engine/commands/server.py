"""Commands on no key."""

from __future__ import annotations

from engine.calls import Command
from engine.commands.grammar import Effect, Row
from engine.frozen import frozen


@frozen
class Ping(Command):
    """Asks whether anybody is there."""


ROWS: tuple[Row, ...] = (
    Row(
        name="PING",
        command=Ping,
        summary="Answers PONG, and touches nothing.",
        examples=("PING",),
        more_examples=("PING",),
        effect=Effect.NOTHING,
    ),
)
