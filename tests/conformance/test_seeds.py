"""Every example of the two documents that Holdfast was first asked for, over real HTTP, as one table."""

from __future__ import annotations

from typing import Any

import pytest

from engine.commands.table import TABLE
from tests.harness.process import Server

BLANK = None

A_MINUTE = pytest.approx(60, abs=30)
"""What is left of it: on a busy machine a second passes between two requests."""

# Each session starts from an empty store. A row: body, status, answer.
Row = tuple[Any, int, Any]

SESSIONS: dict[str, list[Row]] = {
    "sample input and output": [
        ({"command": "SET hello world"}, 200, BLANK),
        (
            {"command": "123 SET COMMAND"},
            400,
            {
                "error": "invalid command",
                "detail": "unknown command '123', expected one of " + ", ".join(row.name for row in TABLE),
            },
        ),
        ({"command": "GET hello"}, 200, {"value": "world"}),
        ({"command": "GET hello-123"}, 404, {"error": "key not found"}),
        ({"command": "QPUSH list_a a"}, 200, BLANK),
        ({"command": "QPOP list_a"}, 200, {"value": "a"}),
        ({"command": "QPOP list_a"}, 404, {"error": "queue is empty"}),
    ],
    "SET and GET": [
        ({"command": "SET key_a 2"}, 200, BLANK),
        ({"command": "GET key_a"}, 200, {"value": "2"}),
        ({"command": "TTL key_a"}, 200, {"value": -1}),
        ({"command": "SET key_b 3 EX 60"}, 200, BLANK),
        ({"command": "TTL key_b"}, 200, {"value": A_MINUTE}),
        ({"command": "SET key_c 4 EX 60 NX"}, 200, BLANK),
        ({"command": "SET key_c 4 EX 60 NX"}, 409, {"error": "key already exists"}),
        ({"command": "SET key_d 5 XX"}, 404, {"error": "key not found"}),
        ({"command": "SET key_d 4"}, 200, BLANK),
        ({"command": "SET key_d 5 XX"}, 200, BLANK),
        ({"command": "GET key_d"}, 200, {"value": "5"}),
        ({"command": "TTL key_d"}, 200, {"value": -1}),
    ],
    "QPUSH": [
        ({"command": "QPUSH list_a 1"}, 200, BLANK),
        ({"command": "QPUSH list_a 2 3 4"}, 200, BLANK),
        ({"command": "QLEN list_a"}, 200, {"value": 4}),
    ],
    "QPOP": [
        ({"command": "QPUSH list_a 1"}, 200, BLANK),
        ({"command": "QPOP list_a"}, 200, {"value": "1"}),
        ({"command": "QPUSH list_a 1 2"}, 200, BLANK),
        ({"command": "QPOP list_a"}, 200, {"value": "2"}),
        ({"command": "QPOP list_a"}, 200, {"value": "1"}),
        ({"command": "QPOP list_x"}, 200, {"value": None}),
    ],
    "the request and response structs": [
        ({"command": "SET", "key": "k", "value": "v"}, 200, {"success": True, "key": "k"}),
        ({"command": "GET", "key": "k"}, 200, {"success": True, "key": "k", "value": "v"}),
        ({"command": "EXISTS", "key": "k"}, 200, {"success": True, "key": "k", "value": 1}),
        ({"command": "DELETE", "key": "k"}, 200, {"success": True, "key": "k", "value": 1}),
        ({"command": "EXISTS", "key": "k"}, 200, {"success": True, "key": "k", "value": 0}),
        ({"command": "GET", "key": "k"}, 404, {"success": False, "message": "key not found", "key": "k"}),
        ({"command": "DELETE", "key": "k"}, 404, {"success": False, "message": "key not found", "key": "k"}),
        ({"command": "QPUSH", "key": "q", "value": ["a", "b", "c"]}, 200, {"success": True, "key": "q", "value": 3}),
        ({"command": "QPOP", "key": "q"}, 200, {"success": True, "key": "q", "value": "c"}),
        ({"command": "BQPOP", "key": "q"}, 200, {"success": True, "key": "q", "value": "a"}),
        (
            {"command": "BQPOP", "key": "q", "options": {"timeout": 1}},
            200,
            {"success": True, "key": "q", "value": "b"},
        ),
        (
            {"command": "BQPOP", "key": "q", "options": {"timeout": 0.01}},
            200,
            {"success": True, "key": "q", "value": None},
        ),
        (
            {"command": "SET", "key": "k", "value": "w", "options": {"ex": 60, "nx": True}},
            200,
            {"success": True, "key": "k"},
        ),
        ({"command": "TTL", "key": "k"}, 200, {"success": True, "key": "k", "value": A_MINUTE}),
    ],
}


@pytest.mark.parametrize("session", SESSIONS)
def test_the_examples_answer_as_the_documents_say(server: Server, session: str) -> None:
    server.post({"command": "DELETE hello hello-123 list_a list_x key_a key_b key_c key_d k q"})
    for body, status, answer in SESSIONS[session]:
        assert server.post(body) == (status, answer), body
