"""The dialects: a request body becomes an argv, and that a command. Pure; how it is answered is in `answers`.

Every request is the same thing further in, an argv that `engine.commands.grammar.parse` turns into a command.
A dialect only spells it:

    line     {"command": "SET key_a 2 EX 60 NX"}                        the only member
    fields   {"command": "SET", "key": "k", "value": "v", "options": {"ex": 60}}

The rules that hold here:

- A body that is no request at all raises `BadRequest`. A request with a mistake in it is still a `Request`: it
  carries the `failure`, and is answered in its own dialect.
- A member of the fields dialect can only become what it is called. Which members a command takes, and
  which of them may be lists, is read from the rows of the grammar table; the words of `options` never
  end up as a key or a value, nor a value as a key.
- `plain` takes what nearly all send; the long way is the authority for everything else, and for every mistake.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeAlias

from api.dialects.answers import (
    LINE,
    Answer,
    Dialect,
    Request,
    answer,
    as_bad_request,
    failure,
    refuse,
    refuse_batch,
)
from api.dialects.json_body import BadRequest, Json, Number, as_bytes, check_strings, is_quick, parse_in_steps, scan
from api.dialects.line import split_line
from engine.calls import Command
from engine.commands import table as commands
from engine.commands.grammar import CommandError, Kind, Row, show
from engine.commands.table import lookup
from engine.limits import KIB, Limits
from engine.replies import Failure

__all__ = [
    "LINE",
    "Answer",
    "BadRequest",
    "Dialect",
    "Request",
    "Understood",
    "answer",
    "as_bad_request",
    "failure",
    "is_quick",
    "parse",
    "plain",
    "plain_lines",
    "read",
    "refuse",
    "refuse_batch",
    "understand",
    "understand_in_steps",
]

_MEMBERS = (b"command", b"key", b"value", b"options")

_KINDS = tuple((kind.value.encode(), kind) for kind in Kind)

_PLAIN_LINE = re.compile(rb'\{"command": ?"([ !#-&(-\[\]-~]*)"\}')
"""The one member of a line in printable ASCII; no quotes, no backslash: it is its own text, and so are its words."""

_SHORT_BYTES_MAX = 2 * KIB
"""Up to this length that expression is faster than the C scanner, beyond it slower: 101 against 75 us for 60 KiB."""

_SINGLE_QUOTE, _DOUBLE_QUOTE = b"'\""


Understood: TypeAlias = tuple[Request, Command | Failure]
"""A request, for its answer; and the command, or the failure to answer instead of running one."""


def understand(body: bytes, limits: Limits) -> Understood:
    """Turns a request body into a command, or into the reply that says why it is none.

    A line in ASCII without quotes and escapes takes 1 microsecond, what else is `plain` 2, the long way 5 to 12.

    Args:
        body: as received; `is_quick` says yes to it.
        limits: of the product.

    Returns:
        The request, for `answer`; and the command, or the failure to answer instead.

    Raises:
        BadRequest: not strict JSON, or JSON of a shape that is no request in any dialect; for `refuse`.
    """
    if len(body) > limits.body_bytes_max:
        return understand_in_steps(body, limits)
    match = _PLAIN_LINE.fullmatch(body) if len(body) <= _SHORT_BYTES_MAX else None
    command = commands.plain(match[1].split(), limits) if match else None
    if command is not None:
        return LINE, command
    try:
        scanned, strings = scan(body)
        check_strings(scanned, strings)
        understood = plain(scanned, limits)
        if understood is not None:
            return understood
        value = as_bytes(scanned, limits.json_depth_max)
    except (ValueError, RecursionError):
        return understand_in_steps(body, limits)
    return read(value, limits)


def understand_in_steps(body: bytes, limits: Limits) -> Understood:
    """Does as `understand` does, for a body of any size, in a worker thread."""
    return read(parse_in_steps(body, limits), limits)


def read(value: Json, limits: Limits) -> Understood:
    """Does as `understand` does, for a body that was parsed already."""
    request = parse(value, limits)
    return request, request.failure or _command(request.argv, limits)


def plain(members: object, limits: Limits) -> Understood | None:
    """Understands a plain request: a line without quotes in it, or fields without options and lists.

    Args:
        members: a JSON value as `json_body.scan` makes it.
        limits: of the product.

    Returns:
        As `understand`; None when the request is not plain, or has a mistake that is for the dialects to find.

    Raises:
        ValueError: a lone surrogate.
    """
    if type(members) is not dict:
        return None
    command = members.get("command")
    if type(command) is not str:
        return None
    if len(members) > 1:
        return _plain_fields(command, members, limits)
    line = command.encode()
    if _DOUBLE_QUOTE in line or _SINGLE_QUOTE in line:
        return None
    words = line.split(b" ")
    return LINE, _command([word for word in words if word] if b"" in words else words, limits)


def plain_lines(elements: list[Any], strings: int | None, limits: Limits) -> list[Command | Failure] | None:
    """Understands the elements of a list if all are plain lines, as in most batches: in 0.7 microseconds each.

    Args:
        elements: as scanned.
        strings: how many they must have, as `json_body.scan` says.
        limits: of the product.

    Returns:
        For each the command, or the failure to answer instead; None when `plain` has to look at them one by one.
    """
    if strings != 2 * len(elements) or set(map(type, elements)) != {dict} or sum(map(len, elements)) != len(elements):
        return None
    lines = [element.get("command") for element in elements]
    if set(map(type, lines)) != {str}:
        return None
    text = "\n".join(lines).encode()  # there is no line feed in a line, for nothing was escaped
    if _SINGLE_QUOTE in text:
        return None
    argvs = [line.split() for line in text.split(b"\n")]  # for the same reason there are no tabs and the like
    return [commands.plain(argv, limits) or _command(argv, limits) for argv in argvs]


def _plain_fields(name: str, members: dict[str, object], limits: Limits) -> Understood | None:
    """Understands a command that takes exactly the members that are there: a key, or a key and a value."""
    argv = [name.encode()]
    for member in ("key",) if len(members) == 2 else ("key", "value"):
        word = members.get(member)
        if type(word) is str:
            argv.append(word.encode())
        elif type(word) is Number:
            argv.append(bytes(word))
        else:
            return None
    command = commands.plain(argv, limits) if len(members) <= 3 else None
    if command is None or len(argv[1]) > limits.value_bytes_max:
        return None
    return Request([], Dialect.FIELDS, argv[1].decode()), command


def _command(argv: list[bytes], limits: Limits) -> Command | Failure:
    try:
        return commands.parse(argv, limits)
    except CommandError as mistake:
        return Failure(mistake.error, mistake.detail)


def parse(members: Json, limits: Limits) -> Request:
    """Turns the JSON value of a request body into a request.

    Args:
        members: as `json_body` reads it.
        limits: bounds on the words; keys and values are for the grammar to check.

    Returns:
        The request; look at its `failure` first.

    Raises:
        BadRequest: JSON of a shape that is no request in any dialect.
    """
    if isinstance(members, list):
        raise BadRequest("a list of commands goes to /pipeline or /multi; the array form of one is not supported yet")
    if not isinstance(members, dict):
        raise BadRequest(f"expected an object with a member 'command', not {_type_name(members)}")
    try:
        return _request(members, limits)
    except BadRequest as bad:
        bad.in_fields = any(name in members for name, _ in _KINDS) or b"options" in members
        raise


def _request(members: dict[bytes, Json], limits: Limits) -> Request:
    for name in members:
        if name not in _MEMBERS:
            known = ", ".join(member.decode() for member in _MEMBERS)
            raise BadRequest(f"unknown member {show(name)}, known are {known}")
    command = members.get(b"command")
    if type(command) is not bytes:
        found = _type_name(command) if b"command" in members else "left out"
        raise BadRequest(f"the member 'command' must be a string, it is {found}")
    return _line(command, limits) if len(members) == 1 else _fields(command, members, limits)


def _line(command: bytes, limits: Limits) -> Request:
    try:
        return Request(split_line(command, limits.tokens_max), Dialect.LINE)
    except CommandError as mistake:
        return Request([], Dialect.LINE, failure=Failure(mistake.error, mistake.detail))


class _Given(NamedTuple):
    """What the fields dialect was given for one kind of parameter."""

    words: list[bytes]
    is_list: bool


def _fields(command: bytes, members: dict[bytes, Json], limits: Limits) -> Request:
    """Reads every member for its shape (BadRequest), then fits them to the command's row (Failure)."""
    given = {kind: _given(kind, members[name]) for name, kind in _KINDS if name in members}
    options = members.get(b"options", [])
    _check_options(options)
    key = _echo(given.get(Kind.KEY), limits)
    try:
        return Request(_argv(command, given, options, limits), Dialect.FIELDS, key)
    except CommandError as mistake:
        return Request([], Dialect.FIELDS, key, Failure(mistake.error, mistake.detail))


def _given(kind: Kind, value: Json) -> _Given:
    if isinstance(value, list):
        return _Given([_word(kind.value, element) for element in value], is_list=True)
    return _Given([_word(kind.value, value)], is_list=False)


def _check_options(options: Json) -> None:
    if isinstance(options, dict | list):
        for value in options.values() if isinstance(options, dict) else options:
            _word("options", value)
    elif type(options) is not bytes:
        raise BadRequest(f"options takes an object, a list of words or a string, not {_type_name(options)}")


def _word(member: str, value: Json) -> bytes:
    if isinstance(value, bytes):
        return bytes(value)  # a plain one, of a number too
    if isinstance(value, bool):
        return b"true" if value else b"false"
    raise BadRequest(f"{member} takes strings, numbers, true and false, not {_type_name(value)}")


def _type_name(value: Json) -> str:
    if isinstance(value, Number):
        return "a number"
    names = {dict: "an object", list: "a list", bytes: "a string", bool: "true or false"}
    return names.get(type(value), "null")


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
            raise CommandError(f"{row.name} takes one {parameter.kind.value}, not a list, expected {row.usage}")
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
