"""Lists of commands to batches, and the replies to the list of their answers; both readers held to one another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import answers, batches, bodies, json_body, json_list
from api.dialects.answers import Answer
from api.dialects.batches import BatchRequest
from api.dialects.json_body import BadRequest
from api.dialects.json_list import ListReader
from engine.commands.keys import Delete
from engine.commands.queues import QPop, QPush
from engine.commands.server import Ping
from engine.commands.values import Get, Set
from engine.limits import KIB, MIB, Limits
from engine.replies import NULL, Error, Failure, Integer, Ok, Refused, Reply, Value
from tests.api.dialects.test_bodies import A_LIST, NOT_PLAIN, PLAIN, any_bodies, line_bodies

LIMITS = Limits()


def body_of(*elements: object) -> bytes:
    return json.dumps(elements).encode()


def parse(*elements: object, limits: Limits = LIMITS, atomic: bool = False) -> BatchRequest:
    return batches.parse(body_of(*elements), limits, atomic=atomic)


def refusal(body: bytes, limits: Limits = LIMITS, *, atomic: bool = False) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        batches.parse(body, limits, atomic=atomic)
    return refused.value


def answered(batch: BatchRequest, *replies: Reply) -> Any:
    """The answer in one go, which has to be what the slices give as well."""
    answer = batches.answer(batch, replies)
    assert answer == batches.list_of(batches.encode(batch, replies, MIB))
    assert answer.status == 200
    return json.loads(answer.body)


# ---- what is asked


def test_commands_of_both_dialects_stand_side_by_side_in_one_batch() -> None:
    batch = parse(
        {"command": "SET a 1"},
        {"command": "SET", "key": "b", "value": 2, "options": {"ex": 60}},
        {"command": 'QPUSH q "two words"'},
        {"command": "GET", "key": "a"},
        {"command": "PING"},
    )
    assert batch.commands == [Set(b"a", b"1"), Set(b"b", b"2", 60_000), QPush(b"q", (b"two words",)), Get(b"a"), Ping()]
    assert answered(batch, Ok(), Ok(), Ok(1), Value(b"1"), Value(b"PONG")) == [
        {},
        {"success": True, "key": "b"},
        {},
        {"success": True, "key": "a", "value": "1"},
        {"value": "PONG"},
    ]


def test_an_empty_list_is_an_empty_batch() -> None:
    for body in (b"[]", b" [ ]\n"):
        batch = batches.parse(body, LIMITS, atomic=False)
        assert batch.commands == []
        assert batches.answer(batch, []).body == b"[]"


def test_each_bad_command_has_its_own_error_in_its_place_and_the_rest_runs() -> None:
    batch = parse(
        {"command": "SET a 1"},
        {"command": "NOPE"},
        {"command": "SET", "key": "k"},
        {"command": 1},
        [],
        5,
        {"command": "GET", "key": None},
        {"command": "GET a"},
    )
    assert batch.commands == [Set(b"a", b"1"), Get(b"a")]
    found = answered(batch, Ok(), Value(b"1"))
    bad = found[1:-1]
    assert [found[0], found[-1]] == [{}, {"value": "1"}]
    assert [one.get("error", one.get("message", "").partition(":")[0]) for one in bad] == [
        "invalid command",
        "invalid command",
        "invalid request",
        "invalid request",
        "invalid request",
        "invalid request",
    ]
    assert set(bad[1]) == {"success", "message", "key"}


def test_the_error_of_an_array_in_a_batch_says_itself_what_is_not_spoken() -> None:
    """`@upstash/redis` sends each command so, and shows only this."""
    (found,) = answered(parse(["set", "k", "v"]))
    assert found == {"error": bodies.ARRAY_FORM}
    unit = json.loads(answers.refuse(refusal(body_of(["set", "k", "v"]), atomic=True)).body)
    assert unit == {"error": bodies.ARRAY_FORM, "detail": f"command 1: {bodies.ARRAY_FORM}", "index": 0}


@pytest.mark.parametrize("body", [body for body in (*PLAIN, *NOT_PLAIN) if body])
def test_an_element_is_understood_and_answered_as_if_it_had_come_alone(body: bytes) -> None:
    try:
        request, command = bodies.understand_in_steps(body, LIMITS)
    except BadRequest as bad:
        try:
            json.loads(body)
        except ValueError:
            return  # the list it is in is no JSON either
        if "twice" in bad.detail or "surrogate" in bad.detail or "nested" in bad.detail or "NaN" in body.decode():
            assert refusal(b"[%b]" % body).status == 400
            return
        expected, command = answers.refuse(bad), Failure(Error.INVALID_COMMAND)
    else:
        reply = command if isinstance(command, Failure) else Integer(7)
        expected = answers.answer(request, reply)
    for around in (b"[%b]", b'[{"command": "PING"}, %b , {"command":"SET k \\u0041"}]'):
        batch = batches.parse(around % body, LIMITS, atomic=False)
        found = json.loads(batches.answer(batch, [Integer(7)] * len(batch.commands)).body)
        assert json.loads(expected.body or b"{}") in found
        assert isinstance(command, Failure) or command in batch.commands


# ---- what is no batch


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "not JSON: the body ends where a JSON value was expected"),
        (b'{"command": "PING"}', "expected a list of commands"),
        (b"1", "expected a list of commands"),
        (b"{]", "not JSON: expected a member name in double quotes at byte 1"),
        (b"[", "not JSON: the body ends where a JSON value was expected"),
        (b"[1", "not JSON: the body ends where ',' or ']' was expected"),
        (b"[1,]", "not JSON: expected a JSON value at byte 3"),
        (b"[1 2]", "not JSON: expected ',' or ']' at byte 3"),
        (b"[,1]", "not JSON: expected a JSON value at byte 1"),
        (b"[1]]", "not JSON: expected the end of the body at byte 3"),
        (b'[{"a":1}], {"a":1}', "not JSON: expected the end of the body at byte 9"),
        (b'[{"a":1} {"a":1}]', "not JSON: expected ',' or ']' at byte 9"),
        (b'[{"a":1,"a":1}]', "member 'a' is given twice, again at byte 8"),
        (b'[{"command":"PING"},{"command":1,"command":2}]', "member 'command' is given twice, again at byte 33"),
        (b'[{"command":"PING"},{"a":["\\ud800"]}]', "lone surrogate in the string that starts at byte 26"),
        (b'[{"a":NaN}]', "not JSON: expected a JSON value at byte 6"),
        (b'["\xff"]', "the body is not valid UTF-8"),
        (b"\xef\xbb\xbf[]", "the body starts with a byte order mark"),
        (b'[{"command":"PING","options":' + b"[" * 70, "nested deeper than 64 at byte 91"),
    ],
)
@pytest.mark.parametrize("atomic", [False, True])
def test_a_body_that_is_no_list_in_strict_json_is_an_invalid_request(body: bytes, detail: str, atomic: bool) -> None:
    bad = refusal(body, atomic=atomic)
    assert (bad.status, bad.error, bad.detail, bad.index) == (400, "invalid request", detail, None)


@pytest.mark.parametrize("atomic", [False, True])
def test_too_many_commands_are_refused_where_the_count_is_passed(atomic: bool) -> None:
    limits = Limits(unit_commands_max=3) if atomic else Limits(batch_commands_max=3)
    kind = "an atomic batch" if atomic else "a pipeline"
    assert len(parse(*[{"command": "PING"}] * 3, limits=limits, atomic=atomic).commands) == 3
    for body in (body_of(*[{"command": "PING"}] * 4), b"[1,2,3,", b"[{},{},{},4 and what follows is not looked at"):
        bad = refusal(body, limits, atomic=atomic)
        assert (bad.status, bad.error, bad.detail) == (413, "too large", f"{kind} has at most 3 commands")


def test_a_batch_takes_65_536_commands_and_not_one_more() -> None:
    element = b'{"command": "SET key:%05d v"}'
    elements = [element % number for number in range(65_537)]
    batch = batches.parse(b"[" + b", ".join(elements[:-1]) + b"]", LIMITS, atomic=False)
    assert batch.commands == [Set(b"key:%05d" % number, b"v") for number in range(65_536)]
    slices = list(batches.encode(batch, [Ok()] * 65_536, MIB))
    assert max(map(len, slices)) < 4 * KIB
    assert batches.list_of(slices).body == b"[" + b", ".join([b"{}"] * 65_536) + b"]"
    assert refusal(b"[" + b", ".join(elements) + b"]").detail == "a pipeline has at most 65536 commands"
    assert (
        refusal(b"[" + b", ".join(elements[:1001]) + b"]", atomic=True).detail
        == "an atomic batch has at most 1000 commands"
    )


def test_items_and_words_are_bounded_over_the_whole_body() -> None:
    limits = Limits(batch_commands_max=4)  # times 16
    keys = {"command": "DEL", "key": ["k"] * 20}
    assert parse(keys, keys, limits=limits).commands == [Delete((b"k",) * 20)] * 2
    for body in (body_of(keys, keys, keys), b"[" + b"[0]," * 3 + b"[" + b"0," * 70, b'["\\u0041",' + b"[0,0,0," * 40):
        assert refusal(body, limits).detail == "the body has more than 64 items"
    line = {"command": "DEL" + " k" * 30}
    assert len(parse(line, line, limits=limits).commands) == 2
    assert refusal(body_of(line, line, line), limits).detail == "the commands have more than 64 words"


# ---- both readers


class InSteps(ListReader):
    """Leaves nothing to the C scanner."""

    def scan(self) -> None:
        return None


def outcome(body: bytes, limits: Limits, atomic: bool) -> Any:
    """All that can be seen of a body: the commands, and how each element is answered; or how the whole is."""
    try:
        batch = batches.parse(body, limits, atomic=atomic)
    except BadRequest as bad:
        return answers.refuse(bad)
    return batch.commands, batches.answer(batch, [Ok(1)] * len(batch.commands)), batch.memory_bytes


def assert_readers_agree(body: bytes, limits: Limits, atomic: bool, piece_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "ListReader", InSteps)
        in_steps = outcome(body, limits, atomic)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "PIECE_BYTES_MAX", piece_bytes)
        assert outcome(body, limits, atomic) == in_steps


lists = st.tuples(
    st.lists(st.sampled_from(PLAIN) | line_bodies | any_bodies(), max_size=8),
    st.sampled_from([b",", b", ", b",\n  ", b" ,", b",,"]),
    st.sampled_from([b"", b"", b"", b" ", b"]", b"}"]),
).map(lambda parts: b"[" + parts[1].join(parts[0]) + b"]" + parts[2])

SMALL = [
    Limits(batch_commands_max=3, unit_commands_max=2),
    Limits(batch_commands_max=1),
    Limits(json_depth_max=1),
    Limits(json_depth_max=3, key_bytes_max=1),
    Limits(body_bytes_max=60, tokens_max=2),
]


@given(lists, st.sampled_from([LIMITS, LIMITS, *SMALL]), st.booleans(), st.sampled_from([64 * KIB, 100, 30]))
def test_pieces_scanned_at_once_give_what_reading_in_steps_gives(
    body: bytes, limits: Limits, atomic: bool, piece_bytes: int
) -> None:
    assert_readers_agree(body, limits, atomic, piece_bytes)


@pytest.mark.parametrize(
    "body",
    [
        b'[{"command":"PING"}]',
        b'[{"command":"PING","options":[[]]}]',
        b'[{"command":"PING","options":[]},{"command":"PING","options":{"a":{}}}]',
        b'[{"command":"DEL","key":["a"]},{"command":"SET","key":"k","value":true}]',
        b'[{"command":"DEL","key":["a","b","c","d","e","f","g","h","i","j","k","l"]}]',
        b'[{"command":"DEL","key":["a","b","c","d","e","f","g","h"]},{"command":"DEL a b c d e f g h i j k l m n"}]',
    ],
)
def test_depth_items_and_words_are_counted_alike_by_both_readers(body: bytes) -> None:
    for limits in (*(Limits(json_depth_max=depth) for depth in (1, 2, 3, 4, 64)), Limits(batch_commands_max=1)):
        assert_readers_agree(body, limits, atomic=False, piece_bytes=64 * KIB)


def test_a_batch_without_a_mistake_in_its_json_is_left_to_the_scanner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListReader, "read", lambda _reader: pytest.fail("read in steps"))
    elements: list[object] = [
        {"command": "SET k v EX 60"},
        {"command": 'SET k "two words"'},
        {"command": "NOPE"},
        {"command": "SET", "key": "k", "value": False, "options": {"ex": 60, "nx": True}},
        {"command": "DEL", "key": ["a", 1]},
        {"command": 1},
        {"options": {"ex": 60}, "command": "SET", "key": "k", "value": "v"},
    ]
    for separators in ((",", ":"), (", ", ": ")):
        body = json.dumps(elements * 3, separators=separators).encode()
        for piece_bytes in range(200, 300):  # a piece ends anywhere, also behind the options of the last element
            monkeypatch.setattr(json_list, "PIECE_BYTES_MAX", piece_bytes)
            assert len(batches.parse(body, LIMITS, atomic=False).commands) == 15


@pytest.mark.parametrize("body", [body for body in PLAIN if json.loads(body)])
def test_lines_among_their_like_are_understood_as_alone(body: bytes) -> None:
    batch = batches.parse(b"[%b, %b]" % (body, body), LIMITS, atomic=False)
    _, command = bodies.understand_in_steps(body, LIMITS)
    assert batch.commands == ([] if isinstance(command, Failure) else [command] * 2)


@pytest.mark.parametrize("piece_bytes", range(20, 120))
def test_a_piece_may_end_anywhere(piece_bytes: int) -> None:
    elements: list[object] = [
        {"command": "SET k v"},
        {"options": {"ex": 60}, "command": "SET", "key": "}, {", "value": "},{ ] ["},
        {"command": "SET k \"'}, {'\""},
        {"command": "SET", "key": "ключ", "value": "😀 }"},
        [{"command": "PING"}, {}],
        {"command": "GET k"},
    ]
    for indent in (None, 2):
        for ascii_only in (True, False):
            body = json.dumps(elements * 3, indent=indent, ensure_ascii=ascii_only).encode()
            assert_readers_agree(body, LIMITS, atomic=False, piece_bytes=piece_bytes)


# ---- bodies for the event loop, and those that are not


@pytest.mark.parametrize(
    ("body", "quick"),
    [
        (body_of(*[{"command": "SET key:000017 value"}] * 250), True),
        (body_of(*[{"command": "SET key:000017 value"}] * 300), False),
        (b'[{"command": "SET k ' + b"v" * 65_000 + b'"}]', True),
        (b'[{"command": "SET k ' + b"v" * 66_000 + b'"}]', False),
        (b"[" + b"1," * 512, True),
        (b"[" + b"1," * 513, False),
        (b"[" * 2561, False),
    ],
)
def test_only_batches_that_cost_little_are_parsed_in_the_event_loop(body: bytes, quick: bool) -> None:
    assert batches.is_quick(body) is quick


HOSTILE = {
    "one string": b'["' + b"x" * (16 * MIB),
    "one string of escapes": b'[{"command":"SET k ' + b"\\n" * (8 * MIB - 20) + b'"}]',
    "one list in an element": b'[{"command":"DEL","key":[' + b"1," * (8 * MIB - 20),
    "containers in containers": b"[" * (16 * MIB),
    "white space": b"[" + b" " * (16 * MIB - 1),
    "braces that end nothing": b'["' + b"}, {" * (4 * MIB - 1),
    "empty objects": b"[" + b"{}," * (5 * MIB),
    "a number": b"[" + b"1" * (16 * MIB - 1),
    "words": b'[{"command":"DEL' + b" a" * (8 * MIB - 20) + b'"}]',
    "no UTF-8": b'["' + b"x" * (16 * MIB - 3) + b"\xff",
}


@pytest.fixture
def scanned_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The lengths of what the C scanner is given, for it does not let go of the GIL before it is done."""
    lengths: list[int] = []

    def noting(piece: bytes) -> object:
        lengths.append(len(piece))
        return json_body.scan(piece)

    monkeypatch.setattr(json_list, "scan", noting)
    yield lengths
    assert max(lengths, default=0) <= json_list.PIECE_BYTES_MAX + 2


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_longest_body_is_read_in_short_steps_whatever_it_is_made_of(kind: str, scanned_bytes: list[int]) -> None:
    body = HOSTILE[kind]
    assert len(body) <= LIMITS.body_bytes_max + 2
    assert not batches.is_quick(body)
    found = outcome(body, Limits(batch_commands_max=8192), atomic=False)
    if isinstance(found, Answer):
        assert found.status in (400, 413)
    else:
        commands, answer, _ = found
        assert commands == []
        assert b"too large" in answer.body
    assert sum(scanned_bytes) <= 2 * MIB, "only what is a list of objects is worth a scan"


