"""How a command is said to Redis: once, whether it is done by itself or in a unit.

Each family has a file that says it of its commands, as one of three kinds:

- `Native`: Redis has such a command. By itself it is sent as it is; in a unit the script is given the same words, calls
  Redis with them, and undoes it in one of three ways if the unit comes to nothing.
- `Scripted`: a function of the family's file in `lua/` does it, and says there how it is undone.
- `Local`: nothing is asked of Redis.

The raw answer is the same either way, and is understood by the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from engine.calls import Command
from engine.replies import Integer, Reply

# A declaration's functions take the very command that it is of; a dict's type cannot say so, hence Any.
Words: TypeAlias = Callable[[Any], tuple[bytes | int, ...]]
Understand: TypeAlias = Callable[[Any, Any], Reply]


class Undo(Enum):
    """How a unit undoes a command of Redis; the values are those of `lua/unit.lua`."""

    REPLACE = "replace"
    """What its keys hold is renamed, and something small stands in its place while the command is done: for commands
    that replace or remove whatever is there, and answer nothing of it but that it was there."""

    COPY = "copy"
    """What its keys hold is copied, once in a unit: for commands that change it."""

    EXPIRY = "expiry"
    """It is noted when its keys expire: for commands that change nothing else, and never remove a key."""


class Refusal(Enum):
    """Which answer of a command that changes something refuses a unit, beside an error; as Lua writes it."""

    NO_OTHER = ""
    NULL = "false"
    ZERO = "0"


@dataclass(frozen=True, slots=True)
class Native:
    """A command that Redis has.

    Numbers beyond 2^53 that it answers are exact when it is done by itself, but not in a unit: Lua has doubles.

    Attributes:
        words: (command) to the name of Redis' command, the command's keys, and what else it takes. Their number is
            bounded, except by keys of a command whose row says `adds_up`: a script cannot call Redis with 8,000.
        understand: (command, answer) to the reply; errors are refused before.
        undo: how it is undone in a unit; None if it changes nothing.
        refusal: which answer refuses a unit.
    """

    words: Callable[[Any], tuple[bytes, ...]]
    understand: Understand
    undo: Undo | None = None
    refusal: Refusal = Refusal.NO_OTHER


@dataclass(frozen=True, slots=True)
class Scripted:
    """A command that a function in Lua does, which has its name.

    Attributes:
        words: (command) to what the function is given behind the key; a few, so a list is one word of msgpack.
        understand: as in `Native`.
        refusal: as in `Native`.
        end: of the queue, from which it takes values, if it does: FIRST or LAST of `receipts.py`. Then its answer is
            that of `popped` in `lua/alone.lua` and `lua/unit.lua` if it takes any, and no list if not.
    """

    words: Words
    understand: Understand
    refusal: Refusal = Refusal.NO_OTHER
    end: bytes | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """A command that asks nothing of Redis.

    Attributes:
        reply: (command) to its reply.
    """

    reply: Callable[[Any], Reply]


Translation: TypeAlias = Native | Scripted | Local


def on_key(name: bytes) -> Callable[[Any], tuple[bytes, ...]]:
    """The words of a command that takes a key and nothing else."""
    return lambda command: (name, command.key)


def on_keys(name: bytes) -> Callable[[Any], tuple[bytes, ...]]:
    """The words of a command that takes any number of keys and nothing else."""
    return lambda command: (name, *command.keys)


def integer(_command: Command, answer: Any) -> Reply:
    """The reply to an answer that is a number, and means what it is."""
    return Integer(answer)
