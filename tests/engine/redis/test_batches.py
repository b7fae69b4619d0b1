"""Batches on Redis: pipelines in slices, units as one script; what they popped, and what goes back."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from coredis.exceptions import ResponseError, TryAgainError, WrongTypeError

from engine.calls import Batch, Command
from engine.commands.keys import Delete
from engine.commands.table import parse
from engine.commands.values import Get
from engine.limits import Limits
from engine.redis.batches import PIECE_KEYS_MAX, SLICE_MAX, SLICE_POPS_MAX, Pipeline, Unit
from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.redis.format import is_mark
from engine.redis.performer import KEYS_MAX, Performer
from engine.redis.receipts import Receipt, Receipts
from engine.redis.request import Request
from engine.redis.scripts import SHRINKING_UNIT, UNIT
from engine.redis.slots import slot_of
from engine.replies import NULL, OK, POPPED_ENOUGH, Error, Failure, Integer, Ok, Refused, Value
from tests.harness.fake_redis import MARK, FakeRouter


def commands(*lines: str) -> list[Command]:
    return [parse(line.encode().split(b" "), Limits()) for line in lines]


class Desk:
    """What came of one batch."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.receipts = Receipts(b"front", self.router)
        self.replies: list[Any] = []
        self.gone = False
        self.batch: Batch

    def pipeline(self, *batch: Command, popped_max: int = 10**6) -> list[Request]:
        self.batch = Batch(batch, False, lambda _batch: None)
        performer = Performer(self.router, self.receipts)
        Pipeline(self.batch, performer, popped_max, self.replies.append, lambda: self.gone).go_on()
        return list(self.router.posted)

    def unit(self, *lines: str) -> Request:
        self.batch = Batch(commands(*lines), True, lambda _batch: None)
        Unit(self.batch, self.router, self.receipts, 10**6, self.replies.append).send()
        [request] = self.router.posted
        return request

    def answer_all(self, result: Any) -> int:
        requests = list(self.router.posted)
        for request in requests:
            self.router.answer(request, result)
        return len(requests)

    @property
    def reply(self) -> Any:
        [reply] = self.replies
        return reply


@pytest.fixture
def desk() -> Desk:
    return Desk()


# Pipelines


def test_commands_of_a_slice_go_out_together_and_are_answered_in_their_order(desk: Desk) -> None:
    requests = desk.pipeline(*commands("SET a 1", "GET b", "PING", "QPUSH c x"))
    assert len(requests) == 3
    for request, result in reversed(list(zip(requests, (b"OK", None, 1), strict=True))):
        assert not desk.replies
        desk.router.answer(request, result)
    assert desk.reply == [OK, Failure(Error.KEY_NOT_FOUND), Value(b"PONG"), Ok(length=1)]


def test_a_long_pipeline_goes_out_in_slices(desk: Desk) -> None:
    desk.pipeline(*[Get(b"k")] * (2 * SLICE_MAX + 3))
    assert [desk.answer_all(b"v") for _ in range(3)] == [SLICE_MAX, SLICE_MAX, 3]
    assert desk.reply == [Value(b"v")] * (2 * SLICE_MAX + 3)


def test_few_pops_are_in_a_slice(desk: Desk) -> None:
    desk.pipeline(*commands(*["QPOP q", "GET k"] * (2 * SLICE_POPS_MAX)))
    assert len(desk.router.posted) == 2 * SLICE_POPS_MAX - 1


def test_a_command_of_very_many_keys_ends_its_slice(desk: Desk) -> None:
    """What follows must find it done, and its later keys are asked for only when the first are answered."""
    many = tuple(b"%d" % number for number in range(KEYS_MAX + 1))
    desk.pipeline(Delete(many), *commands(f"SET {KEYS_MAX} v"))
    assert all(request.name == b"UNLINK" for request in desk.router.posted)
    desk.answer_all(1)
    assert [request.name for request in desk.router.posted] == [b"UNLINK"]
    desk.answer_all(1)
    assert [request.name for request in desk.router.posted] == [b"SET"]


def test_a_failure_does_not_disturb_the_rest(desk: Desk) -> None:
    requests = desk.pipeline(*commands("GET a", "GET b", "GET c"))
    for request, result in zip(requests, (NotSent("away"), Lost("gone"), b"v"), strict=True):
        desk.router.answer(request, result)
    assert [type(reply) for reply in desk.reply] == [Failure, Failure, Value]