def test_what_cannot_be_scanned_is_scanned_only_once(scanned_bytes: list[int]) -> None:
    small, long = {"command": "SET key:000017 value"}, {"command": "SET", "key": "k", "value": "},{" * 50_000}
    assert len(parse(*[small] * 500, long, *[small] * 500).commands) == 1001  # a piece ends in the long one
    assert sum(scanned_bytes) <= 200_000


def test_a_body_without_an_object_is_not_searched_for_one_at_each_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """F7: 65,536 elements took 25 s."""
    searches, end_of_piece = [], json_list.ListReader._end_of_piece

    def noting(reader: json_list.ListReader) -> int:
        searches.append(reader.at)
        return end_of_piece(reader)

    monkeypatch.setattr(json_list.ListReader, "_end_of_piece", noting)
    body = b"[%b1]" % (b'"",' * 65_535)
    assert len(batches.parse(body, LIMITS, atomic=False).requests) == 65_536
    assert len(searches) <= len(body) / json_list.PIECE_BYTES_MAX + 2


def test_while_a_long_body_is_read_the_gil_is_let_go_now_and_then_not_at_each_element(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F7"""
    at: list[float] = []
    monkeypatch.setattr(time, "sleep", at.append)
    body = b"[%b1]" % (b'"",' * 65_535)
    batches.parse(body, LIMITS, atomic=False)
    assert len(body) / batches.LET_GO_BYTES / 2 < len(at) <= len(body) / batches.LET_GO_BYTES + 1


# ---- answers


def test_a_value_that_is_no_utf8_is_answered_in_base64_as_ever() -> None:
    batch = parse({"command": "GET k"}, {"command": "GET", "key": "k"})
    assert answered(batch, Value(b"\xff"), Value(b"\xff")) == [
        {"value": "/w==", "encoding": "base64"},
        {"success": True, "key": "k", "value": "/w==", "encoding": "base64"},
    ]


def test_a_failure_is_a_reply_in_its_place() -> None:
    batch = parse({"command": "GET a"}, {"command": "QPOP q"}, {"command": "SET a 1"})
    failure = Failure(Error.WRONG_TYPE, "the key holds a plain value, QPOP needs a queue")
    assert answered(batch, Failure(Error.KEY_NOT_FOUND), failure, Ok()) == [
        {"error": "key not found"},
        {"error": "wrong type", "detail": "the key holds a plain value, QPOP needs a queue"},
        {},
    ]


def test_replies_are_quick_to_answer_when_they_are_few_and_short() -> None:
    long = Value(b"v" * (128 * KIB))
    assert batches.is_quick_to_answer([Ok()] * 512, MIB)
    assert not batches.is_quick_to_answer([Ok()] * 513, MIB)
    assert batches.is_quick_to_answer([long, NULL, long], MIB)
    assert not batches.is_quick_to_answer([long, long, Value(b"v")], MIB)
    assert batches.is_quick_to_answer(Refused(Failure(Error.UNAVAILABLE)), MIB)
    assert batches.is_quick_to_answer([Value(b"1234567890")], 10)
    assert not batches.is_quick_to_answer([Value(b"123456"), Value(b"12345")], 10)


def test_long_values_are_encoded_a_slice_each() -> None:
    batch = parse(*[{"command": "GET k"}] * 4, {"command": "NOPE"})
    slices = list(batches.encode(batch, [Value(b"v" * (300 * KIB))] * 4, 16 * MIB))
    assert [len(one) // KIB for one in slices] == [300, 300, 300, 300, 0]
    assert len(json.loads(batches.list_of(slices).body)) == 5


def test_reads_beyond_the_longest_answer_are_refused_in_their_place_and_what_was_popped_is_answered() -> None:
    batch = parse(*[{"command": "GET k"}] * 3, {"command": "QPOP q"}, {"command": "GET l"}, {"command": "QLEN q"})
    assert batch.commands[3] == QPop(b"q")
    replies: list[Reply] = [*[Value(b"1234")] * 3, Value(b"popped"), Value(b"1"), Integer(2)]
    found = json.loads(batches.list_of(batches.encode(batch, replies, 10)).body)
    too_large = {"error": "too large", "detail": "a batch reads values of at most 10 bytes in all"}
    assert found == [{"value": "1234"}, {"value": "1234"}, too_large, {"value": "popped"}, too_large, {"value": 2}]


# ---- units


@pytest.mark.parametrize(
    ("bad", "status", "error", "detail"),
    [
        ({"command": "NOPE"}, 400, "invalid command", "command 3: unknown command 'NOPE', expected one of"),
        ({"command": "SET", "key": "k"}, 400, "invalid command", "command 3: SET: value is missing"),
        (
            {"command": "GET " + "k" * 5000},
            413,
            "too large",
            "command 3: the key has 5000 bytes, at most 4096 are taken (--max-key)",
        ),
        ({"command": 5}, 400, "invalid request", "command 3: the member 'command' must be a string, it is a number"),
        ({"command": "GET", "key": None}, 400, "invalid request", "command 3: key takes strings, numbers"),
        (
            [{"command": "PING"}],
            400,
            "invalid request",
            f"command 3: {A_LIST}",
        ),
    ],
)
def test_a_unit_with_an_element_that_is_no_command_is_refused_whole(
    bad: object, status: int, error: str, detail: str
) -> None:
    body = body_of({"command": "SET a 1"}, {"command": "SET b 1"}, bad, {"command": "NOPE EITHER"})
    answer = answers.refuse(refusal(body, atomic=True))
    members = json.loads(answer.body)
    assert (answer.status, members["error"], members["index"]) == (status, error, 2)
    assert members["detail"].startswith(detail)
    assert set(members) == {"error", "detail", "index"}


@pytest.mark.parametrize(
    ("refused", "status", "members"),
    [
        (
            Refused(Failure(Error.KEY_ALREADY_EXISTS), 1),
            409,
            {"error": "key already exists", "detail": "command 2: key already exists", "index": 1},
        ),
        (
            Refused(Failure(Error.WRONG_TYPE, "the key holds a queue"), 0),
            409,
            {"error": "wrong type", "detail": "command 1: the key holds a queue", "index": 0},
        ),
        (
            Refused(Failure(Error.UNAVAILABLE, "shutting down")),
            503,
            {"error": "unavailable", "detail": "shutting down"},
        ),
        (Refused(Failure(Error.STORAGE_FULL)), 507, {"error": "storage full"}),
    ],
)
def test_a_batch_of_which_nothing_was_done_says_why_and_which_command_it_was(
    refused: Refused, status: int, members: dict[str, object]
) -> None:
    batch = parse({"command": "SET", "key": "a", "value": 1}, {"command": "SET a 1 NX"}, atomic=True)
    answer = batches.answer(batch, refused)
    assert (answer.status, json.loads(answer.body)) == (status, members)


def test_what_a_batch_takes_in_memory_grows_with_its_commands_items_and_words() -> None:
    def memory_bytes(*elements: object) -> int:
        return parse(*elements).memory_bytes

    tiny, keys = {"command": "PING"}, {"command": "DEL", "key": ["a"] * 100}
    assert memory_bytes(*[tiny] * 100) >= 100 * 512
    assert memory_bytes(keys) - memory_bytes(tiny) >= 200 * 64
    assert memory_bytes({"command": "DEL" + " a" * 100}) - memory_bytes(tiny) >= 100 * 64
    assert memory_bytes(*[5] * 100) >= 100 * 512
