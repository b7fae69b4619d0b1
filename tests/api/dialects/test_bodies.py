"""Request bodies to argv and replies to answers, as the tables of the contract have them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import answers
from api.dialects import bodies as dialects
from api.dialects.bodies import Answer, BadRequest, Dialect, Request
from api.dialects.json_body import is_quick, parse_in_steps
from api.dialects.line import split_line
from engine.commands import table as commands
from engine.commands.grammar import CommandError
from engine.limits import Limits
from engine.replies import Error, Failure, Integer, Ok, Reply, Value

LIMITS = Limits()
A_LIST = "a list of commands goes to /pipeline or /multi; the array form of one is not supported yet"
LINE = Request([], Dialect.LINE)
KEYED = Request([], Dialect.FIELDS, "k")


def parse_body(body: bytes, limits: Limits = LIMITS) -> Request:
    return dialects.parse(parse_in_steps(body, limits), limits)


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


# ---- the line dialect


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("SET hello world", [b"SET", b"hello", b"world"]),
        ("  SET   a  b ", [b"SET", b"a", b"b"]),
        ("", []),
        ("   ", []),
        ("SET k ''", [b"SET", b"k", b""]),
        ('SET k ""', [b"SET", b"k", b""]),
        ('SET k "a b"', [b"SET", b"k", b"a b"]),
        ("SET k 'a b'", [b"SET", b"k", b"a b"]),
        ('SET k "a b" EX 60', [b"SET", b"k", b"a b", b"EX", b"60"]),
        (r'SET k "\n\r\t\b\a"', [b"SET", b"k", b"\n\r\t\b\a"]),
        (r'SET k "\x00\xfF\x41B"', [b"SET", b"k", b"\x00\xffAB"]),
        (r'SET k "\xg1\x4"', [b"SET", b"k", b"xg1x4"]),
        (r'SET k "\"\\\q\é"', [b"SET", b"k", '"\\qé'.encode()]),
        (r"SET k 'it\'s' '\n\\ '", [b"SET", b"k", b"it's", b"\\n\\\\ "]),
        (r"""SET k '"' "'" """, [b"SET", b"k", b'"', b"'"]),
        ('SET k it\'s a"b"', [b"SET", b"k", b"it's", b'a"b"']),
        (r"SET k \n\x41", [b"SET", b"k", rb"\n\x41"]),
        ("SET k a\tb\nc", [b"SET", b"k", b"a\tb\nc"]),
        ("SET k\u00a0 v\u3000w", [b"SET", "k\u00a0".encode(), "v\u3000w".encode()]),
        ("SET ключ 😀 'ü €'", [b"SET", "ключ".encode(), "😀".encode(), "ü €".encode()]),
        ("SET k \x00", [b"SET", b"k", b"\x00"]),
    ],
)
def test_a_line_is_split_as_redis_cli_splits_it_but_at_spaces_only(text: str, argv: list[bytes]) -> None:
    assert line(text) == Request(argv, Dialect.LINE)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('SET k "abc', "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ("SET k 'abc", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        (r'SET k "abc\"', "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ('SET k "abc' + "\\", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        (r"SET k 'abc\'", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ('"', "unbalanced quotes: the word that starts at byte 0 has no closing quote"),
        ("SET k ' \"", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ('SET k "a"b', "the closing quote at byte 8 must be followed by a space"),
        ("SET 'k'\tv", "the closing quote at byte 6 must be followed by a space"),
        ("SET k ''''", "the closing quote at byte 7 must be followed by a space"),
    ],
)
def test_quotes_that_do_not_match_are_an_invalid_command(text: str, detail: str) -> None:
    request = line(text)
    assert request == Request([], Dialect.LINE, None, Failure(Error.INVALID_COMMAND, detail))
    assert request.failure is not None
    assert json.loads(dialects.answer(request, request.failure).body) == {"error": "invalid command", "detail": detail}


def test_a_quoted_word_of_many_steps_is_put_together_right() -> None:
    for unit, value in ((r"\n", b"\n"), (r"a\x41", b"aA"), ("é ", "é ".encode()), (r"\\", b"\\")):
        for shift in range(3):
            assert line(f'SET k "{"x" * shift}{unit * 9000}"').argv[2] == b"x" * shift + value * 9000
    for shift in range(3):
        text = "x" * shift + r"\' \n" * 9000
        assert line(f"SET k '{text}'").argv[2] == text.replace("\\'", "'").encode()


def test_a_line_that_is_long_is_split_like_a_short_one() -> None:
    words = [b"QPUSH", b"q", *(b"%d" % number for number in range(9_999, 30_000))]
    text = (b" " * 70_000).join(words[:5]) + b" " + b"   ".join(words[5:]) + b" "
    assert split_line(text, 65_536) == words
    assert split_line(b" " * 200_000, 65_536) == []


def test_a_line_of_too_many_words_is_refused_where_the_count_is_passed() -> None:
    body = json.dumps({"command": "a " * 40_000}).encode()
    request = parse_body(body, Limits(tokens_max=100))
    assert request.failure == Failure(Error.TOO_LARGE, "a command has at most 100 words")
    assert dialects.answer(request, request.failure).status == 413


# A word as a person would quote it: every way must give the same bytes.
def double_quoted(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


def redis_quoted(word: bytes) -> bytes:
    return b'"' + word.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_any_words_round_trip_through_escapes(words: list[bytes]) -> None:
    assert line(" ".join(double_quoted(word) for word in words)).argv == words
    assert split_line(b"  ".join(redis_quoted(word) for word in words), 10) == words


no_space = st.characters(codec="utf-8", exclude_characters=" ")
no_quote = st.characters(codec="utf-8", exclude_characters=" \"'")


@given(st.lists(st.builds(str.__add__, no_quote, st.text(no_space)), max_size=5))
def test_any_bare_words_round_trip(words: list[str]) -> None:
    encoded = [word.encode() for word in words]
    assert line(" ".join(words)).argv == encoded
    assert split_line(" ".join(words).encode() + b" '' ", 10) == [*encoded, b""]


# ---- the fields dialect


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
            f"SET takes one value, not a list, expected {SET}",
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


# ---- bodies that are no request


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (
            b'["SET","k","v"]',
            A_LIST,
        ),
        (b'"PING"', "expected an object with a member 'command', not a string"),
        (b"1", "expected an object with a member 'command', not a number"),
        (b"true", "expected an object with a member 'command', not true or false"),
        (b"null", "expected an object with a member 'command', not null"),
        (b"{}", "the member 'command' must be a string, it is left out"),
        (b'{"key":"k"}', "the member 'command' must be a string, it is left out"),
        (b'{"command":1}', "the member 'command' must be a string, it is a number"),
        (b'{"command":null}', "the member 'command' must be a string, it is null"),
        (b'{"command":["PING"]}', "the member 'command' must be a string, it is a list"),
        (b'{"command":"PING","Key":1}', "unknown member 'Key', known are command, key, value, options"),
        (b'{"command":"PING","\\u0000":1}', "unknown member '\\x00', known are command, key, value, options"),
        (b'{"command":"GET","key":null}', "key takes strings, numbers, true and false, not null"),
        (b'{"command":"GET","key":{"a":1}}', "key takes strings, numbers, true and false, not an object"),
        (b'{"command":"DEL","key":["a",null]}', "key takes strings, numbers, true and false, not null"),
        (b'{"command":"DEL","key":[["a"]]}', "key takes strings, numbers, true and false, not a list"),
        (b'{"command":"SET","key":"k","value":null}', "value takes strings, numbers, true and false, not null"),
        (b'{"command":"NOPE","value":{}}', "value takes strings, numbers, true and false, not an object"),
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


# ---- answers


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
    assert dialects.answer(LINE, reply) == Answer(200, in_line)
    assert dialects.answer(KEYED, reply) == Answer(200, in_fields)


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
            assert dialects.answer(request, Failure(error, detail)) == Answer(status, json.dumps(members).encode())


def test_every_error_has_a_status() -> None:
    assert set(answers._STATUS) == set(Error)


def test_a_request_without_a_key_and_one_with_many_are_echoed_so() -> None:
    assert dialects.answer(Request([], Dialect.FIELDS), Value(b"PONG")).body == b'{"success": true, "value": "PONG"}'
    many = Request([], Dialect.FIELDS, ["a", "1"])
    assert dialects.answer(many, Integer(2)).body == b'{"success": true, "key": ["a", "1"], "value": 2}'


def test_failures_of_the_http_layer_have_the_line_form() -> None:
    assert dialects.failure(405, "method not allowed") == Answer(405, b'{"error": "method not allowed"}')
    assert dialects.failure(404, "x", "\udcff") == Answer(404, b'{"error": "x", "detail": "?"}')


@given(st.text(), st.text())
def test_any_key_and_value_round_trip_through_a_request_and_its_answer(key: str, value: str) -> None:
    request = parse({"command": "SET", "key": key, "value": value})
    assert request.argv == [b"SET", key.encode(), value.encode()]
    assert json.loads(dialects.answer(request, Value(request.argv[2])).body) == {
        "success": True,
        "key": key,
        "value": value,
    }


@given(st.binary())
def test_any_stored_bytes_can_be_had_back_from_an_answer(stored: bytes) -> None:
    answered = json.loads(dialects.answer(LINE, Value(stored)).body)
    if "encoding" in answered:
        assert base64.b64decode(answered["value"]) == stored
    else:
        assert answered["value"].encode() == stored


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


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        (b'{"command":"GET","key":null}', {"success": False}),
        (b'{"command":"GET","key":"k","extra":1}', {"success": False}),
        (b'{"command":1,"options":{}}', {"success": False}),
        (b'{"command":1}', {"error": "invalid request"}),
        (b'{"command":"GET k","extra":1}', {"error": "invalid request"}),
        (b"[1]", {"error": "invalid request"}),
    ],
)
def test_a_body_that_is_no_request_is_answered_in_the_form_of_the_dialect_it_looks_like(
    body: bytes, answered: dict[str, object]
) -> None:
    with pytest.raises(dialects.BadRequest) as bad:
        parse_body(body)
    answer = dialects.refuse(bad.value)
    members = json.loads(answer.body)
    assert answer.status == 400
    assert answered.items() <= members.items()
    assert members.get("message", "invalid request: ").startswith("invalid request: ")


# ---- the quick way


def outcome(understand: Callable[[bytes, Limits], dialects.Understood], body: bytes, limits: Limits) -> object:
    """All that can be seen of a body: how it is answered, and the command or what it is refused with."""
    try:
        request, command = understand(body, limits)
    except BadRequest as bad:
        return bad.status, bad.error, bad.detail, bad.in_fields
    return request.dialect, request.key, command


def assert_both_ways_agree(body: bytes, limits: Limits = LIMITS) -> None:
    assert is_quick(body)
    assert outcome(dialects.understand, body, limits) == outcome(dialects.understand_in_steps, body, limits)


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
def bodies(draw: st.DrawFn) -> bytes:
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


@given(bodies() | line_bodies, st.sampled_from([LIMITS, LIMITS, *SMALL]))
def test_both_ways_agree_on_anything(body: bytes, limits: Limits) -> None:
    assert_both_ways_agree(body, limits)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 5000])
@pytest.mark.parametrize("end", ["", '"', "\\", "\n", "\x1f", "\x7f", "é", "\u2028", "😀"])
def test_a_value_is_answered_as_the_stdlib_writes_it(length: int, end: str) -> None:
    text = "v" * length + end
    expected = json.dumps({"value": text}, ensure_ascii=False).encode()
    assert dialects.answer(LINE, Value(text.encode())) == Answer(200, expected)
