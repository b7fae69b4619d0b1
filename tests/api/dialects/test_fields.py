"""Fields to argv (api/dialects/fields.py): a member only becomes what it is called."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects.json_body import BadRequest
from api.dialects.request import Dialect
from engine.commands import table as commands
from engine.limits import Limits
from tests.api.dialects.spelling import LIMITS, mistake, parse, parse_body
from tests.api.dialects.test_bodies import AS_STRING


@pytest.mark.parametrize(
    ("members", "argv"),
    [
        ({"command": "SET", "key": "k", "value": "v"}, [b"SET", b"k", b"v"]),
        ({"command": "set", "key": "a b", "value": "c d"}, [b"set", b"a b", b"c d"]),
        ({"command": "SET", "key": 1, "value": 2.5}, [b"SET", b"1", b"2.5"]),
        ({"command": "SET", "key": True, "value": False}, [b"SET", b"true", b"false"]),
        ({"command": "SET", "key": "", "value": ""}, [b"SET", b"", b""]),
        ({"command": "GET", "key": "k"}, [b"GET", b"k"]),
        ({"command": "GET", "key": "k", "options": {}}, [b"GET", b"k"]),
        ({"command": "GET", "key": "k", "options": ""}, [b"GET", b"k"]),
        ({"command": "DEL", "key": ["a", 1, True]}, [b"DEL", b"a", b"1", b"true"]),
        ({"command": "EXISTS", "key": "a"}, [b"EXISTS", b"a"]),
        ({"command": "QPUSH", "key": "q", "value": ["a", 2, False]}, [b"QPUSH", b"q", b"a", b"2", b"false"]),
        ({"command": "QPUSH", "key": "q", "value": "a"}, [b"QPUSH", b"q", b"a"]),
        ({"command": "PING", "options": []}, [b"PING"]),
        ({"command": "BQPOP", "key": "q", "options": {"timeout": 0.5}}, [b"BQPOP", b"q", b"timeout", b"0.5"]),
        ({"command": "BQPOP", "key": "q", "options": ["5"]}, [b"BQPOP", b"q", b"5"]),
    ],
)
def test_fields_become_an_argv(members: dict[str, object], argv: list[bytes]) -> None:
    request = parse(members)
    assert (request.argv, request.dialect, mistake(request)) == (argv, Dialect.FIELDS, "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ex": 60}, [b"ex", b"60"]),
        ({"EX": "60", "nX": True}, [b"EX", b"60", b"nX"]),
        ({"nx": False, "xx": True}, [b"xx"]),
        ({"nx": False}, []),
        (["EX", 60, "NX"], [b"EX", b"60", b"NX"]),
        (["EX60"], [b"EX60"]),
        ("EX 60 NX", [b"EX", b"60", b"NX"]),
        ("  ex   '60' ", [b"ex", b"60"]),
        ([], []),
    ],
)
def test_options_come_as_an_object_a_list_or_a_string(options: object, words: list[bytes]) -> None:
    request = parse({"command": "SET", "key": "k", "value": "v", "options": options})
    assert request.argv == [b"SET", b"k", b"v", *words]
    assert mistake(request) == ""


SET = "SET key value [EX s | PX ms] [NX | XX]"


@pytest.mark.parametrize(
    ("members", "detail"),
    [
        ({"command": "SET", "key": "k"}, f"SET: value is missing, expected {SET}"),
        ({"command": "SET", "value": "v"}, f"SET: key is missing, expected {SET}"),
        ({"command": "SET", "key": "k", "options": ["v"]}, f"SET: value is missing, expected {SET}"),
        ({"command": "SET", "options": "k v"}, f"SET: key is missing, expected {SET}"),
        ({"command": "GET", "value": "x"}, "GET: key is missing, expected GET key"),
        ({"command": "GET", "options": ["x"]}, "GET: key is missing, expected GET key"),
        ({"command": "GET", "key": "k", "value": "x"}, "GET takes no value, expected GET key"),
        (
            {"command": "DELETE", "key": "k", "value": "x"},
            "DELETE takes no value, expected DELETE key [key ...]",
        ),
        (
            {"command": "DELETE", "key": "k", "options": ["x"]},
            "DELETE takes no options, expected DELETE key [key ...]",
        ),
        (
            {"command": "QPUSH", "key": "q", "value": "a", "options": "b"},
            "QPUSH takes no options, expected QPUSH key value [value ...]",
        ),
        (
            {"command": "QPUSH", "key": "q", "value": []},
            "QPUSH: value is missing, expected QPUSH key value [value ...]",
        ),
        ({"command": "DELETE", "key": []}, "DELETE: key is missing, expected DELETE key [key ...]"),
        ({"command": "GET", "key": ["a"]}, "GET takes one key, not a list, expected GET key"),
        (
            {"command": "SET", "key": "k", "value": ["a", "b"]},
            f"SET takes one value, not a list, expected {SET}{AS_STRING}",
        ),
        ({"command": "PING", "key": "k"}, "PING takes no key, expected PING"),
        ({"command": "PING", "value": "k"}, "PING takes no value, expected PING"),
        (
            {"command": "GET", "key": "k", "options": {"nx": True}},
            "GET does not take the option 'nx', expected GET key",
        ),
        (
            {"command": "SET", "key": "k", "value": "v", "options": {"nx": "EX60"}},
            "SET: NX is true or false",
        ),
        (
            {"command": "SET", "key": "k", "value": "v", "options": {"ex 5": True}},
            f"SET does not take the option 'ex 5', expected {SET}",
        ),
        (
            {"command": "SET", "key": "k", "value": "v", "options": {"ex": True}},
            "EX takes a whole number of seconds from 1 to 1000000000000, not 'true'",
        ),
        (
            {"command": "SET", "key": "k", "value": "v", "options": {"ex": 1, "EX": 2}},
            "SET takes EX or PX at most once",
        ),
        (
            {"command": "SET", "key": "k", "value": "v", "options": ["EX 60"]},
            f"SET does not take 'EX 60', expected {SET}; a value with spaces stands in quotes",
        ),
        (
            {"command": "SET", "key": "k", "value": "v", "options": "EX '60"},
            "unbalanced quotes: the word that starts at byte 3 has no closing quote",
        ),
        (
            {"command": "SET k v", "key": "k"},
            "beside key, value or options the command is one word, not 'SET k v'",
        ),
        ({"command": "", "key": "k"}, "beside key, value or options the command is one word, not ''"),
    ],
)
def test_a_member_only_becomes_what_it_is_called(members: dict[str, object], detail: str) -> None:
    assert mistake(parse(members)) == f"invalid command: {detail}"


def test_an_unknown_command_gets_the_grammars_own_answer() -> None:
    request = parse({"command": "NOPE", "key": "k", "value": "v"})
    assert (request.argv, request.key) == ([b"NOPE"], "k")
    assert mistake(request).startswith("invalid command: unknown command 'NOPE', expected one of SET, ")


def test_no_row_of_the_grammar_is_ambiguous_in_the_fields_dialect() -> None:
    for row in commands.TABLE:
        kinds = [parameter.kind for parameter in row.parameters]
        assert len(kinds) == len(set(kinds)), f"{row.name}: one member cannot fill two parameters"
        assert not (row.options and any(parameter.many for parameter in row.parameters)), row.name


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"command":"GET","key":"k"}', "k"),
        (b'{"command":"GET","key":1.0}', "1.0"),
        (b'{"command":"GET","key":123456789012345678901234567890}', "123456789012345678901234567890"),
        (b'{"command":"GET","key":1E+2}', "1E+2"),
        (b'{"command":"GET","key":true}', "true"),
        (b'{"command":"DEL","key":["a",1e999]}', ["a", "1e999"]),
        (b'{"command":"GET","key":"\\u0000"}', "\x00"),
        (b'{"command":"PING","value":1}', None),
        (b'{"command":"GET","key":"' + b"k" * 4097 + b'"}', None),
        (b'{"command":"DEL","key":["a","' + b"k" * 4097 + b'"]}', None),
    ],
)
def test_the_key_is_echoed_as_it_was_sent_unless_it_is_no_key(body: bytes, key: object) -> None:
    assert parse_body(body).key == key


def test_a_list_of_keys_longer_than_a_value_is_not_echoed() -> None:
    body = b'{"command":"DEL","key":["aaaa","bbbb"]}'
    assert parse_body(body, Limits(value_bytes_max=8)).key == ["aaaa", "bbbb"]
    assert parse_body(body, Limits(value_bytes_max=7)).key is None


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
shapes = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=3), scalars, max_size=3)
names = st.sampled_from([*(row.name for row in commands.TABLE), "del", "", "a b"])


@given(names, st.dictionaries(st.sampled_from(["key", "value", "options"]), shapes))
def test_any_fields_give_a_command_made_of_its_members_or_a_refusal(command: str, members: dict[str, object]) -> None:
    try:
        request = parse({"command": command, **members})
    except BadRequest:
        return
    if mistake(request):
        return
    parsed = commands.parse(request.argv, LIMITS)
    for field, member in (("key", "key"), ("keys", "key"), ("value", "value"), ("values", "value")):
        if hasattr(parsed, field):
            assert in_bytes(getattr(parsed, field)) == in_bytes(members[member])


def in_bytes(given: object) -> list[bytes]:
    if isinstance(given, list | tuple):
        return [word for element in given for word in in_bytes(element)]
    if isinstance(given, bytes):
        return [given]
    return [(given if isinstance(given, str) else json.dumps(given)).encode()]
