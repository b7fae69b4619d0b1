"""One command as a dialect spelled it: between a body and its command, and between a reply and its answer. Pure."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from engine.calls import Command
from engine.commands.grammar import CommandError
from engine.commands.table import parse
from engine.frozen import frozen
from engine.limits import Limits
from engine.replies import Failure


class Dialect(Enum):
    """How a request was spelled, and so how it is answered."""

    LINE = "line"
    FIELDS = "fields"


@frozen
class Request:
    """One command as it was asked for.

    Attributes:
        argv: the words for `engine.commands.table.parse`; empty when there is a failure, and from `understand`.
        dialect: how to answer.
        key: echoed by the fields dialect, as the text that was sent; None when there was none, when one
            is over its limit, and for a list of keys longer than a value may be.
        failure: the mistake the dialect found; to be answered instead of running anything.
    """

    argv: list[bytes]
    dialect: Dialect
    key: str | list[str] | None = None
    failure: Failure | None = None


LINE = Request([], Dialect.LINE)
"""All that the answer to a plain line needs to know of it."""

Understood: TypeAlias = tuple[Request, Command | Failure]
"""A request, for its answer; and the command, or the failure to answer instead of running one."""


def command_of(argv: list[bytes], limits: Limits) -> Command | Failure:
    """Parses an argv as the grammar has it.

    Args:
        argv: the words of one command.
        limits: of the product.

    Returns:
        The command; or the failure to answer instead of running one.
    """
    try:
        return parse(argv, limits)
    except CommandError as mistake:
        return Failure(mistake.error, mistake.detail)