def test_a_pipeline_whose_requests_are_refused_from_within_is_answered_once(desk: Desk) -> None:
    desk.router.down = NotSent("away")
    desk.pipeline(*[Get(b"k")] * 5000)
    assert len(desk.reply) == 5000


def test_a_pipeline_of_pings_is_no_recursion(desk: Desk) -> None:
    desk.pipeline(*commands("PING") * 50_000)
    assert len(desk.reply) == 50_000


def test_pops_beyond_what_an_answer_may_hold_are_refused(desk: Desk) -> None:
    desk.pipeline(*commands(*["QPOP q"] * (SLICE_POPS_MAX + 1), "GET k"), popped_max=SLICE_POPS_MAX)
    desk.answer_all([MARK, b"v"])
    desk.answer_all(b"v")
    assert desk.reply == [*[Value(b"v")] * SLICE_POPS_MAX, POPPED_ENOUGH, Value(b"v")]
    assert len(desk.batch.taken) == SLICE_POPS_MAX


def test_what_is_left_is_not_done_for_a_client_that_has_left(desk: Desk) -> None:
    desk.pipeline(*[Get(b"k")] * (SLICE_MAX + 1))
    desk.gone = True
    desk.answer_all(b"v")
    assert not desk.router.posted
    assert len(desk.replies) == 1


# Units


def test_a_unit_is_one_script_with_each_key_once(desk: Desk) -> None:
    request = desk.unit("SET {k}a 1 PX 5 NX", "QPUSH {k}b x y", "DELETE {k}a {k}c", "QPOP {k}b", "PING", "TTL {k}a")
    digest, count, *words = request.serialized_arguments
    assert digest == UNIT.digest
    assert words[:3] == [b"{k}a", b"{k}b", b"{k}c"]
    assert count == 3
    assert request.slot == slot_of(b"k")
    receipts, token, aside, popped_max, packed = words[3:]
    assert (receipts, token, popped_max) == (desk.receipts.key_for(request.slot), 1, 10**6)
    assert isinstance(aside, bytes)
    assert slot_of(aside) == request.slot
    first, (function, (key, mark, values), refusal), *rest = msgpack.unpackb(packed, raw=True)
    assert (function, key, msgpack.unpackb(values, raw=True), refusal) == (b"QPUSH", b"{k}b", [b"x", b"y"], b"")
    assert is_mark(mark)
    assert [first, *rest] == [
        [b"REDIS", [b"replace", [1, b"SET", b"{k}a", b"1", b"PX", b"5", b"NX"]], b"false"],
        [b"REDIS", [b"replace", [2, b"UNLINK", b"{k}a", b"{k}c"]], b"0"],
        [b"QPOP", [b"{k}b"], b"0"],
        [b"REDIS", [b"", [0, b"PTTL", b"{k}a"]], None],
    ], "a PING is answered here"


@pytest.mark.parametrize(
    ("line", "grows"), [("SET k v", True), ("QPUSH k v", True), ("QPOP k", False), ("GET k", False)]
)
def test_a_unit_that_stores_nothing_may_run_when_the_memory_is_full(desk: Desk, line: str, *, grows: bool) -> None:
    request = desk.unit(line, "DELETE k")
    assert request.serialized_arguments[0] == (UNIT if grows else SHRINKING_UNIT).digest


def test_the_answers_of_a_unit_are_understood(desk: Desk) -> None:
    request = desk.unit(
        *("SET k v", "QPUSH k a", "GET k", "QPOP k", "BQPOP k", "BQPOP k", "EXISTS k", "GET k", "QLEN k")
    )
    answers = [b"OK", 3, b"v", [MARK, b"x"], [MARK, b""], None, 1, None, WrongTypeError("the key holds a plain value")]
    desk.router.answer(request, [1, *answers])
    assert desk.reply == [
        *(OK, Ok(length=3), Value(b"v"), Value(b"x"), Value(b""), NULL, Integer(1)),
        *(Failure(Error.KEY_NOT_FOUND), Failure(Error.WRONG_TYPE, "the key holds a plain value, QLEN needs a queue")),
    ]
    assert desk.batch.taken == [Receipt(4, b"k", b">" + MARK + b"x"), Receipt(5, b"k", b"<" + MARK)]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (0, Failure(Error.QUEUE_IS_EMPTY)),
        (
            WrongTypeError("the key holds a plain value"),
            Failure(Error.WRONG_TYPE, "the key holds a plain value, QPOP needs a queue"),
        ),
        (ResponseError("TOOLARGE the values popped"), POPPED_ENOUGH),
        (ResponseError("ERR something of Redis"), Failure(Error.INTERNAL_ERROR)),
    ],
)  # fmt: skip
def test_a_refused_unit_says_which_command_and_why(desk: Desk, error: object, failure: Failure) -> None:
    request = desk.unit("SET k v", "PING", "QPOP k")
    desk.router.answer(request, [0, 1, error])
    assert desk.reply == Refused(failure, 2), "a PING does not come to Redis"
    assert not desk.batch.taken
    assert desk.receipts.owed == 0


