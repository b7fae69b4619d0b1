"""What the clients of a simulation saw: the only thing it is judged by.

A `Life` is one run of the engine, from a start to a clean stop or a crash. Its events are in the order in which they
happened: a request sent, its answer received. A request is one command or a batch of them, and how it ended is noted
in each of its commands:

    ANSWERED  the answer arrived
    LEFT      the client went away before; the engine has been told
    LOST      the engine was gone first: it happened once, or not at all; of a pipeline the first so many commands did

Times are virtual, in milliseconds since the beginning of the simulation. Engine time, which expiry goes by, is the wall
clock of the life's start plus what has passed since; after a wall clock that was set back it is some time between the
last acknowledged write and the crash, which no client can know more exactly: hence `Life.clock_ms` is a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Answer = tuple[str, Any]
"""("ok", length or None), ("value", bytes or None), ("integer", n) or ("error", text); and, for each command of a unit
that was refused, ("refused", (place of the one to blame, error))."""

REFUSALS = ("unavailable", "storage full")
"""Errors that may come to any command for reasons outside the store; then it has done nothing."""

Dump = tuple[tuple[Any, ...], ...]
"""A state as the engine dumps it: ("value", key, value, deadline in engine ms or None), ("queue", key, values)."""


class Violation(AssertionError):
    """Something a client saw, or a start found, that cannot be."""


class Outcome(Enum):
    """How a command ended for its client."""

    PENDING = "pending"
    ANSWERED = "answered"
    LEFT = "left"
    LOST = "lost"


class End(Enum):
    """How a life ended."""

    STOP = "stopped"
    KILL = "killed"
    POWER = "power cut"


@dataclass(eq=False, slots=True)
class Operation:
    """One command of one client.

    Attributes:
        number: its place in the order of sending, over the whole simulation.
        client: who sent it.
        words: the command.
        invoked_ms: when it was sent.
        ended_ms: when its outcome was known.
        timeout_ms: of a blocking pop; None waits for ever.
        place: in its batch, from 0.
    """

    number: int
    client: int
    words: tuple[bytes, ...]
    invoked_ms: int
    outcome: Outcome = Outcome.PENDING
    answer: Answer | None = None
    ended_ms: int = 0
    timeout_ms: int | None = None
    place: int = 0

    @property
    def name(self) -> bytes:
        """The command's name."""
        return self.words[0]

    @property
    def is_acknowledged(self) -> bool:
        """Whether a client has an answer that rests on the store, and not a refusal for reasons outside."""
        return self.answer is not None and self.answer[1] not in REFUSALS

    def __str__(self) -> str:
        words = b" ".join(self.words).decode()
        answer = self.outcome.value if self.answer is None else f"{self.answer[0]} {self.answer[1]!r:}"
        return f"{self.invoked_ms:>9}..{self.ended_ms:<9} #{self.number:<4} client {self.client}: {words} -> {answer}"


@dataclass(eq=False, slots=True)
class Request:
    """What a client sends at once.

    Attributes:
        operations: one command, or those of a batch in their order.
        atomic: a batch that is all or nothing; else it is a pipeline.
        reached_ms: when an instant was over in which the engine had looked at it, if that was noticed.
    """

    operations: tuple[Operation, ...]
    atomic: bool = False
    reached_ms: int | None = None

    @property
    def number(self) -> int:
        """Of its first command."""
        return self.operations[0].number

    @property
    def outcome(self) -> Outcome:
        """How it ended for its client."""
        return self.operations[0].outcome

    @property
    def is_acknowledged(self) -> bool:
        """Whether a client has an answer some of which rests on the store."""
        return any(operation.is_acknowledged for operation in self.operations)

    def __str__(self) -> str:
        commands = "; ".join(b" ".join(operation.words).decode() for operation in self.operations)
        return f"{'unit' if self.atomic else 'pipeline'} of {commands}" if len(self.operations) > 1 else commands


class Kind(Enum):
    """What happened to a request."""

    SENT = "sent"
    ENDED = "ended"


Event = tuple[int, Kind, Request]
"""When, in virtual milliseconds; what; to which request."""


@dataclass(slots=True)
class Life:
    """One run of the engine.

    Attributes:
        number: from 0.
        started_ms: virtual time of the start.
        clock_ms: the earliest and the latest that engine time may have been then.
        events: in the order in which they happened.
        ended_ms: virtual time of its end.
        end: how it ended; a power cut at any time before the next start counts.
        safe_ms: with a lazy fsync policy, everything before this virtual time must have survived a power cut.
        stopping_ms: virtual time from which on commands may be turned away, because the server shuts down.
        full_until_ms: virtual time until which the disk may have been taken for full; 0 for never.
    """

    number: int
    started_ms: int
    clock_ms: tuple[int, int]
    events: list[Event] = field(default_factory=list)
    ended_ms: int = 0
    end: End = End.KILL
    safe_ms: int | None = None
    stopping_ms: int | None = None
    full_until_ms: float = 0

    @property
    def operations(self) -> list[Operation]:
        """Every command sent in it."""
        return [operation for _, kind, request in self.events if kind is Kind.SENT for operation in request.operations]

    def engine_ms(self, virtual_ms: int) -> tuple[int, int]:
        """The earliest and the latest that engine time may have been at a virtual time."""
        passed_ms = virtual_ms - self.started_ms
        return self.clock_ms[0] + passed_ms, self.clock_ms[1] + passed_ms
