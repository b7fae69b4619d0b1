"""The grammar: ONE table turns an argv into a typed command, and `docs/commands.md` is made from it.

An argv is a list of byte strings, `[b"SET", b"key_a", b"2", b"EX", b"60", b"NX"]`; every dialect
produces one, so a command is described once, here. A row of `TABLE` names the command, its positional
parameters and its options, and says which field of the command's dataclass each one fills. Two options
that fill the same field exclude each other: that is how `EX` with `PX`, `NX` with `XX`, and any option
given twice are found, with no rule written for a single command.

To add a command: a dataclass and a row here, how it decides in `state.py`, and a test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from engine.frozen import frozen
from engine.limits import Limits
from engine.replies import Error

TTL_MS_MAX = 10**15
"""Longest expiry, 31,700 years: far from where a deadline would no longer fit the log's 64 bits."""

TIMEOUT_S_MAX = 10**9
"""Longest BQPOP timeout, 31 years; for longer ones leave it out."""

_INTEGER = re.compile(rb"[0-9]{1,16}")
_DECIMAL = re.compile(rb"(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})")
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


class Condition(Enum):
    """When a SET may write."""

    IF_MISSING = "NX"
    IF_PRESENT = "XX"


@frozen
class Set:
    """Writes a value; drops an older expiry."""

    key: bytes
    value: bytes
    ttl_ms: int | None = None
    condition: Condition | None = None


@frozen
class Get:
    """Reads a value."""

    key: bytes


@frozen
class Delete:
    """Removes keys or queues."""

    keys: tuple[bytes, ...]


@frozen
class Exists:
    """Counts those that exist."""

    keys: tuple[bytes, ...]


@frozen
class QPush:
    """Appends values to a queue."""

    key: bytes
    values: tuple[bytes, ...]


@frozen
class QPop:
    """Takes the last value of a queue."""

    key: bytes


@frozen
class BQPop:
    """Takes the first value of a queue, waiting for one; `timeout_ms` None waits for ever."""

    key: bytes
    timeout_ms: int | None = None


@frozen
class QLen:
    """Counts the values of a queue."""

    key: bytes


@frozen
class Ttl:
    """Asks how long a key has left."""

    key: bytes


@frozen
class Ping:
    """Asks whether anybody is there."""


