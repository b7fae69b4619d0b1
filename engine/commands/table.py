"""The table: ONE row for each command, from the files of the families; `docs/commands.md` is made from it.

Here an argv becomes a typed command, and generic code asks what it must know of one; all that is derived from the rows.

To add a command, write a dataclass and a row in the file of its family; docs/architecture.md says what else it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from engine.calls import Command
from engine.commands import keys, queues, server, values
from engine.commands.grammar import CommandError, Effect, Kind, Row, read, show
from engine.limits import Limits
from engine.replies import Error, Failure

TABLE: tuple[Row, ...] = (*values.ROWS, *keys.ROWS, *queues.ROWS, *server.ROWS)

# What is asked of every command, as sets: to look a type up in one takes 30 ns, by its row three times as long.

HEAVY = frozenset(row.command for row in TABLE if row.many is not None)
"""Commands with any number of keys or values, which have to be weighed; all others are worth one."""

FREE = frozenset(row.command for row in TABLE if row.effect is Effect.NOTHING)
"""Commands whose answer rests on nothing, so that it need not wait for the disk."""

CHANGING = frozenset(row.command for row in TABLE if row.effect is Effect.CHANGES)
"""Commands whose refusal refuses a unit; a read that finds nothing is an answer."""

TAKING = frozenset(row.command for row in TABLE if row.takes)
"""Commands whose answer is taken out of a queue."""

WAITING = frozenset(row.command for row in TABLE if row.waits)
"""Commands that wait for something to take."""

_BY_NAME: dict[bytes, Row] = {name.encode(): row for row in TABLE for name in (row.name, *row.aliases)}


def _plain(row: Row) -> Callable[..., Command]:
    """What makes a row's command of one word for each parameter."""
    make: Callable[..., Command] = row.command
    if row.parameters and row.parameters[-1].many:
        return lambda *words: make(*words[:-1], words[-1:])
    return make


def _plain_commands(*kinds: Kind) -> dict[bytes, Callable[..., Command]]:
    """Makes the rows of the table whose parameters are of these kinds, by their names in upper and in lower case."""
    return {
        spelled: _plain(row)
        for name, row in _BY_NAME.items()
        for spelled in (name, name.lower())
        if tuple(parameter.kind for parameter in row.parameters) == kinds
    }


# The table once more, for commands without options and with one word for each parameter, which most are. A SET of
# three words takes 0.3 microseconds through these; through the rows it takes 2.2.
_WITH_KEY = _plain_commands(Kind.KEY)
_WITH_KEY_AND_VALUE = _plain_commands(Kind.KEY, Kind.VALUE)


def lookup(name: bytes) -> Row | None:
    """Returns the row for a command name in any case, or None."""
    return _BY_NAME.get(name.upper())


def parse(argv: Sequence[bytes], limits: Limits) -> Command:
    """Turns an argv into a typed command.

    Args:
        argv: the command's name, then its words.
        limits: bounds on keys, values and the number of words.

    Returns:
        The command; every field of it within the limits.

    Raises:
        CommandError: unknown command, wrong number of words, bad option, or something over its limit.
    """
    return plain(argv, limits) or _parse(argv, limits)


def plain(argv: Sequence[bytes], limits: Limits) -> Command | None:
    """Makes the command of an argv that has no options, one word for each parameter, and no mistake.

    Args:
        argv: as for `parse`.
        limits: as for `parse`.

    Returns:
        The command; None when `parse` has to look closer.
    """
    if len(argv) == 3:
        name, key, value = argv
        make = _WITH_KEY_AND_VALUE.get(name)
        if make and len(key) <= limits.key_bytes_max and len(value) <= limits.value_bytes_max:
            return make(key, value) if limits.tokens_max >= 3 else None
    elif len(argv) == 2:
        name, key = argv
        make = _WITH_KEY.get(name)
        if make and len(key) <= limits.key_bytes_max:
            return make(key) if limits.tokens_max >= 2 else None
    return None


def _parse(argv: Sequence[bytes], limits: Limits) -> Command:
    """Does it by the rows of the table, which have the words for every mistake."""
    if not argv:
        raise CommandError("the command is empty")
    if len(argv) > limits.tokens_max:
        raise CommandError(f"a command has at most {limits.tokens_max} words", Error.TOO_LARGE)
    row = lookup(argv[0])
    if row is None:
        raise CommandError(f"unknown command {show(argv[0])}, expected one of {', '.join(row.name for row in TABLE)}")
    return read(row, argv, limits)


# What the rows say of a command

_ROWS: dict[type[Command], Row] = {row.command: row for row in TABLE}


def row_of(command: Command) -> Row:
    """The row of a command."""
    return _ROWS[type(command)]


def _no_keys(_command: Command) -> tuple[bytes, ...]:
    return ()


def _one_key(command: Any) -> tuple[bytes, ...]:
    return (command.key,)


def _keys_by(row: Row) -> Callable[[Any], tuple[bytes, ...]]:
    fields = [parameter for parameter in row.parameters if parameter.kind is Kind.KEY]
    match fields:
        case []:
            return _no_keys
        case [one] if one.many:
            return attrgetter(one.fills)
        case [one] if one.fills == "key":
            return _one_key
    raise AssertionError(f"{row.name}: nobody has said yet how such keys are found")


_KEYS = {row.command: _keys_by(row) for row in TABLE}
_MANY: dict[type[Command], Callable[[Command], tuple[bytes, ...]]] = {
    row.command: attrgetter(row.many.fills) for row in TABLE if row.many is not None
}


def keys_of(command: Command) -> tuple[bytes, ...]:
    """The keys that a command names, in its order; one that is named twice is there twice."""
    return _KEYS[type(command)](command)


def weigh(command: Command) -> int:
    """How much work a command is, in plain commands: as many as it has keys or values, where it takes any number."""
    many = _MANY.get(type(command))
    return 1 if many is None else len(many(command))


def in_pieces(command: Command, count_max: int) -> Iterator[Command]:
    """A command on any number of keys, one whose row says `adds_up`, as several on so many of them at most."""
    words = _MANY[type(command)](command)
    for start in range(0, len(words), count_max):
        yield on_words(command, words[start : start + count_max])


def on_words(command: Command, words: Sequence[bytes]) -> Command:
    """The same command on other keys or values, where it takes any number of them."""
    many = row_of(command).many
    assert many is not None
    return replace(command, **{many.fills: words})  # type: ignore[type-var]  # a dataclass


def may_wait(command: Command) -> bool:
    """Whether a command that is submitted by itself may wait for its answer."""
    return type(command) in WAITING and command.timeout_ms != 0  # type: ignore[attr-defined]  # says the row: `waits`


def wrong_type(command: Command, *, foreign: bool = False) -> Failure:
    """The refusal of a command whose key holds something else than it needs.

    Args:
        command: as parsed.
        foreign: whether that is nothing of Holdfast's, as in a Redis that others use as well: a hash, say.
    """
    row = row_of(command)
    held, need = row.needs.value
    if foreign:
        held = "something that is nothing of Holdfast's"
    return Failure(Error.WRONG_TYPE, f"the key holds {held}, {row.name} {need}")
