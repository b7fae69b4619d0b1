"""Commands become requests, and answers replies; what was popped for an answer that is an error goes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from coredis.exceptions import (
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
    WrongTypeError,
)

from engine.calls import Command
from engine.commands.grammar import Effect, Row
from engine.commands.keys import Delete, Exists
from engine.commands.queues import BQPop, QPop, QPush
from engine.commands.table import TABLE, parse
from engine.limits import Limits
from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.redis.format import is_mark
from engine.redis.performer import KEYS_MAX, TRANSLATIONS, Performer
from engine.redis.receipts import Receipt, Receipts
from engine.redis.request import Request
from engine.redis.scripts import ALONE
from engine.redis.slots import slot_of
from engine.redis.translation import Native, Refusal, Scripted
from engine.replies import NULL, OK, PONG, Error, Failure, Integer, Ok, Reply, Value
from tests.harness.fake_redis import MARK, FakeRouter


class Desk:
    """A performer, and what came of one command."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.receipts = Receipts(b"front", self.router)
        self.taken: list[Receipt] = []
        self.replies: list[Reply] = []
        self._performer = Performer(self.router, self.receipts)

    def perform(self, command: Command | str) -> list[Request]:
        """Starts a command, and returns its requests."""
        if isinstance(command, str):
            command = parse(command.encode().split(b" "), Limits())
        self._performer.perform(command, self.taken, self.replies.append)
        return list(self.router.posted)

    def reply(self, line: str, result: Any) -> Reply:
        """What a command on one key answers to what Redis answers."""
        [request] = self.perform(line)
        self.router.answer(request, result)
        [reply] = self.replies
        return reply


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize(
    ("line", "words", "writes"),
    [
        ("SET k v", (b"SET", b"k", b"v"), True),
        ("SET k v EX 2 NX", (b"SET", b"k", b"v", b"PX", b"2000", b"NX"), True),
        ("SET k v XX", (b"SET", b"k", b"v", b"XX"), True),
        ("GET k", (b"GET", b"k"), False),
        ("TTL k", (b"PTTL", b"k"), False),
        ("DELETE k", (b"UNLINK", b"k"), True),
        ("EXISTS k k", (b"EXISTS", b"k", b"k"), False),
        ("QLEN k", (b"EVALSHA", ALONE["QLEN"].digest, 1, b"k"), False),
    ],
)
def test_a_command_on_one_key_is_one_request_for_its_slot(desk: Desk, line: str, words: Any, *, writes: bool) -> None:
    [request] = desk.perform(line)
    assert (request.name, *request.serialized_arguments) == words
    assert request.slot == slot_of(b"k")
    assert request.writes == writes
    assert not request.tracked


def test_a_push_brings_the_mark_of_a_new_queue_and_all_values_in_one_word(desk: Desk) -> None:
    [request] = desk.perform(QPush(b"q", (b"a", b"\xff\x00", b"")))
    digest, keys, key, mark, values = request.serialized_arguments
    assert (digest, keys, key) == (ALONE["QPUSH"].digest, 1, b"q")
    assert isinstance(mark, bytes)
    assert is_mark(mark)
    assert msgpack.unpackb(values, raw=True) == [b"a", b"\xff\x00", b""]
    assert request.writes


@pytest.mark.parametrize(("command", "name"), [(QPop(b"q"), "QPOP"), (BQPop(b"q", 0), "BQPOP")])
def test_a_pop_says_where_its_receipt_goes(desk: Desk, command: Command, name: str) -> None:
    [request] = desk.perform(command)
    digest, _, key, *_, receipts, token = request.serialized_arguments
    assert (digest, key, token) == (ALONE[name].digest, b"q", 1)
    assert receipts == desk.receipts.key_for(slot_of(b"q"))
    assert request.writes
    assert not request.tracked, "nobody waits"


@pytest.mark.parametrize(
    ("line", "result", "reply"),
    [
        ("SET k v", b"OK", OK),
        ("SET k v NX", None, Failure(Error.KEY_ALREADY_EXISTS)),
        ("SET k v XX", None, Failure(Error.KEY_NOT_FOUND)),
        ("GET k", b"", Value(b"")),
        ("GET k", None, Failure(Error.KEY_NOT_FOUND)),
        ("TTL k", -2, Integer(-2)),
        ("TTL k", -1, Integer(-1)),
        ("TTL k", 1, Integer(1)),
        ("TTL k", 1000, Integer(1)),
        ("TTL k", 1001, Integer(2)),
        ("DELETE k", 0, Failure(Error.KEY_NOT_FOUND)),
        ("DELETE k", 1, Integer(1)),
        ("EXISTS k", 0, Integer(0)),
        ("QPUSH k a", 7, Ok(length=7)),
        ("QLEN k", 0, Integer(0)),
        ("QPOP k", None, NULL),
        ("QPOP k", 0, Failure(Error.QUEUE_IS_EMPTY)),
        ("QPOP k", [MARK, b"a"], Value(b"a")),
        ("BQPOP k", None, NULL),
        ("BQPOP k", [MARK, b""], Value(b"")),
    ],
)
def test_an_answer_is_understood(desk: Desk, line: str, result: Any, reply: Reply) -> None:
    assert desk.reply(line, result) == reply
    end = b">" if line == "QPOP k" else b"<"
    popped = isinstance(result, list)
    assert desk.taken == ([Receipt(1, b"k", end + MARK + result[1])] if popped else [])
    assert desk.receipts.owed == 0