Command = Set | Get | Delete | Exists | QPush | QPop | BQPop | QLen | Ttl | Ping


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


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the table.

    Attributes:
        name: canonical name, upper case.
        command: the dataclass to make.
        parameters: positional words, in order; only the last may be `many`.
        options: named words, in any order.
        aliases: other names.
        summary: what it does, one line.
        line_answer: what the line dialect answers, for the documentation.
        fields_answer: members beside `success` in the fields dialect, for the documentation.
        errors: what it may be refused with beyond the errors any command may get.
    """

    name: str
    command: type[Command]
    summary: str
    line_answer: str
    fields_answer: str
    parameters: tuple[Parameter, ...] = ()
    options: tuple[Option, ...] = ()
    aliases: tuple[str, ...] = ()
    errors: tuple[Error, ...] = ()

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


def _seconds(name: str, argument: bytes) -> int:
    return _ttl_ms(name, argument, 1000, "seconds")


def _milliseconds(name: str, argument: bytes) -> int:
    return _ttl_ms(name, argument, 1, "milliseconds")


def _ttl_ms(name: str, argument: bytes, factor: int, unit: str) -> int:
    if _INTEGER.fullmatch(argument):
        ttl_ms = int(argument) * factor
        if 0 < ttl_ms <= TTL_MS_MAX:
            return ttl_ms
    raise CommandError(f"{name} takes a whole number of {unit} from 1 to {TTL_MS_MAX // factor}, not {show(argument)}")


def _timeout_ms(name: str, argument: bytes) -> int:
    if _DECIMAL.fullmatch(argument):
        timeout_s = Decimal(argument.decode())  # a float would make 16.1 s one millisecond longer
        if timeout_s <= TIMEOUT_S_MAX:
            return math.ceil(timeout_s * 1000)
    raise CommandError(f"{name} takes seconds as a decimal from 0 to {TIMEOUT_S_MAX}, not {show(argument)}")


def _condition(name: str, _argument: bytes) -> Condition:
    return Condition(name)


_ONE_KEY = (Parameter(Kind.KEY, "key"),)
_MANY_KEYS = (Parameter(Kind.KEY, "keys", many=True),)

TABLE: tuple[Spec, ...] = (
    Spec(
        name="SET",
        command=Set,
        summary="Writes the value of a key, whatever it held before; an older expiry is dropped.",
        line_answer="200, empty body",
        fields_answer="`key`",
        parameters=(Parameter(Kind.KEY, "key"), Parameter(Kind.VALUE, "value")),
        options=(
            Option(
                "EX", "ttl_ms", _seconds, "s", help="expires in so many seconds, at most 10^12; `EX60` in one word too"
            ),
            Option(
                "PX", "ttl_ms", _milliseconds, "ms", help="expires in so many milliseconds; `PX500` in one word too"
            ),
            Option("NX", "condition", _condition, help="only if the key does not exist"),
            Option("XX", "condition", _condition, help="only if the key exists"),
        ),
        errors=(Error.KEY_ALREADY_EXISTS, Error.KEY_NOT_FOUND, Error.STORAGE_FULL),
    ),
    Spec(
        name="GET",
        command=Get,
        summary="Reads the value of a key.",
        line_answer='200 `{"value": "v"}`',
        fields_answer="`key`, `value`",
        parameters=_ONE_KEY,
        errors=(Error.KEY_NOT_FOUND, Error.WRONG_TYPE),
    ),
    Spec(
        name="DELETE",
        command=Delete,
        summary="Removes keys and queues, and answers how many there were.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=_MANY_KEYS,
        aliases=("DEL",),
        errors=(Error.KEY_NOT_FOUND,),
    ),
    Spec(
        name="EXISTS",
        command=Exists,
        summary="Counts the keys and queues that exist; a key named twice counts twice.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=_MANY_KEYS,
    ),
    Spec(
        name="QPUSH",
        command=QPush,
        summary="Makes the queue if need be and appends the values, in order.",
        line_answer="200, empty body",
        fields_answer="`key`, `value`: the length after",
        parameters=(Parameter(Kind.KEY, "key"), Parameter(Kind.VALUE, "values", many=True)),
        errors=(Error.WRONG_TYPE, Error.STORAGE_FULL),
    ),
    Spec(
        name="QPOP",
        command=QPop,
        summary="Takes the last value of a queue (last in, first out); null when there is no such queue. An emptied"
        " queue still exists, until DELETE or SET.",
        line_answer='200 `{"value": "v"}`',
        fields_answer="`key`, `value`",
        parameters=_ONE_KEY,
        errors=(Error.QUEUE_IS_EMPTY, Error.WRONG_TYPE),
    ),
    Spec(
        name="BQPOP",
        command=BQPop,
        summary="Takes the first value of a queue (first in, first out); waits while there is none, and"
        " answers null when the timeout passes. Those who wait are served first come, first served.",
        line_answer='200 `{"value": "v"}`',
        fields_answer="`key`, `value`",
        parameters=_ONE_KEY,
        options=(
            Option(
                "TIMEOUT",
                "timeout_ms",
                _timeout_ms,
                "timeout",
                bare=True,
                help="seconds, a decimal up to 10^9; 0 answers at once; left out, waits as long as the client stays",
            ),
        ),
        errors=(Error.WRONG_TYPE, Error.UNAVAILABLE),
    ),
    Spec(
        name="QLEN",
        command=QLen,
        summary="Counts the values that wait in a queue; 0 when there is no such queue.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=_ONE_KEY,
        errors=(Error.WRONG_TYPE,),
    ),
    Spec(
        name="TTL",
        command=Ttl,
        summary="Seconds a key has left, rounded up; -1 when it does not expire, -2 when it does not exist.",
        line_answer='200 `{"value": n}`',
        fields_answer="`key`, `value`",
        parameters=_ONE_KEY,
    ),
    Spec(
        name="PING",
        command=Ping,
        summary="Answers PONG, and touches nothing.",
        line_answer='200 `{"value": "PONG"}`',
        fields_answer="`value`",
    ),
)

_BY_NAME: dict[bytes, Spec] = {name.encode(): spec for spec in TABLE for name in (spec.name, *spec.aliases)}


def _plain(spec: Spec) -> Callable[..., Command]:
    """What makes a row's command of one word for each parameter."""
    make: Callable[..., Command] = spec.command
    if spec.parameters and spec.parameters[-1].many:
        return lambda *words: make(*words[:-1], words[-1:])
    return make


