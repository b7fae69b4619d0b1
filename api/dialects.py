"""The dialects: a request body becomes an argv, a reply becomes a status and a body. Pure.

Every request is the same thing further in, an argv that `engine.commands.parse` turns into a command.
A dialect only spells it:

    line     {"command": "SET key_a 2 EX 60 NX"}                        the only member
    fields   {"command": "SET", "key": "k", "value": "v", "options": {"ex": 60}}

The rules that hold here:

- A body that is no request at all raises `BadRequest`; `refuse` answers it, in the line form unless it has members
  of the fields dialect. A request with a
  mistake in it is still a `Request`: it carries the `failure`, and is answered in its own dialect.
- A member of the fields dialect can only become what it is called. Which members a command takes, and
  which of them may be lists, is read from the rows of the grammar table; the words of `options` never
  end up as a key or a value, nor a value as a key.
- Answers are JSON in UTF-8 with the separators of the documentation; members that do not apply are left
  out. A value that is no UTF-8 is base64, and says so.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from api.json_body import BadRequest, Json, Number, is_quick, take_steps
from api.json_body import parse as parse_json
from engine import commands
from engine.commands import Command, CommandError, Kind, Spec, lookup, show
from engine.limits import KIB, Limits
from engine.replies import Error, Failure, Integer, Ok, Reply, Value

__all__ = [
    "Answer",
    "BadRequest",
    "Dialect",
    "Request",
    "answer",
    "failure",
    "is_quick",
    "parse",
    "refuse",
    "split_line",
    "understand",
]

_MEMBERS = (b"command", b"key", b"value", b"options")

_KINDS = tuple((kind.value.encode(), kind) for kind in Kind)

_STATUS = {
    Error.INVALID_COMMAND: 400,
    Error.KEY_NOT_FOUND: 404,
    Error.QUEUE_IS_EMPTY: 404,
    Error.KEY_ALREADY_EXISTS: 409,
    Error.WRONG_TYPE: 409,
    Error.TOO_LARGE: 413,
    Error.UNAVAILABLE: 503,
    Error.STORAGE_FULL: 507,
    Error.INTERNAL_ERROR: 500,
}

_ENCODER = json.JSONEncoder(ensure_ascii=False)

_PLAIN_LINE_BYTES_MAX = 64 * KIB
"""Longest line that is split in one go, which holds the GIL; longer ones are split word by word."""

# What stands between two quotes, in bounded steps that never cut an escape in two.
_SPACES_STEP = re.compile(rb" {0,65536}+")
_DOUBLE_STEP = re.compile(rb'(?:[^"\\]{1,64}+|\\x[0-9a-fA-F]{2}|\\.){0,2048}+', re.DOTALL)
_SINGLE_STEP = re.compile(rb"(?:[^'\\]{1,64}+|\\'|\\){0,2048}+")
_DOUBLE_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_DOUBLE_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


class Dialect(Enum):
    """How a request was spelled, and so how it is answered."""

    LINE = "line"
    FIELDS = "fields"


@dataclass(frozen=True, slots=True)
class Request:
    """One command as it was asked for.

    Attributes:
        argv: the words for `engine.commands.parse`; empty when there is a failure.
        dialect: how to answer.
        key: echoed by the fields dialect, as the text that was sent; None when there was none, when one
            is over its limit, and for a list of keys longer than a value may be.
        failure: the mistake the dialect found; to be answered instead of running anything.
    """

    argv: list[bytes]
    dialect: Dialect
    key: str | list[str] | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes over HTTP: the status, and a body that is JSON or empty."""

    status: int
    body: bytes


def understand(body: bytes, limits: Limits) -> tuple[Request, Command | Failure]:
    """Turns a request body into a command, or into the reply that says why it is none.

    Args:
        body: as received. Unless `is_quick` says yes, call this in a worker thread.
        limits: of the product.

    Returns:
        The request, for `answer`; and the command, or the failure to answer instead.

    Raises:
        BadRequest: not strict JSON, or JSON of a shape that is no request in any dialect; for `refuse`.
    """
    request = parse(body, limits)
    if request.failure is not None:
        return request, request.failure
    try:
        return request, commands.parse(request.argv, limits)
    except CommandError as error:
        return request, Failure(error.error, error.detail)


def parse(body: bytes, limits: Limits) -> Request:
    """Turns a request body into a request.

    Args:
        body: as received. Unless `is_quick` says yes, call this in a worker thread.
        limits: bounds on the body, its depth and its words; keys and values are for the grammar to check.

    Returns:
        The request; look at its `failure` first.

    Raises:
        BadRequest: not strict JSON, or JSON of a shape that is no request in any dialect.
    """
    members = parse_json(body, limits)
    if isinstance(members, list):
        raise BadRequest("the array form is not supported yet")
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


def answer(request: Request, reply: Reply) -> Answer:
    """Turns a reply into an answer, in the dialect of the request.

    Args:
        request: what was asked.
        reply: what the engine answered, or the request's own failure.

    Returns:
        Status and body.
    """
    if request.dialect is Dialect.FIELDS:
        return _fields_answer(request.key, reply)
    if isinstance(reply, Failure):
        return failure(_STATUS[reply.error], reply.error.value, reply.detail)
    if isinstance(reply, Ok):
        return Answer(200, b"")
    return Answer(200, _encode(_value_members(reply)))


def refuse(bad: BadRequest) -> Answer:
    """Answers a body that is no request, in the form of the dialect it looks like.

    Args:
        bad: as raised by `parse`.

    Returns:
        Status and body.
    """
    if bad.in_fields:
        return Answer(bad.status, _encode({"success": False, "message": f"{bad.error}: {bad.detail}"}))
    return failure(bad.status, bad.error, bad.detail)


