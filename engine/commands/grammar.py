"""The grammar: what a row of the table of commands says, and how an argv is read by it. Pure.

An argv is a list of byte strings, `[b"SET", b"key_a", b"2", b"EX", b"60", b"NX"]`; every dialect produces one. A row
names the command, its positional parameters and its options, and says which field of the command's dataclass each one
fills. Two options that fill the same field exclude each other: that is how `EX` with `PX`, `NX` with `XX`, and any
option given twice are found, with no rule written for a single command.

A row is also the one place that says what generic code must know of a command: whether it changes anything, what it
needs of its key, whether it takes values or waits for them. The rows stand in the files of the families beside this
one; `table.py` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from engine.calls import Command
from engine.limits import Limits
from engine.replies import Error

_SHOWN_CHARACTERS_MAX = 40


class CommandError(Exception):
    """An argv that is no command.

    Attributes:
        error: INVALID_COMMAND or TOO_LARGE.
        detail: what was wrong and what was expected, for a person.
    """

    def __init__(self, detail: str, error: Error = Error.INVALID_COMMAND) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail


class Kind(Enum):
    """What a positional parameter holds; decides its limit and its member in the fields dialect."""

    KEY = "key"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A positional word: `fills` names the command's field, `many` takes one or more."""

    kind: Kind
    fills: str
    many: bool = False


KEY = Parameter(Kind.KEY, "key")
VALUE = Parameter(Kind.VALUE, "value")
KEYS = Parameter(Kind.KEY, "keys", many=True)
VALUES = Parameter(Kind.VALUE, "values", many=True)


@dataclass(frozen=True, slots=True)
class Option:
    """A named word behind the parameters.

    Attributes:
        name: as documented; matched case-insensitively.
        fills: the command's field it sets.
        convert: (option name, argument or b"") to the field's value.
        argument: name of the word that follows; None for a flag.
        bare: the argument may stand alone, without the option's name.
        help: one line for the documentation.
    """

    name: str
    fills: str
    convert: Callable[[str, bytes], object]
    argument: str | None = None
    bare: bool = False
    help: str = ""


class Effect(Enum):
    """What a command may do to the store."""

    NOTHING = "touches nothing: its answer rests on nothing, so it need not wait for the disk"
    READS = "reads: that it finds nothing is an answer, and refuses no unit"
    CHANGES = "changes something: its refusal refuses a unit"


class Needs(Enum):
    """What a key has to hold for a command; in words, what it holds when it is refused, and what the command does."""

    ANYTHING = ("", "")
    VALUE = ("a queue", "reads plain values")
    QUEUE = ("a plain value", "needs a queue")


NO_KEY = {Error.KEY_NOT_FOUND: "there is no such key"}
OTHER_KIND = {
    Error.WRONG_TYPE: "the key holds a queue and the command needs a plain value, or the reverse",
}
NO_ROOM = {Error.STORAGE_FULL: "the disk is full, or the memory that `--max-memory` allows"}
"""Errors of many rows, and when they come."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        name: canonical name, upper case.
        command: the dataclass to make.
        summary: what it does, one line.
        examples: commands that show it, for the documentation, one after the other in the line dialect.
        more_examples: those that come then, in the fields dialect.
        parameters: positional words, in order; only the last may be `many`.
        options: named words, in any order.
        aliases: other names.
        errors: what it may be refused with beyond the errors any command may get, and when.
        effect: what it may do to the store.
        needs: what its key has to hold.
        takes: whether what it answers is taken out of a queue, and goes back if its client is gone by then.
        waits: whether it waits for something to take; then it has a field `timeout_ms`, None for ever, 0 not at all.
        adds_up: whether it can be done for some of its keys after the other, and the counts be added up.
    """

    name: str
    command: type[Command]
    summary: str
    examples: tuple[str, ...]
    more_examples: tuple[str, ...]
    parameters: tuple[Parameter, ...] = ()
    options: tuple[Option, ...] = ()
    aliases: tuple[str, ...] = ()
    errors: Mapping[Error, str] = field(default_factory=dict)
    effect: Effect = Effect.READS
    needs: Needs = Needs.ANYTHING
    takes: bool = False
    waits: bool = False
    adds_up: bool = False

    @property
    def stores(self) -> bool:
        """Whether it may store something: a full disk or memory refuses it."""
        return Error.STORAGE_FULL in self.errors

    @property
    def many(self) -> Parameter | None:
        """The parameter that takes any number of words, if it has one; so many commands is it worth."""
        return self.parameters[-1] if self.parameters and self.parameters[-1].many else None

    @property
    def usage(self) -> str:
        """The pattern as documentation writes it, `SET key value [EX s | PX ms] [NX | XX]`."""
        words = [self.name]
        for parameter in self.parameters:
            word = parameter.kind.value
            words.append(f"{word} [{word} ...]" if parameter.many else word)
        alternatives: dict[str, list[str]] = {}
        for option in self.options:
            shown = option.argument if option.bare else " ".join(filter(None, (option.name, option.argument)))
            alternatives.setdefault(option.fills, []).append(str(shown))
        words += [f"[{' | '.join(group)}]" for group in alternatives.values()]
        return " ".join(words)