def _plain_commands(*kinds: Kind) -> dict[bytes, Callable[..., Command]]:
    """Makes the rows of the table whose parameters are of these kinds, by their names in upper and in lower case."""
    return {
        spelled: _plain(spec)
        for name, spec in _BY_NAME.items()
        for spelled in (name, name.lower())
        if tuple(parameter.kind for parameter in spec.parameters) == kinds
    }


# The table once more, for commands without options and with one word for each parameter, which most are. A SET of
# three words takes 0.3 microseconds through these; through the rows it takes 2.2.
_WITH_KEY = _plain_commands(Kind.KEY)
_WITH_KEY_AND_VALUE = _plain_commands(Kind.KEY, Kind.VALUE)


def lookup(name: bytes) -> Spec | None:
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
    spec = lookup(argv[0])
    if spec is None:
        raise CommandError(f"unknown command {show(argv[0])}, expected one of {_names()}")
    fields, rest = _positional(spec, argv, limits)
    _options(spec, rest, fields)
    return spec.command(**fields)  # type: ignore[arg-type]  # the table names the fields; a test builds every row


def show(word: bytes) -> str:
    """Quotes a word for a message: control characters escaped, long words shortened."""
    text = word[: 4 * _SHOWN_CHARACTERS_MAX].decode("utf-8", "backslashreplace")
    if len(text) > _SHOWN_CHARACTERS_MAX:
        text = text[:_SHOWN_CHARACTERS_MAX] + "..."
    return repr(text)


def _names() -> str:
    return ", ".join(spec.name for spec in TABLE)


def _positional(spec: Spec, argv: Sequence[bytes], limits: Limits) -> tuple[dict[str, object], Sequence[bytes]]:
    """Fills the positional fields and returns them with the words that are left for the options."""
    fields: dict[str, object] = {}
    at = 1
    for parameter in spec.parameters:
        if at >= len(argv):
            raise CommandError(f"{spec.name}: {parameter.kind.value} is missing, expected {spec.usage}")
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
        raise CommandError(f"the {kind.value} has {len(word)} bytes, at most {bytes_max} are taken", Error.TOO_LARGE)


def _options(spec: Spec, words: Sequence[bytes], fields: dict[str, object]) -> None:
    """Fills the optional fields from the words behind the positional ones."""
    at = 0
    while at < len(words):
        option, argument, taken = _option(spec, words, at)
        if option.fills in fields:
            rivals = " or ".join(o.name for o in spec.options if o.fills == option.fills)
            raise CommandError(f"{spec.name} takes {rivals} at most once")
        fields[option.fills] = option.convert(option.name, argument)
        at += taken


def _option(spec: Spec, words: Sequence[bytes], at: int) -> tuple[Option, bytes, int]:
    """Finds the option that starts at `at`: the option, its argument, and the number of words it takes."""
    word = words[at].upper()
    for option in spec.options:
        name = option.name.encode()
        if word == name:
            if option.argument is None:
                return option, b"", 1
            if at + 1 < len(words):
                return option, words[at + 1], 2
            raise CommandError(f"{spec.name}: {option.name} needs a word behind it, {option.name} {option.argument}")
        if option.argument is not None and word.startswith(name) and word[len(name) :].isdigit():
            return option, word[len(name) :], 1
    for option in spec.options:
        if option.bare:
            return option, words[at], 1
    hint = "; a value with spaces stands in quotes" if spec.options and not words[at].isdigit() else ""
    raise CommandError(f"{spec.name} does not take {show(words[at])}, expected {spec.usage}{hint}")
