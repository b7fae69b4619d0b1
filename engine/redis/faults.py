"""What Redis refuses, in Holdfast's words. The details are those of the embedded engine wherever it has the same."""

from __future__ import annotations

import logging

from coredis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ReadOnlyError,
    RedisClusterError,
    ResponseError,
    WrongTypeError,
)

from engine.calls import Command
from engine.commands.table import TAKING, row_of, wrong_type
from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.replies import POPPED_ENOUGH, Error, Failure

_logger = logging.getLogger("holdfast.redis.refused")  # a name of its own: who serves clients has it say so seldom

_UNAVAILABLE_CODES = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY ", "UNKILLABLE", "LOADING", "NOMASTERLINK")

_DENIED_TO_SCRIPTS = ("ACL failure in script", "The user executing the script can't")
"""How Redis says that its user may not do what a script does: from 7.2 on, and before."""

_BEHIND = Failure(Error.UNAVAILABLE, "done, but too few replicas have it yet: it may be lost if the master fails")
_UNDONE = Failure(Error.UNAVAILABLE, "too few replicas are there: what was popped goes back")


def refusal(error: Exception, command: Command) -> Failure:
    """The reply to a command that came to nothing.

    Args:
        error: of Redis, or one of `engine.redis.errors`.
        command: that was to be done.
    """
    text = str(error)
    if isinstance(error, WrongTypeError):
        return wrong_type(command, foreign="foreign" in text)
    if isinstance(error, NotSent):
        return Failure(Error.UNAVAILABLE, text)
    if isinstance(error, Lost):
        return Failure(Error.UNAVAILABLE, f"{text}; the command may have been done, or not")
    if isinstance(error, NotReplicated):
        return _UNDONE if type(command) in TAKING else _BEHIND
    if isinstance(error, AskError):  # or MOVED, which is one of these
        return Failure(Error.UNAVAILABLE, "redis: its nodes do not agree on who serves the slot of this key")
    if isinstance(error, (RedisClusterError, ReadOnlyError, BusyLoadingError)) or text.startswith(_UNAVAILABLE_CODES):
        return Failure(Error.UNAVAILABLE, f"redis: {text}")
    if isinstance(error, (AuthenticationError, AuthorizationError)) or text.startswith(_DENIED_TO_SCRIPTS):
        return Failure(Error.UNAVAILABLE, "redis does not permit this to the server's user")
    if isinstance(error, ResponseError) and text.startswith("OOM"):
        return Failure(Error.STORAGE_FULL, "redis has reached its maxmemory")
    if text.startswith("TOOLARGE"):  # says a unit
        return POPPED_ENOUGH
    _logger.error("redis refused %s: %s", row_of(command).name, text)
    return Failure(Error.INTERNAL_ERROR)
