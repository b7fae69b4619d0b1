"""Replies to answers (api/dialects/answers.py), as the tables of the contract have them."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import answers
from api.dialects.answers import Answer
from api.dialects.json_body import BadRequest
from api.dialects.request import Dialect, Request
from engine.replies import Error, Failure, Integer, Ok, Reply, Value
from tests.api.dialects.spelling import parse, parse_body

LINE = Request([], Dialect.LINE)
KEYED = Request([], Dialect.FIELDS, "k")


@pytest.mark.parametrize(
    ("reply", "in_line", "in_fields"),
    [
        (Ok(), b"", b'{"success": true, "key": "k"}'),
        (Ok(3), b"", b'{"success": true, "key": "k", "value": 3}'),
        (Ok(0), b"", b'{"success": true, "key": "k", "value": 0}'),
        (Value(b"v"), b'{"value": "v"}', b'{"success": true, "key": "k", "value": "v"}'),
        (Value(b""), b'{"value": ""}', b'{"success": true, "key": "k", "value": ""}'),
        (Value(None), b'{"value": null}', b'{"success": true, "key": "k", "value": null}'),
        (Integer(-2), b'{"value": -2}', b'{"success": true, "key": "k", "value": -2}'),
        (
            Value(b"\xff\x00"),
            b'{"value": "/wA=", "encoding": "base64"}',
            b'{"success": true, "key": "k", "value": "/wA=", "encoding": "base64"}',
        ),
        (Value("é😀".encode()), '{"value": "é😀"}'.encode(), '{"success": true, "key": "k", "value": "é😀"}'.encode()),
        (Value(b'\x00"'), b'{"value": "\\u0000\\""}', b'{"success": true, "key": "k", "value": "\\u0000\\""}'),
    ],
)
def test_a_success_is_answered_with_200_in_each_dialect(reply: Reply, in_line: bytes, in_fields: bytes) -> None:
    assert answers.answer(LINE, reply) == Answer(200, in_line)
    assert answers.answer(KEYED, reply) == Answer(200, in_fields)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Error.INVALID_COMMAND, 400),
        (Error.KEY_NOT_FOUND, 404),
        (Error.QUEUE_IS_EMPTY, 404),
        (Error.KEY_ALREADY_EXISTS, 409),
        (Error.WRONG_TYPE, 409),
        (Error.TOO_LARGE, 413),
        (Error.UNAVAILABLE, 503),
        (Error.STORAGE_FULL, 507),
        (Error.INTERNAL_ERROR, 500),
    ],
)
def test_a_failure_has_its_status_and_its_text_in_each_dialect(error: Error, status: int) -> None:
    text = error.value
    for detail in ("", "why"):
        in_line = {"error": text, "detail": detail} if detail else {"error": text}
        message = f"{text}: {detail}" if detail else text
        expected = [
            (LINE, in_line),
            (KEYED, {"success": False, "message": message, "key": "k"}),
            (Request([], Dialect.FIELDS), {"success": False, "message": message}),
        ]
        for request, members in expected:
            assert answers.answer(request, Failure(error, detail)) == Answer(status, json.dumps(members).encode())


def test_every_error_has_a_status() -> None:
    assert set(answers._STATUS) == set(Error)


def test_a_request_without_a_key_and_one_with_many_are_echoed_so() -> None:
    assert answers.answer(Request([], Dialect.FIELDS), Value(b"PONG")).body == b'{"success": true, "value": "PONG"}'
    many = Request([], Dialect.FIELDS, ["a", "1"])
    assert answers.answer(many, Integer(2)).body == b'{"success": true, "key": ["a", "1"], "value": 2}'


def test_failures_of_the_http_layer_have_the_line_form() -> None:
    assert answers.failure(405, "method not allowed") == Answer(405, b'{"error": "method not allowed"}')
    assert answers.failure(404, "x", "\udcff") == Answer(404, b'{"error": "x", "detail": "?"}')


@given(st.text(), st.text())
def test_any_key_and_value_round_trip_through_a_request_and_its_answer(key: str, value: str) -> None:
    request = parse({"command": "SET", "key": key, "value": value})
    assert request.argv == [b"SET", key.encode(), value.encode()]
    assert json.loads(answers.answer(request, Value(request.argv[2])).body) == {
        "success": True,
        "key": key,
        "value": value,
    }


@given(st.binary())
def test_any_stored_bytes_can_be_had_back_from_an_answer(stored: bytes) -> None:
    answered = json.loads(answers.answer(LINE, Value(stored)).body)
    if "encoding" in answered:
        assert base64.b64decode(answered["value"]) == stored
    else:
        assert answered["value"].encode() == stored


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        (b'{"command":"GET","key":null}', {"success": False}),
        (b'{"command":"GET","key":"k","extra":1}', {"success": False}),
        (b'{"command":1,"options":{}}', {"success": False}),
        (b'{"command":1}', {"error": "invalid request"}),
        (b'{"command":"GET k","extra":1}', {"error": "invalid request"}),
        (b"[]", {"error": "invalid request"}),
    ],
)
def test_a_body_that_is_no_request_is_answered_in_the_form_of_the_dialect_it_looks_like(
    body: bytes, answered: dict[str, object]
) -> None:
    with pytest.raises(BadRequest) as bad:
        parse_body(body)
    answer = answers.refuse(bad.value)
    members = json.loads(answer.body)
    assert answer.status == 400
    assert answered.items() <= members.items()
    assert members.get("message", "invalid request: ").startswith("invalid request: ")


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 5000])
@pytest.mark.parametrize("end", ["", '"', "\\", "\n", "\x1f", "\x7f", "é", "\u2028", "😀"])
def test_a_value_is_answered_as_the_stdlib_writes_it(length: int, end: str) -> None:
    text = "v" * length + end
    expected = json.dumps({"value": text}, ensure_ascii=False).encode()
    assert answers.answer(LINE, Value(text.encode())) == Answer(200, expected)