def read(row: Row, argv: Sequence[bytes], limits: Limits) -> Command:
    """Makes the command of an argv whose first word is the row's name.

    Args:
        row: of the table.
        argv: the command's name, then its words.
        limits: bounds on keys and values.

    Returns:
        The command.

    Raises:
        CommandError: wrong number of words, bad option, or something over its limit.
    """
    fields, rest = _positional(row, argv, limits)
    _options(row, rest, fields)
    return row.command(**fields)


def show(word: bytes) -> str:
    """Quotes a word for a message: control characters escaped, long words shortened."""
    text = word[: 4 * _SHOWN_CHARACTERS_MAX].decode("utf-8", "backslashreplace")
    if len(text) > _SHOWN_CHARACTERS_MAX:
        text = text[:_SHOWN_CHARACTERS_MAX] + "..."
    return repr(text)


def _positional(row: Row, argv: Sequence[bytes], limits: Limits) -> tuple[dict[str, object], Sequence[bytes]]:
    """Fills the positional fields and returns them with the words that are left for the options."""
    fields: dict[str, object] = {}
    at = 1
    for parameter in row.parameters:
        if at >= len(argv):
            raise CommandError(f"{row.name}: {parameter.kind.value} is missing, expected {row.usage}")
        end = len(argv) if parameter.many else at + 1
        words = argv[at:end]
        for word in words:
            _check_size(parameter.kind, word, limits)
        fields[parameter.fills] = tuple(words) if parameter.many else words[0]
        at = end
    return fields, argv[at:]


def _check_size(kind: Kind, word: bytes, limits: Limits) -> None:
    bytes_max = limits.key_bytes_max if kind is Kind.KEY else limits.value_bytes_max
    if len(word) > bytes_max:
        raise CommandError(
            f"the {kind.value} has {len(word)} bytes, at most {bytes_max} are taken (--max-{kind.value})",
            Error.TOO_LARGE,
        )


def _options(row: Row, words: Sequence[bytes], fields: dict[str, object]) -> None:
    """Fills the optional fields from the words behind the positional ones."""
    at = 0
    while at < len(words):
        option, argument, taken = _option(row, words, at)
        if option.fills in fields:
            rivals = " or ".join(o.name for o in row.options if o.fills == option.fills)
            raise CommandError(f"{row.name} takes {rivals} at most once")
        fields[option.fills] = option.convert(option.name, argument)
        at += taken


def _option(row: Row, words: Sequence[bytes], at: int) -> tuple[Option, bytes, int]:
    """Finds the option that starts at `at`: the option, its argument, and the number of words it takes."""
    word = words[at].upper()
    for option in row.options:
        name = option.name.encode()
        if word == name:
            if option.argument is None:
                return option, b"", 1
            if at + 1 < len(words):
                return option, words[at + 1], 2
            raise CommandError(f"{row.name}: {option.name} needs a word behind it, {option.name} {option.argument}")
        if option.argument is not None and word.startswith(name) and word[len(name) :].isdigit():
            return option, word[len(name) :], 1
    for option in row.options:
        if option.bare:
            return option, words[at], 1
    hint = "; a value with spaces stands in quotes" if row.options and not words[at].isdigit() else ""
    raise CommandError(f"{row.name} does not take {show(words[at])}, expected {row.usage}{hint}")
