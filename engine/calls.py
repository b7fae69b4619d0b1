"""Calls: submitted commands, and whom to answer."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.replies import Refused, Reply


class Command:
    """A command as it was parsed; `engine/commands` has a class for each, and says what it means."""

    __slots__ = ()


class Stage(enum.Enum):
    """Where a call is; the picture in engine/embedded/engine.py shows how it moves."""

    QUEUED = enum.auto()
    PARKED = enum.auto()
    HELD = enum.auto()
    ANSWERED = enum.auto()
    SETTLED = enum.auto()
    WITHDRAWN = enum.auto()


QUEUED, PARKED, HELD, ANSWERED, SETTLED, WITHDRAWN = Stage
"""By these names they are found twice as fast as in the enum, and each call is asked several times."""


@dataclass(slots=True, eq=False)
class Call:
    """One submitted command.

    Attributes:
        command: what is to be done.
        deliver: called with the call, once, when its reply may be shown. It must not raise: that ends the engine.
        stage: where it is.
        reply: None until it is decided; to be looked at from `deliver` on.
        taken: what it popped, as its engine notes it. If there is anything, its caller has to `settle` or `withdraw`
            when it was answered.
        waiter: its place in line while it is parked, likewise.
    """

    command: Command
    deliver: Callable[[Call], None]
    stage: Stage = QUEUED
    reply: Reply | None = None
    taken: list[Any] = field(default_factory=list)
    waiter: Any = None


@dataclass(slots=True, eq=False)
class Batch:
    """Several commands that were submitted together and are answered together; none of them ever waits for a value.

    Attributes:
        commands: what is to be done, in this order.
        atomic: all of it or nothing, with no command of others in between.
        deliver: as in `Call`.
        stage: as in `Call`; QUEUED until the last command is done.
        reply: as in `Call`.
        taken: as in `Call`.
        replies: of the commands that are done.
        popped_bytes: values that it has popped, unless it is atomic.
    """

    commands: Sequence[Command]
    atomic: bool
    deliver: Callable[[Batch], None]
    stage: Stage = QUEUED
    reply: list[Reply] | Refused | None = None
    taken: list[Any] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    popped_bytes: int = 0


AnyCall = Call | Batch