@pytest.mark.parametrize(
    ("line", "answer", "error"),
    [
        ("SET k v NX", None, Error.KEY_ALREADY_EXISTS),
        ("SET k v XX", None, Error.KEY_NOT_FOUND),
        ("DELETE k", 0, Error.KEY_NOT_FOUND),
    ],
)
def test_what_refuses_a_unit_is_understood_as_if_it_came_alone(
    desk: Desk, line: str, answer: object, error: Error
) -> None:
    request = desk.unit("GET k", line)
    desk.router.answer(request, [0, 1, answer])
    assert desk.reply == Refused(Failure(error), 1)


def test_very_many_keys_are_handed_to_the_script_in_pieces(desk: Desk) -> None:
    keys = [b"{k}%d" % number for number in range(2 * PIECE_KEYS_MAX + 1)]
    request = desk.unit(f"DELETE {b' '.join(keys).decode()}", f"EXISTS {keys[0].decode()}")
    delete, exists = msgpack.unpackb(request.serialized_arguments[-1], raw=True)
    assert exists == [b"REDIS", [b"", [0, b"EXISTS", keys[0]]], None]
    function, (change, *calls), refusal = delete
    assert (function, change, refusal) == (b"REDIS", b"replace", b"0")
    assert [call[:2] for call in calls] == [[number, b"UNLINK"] for number in (PIECE_KEYS_MAX, PIECE_KEYS_MAX, 1)]
    assert [key for call in calls for key in call[2:]] == keys


def test_a_unit_that_too_few_replicas_have_is_an_error_and_its_pops_go_back(desk: Desk) -> None:
    """I6"""
    request = desk.unit("SET k v", "QPOP q{k}")
    desk.router.answer(request, NotReplicated([1, b"OK", [MARK, b"x"]]))
    assert desk.reply.failure.error is Error.UNAVAILABLE
    assert desk.reply.failure.detail.startswith("done, but too few replicas have it yet")
    assert desk.reply.failure.detail.endswith("; what was popped goes back")
    assert desk.receipts._abandoned == [Receipt(2, b"q{k}", b">" + MARK + b"x")]


def test_the_pops_of_a_lost_unit_go_back_if_they_were_done(desk: Desk) -> None:
    """I6"""
    request = desk.unit("SET {k} v", "QPOP q{k}", "GET {k}", "BQPOP q{k}")
    desk.router.answer(request, Lost("gone"))
    assert desk.reply.failure.error is Error.UNAVAILABLE
    assert desk.receipts._abandoned == [Receipt(2, b"q{k}", b""), Receipt(4, b"q{k}", b"")]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotSent("away"), Error.UNAVAILABLE),
        (TryAgainError("the slot is being moved"), Error.UNAVAILABLE),
        (ResponseError("OOM allow-oom flag is not set"), Error.STORAGE_FULL),
        (ResponseError("ERR something"), Error.INTERNAL_ERROR),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_unit_that_was_not_done_says_why_as_a_whole(desk: Desk, error: Exception, kind: Error) -> None:
    request = desk.unit("QPOP k", "SET k v")
    desk.router.answer(request, error)
    assert desk.reply.failure.error is kind
    assert desk.reply.index is None
    assert desk.receipts.owed == 0


def test_the_first_key_of_another_slot_is_named(desk: Desk) -> None:
    desk.batch = Batch(commands("PING", "SET {a}1 v", "EXISTS {a}2 b"), True, lambda _batch: None)
    Unit(desk.batch, desk.router, desk.receipts, 1, desk.replies.append).send()
    assert desk.reply.index == 2
    assert desk.reply.failure.error is Error.INVALID_COMMAND


def test_tokens_of_a_unit_are_its_own(desk: Desk) -> None:
    desk.unit("QPOP k", "QPOP k", "QPOP k")
    assert desk.receipts.new_tokens(1) == 4