def failure(status: int, error: str, detail: str = "") -> Answer:
    """Makes an error answer in the line form; also for whatever fails before there is a dialect.

    Args:
        status: HTTP status.
        error: one of the fixed texts.
        detail: one line for a person; left out when empty.

    Returns:
        Status and body.
    """
    members = {"error": error, "detail": detail} if detail else {"error": error}
    return Answer(status, _encode(members))


def split_line(line: bytes, tokens_max: int) -> list[bytes]:
    r"""Splits a line into words, by the rules of redis-cli (`sdssplitargs`) but at spaces only.

    A word that starts with a quote runs to the matching one. Between double quotes `\n \r \t \b \a`
    and `\xHH` are escapes and a backslash before anything else is dropped; between single quotes only
    `\'` is one. A quote inside a word is literal.

    Args:
        line: the words.
        tokens_max: most words that are taken.

    Returns:
        The words; none for a line that is empty or all spaces.

    Raises:
        CommandError: quotes that do not match, or too many words.
    """
    if len(line) <= _PLAIN_LINE_BYTES_MAX and b'"' not in line and b"'" not in line:
        return [word for word in line.split(b" ") if word]  # the grammar counts these few
    words: list[bytes] = []
    _, at = take_steps(_SPACES_STEP, line, 0)
    while at < len(line):
        if len(words) == tokens_max:
            raise CommandError(f"a command has at most {tokens_max} words", Error.TOO_LARGE)
        if line[at] in b"\"'":
            word, at = _quoted(line, at)
        else:
            end = line.find(b" ", at)
            end = len(line) if end < 0 else end
            word, at = line[at:end], end
        words.append(word)
        at += 1  # a space or nothing is behind every word
        if line.startswith(b" ", at):
            _, at = take_steps(_SPACES_STEP, line, at)
    return words


def _quoted(line: bytes, start: int) -> tuple[bytes, int]:
    """Reads the quoted word that starts at `start`: the word, and the position behind its quote."""
    quote = line[start : start + 1]
    double = quote == b'"'
    pieces, at = take_steps(_DOUBLE_STEP if double else _SINGLE_STEP, line, start + 1)
    if line[at : at + 1] != quote:
        raise CommandError(f"unbalanced quotes: the word that starts at byte {start} has no closing quote")
    if line[at + 1 : at + 2] not in (b" ", b""):
        raise CommandError(f"the closing quote at byte {at} must be followed by a space")
    pieces = [_unescape(piece, double) if b"\\" in piece else piece for piece in pieces]
    return b"".join(pieces), at + 1


def _unescape(piece: bytes, double: bool) -> bytes:
    return _DOUBLE_ESCAPE.sub(_unescaped, piece) if double else piece.replace(b"\\'", b"'")


def _unescaped(match: re.Match[bytes]) -> bytes:
    in_hex, other = match.groups()
    return bytes.fromhex(in_hex.decode()) if in_hex else _DOUBLE_ESCAPES.get(other, other)


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
    spec = lookup(command)
    if spec is None:
        return [command]  # the grammar has the words for it
    argv = [command]
    for parameter in spec.parameters:
        here = given.get(parameter.kind)
        if here is None or not here.words:
            raise CommandError(f"{spec.name}: {parameter.kind.value} is missing, expected {spec.usage}")
        if here.is_list and not parameter.many:
            raise CommandError(f"{spec.name} takes one {parameter.kind.value}, not a list, expected {spec.usage}")
        argv += here.words
    for kind in given:
        if all(parameter.kind is not kind for parameter in spec.parameters):
            raise CommandError(f"{spec.name} takes no {kind.value}, expected {spec.usage}")
    return argv + _option_words(spec, options, limits)


def _option_words(spec: Spec, options: Json, limits: Limits) -> list[bytes]:
    if isinstance(options, dict):
        return [word for name, value in options.items() for word in _named_option(spec, name, value)]
    if isinstance(options, list):
        words = [_word("options", value) for value in options]
    else:
        assert isinstance(options, bytes)
        words = split_line(options, limits.tokens_max)
    if words and not spec.options:  # behind a list of keys or values they would be taken for more of them
        raise CommandError(f"{spec.name} takes no options, expected {spec.usage}")
    return words


def _named_option(spec: Spec, name: bytes, value: Json) -> list[bytes]:
    option = next((option for option in spec.options if option.name.encode() == name.upper()), None)
    if option is None:
        raise CommandError(f"{spec.name} does not take the option {show(name)}, expected {spec.usage}")
    if option.argument is not None:
        return [name, _word("options", value)]
    if not isinstance(value, bool):
        raise CommandError(f"{spec.name}: {option.name} is true or false")
    return [name] if value else []


def _fields_answer(key: str | list[str] | None, reply: Reply) -> Answer:
    echo = {} if key is None else {"key": key}
    if isinstance(reply, Failure):
        error = reply.error.value
        message = f"{error}: {reply.detail}" if reply.detail else error
        return Answer(_STATUS[reply.error], _encode({"success": False, "message": message, **echo}))
    return Answer(200, _encode({"success": True, **echo, **_value_members(reply)}))


def _value_members(reply: Ok | Value | Integer) -> dict[str, object]:
    if isinstance(reply, Ok):
        return {} if reply.length is None else {"value": reply.length}
    if isinstance(reply, Integer) or reply.value is None:
        return {"value": reply.value}
    try:
        return {"value": reply.value.decode()}
    except UnicodeDecodeError:
        return {"value": base64.b64encode(reply.value).decode(), "encoding": "base64"}


def _encode(members: Mapping[str, object]) -> bytes:
    return _ENCODER.encode(members).encode("utf-8", "replace")
