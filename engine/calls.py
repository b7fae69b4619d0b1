"""Calls: submitted commands and their callers, and the values on their way to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import trio

from engine.commands import Command
from engine.ops import Op
from engine.replies import Reply
from engine.state import Queue
from engine.waiters import Waiter


class Stage(enum.Enum):
    """Where a call is; the picture in engine/actor.py shows how it moves."""

    QUEUED = enum.auto()
    PARKED = enum.auto()
    HELD = enum.auto()
    ANSWERED = enum.auto()
    WITHDRAWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Taken:
    """A popped value on its way to a caller: its rank among all pops, the queue object, the op that undoes it."""

    serial: int
    queue: Queue
    undo: Op


@dataclass(slots=True, eq=False)
class Call:
    """One submitted command and its caller."""

    command: Command
    task: trio.lowlevel.Task
    stage: Stage = Stage.QUEUED
    reply: Reply | None = None
    waiter: Waiter[Call] | None = None
    taken: Taken | None = None