def test_a_ping_asks_nobody(desk: Desk) -> None:
    assert desk.perform("PING") == []
    assert desk.replies == [PONG]


WRONG_TYPE = "the key holds a plain value, {} needs a queue"


@pytest.mark.parametrize(
    ("line", "error", "kind", "detail"),
    [
        ("QPUSH k a", WrongTypeError("the key holds a plain value"), Error.WRONG_TYPE, WRONG_TYPE.format("QPUSH")),
        ("QPOP k", WrongTypeError("the key holds a plain value"), Error.WRONG_TYPE, WRONG_TYPE.format("QPOP")),
        (
            *("QLEN k", WrongTypeError("the key holds something foreign")),
            *(Error.WRONG_TYPE, "the key holds something that is nothing of Holdfast's, QLEN needs a queue"),
        ),
        ("SET k v", NotSent("a:1 does not answer"), Error.UNAVAILABLE, "a:1 does not answer"),
        ("SET k v", Lost("a:1 is gone"), Error.UNAVAILABLE, "a:1 is gone; the command may have been done, or not"),
        ("SET k v", ResponseError("OOM command not allowed"), Error.STORAGE_FULL, "redis has reached its maxmemory"),
        ("SET k v", ResponseError("MISCONF no disk"), Error.UNAVAILABLE, "redis: MISCONF no disk"),
        ("SET k v", ResponseError("NOREPLICAS Not enough"), Error.UNAVAILABLE, "redis: NOREPLICAS Not enough"),
        ("GET k", ResponseError("BUSY Redis is busy"), Error.UNAVAILABLE, "redis: BUSY Redis is busy"),
        ("GET k", BusyLoadingError("Redis is loading"), Error.UNAVAILABLE, "redis: Redis is loading"),
        (
            *("GET k", MovedError("7 10.0.0.1:7000"), Error.UNAVAILABLE),
            "redis: its nodes do not agree on who serves the slot of this key",
        ),
        ("GET k", ClusterDownError("The cluster is down"), Error.UNAVAILABLE, "redis: The cluster is down"),
        ("SET k v", ReadOnlyError("You can't write"), Error.UNAVAILABLE, "redis: You can't write"),
        ("GET k", AuthorizationError("no"), Error.UNAVAILABLE, "redis does not permit this to the server's user"),
        ("GET k", ResponseError("ERR something"), Error.INTERNAL_ERROR, ""),
        ("DELETE k", TryAgainError("Multiple keys"), Error.UNAVAILABLE, "redis: Multiple keys"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_is_said_in_our_words(desk: Desk, line: str, error: Exception, kind: Error, detail: str) -> None:
    assert desk.reply(line, error) == Failure(kind, detail)


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        (b"list", "a queue"),
        (b"string", "a queue"),  # it was, before somebody replaced it
        (b"none", "a queue"),
        (b"hash", "something that is nothing of Holdfast's"),
        (NotSent("away"), "a queue"),
    ],
)
def test_what_a_get_cannot_read_is_asked_for(desk: Desk, kind: object, held: str) -> None:
    desk.perform("GET k")
    desk.router.answer(desk.router.posted[0], WrongTypeError("Operation against"))
    (request,) = desk.router.posted
    assert (request.name, request.serialized_arguments) == (b"TYPE", (b"k",))
    desk.router.answer(request, kind)
    assert desk.replies == [Failure(Error.WRONG_TYPE, f"the key holds {held}, GET reads plain values")]


@pytest.mark.parametrize(
    "line",
    ["SET holdfast:import 1", "GET {12}holdfast:popped:1", "DELETE a {12}holdfast:popped:1", "QPUSH holdfast:import v"],
)
def test_names_of_our_own_are_refused(desk: Desk, line: str) -> None:
    assert desk.perform(line) == []
    (refused,) = desk.replies
    assert isinstance(refused, Failure)
    assert refused.error is Error.INVALID_COMMAND
    assert "is Holdfast's own in Redis" in refused.detail
    assert desk.perform("GET holdfast:queue:1") != []


@pytest.mark.parametrize("line", ["QPOP k", "BQPOP k"])
def test_a_pop_whose_answer_got_lost_goes_back_if_it_was_done(desk: Desk, line: str) -> None:
    """I6"""
    assert isinstance(desk.reply(line, Lost("gone")), Failure)
    assert desk.receipts._abandoned == [Receipt(1, b"k", b"")]
    assert not desk.taken


@pytest.mark.parametrize(("line", "end"), [("QPOP k", b">"), ("BQPOP k", b"<")])
def test_a_pop_that_too_few_replicas_have_goes_back(desk: Desk, line: str, end: bytes) -> None:
    """I6"""
    assert isinstance(desk.reply(line, NotReplicated([MARK, b"a"])), Failure)
    assert desk.receipts._abandoned == [Receipt(1, b"k", end + MARK + b"a")]
    assert not desk.taken


@pytest.mark.parametrize("error", [NotSent("away"), WrongTypeError("plain"), ClusterDownError("down")], ids=repr)
def test_a_pop_that_was_not_done_owes_nothing(desk: Desk, error: Exception) -> None:
    desk.reply("QPOP k", error)
    assert desk.receipts.owed == 0


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_each_command_is_said_to_redis_as_its_row_says_what_it_does(row: Row) -> None:
    how = TRANSLATIONS[row.command]
    changes = row.effect is Effect.CHANGES
    if isinstance(how, Native):
        assert (how.undo is not None) == changes
        assert not row.takes
    elif isinstance(how, Scripted):
        assert row.name in ALONE
        assert (how.end is not None) == row.takes
    else:
        assert row.effect is Effect.NOTHING
        return
    assert changes or how.refusal is Refusal.NO_OTHER


# Several keys


def keys(count: int) -> tuple[bytes, ...]:
    return tuple(b"%d" % number for number in range(count))


def test_keys_of_several_slots_are_a_request_for_each(desk: Desk) -> None:
    requests = desk.perform(Delete((b"{a}1", b"b", b"{a}2")))
    assert [(request.slot, request.serialized_arguments) for request in requests] == [
        (slot_of(b"a"), (b"{a}1", b"{a}2")),
        (slot_of(b"b"), (b"b",)),
    ]
    assert [request.divisible for request in requests] == [True, False]
    for request in reversed(requests):
        assert not desk.replies
        desk.router.answer(request, len(request.serialized_arguments))
    assert desk.replies == [Integer(3)]


@pytest.mark.parametrize("make", [Exists, Delete])
def test_a_key_that_is_named_twice_is_sent_twice(desk: Desk, make: Callable[[tuple[bytes, ...]], Command]) -> None:
    """Redis counts it twice for EXISTS, and once for UNLINK."""
    [request] = desk.perform(make((b"a", b"a")))
    assert request.serialized_arguments == (b"a", b"a")


def test_very_many_keys_are_asked_for_some_at_a_time(desk: Desk) -> None:
    desk.perform(Exists(keys(3 * KEYS_MAX + 1)))
    asked = []
    while desk.router.posted:
        asked.append(sum(len(request.serialized_arguments) for request in desk.router.posted))
        for request in list(desk.router.posted):
            desk.router.answer(request, len(request.serialized_arguments))
    assert asked == [KEYS_MAX] * 3 + [1]
    assert desk.replies == [Integer(3 * KEYS_MAX + 1)]


def test_a_slot_on_its_way_is_asked_key_by_key(desk: Desk) -> None:
    requests = desk.perform(Delete((b"{a}1", b"{a}2", b"{a}3", b"b")))
    desk.router.answer(requests[0], TryAgainError("Multiple keys"))
    singles = desk.router.posted[1:]
    assert [request.serialized_arguments for request in singles] == [(b"{a}1",), (b"{a}2",), (b"{a}3",)]
    assert not any(request.divisible for request in singles)
    desk.router.answer(requests[1], 1)
    for request in list(singles):
        assert not desk.replies
        desk.router.answer(request, 1)
    assert desk.replies == [Integer(4)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_fails_for_one_slot_fails_as_a_whole_when_the_others_are_answered(desk: Desk, failing: int) -> None:
    requests = desk.perform(Exists((b"a", b"b", b"c")))
    for number, request in enumerate(requests):
        assert not desk.replies
        desk.router.answer(request, NotSent("away") if number == failing else 1)
    [reply] = desk.replies
    assert isinstance(reply, Failure)
    assert reply.error is Error.UNAVAILABLE


def test_what_fails_asks_for_no_more_keys(desk: Desk) -> None:
    desk.perform(Exists(keys(10 * KEYS_MAX)))
    for request in list(desk.router.posted):
        desk.router.answer(request, ClusterDownError("down"))
    assert not desk.router.posted
    assert len(desk.replies) == 1


@pytest.mark.parametrize("make", [Exists, Delete])
def test_refusals_from_within_end_it_once(desk: Desk, make: Callable[[tuple[bytes, ...]], Command]) -> None:
    desk.router.down = NotSent("away")
    assert desk.perform(make(keys(10 * KEYS_MAX))) == []
    assert len(desk.replies) == 1
