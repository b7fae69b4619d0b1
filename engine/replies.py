"""What a command answers. Dialects turn a reply into a status and a body; nothing here knows HTTP."""

from __future__ import annotations

from enum import Enum

from engine.frozen import frozen


class Error(Enum):
    """The fixed error texts: clients match on them, so they never change."""

    INVALID_COMMAND = "invalid command"
    KEY_NOT_FOUND = "key not found"
    QUEUE_IS_EMPTY = "queue is empty"
    KEY_ALREADY_EXISTS = "key already exists"
    WRONG_TYPE = "wrong type"
    TOO_LARGE = "too large"
    UNAVAILABLE = "unavailable"
    STORAGE_FULL = "storage full"
    INTERNAL_ERROR = "internal error"


@frozen
class Ok:
    """Done. `length` is what a push adds: the queue's length after it."""

    length: int | None = None


@frozen
class Value:
    """One value, as bytes; None is the null of a pop that found nothing."""

    value: bytes | None


@frozen
class Integer:
    """A count or a number of seconds."""

    value: int


@frozen
class Failure:
    """The command was refused and changed nothing.

    Attributes:
        error: which of the fixed errors.
        detail: one line for a person; empty when the error says it all.
    """

    error: Error
    detail: str = ""


Reply = Ok | Value | Integer | Failure


@frozen
class Refused:
    """A batch of which nothing was done.

    Attributes:
        failure: why.
        index: of the command that would have been refused, from 0; None when it was refused as a whole.
    """

    failure: Failure
    index: int | None = None


OK = Ok()
PONG = Value(b"PONG")
NULL = Value(None)
"""The replies that are always the same; the last one is that of a pop that found nothing."""

SHUTTING_DOWN = Failure(Error.UNAVAILABLE, "shutting down")
MAILBOX_FULL = Failure(Error.UNAVAILABLE, "too many commands are waiting")
WAITERS_FULL = Failure(Error.UNAVAILABLE, "too many clients are waiting")
POPPED_ENOUGH = Failure(Error.TOO_LARGE, "the values popped before make the answer too long")
"""Refusals that say the same whichever engine gives them."""
