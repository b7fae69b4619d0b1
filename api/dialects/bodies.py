"""The body of one request becomes a command: which dialect it is in, and the quick way and the long one. Pure.

Every request is the same thing further in, an argv that `engine.commands.table.parse` turns into a command. A
dialect only spells it, and each is a file; how it is answered is in `answers`:

    line     {"command": "SET key_a 2 EX 60 NX"}                        the only member
    fields   {"command": "SET", "key": "k", "value": "v", "options": {"ex": 60}}

The rules that hold here:

- A body that is no request at all raises `BadRequest`. A request with a mistake in it is still a `Request`: it
  carries the `failure`, and is answered in its own dialect.
- Only the shape of a body tells its dialect, in `parse`; a list belongs to none of them.
- `plain` takes what nearly all send; the long way is the authority for everything else, and for every mistake.
"""

from __future__ import annotations

import re

from api.dialects import fields, line
from api.dialects.json_body import BadRequest, Json, as_bytes, check_strings, parse_in_steps, scan, type_name
from api.dialects.request import LINE, Request, Understood, command_of
from engine.commands import table
from engine.commands.grammar import show
from engine.limits import KIB, Limits

ARRAY_FORM = (
    """invalid request: a command as an array, ["SET", "k", "v"], is not spoken here yet; send {"command": "SET k v"}"""
    """ or {"command": "SET", "key": "k", "value": "v"}"""
)
"""The whole error, for clients that show no detail."""

_MEMBERS = (b"command", *fields.MEMBERS)

_PLAIN_LINE = re.compile(rb'\{"command": ?"([ !#-&(-Z\]-~]*)(?<![ }])"\}')
"""The one member of a line in printable ASCII. Without quotes and backslash it is its own text, and so are its words.
No JSON in it is cut by its spaces (`line.read`): that would begin with `[`, or be `{ }` at the end of three words.
"""

_SHORT_BYTES_MAX = 2 * KIB
"""Up to this length that expression is faster than the C scanner, beyond it slower: 101 against 75 us for 60 KiB."""


def understand(body: bytes, limits: Limits) -> Understood:
    """Turns a request body into a command, or into the reply that says why it is none.

    A line in ASCII without quotes and escapes takes 1 microsecond, what else is `plain` 2, the long way 5 to 12.

    Args:
        body: as received; `json_body.is_quick` says yes to it.
        limits: of the product.

    Returns:
        The request, for `answers.answer`; and the command, or the failure to answer instead.

    Raises:
        BadRequest: not strict JSON, or JSON of a shape that is no request in any dialect; for `answers.refuse`.
    """
    if len(body) > limits.body_bytes_max:
        return understand_in_steps(body, limits)
    match = _PLAIN_LINE.fullmatch(body) if len(body) <= _SHORT_BYTES_MAX else None
    command = table.plain(match[1].split(), limits) if match else None
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
    return request, request.failure or command_of(request.argv, limits)


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
    return line.plain(command, limits) if len(members) == 1 else fields.plain(command, members, limits)


def parse(members: Json, limits: Limits) -> Request:
    """Turns the JSON value of a request body into a request, by the dialect that it is in.

    Args:
        members: as `json_body` reads it.
        limits: bounds on the words; keys and values are for the grammar to check.

    Returns:
        The request; look at its `failure` first.

    Raises:
        BadRequest: JSON of a shape that is no request in any dialect.
    """
    if isinstance(members, list):
        raise _no_request(members)
    if not isinstance(members, dict):
        raise BadRequest(f"expected an object with a member 'command', not {type_name(members)}")
    try:
        command = _command_member(members)
        return line.read(command, limits) if len(members) == 1 else fields.read(command, members, limits)
    except BadRequest as bad:
        bad.in_fields = any(name in members for name in fields.MEMBERS)
        raise


def _no_request(members: list[Json]) -> BadRequest:
    """Says what a list is meant for. SDKs for Redis over HTTP send one for a command, and show nothing but `error`."""
    if not members or isinstance(members[0], dict):
        return BadRequest("expected an object with a member 'command'; a list of them is a body of /pipeline or /multi")
    bad = BadRequest("")
    bad.error = ARRAY_FORM
    return bad


def _command_member(members: dict[bytes, Json]) -> bytes:
    for name in members:
        if name not in _MEMBERS:
            known = ", ".join(member.decode() for member in _MEMBERS)
            raise BadRequest(f"unknown member {show(name)}, known are {known}; options go into 'options'")
    command = members.get(b"command")
    if type(command) is not bytes:
        found = type_name(command) if b"command" in members else "left out"
        raise BadRequest(f"the member 'command' must be a string, it is {found}")
    return command
