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
from enum import Enum
from json.encoder import encode_basestring as quote
from typing import NamedTuple, TypeAlias

from api.json_body import BadRequest, Json, Number, as_bytes, is_quick, parse_in_steps, scan
from api.line import split_line
from engine import commands
from engine.commands import Command, CommandError, Kind, Spec, lookup, show
from engine.frozen import frozen
from engine.limits import Limits
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
    "plain",
    "read",
    "refuse",
    "understand",
    "understand_in_steps",
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

_ESCAPED = bytes(range(32)) + b'"\\'
_SHORT_BYTES_MAX = 64
"""Up to this length a value is quoted faster than looked through for what is to be escaped."""

_SINGLE_QUOTE, _DOUBLE_QUOTE = b"'\""


class Dialect(Enum):
    """How a request was spelled, and so how it is answered."""

    LINE = "line"
    FIELDS = "fields"


@frozen
class Request:
    """One command as it was asked for.

    Attributes:
        argv: the words for `engine.commands.parse`; empty when there is a failure, and from `understand`.
        dialect: how to answer.
        key: echoed by the fields dialect, as the text that was sent; None when there was none, when one
            is over its limit, and for a list of keys longer than a value may be.
        failure: the mistake the dialect found; to be answered instead of running anything.
    """

    argv: list[bytes]
    dialect: Dialect
    key: str | list[str] | None = None
    failure: Failure | None = None


@frozen
class Answer:
    """What goes over HTTP: the status, and a body that is JSON or empty."""

    status: int
    body: bytes


Understood: TypeAlias = tuple[Request, Command | Failure]
"""A request, for its answer; and the command, or the failure to answer instead of running one."""

_FIELDS = Dialect.FIELDS  # looking it up in its class takes longer than all else of a choice
_LINE = Request([], Dialect.LINE)
_DONE = Answer(200, b"")


def understand(body: bytes, limits: Limits) -> Understood:
    """Turns a request body into a command, or into the reply that says why it is none.

    Nearly all are `plain`, and take 1.6 to 2.3 microseconds; the long way takes 5 to 12.

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
    try:
        scanned = scan(body)
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
    return _LINE, _command([word for word in words if word] if b"" in words else words, limits)


def _plain_fields(name: str, members: dict[str, object], limits: Limits) -> Understood | None:
    """Understands a command that takes exactly the members that are there: a key, or a key and a value."""
    argv = [name.encode(), _plain_word(members.get("key"))]
    if len(members) == 3:
        argv.append(_plain_word(members.get("value")))
    elif len(members) > 3:
        return None
    command = commands.plain(argv, limits)
    if command is None or len(argv[1]) > limits.value_bytes_max:
        return None
    return Request([], Dialect.FIELDS, argv[1].decode()), command


def _plain_word(value: object) -> bytes:
    if type(value) is str:
        return value.encode()
    if type(value) is Number:
        return bytes(value)
    raise ValueError


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
    if isinstance(reply, Failure):
        return _failed(request, reply)
    if request.dialect is _FIELDS:
        return Answer(200, _in_fields(request.key, _value_member(reply)))
    return _DONE if isinstance(reply, Ok) else Answer(200, b"{%b}" % _value_member(reply))


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
    members = f'"error": {quote(error)}, "detail": {quote(detail)}' if detail else f'"error": {quote(error)}'
    return Answer(status, f"{{{members}}}".encode("utf-8", "replace"))


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


def _failed(request: Request, reply: Failure) -> Answer:
    status, error = _STATUS[reply.error], reply.error.value
    if request.dialect is Dialect.LINE:
        return failure(status, error, reply.detail)
    message = f"{error}: {reply.detail}" if reply.detail else error
    echo = {} if request.key is None else {"key": request.key}
    return Answer(status, _encode({"success": False, "message": message, **echo}))


def _in_fields(key: str | list[str] | None, value: bytes) -> bytes:
    members = [b'{"success": true']
    if key is not None:
        members.append(b'"key": ' + (quote(key).encode() if type(key) is str else _encode(key)))
    if value:
        members.append(value)
    return b", ".join(members) + b"}"


def _value_member(reply: Ok | Value | Integer) -> bytes:
    """The member `value` of an answer, and `encoding` if need be; empty when there is none."""
    if isinstance(reply, Value):
        if reply.value is None:
            return b'"value": null'
        try:
            return b'"value": ' + _string(reply.value)
        except UnicodeDecodeError:
            return b'"value": "%b", "encoding": "base64"' % base64.b64encode(reply.value)
    number = reply.length if isinstance(reply, Ok) else reply.value
    return b"" if number is None else b'"value": %d' % number


def _string(value: bytes) -> bytes:
    """Writes UTF-8 as a JSON string. For 1 KiB `quote` takes 2.2 microseconds, a look for what it escapes takes 0.7."""
    text = value.decode()
    if len(value) > _SHORT_BYTES_MAX and len(value.translate(None, _ESCAPED)) == len(value):
        return b'"%b"' % value
    return quote(text).encode()


def _encode(value: object) -> bytes:
    return _ENCODER.encode(value).encode("utf-8", "replace")
