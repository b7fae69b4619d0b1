"""Bodies to commands (api/dialects/bodies.py): what is no request, and the quick way held to the long one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import answers, bodies
from api.dialects.json_body import BadRequest, is_quick
from api.dialects.request import Understood
from engine.commands.queues import QPush
from engine.limits import Limits
from engine.replies import Failure
from tests.api.dialects.spelling import LIMITS, parse_body

A_LIST = "expected an object with a member 'command'; a list of them is a body of /pipeline or /multi"
AS_STRING = ": send it as a string: json.dumps in Python, JSON.stringify in JavaScript"
EACH_AS_STRING = ": send each of them as a string: json.dumps in Python, JSON.stringify in JavaScript"


# ---- bodies that are no request


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"[]", A_LIST),
        (b'[{"command":"PING"}]', A_LIST),
        (b'"PING"', "expected an object with a member 'command', not a string"),
        (b"1", "expected an object with a member 'command', not a number"),
        (b"true", "expected an object with a member 'command', not true or false"),
        (b"null", "expected an object with a member 'command', not null"),
        (b"{}", "the member 'command' must be a string, it is left out"),
        (b'{"key":"k"}', "the member 'command' must be a string, it is left out"),
        (b'{"command":1}', "the member 'command' must be a string, it is a number"),
        (b'{"command":null}', "the member 'command' must be a string, it is null"),
        (b'{"command":["PING"]}', "the member 'command' must be a string, it is a list"),
        (
            b'{"command":"PING","Key":1}',
            "unknown member 'Key', known are command, key, value, options; options go into 'options'",
        ),
        (
            b'{"command":"PING","\\u0000":1}',
            "unknown member '\\x00', known are command, key, value, options; options go into 'options'",
        ),
        (b'{"command":"GET","key":null}', "key takes strings, numbers, true and false, not null"),
        (b'{"command":"GET","key":{"a":1}}', "key takes strings, numbers, true and false, not an object"),
        (b'{"command":"DEL","key":["a",null]}', "key takes strings, numbers, true and false, not null"),
        (b'{"command":"DEL","key":[["a"]]}', "key takes strings, numbers, true and false, not a list"),
        (
            b'{"command":"SET","key":"k","value":null}',
            f"value takes strings, numbers, true and false, not null{AS_STRING}",
        ),
        (b'{"command":"NOPE","value":{}}', f"value takes strings, numbers, true and false, not an object{AS_STRING}"),
        *(
            (
                b'{"command":"QPUSH","key":"q","value":[1,%b]}' % element,
                f"value takes strings, numbers, true and false, not {name}{EACH_AS_STRING}",
            )
            for element, name in ((b'{"id":2}', "an object"), (b"[2]", "a list"), (b"null", "null"))
        ),
        (b'{"command":"PING","options":null}', "options takes an object, a list of words or a string, not null"),
        (b'{"command":"PING","options":1}', "options takes an object, a list of words or a string, not a number"),
        (b'{"command":"PING","options":[null]}', "options takes strings, numbers, true and false, not null"),
        (b'{"command":"PING","options":{"a":[]}}', "options takes strings, numbers, true and false, not a list"),
        (b'{"command":"PING","options":{"a":null}}', "options takes strings, numbers, true and false, not null"),
        (b'{"command":"PING","command":"PING"}', "member 'command' is given twice, again at byte 18"),
    ],
)
def test_a_body_of_another_shape_is_an_invalid_request(body: bytes, detail: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_body(body)
    assert (refused.value.status, refused.value.error, refused.value.detail) == (400, "invalid request", detail)


ARRAYS = [b'["SET","k","v"]', b'["PING"]', b"[1]", b'[["SET","k","v"],["GET","k"]]', b"[null]"]


@pytest.mark.parametrize("body", ARRAYS)
def test_the_error_itself_says_that_arrays_are_not_spoken_for_sdks_show_nothing_else(body: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_body(body)
    assert json.loads(answers.refuse(refused.value).body) == {
        "error": (
            'invalid request: a command as an array, ["SET", "k", "v"], is not spoken here yet; send'
            ' {"command": "SET k v"} or {"command": "SET", "key": "k", "value": "v"}'
        )
    }


def test_a_list_is_several_values_and_no_json_list_as_one() -> None:
    body = b'{"command":"QPUSH","key":"q","value":["a",1.0,true]}'
    assert bodies.understand(body, LIMITS)[1] == QPush(b"q", (b"a", b"1.0", b"true"))
    _, refused = bodies.understand(b'{"command":"SET","key":"k","value":["a"]}', LIMITS)
    assert isinstance(refused, Failure)
    assert refused.detail.endswith(f"[NX | XX]{AS_STRING}")


# ---- the quick way


def outcome(understand: Callable[[bytes, Limits], Understood], body: bytes, limits: Limits) -> object:
    """All that can be seen of a body: how it is answered, and the command or what it is refused with."""
    try:
        request, command = understand(body, limits)
    except BadRequest as bad:
        return bad.status, bad.error, bad.detail, bad.in_fields
    return request.dialect, request.key, command


def assert_both_ways_agree(body: bytes, limits: Limits = LIMITS) -> None:
    assert is_quick(body)
    assert outcome(bodies.understand, body, limits) == outcome(bodies.understand_in_steps, body, limits)


PLAIN = [
    b'{"command": "GET hello"}',
    b'{"command":"get hello"}\n',
    b'{"command": "Get hello"}',
    b'{"command": "  SET  k   v "}',
    b'{"command": "GET "}',
    b'{"command": " GET"}',
    b'{"command": "SET k "}',
    b'{"command": "SET  v"}',
    b'{"command": "SET \\u0009 v"}',
    '{"command": "SET \u00a0 \u0085"}'.encode(),
    '{"command": "SET é "}'.encode(),
    b'{"command": "SET k v EX 60 NX"}',
    b'{"command": "SET k v EX"}',
    b'{"command": "SET k"}',
    b'{"command": "NOPE k"}',
    b'{"command": "BQPOP q 5"}',
    b'{"command": "DEL a b c"}',
    b'{"command": "GET {u}:k"}',
    b'{"command": "SET {u}:k v"}',
    b'{"command": "SET [1, 2]"}',
    b'{"command": "QPUSH q [1, 2]"}',
    b'{"command": "QPUSH q [1 2] [1,2]"}',
    b'{"command": "QPUSH q { } {}"}',
    b'{"command": "SET { }"}',
    b'{"command": "SET {  }  "}',
    b'{"command": "SET { x"}',
    b'{"command": "SET k {}"}',
    b'{"command": "SET k }"}',
    b'{"command": "GET { }"}',
    b'{"command": "GET {"}',
    b'{"command": "[1, 2] k"}',
    b'{"command": "PING"}',
    b'{"command": ""}',
    '{"command": "SET ключ 😀"}'.encode(),
    b'{"command":"SET","key":"k","value":"v"}',
    b'{"value":"v","command":"qpush","key":"k"}',
    b'{"command":"DEL","key":"a b"}',
    b'{"command":"SET","key":1.0,"value":-1E+2}',
    b'{"command":"BQPOP","key":"q","value":"5"}',
    b'{"command":"SET","key":"k"}',
    b'{"command":"SET k","key":"k","value":"v"}',
    b'{"command":"SET","key":"k","value":"it\'s"}',
    b'{"command":"SET","key":"k","value":"v","options":{"ex":60,"nx":true}}',
    b'{"command":"SET","key":"k","value":true}',
    b'{"command":"DEL","key":["a",1]}',
]

NOT_PLAIN = [
    b' {"command": "PING"}',
    b'{"command": "PING"} x',
    b'{"command": "SET k \\"a b\\""}',
    b'{"command": "SET k \'a b\'"}',
    b'{"command": "SET k \\u0000\\n"}',
    b'{"command": "SET k \\ud800"}',
    b'{"command": "SET k \\ud83d\\ude00"}',
    b'{"command":"SET","key":"k","value":"\\ud800"}',
    b'{"command":"SET","key":"a\\nb","value":"{\\"a\\": 1}"}',
    b'{"command":"SET","key":"k","value":NaN}',
    b'{"command":"SET","key":"k","value":1,"value":2}',
    b'{"command":"SET","key":"k","value":"1","value":"2"}',
    b'{"command":"SET","key":1,"value":"1","key":"2"}',
    b'{"command":"PING","command":"PING"}',
    b'{"command":"PING","c\\u006fmmand":"PING"}',
    b'{"command":"SET","key":{"a":1,"a":2},"value":"v"}',
    b'{"command":"PING","options":[{"a":1,"a":"b"}]}',
    b'{"command": "\xff"}',
    b'{"command": "\x00"}',
    b'{"command": 1}',
    b'["PING"]',
    b'"PING"',
    b"1",
    b"",
    b"[" * 70 + b"]" * 70,
    b"[" * 400,
]

SMALL = [
    Limits(key_bytes_max=2),
    Limits(value_bytes_max=2),
    Limits(key_bytes_max=40, value_bytes_max=1),
    Limits(tokens_max=1),
    Limits(tokens_max=2),
    Limits(json_depth_max=1),
    Limits(body_bytes_max=20),
]


@pytest.mark.parametrize("limits", [LIMITS, *SMALL])
@pytest.mark.parametrize("body", [*PLAIN, *NOT_PLAIN])
def test_the_quick_way_understands_a_body_as_the_long_one_does(body: bytes, limits: Limits) -> None:
    assert_both_ways_agree(body, limits)


words = st.lists(
    st.sampled_from(
        ["SET", "get", "Del", "QPUSH", "BQPOP", "k", "kk", "v", "", "EX", "60", "NX", "'", '"', "\x00", "😀"]
    )
)
numbers = st.sampled_from([0, -1, 1.5, 1e300, 10**30])
members = st.sampled_from(["command", "command", "key", "value", "options", "other"])
contents = st.recursive(
    words.map(" ".join) | numbers | st.booleans() | st.none() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def any_bodies(draw: st.DrawFn) -> bytes:
    """Objects as they might be sent: members given twice, escapes or none, spaces here and there, a byte changed."""
    pairs = draw(st.lists(st.tuples(members, contents), max_size=4))
    ascii_only, space = draw(st.booleans()), draw(st.sampled_from(["", " ", "\n"]))
    written = [f"{json.dumps(name)}:{space}{json.dumps(value, ensure_ascii=ascii_only)}" for name, value in pairs]
    body = ("{" + f",{space}".join(written) + "}" + space).encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body) - 1))
        body = (
            body[:at] + draw(st.sampled_from([b"", b'"', b"\\", b"\x00", b"\xff", b"{", b" ", b"1"])) + body[at + 1 :]
        )
    return body


line_words = st.lists(st.sampled_from(["SET", "get", "DEL", "QPUSH", "k", "v", "", "é", "\t", "EX", "60"]), max_size=5)
short_lines = st.builds(str.__add__, st.sampled_from(["SET", "get", "del", "PING"]), st.text(" k", max_size=5))
line_bodies = (line_words.map(" ".join) | short_lines).map(
    lambda line: json.dumps({"command": line}, ensure_ascii=False).encode()
)


@given(any_bodies() | line_bodies, st.sampled_from([LIMITS, LIMITS, *SMALL]))
def test_both_ways_agree_on_anything(body: bytes, limits: Limits) -> None:
    assert_both_ways_agree(body, limits)
