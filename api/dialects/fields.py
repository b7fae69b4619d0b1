"""The fields dialect: `{"command": "SET", "key": "k", "value": "v", "options": {"ex": 60}}`. Pure.

The rules that hold here:

- A member can only become what it is called. Which members a command takes, and which of them may be lists, is read
  from the rows of the grammar table; the words of `options` never end up as a key or a value, nor a value as a key.
- `read` is the authority; `plain` does the same for a key, or a key and a value, in less time.
"""

from __future__ import annotations

from typing import NamedTuple

from api.dialects.json_body import BadRequest, Json, Number, type_name
from api.dialects.line import split_line
from api.dialects.request import Dialect, Request, Understood
from engine.commands import table
from engine.commands.grammar import CommandError, Kind, Row, show
from engine.commands.table import lookup
from engine.limits import Limits
from engine.replies import Failure

_KINDS = tuple((kind.value.encode(), kind) for kind in Kind)

_HINT = ": send it as a string: json.dumps in Python, JSON.stringify in JavaScript"
_HINT_IN_LIST = ": send each of them as a string: json.dumps in Python, JSON.stringify in JavaScript"
"""What to do with jobs that are JSON themselves. A list is several values, and each of them may be one."""

MEMBERS = (*(name for name, _ in _KINDS), b"options")
"""Each of them, beside `command`, makes a body one of this dialect."""


class _Given(NamedTuple):
    """What the fields dialect was given for one kind of parameter."""

    words: list[bytes]
    is_list: bool


def read(command: bytes, members: dict[bytes, Json], limits: Limits) -> Request:
    """Turns members into a request: reads every one for its shape, then fits them to the command's row.

    Args:
        command: the member of that name.
        members: all of the body, none that is unknown.
        limits: bounds on the words; keys and values are for the grammar to check.

    Returns:
        The request; it has a failure when the row does not take what is there.

    Raises:
        BadRequest: a member of a shape that it never has.
    """
    given = {kind: _given(kind, members[name]) for name, kind in _KINDS if name in members}
    options = members.get(b"options", [])
    _check_options(options)
    key = _echo(given.get(Kind.KEY), limits)
    try:
        return Request(_argv(command, given, options, limits), Dialect.FIELDS, key)
    except CommandError as mistake:
        return Request([], Dialect.FIELDS, key, Failure(mistake.error, mistake.detail))


def plain(name: str, members: dict[str, object], limits: Limits) -> Understood | None:
    """Understands a command at once that takes exactly the members that are there: a key, or a key and a value.

    Args:
        name: the member `command`.
        members: all of the body, as `json_body.scan` makes it.
        limits: of the product.

    Returns:
        The request and the command; None for anything else, and for every mistake.

    Raises:
        ValueError: a lone surrogate.
    """
    argv = [name.encode()]
    for member in ("key",) if len(members) == 2 else ("key", "value"):
        word = members.get(member)
        if type(word) is str:
            argv.append(word.encode())
        elif type(word) is Number:
            argv.append(bytes(word))
        else:
            return None
    command = table.plain(argv, limits) if len(members) <= 3 else None
    if command is None or len(argv[1]) > limits.value_bytes_max:
        return None
    return Request([], Dialect.FIELDS, argv[1].decode()), command


def _given(kind: Kind, value: Json) -> _Given:
    if isinstance(value, list):
        hint = _HINT_IN_LIST if kind is Kind.VALUE else ""
        return _Given([_word(kind.value, element, hint) for element in value], is_list=True)
    hint = _HINT if kind is Kind.VALUE else ""
    return _Given([_word(kind.value, value, hint)], is_list=False)


def _check_options(options: Json) -> None:
    if isinstance(options, dict | list):
        for value in options.values() if isinstance(options, dict) else options:
            _word("options", value)
    elif type(options) is not bytes:
        raise BadRequest(f"options takes an object, a list of words or a string, not {type_name(options)}")


def _word(member: str, value: Json, hint: str = "") -> bytes:
    if isinstance(value, bytes):
        return bytes(value)  # a plain one, of a number too
    if isinstance(value, bool):
        return b"true" if value else b"false"
    raise BadRequest(f"{member} takes strings, numbers, true and false, not {type_name(value)}{hint}")


def _echo(given: _Given | None, limits: Limits) -> str | list[str] | None:
    """What the answer repeats: every key within its limit, all together no longer than a value."""
    if given is None or max(map(len, given.words), default=0) > limits.key_bytes_max:
        return None
    if sum(map(len, given.words)) > limits.value_bytes_max:
        return None
    words = [word.decode() for word in given.words]
    return words if given.is_list else words[0]


def _argv(command: bytes, given: dict[Kind, _Given], options: Json, limits: Limits) -> list[bytes]:
    """Puts the words in the order of the command's row; CommandError for what the row does not take."""
    if not command or b" " in command:
        raise CommandError(f"beside key, value or options the command is one word, not {show(command)}")
    row = lookup(command)
    if row is None:
        return [command]  # the grammar has the words for it
    argv = [command]
    for parameter in row.parameters:
        here = given.get(parameter.kind)
        if here is None or not here.words:
            raise CommandError(f"{row.name}: {parameter.kind.value} is missing, expected {row.usage}")
        if here.is_list and not parameter.many:
            hint = _HINT if parameter.kind is Kind.VALUE else ""
            raise CommandError(f"{row.name} takes one {parameter.kind.value}, not a list, expected {row.usage}{hint}")
        argv += here.words
    for kind in given:
        if all(parameter.kind is not kind for parameter in row.parameters):
            raise CommandError(f"{row.name} takes no {kind.value}, expected {row.usage}")
    return argv + _option_words(row, options, limits)


def _option_words(row: Row, options: Json, limits: Limits) -> list[bytes]:
    if isinstance(options, dict):
        return [word for name, value in options.items() for word in _named_option(row, name, value)]
    if isinstance(options, list):
        words = [_word("options", value) for value in options]
    else:
        assert isinstance(options, bytes)
        words = split_line(options, limits.tokens_max)
    if words and not row.options:  # behind a list of keys or values they would be taken for more of them
        raise CommandError(f"{row.name} takes no options, expected {row.usage}")
    return words


def _named_option(row: Row, name: bytes, value: Json) -> list[bytes]:
    option = next((option for option in row.options if option.name.encode() == name.upper()), None)
    if option is None:
        raise CommandError(f"{row.name} does not take the option {show(name)}, expected {row.usage}")
    if option.argument is not None:
        return [name, _word("options", value)]
    if not isinstance(value, bool):
        raise CommandError(f"{row.name}: {option.name} is true or false")
    return [name] if value else []
