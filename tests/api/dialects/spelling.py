"""What the tests of the dialects do with a body: read it, and say what is wrong with it."""

from __future__ import annotations

import json

from api.dialects import bodies
from api.dialects.json_body import parse_in_steps
from api.dialects.request import Request
from engine.commands import table as commands
from engine.commands.grammar import CommandError
from engine.limits import Limits

LIMITS = Limits()


def parse_body(body: bytes, limits: Limits = LIMITS) -> Request:
    return bodies.parse(parse_in_steps(body, limits), limits)


def parse(members: object) -> Request:
    return parse_body(json.dumps(members).encode())


def line(command: str) -> Request:
    return parse({"command": command})


def mistake(request: Request) -> str:
    """What a request would be refused with, by its dialect or else by the grammar; "" when it is fine."""
    if request.failure is not None:
        assert request.argv == []
        return f"{request.failure.error.value}: {request.failure.detail}"
    try:
        commands.parse(request.argv, LIMITS)
    except CommandError as refused:
        return f"{refused.error.value}: {refused.detail}"
    return ""
