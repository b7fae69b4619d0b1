"""The simulator's judge, by hand-written histories: what can be explained it accepts, what cannot it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.simulate.clients import timeout_ms
from tests.simulate.history import Answer, Dump, End, Kind, Life, Operation, Outcome, Request, Violation
from tests.simulate.linearizability import Judge
from tests.simulate.shelf import Refusal

GROUPS = ((b"k",), (b"other",), (b"left", b"right"), (b"q",))
OK: Answer = ("ok", None)
NULL: Answer = ("value", None)
NOT_FOUND: Answer = ("error", "key not found")
EXISTS: Answer = ("error", "key already exists")
WRONG_TYPE: Answer = ("error", "wrong type")
ONE: Answer = ("integer", 1)
A: Answer = ("value", b"a")
B: Answer = ("value", b"b")
LEFT = Outcome.LEFT
LOST = Outcome.LOST

Told = tuple[int, int, str, Answer | list[Answer] | Outcome]
"""Sent when, ended when, the command, its answer or how it ended without; or `unit: ` or `pipeline: ` and commands."""


def value(text: str) -> Answer:
    return "value", text.encode()


def pushed(length: int) -> Answer:
    return "ok", length


def plain(key: str, text: str, deadline_ms: int | None = None) -> tuple[object, ...]:
    return "value", key.encode(), text.encode(), deadline_ms


def queue(*values: str) -> tuple[object, ...]:
    return "queue", b"q", tuple(value.encode() for value in values)


def refused(place: int, error: str, count: int) -> list[Answer]:
    """What the commands of a unit are answered when one of them refuses it."""
    return [("refused", Refusal(place, error))] * count


def request_of(number: int, client: int, sent_ms: int, line: str) -> Request:
    """A command, or a batch of them."""
    kind, _, batch = line.rpartition(": ")
    commands = [tuple(command.encode().split(b" ")) for command in batch.split("; ")]
    operations = [
        Operation(number + place, client, words, sent_ms, timeout_ms=0 if kind else timeout_ms(words), place=place)
        for place, words in enumerate(commands)
    ]
    return Request(tuple(operations), atomic=kind == "unit")


def life_of(
    told: Sequence[Told],
    *,
    number: int = 0,
    started_ms: int = 0,
    ended_ms: int = 1_000,
    end: End = End.KILL,
    clock_ms: tuple[int, int] | None = None,
    safe_ms: int | None = None,
    stopping_ms: int | None = None,
) -> Life:
    """A life from its commands; commands sent at the same time were sent in the order in which they stand."""
    life = Life(number, started_ms, clock_ms or (started_ms, started_ms))
    life.ended_ms, life.end, life.safe_ms, life.stopping_ms = ended_ms, end, safe_ms, stopping_ms
    events = []
    for order, (sent_ms, done_ms, line, outcome) in enumerate(told):
        request = request_of(1_000 * number + 100 * order, order, sent_ms, line)
        for operation in request.operations:
            operation.ended_ms = done_ms
            if isinstance(outcome, Outcome):
                operation.outcome = outcome
            else:
                operation.outcome = Outcome.ANSWERED
                operation.answer = outcome[operation.place] if isinstance(outcome, list) else outcome
        events.append((sent_ms, 0, order, Kind.SENT, request))
        if outcome is not LOST:
            events.append((done_ms, 1, order, Kind.ENDED, request))
    life.events = [(at_ms, kind, request) for at_ms, _, _, kind, request in sorted(events, key=lambda event: event[:3])]
    return life


def judge(*lives: tuple[Life, Sequence[tuple[object, ...]]]) -> None:
    """Judges lives, each with what the next start found."""
    judge = Judge(GROUPS)
    for life, found in lives:
        judge.begin(life)
        judge.finish(tuple(found))


def is_explained(told: Sequence[Told], found: Sequence[tuple[object, ...]], **about: object) -> bool:
    try:
        judge((life_of(told, **about), found))  # type: ignore[arg-type]
    except Violation:
        return False
    return True


GOOD: dict[str, tuple[list[Told], list[tuple[object, ...]]]] = {
    "a write and a read": ([(0, 5, "SET k 1", OK), (6, 7, "GET k", value("1"))], [plain("k", "1")]),
    "a read that overlaps a write sees the old": (
        [(0, 5, "SET k 1", OK), (6, 20, "SET k 2", OK), (7, 8, "GET k", value("1"))],
        [plain("k", "2")],
    ),
    "or the new": (
        [(0, 5, "SET k 1", OK), (6, 20, "SET k 2", OK), (7, 8, "GET k", value("2"))],
        [plain("k", "2")],
    ),
    "a lost write happened": ([(0, 5, "SET k 1", OK), (6, 1_000, "SET k 2", LOST)], [plain("k", "2")]),
    "a lost write did not happen": ([(0, 5, "SET k 1", OK), (6, 1_000, "SET k 2", LOST)], [plain("k", "1")]),
    "a lost pop took the value": ([(0, 5, "QPUSH q a b", pushed(2)), (6, 1_000, "BQPOP q", LOST)], [queue("b")]),
    "a lost pop that had come in time was not durable": (
        [(0, 5, "QPUSH q a b", pushed(2)), (6, 1_000, "BQPOP q", LOST), (900, 1_000, "QPOP q", LOST)],
        [queue("a", "b")],
    ),
    "last in, first out, and first in, first out": (
        [(0, 5, "QPUSH q a b c", pushed(3)), (6, 7, "QPOP q", value("c")), (8, 9, "BQPOP q", value("a"))],
        [queue("b")],
    ),
    "the first to wait is served first": (
        [(0, 20, "BQPOP q", value("a")), (1, 20, "BQPOP q", value("b")), (10, 20, "QPUSH q a b", pushed(2))],
        [queue()],
    ),
    "who came in the same instant may be served in any order": (
        [(0, 20, "BQPOP q", value("b")), (0, 20, "BQPOP q", value("a")), (10, 20, "QPUSH q a b", pushed(2))],
        [queue()],
    ),
    "who waited before and left is passed over": (
        [(0, 5, "BQPOP q", LEFT), (1, 20, "BQPOP q", value("a")), (10, 20, "QPUSH q a", pushed(1))],
        [queue()],
    ),
    "what a client that left had popped is back": (
        [(0, 5, "QPUSH q a b", pushed(2)), (6, 8, "QPOP q", LEFT), (6, 9, "QLEN q", ("integer", 1))],
        [queue("a", "b")],
    ),
    "what a client that left had popped goes to the next who waits": (
        [(0, 9, "BQPOP q", LEFT), (1, 12, "BQPOP q", value("a")), (5, 10, "QPUSH q a", pushed(1))],
        [queue()],
    ),
    "a time-out": ([(0, 20, "BQPOP q 0.02", NULL), (21, 25, "QPUSH q a", pushed(1))], [queue("a")]),
    "a key expires": (
        [(0, 5, "SET k 1 PX 20", OK), (19, 19, "GET k", value("1")), (26, 27, "GET k", NOT_FOUND)],
        [],
    ),
    "an expired key that nobody has swept": (
        [(0, 5, "SET k 1 PX 20", OK), (26, 27, "GET k", NOT_FOUND)],
        [plain("k", "1", 22)],
    ),
    "two keys are deleted in one": (
        [
            (0, 5, "SET left 1", OK),
            (0, 5, "SET right 1", OK),
            (6, 1_000, "DELETE left right", LOST),
        ],
        [],
    ),
    "or not at all": (
        [
            (0, 5, "SET left 1", OK),
            (0, 5, "SET right 1", OK),
            (6, 1_000, "DELETE left right", LOST),
        ],
        [plain("left", "1"), plain("right", "1")],
    ),
    "a unit sees itself": (
        [(0, 5, "unit: SET k 1; GET k; QPUSH q a b; BQPOP q; QLEN q", [OK, value("1"), pushed(2), value("a"), ONE])],
        [plain("k", "1"), queue("b")],
    ),
    "a pipeline does as well": (
        [(0, 5, "pipeline: SET k 1; GET k; QPUSH q a b; QPOP q; BQPOP q 9", [OK, value("1"), pushed(2), B, A])],
        [plain("k", "1"), queue()],
    ),
    "a lost unit happened": (
        [(0, 1_000, "unit: SET k 1; SET other 1; QPUSH q a", LOST)],
        [plain("k", "1"), plain("other", "1"), queue("a")],
    ),
    "a lost unit did not happen": ([(0, 1_000, "unit: SET k 1; SET other 1; QPUSH q a", LOST)], []),
    "of a lost pipeline the first part happened": (
        [(0, 1_000, "pipeline: QPUSH q a; SET k 1; QPUSH q b; SET other 1", LOST)],
        [queue("a"), plain("k", "1")],
    ),
    "somebody comes in between the commands of a pipeline": (
        [(0, 9, "pipeline: QPUSH q a; QPUSH q b", [pushed(1), pushed(3)]), (1, 8, "QPUSH q c", pushed(2))],
        [queue("a", "c", "b")],
    ),
    "what fails in a pipeline disturbs nothing": (
        [(0, 5, "pipeline: SET k 1; SET k 2 NX; QPUSH k a; GET q", [OK, EXISTS, WRONG_TYPE, NOT_FOUND])],
        [plain("k", "1")],
    ),
    "a refused unit does nothing": (
        [
            (0, 5, "SET k 1", OK),
            (6, 9, "unit: QPUSH q a; SET k 2 NX; DELETE other", refused(1, "key already exists", 3)),
            (10, 12, "QLEN q", ("integer", 0)),
        ],
        [plain("k", "1")],
    ),
    "a read that finds nothing refuses no unit": (
        [(0, 5, "unit: GET k; SET k 1; QLEN k", [NOT_FOUND, OK, WRONG_TYPE])],
        [plain("k", "1")],
    ),
    "who waits is served after a unit": (
        [(0, 20, "BQPOP q", value("b")), (10, 12, "unit: QPUSH q a b; BQPOP q", [pushed(2), A])],
        [queue()],
    ),
    "what a batch had popped for a client that left is back": (
        [
            (0, 5, "QPUSH q a b c", pushed(3)),
            (6, 8, "unit: BQPOP q; SET k 1; QPOP q; BQPOP q", LEFT),
            (9, 10, "QLEN q", ("integer", 3)),
        ],
        [plain("k", "1"), queue("a", "b", "c")],
    ),
    "of a pipeline whose client left the first part stays done": (
        [
            (0, 5, "QPUSH q a b", pushed(2)),
            (6, 8, "pipeline: BQPOP q; SET k 1; BQPOP q; SET other 1", LEFT),
            (9, 10, "GET other", NOT_FOUND),
        ],
        [plain("k", "1"), queue("a", "b")],
    ),
}

BAD: dict[str, tuple[list[Told], list[tuple[object, ...]]]] = {
    "an acknowledged write is lost": ([(0, 5, "SET k 1", OK)], []),
    "an acknowledged overwrite is lost": ([(0, 5, "SET k 1", OK), (6, 9, "SET k 2", OK)], [plain("k", "1")]),
    "an acknowledged delete is lost": (
        [(0, 5, "SET k 1", OK), (6, 9, "DELETE k", ("integer", 1))],
        [plain("k", "1")],
    ),
    "a value nobody ever sent": ([(0, 5, "SET k 1", OK)], [plain("k", "2")]),
    "a read un-happens": ([(0, 1_000, "SET k 1", LOST), (5, 6, "GET k", value("1"))], []),
    "a stale read": (
        [(0, 5, "SET k 1", OK), (6, 9, "SET k 2", OK), (10, 11, "GET k", value("1"))],
        [plain("k", "2")],
    ),
    "reads that go back": (
        [
            (0, 5, "SET k 1", OK),
            (6, 30, "SET k 2", OK),
            (7, 8, "GET k", value("2")),
            (9, 10, "GET k", value("1")),
        ],
        [plain("k", "2")],
    ),
    "a duplicate delivery": (
        [(0, 5, "QPUSH q a b", pushed(2)), (6, 7, "BQPOP q", value("a")), (8, 9, "BQPOP q", value("a"))],
        [queue("b")],
    ),
    "delivered and still queued": (
        [(0, 5, "QPUSH q a b", pushed(2)), (6, 7, "BQPOP q", value("a"))],
        [queue("a", "b")],
    ),
    "not first in, first out": ([(0, 5, "QPUSH q a b", pushed(2)), (6, 7, "BQPOP q", value("b"))], [queue("a")]),
    "not last in, first out": ([(0, 5, "QPUSH q a b", pushed(2)), (6, 7, "QPOP q", value("a"))], [queue("b")]),
    "half a push": ([(0, 1_000, "QPUSH q a b", LOST)], [queue("a")]),
    "a push that was torn apart": (
        [(0, 9, "QPUSH q a b", pushed(2)), (1, 10, "QPUSH q c", pushed(2))],
        [queue("a", "c", "b")],
    ),
    "half a delete": (
        [
            (0, 5, "SET left 1", OK),
            (0, 5, "SET right 1", OK),
            (6, 1_000, "DELETE left right", LOST),
        ],
        [plain("right", "1")],
    ),
    "the order of those who wait is reversed": (
        [(0, 20, "BQPOP q", value("b")), (1, 20, "BQPOP q", value("a")), (10, 20, "QPUSH q a b", pushed(2))],
        [queue()],
    ),
    "somebody overtakes one who waits": (
        [(0, 1_000, "BQPOP q", LOST), (5, 9, "QPUSH q a", pushed(1)), (10, 11, "BQPOP q 0", value("a"))],
        [queue()],
    ),
    "timed out, though there was a value": (
        [(0, 20, "BQPOP q 0.02", NULL), (10, 12, "QPUSH q a", pushed(1))],
        [queue("a")],
    ),
    "timed out too early": ([(0, 10, "BQPOP q 0.02", NULL)], []),
    "a value is lost with the client that left": (
        [(0, 5, "QPUSH q a b", pushed(2)), (6, 8, "QPOP q", LEFT), (10, 11, "QLEN q", ("integer", 1))],
        [queue("a")],
    ),
    "a value comes back to the wrong end": (
        [(0, 5, "QPUSH q a b", pushed(2)), (6, 8, "BQPOP q", LEFT), (10, 11, "QLEN q", ("integer", 2))],
        [queue("b", "a")],
    ),
    "a key outlives its time": ([(0, 5, "SET k 1 PX 20", OK), (40, 41, "GET k", value("1"))], [plain("k", "1", 22)]),
    "a key dies before its time": ([(0, 5, "SET k 1 PX 50", OK), (40, 41, "GET k", NOT_FOUND)], [plain("k", "1", 52)]),
    "a deadline that changed": ([(0, 5, "SET k 1 PX 5000", OK)], [plain("k", "1", 9_000)]),
    "a deadline that got lost": ([(0, 5, "SET k 1 PX 5000", OK)], [plain("k", "1")]),
    "one more second than there is": (
        [(0, 5, "SET k 1 EX 5", OK), (10, 11, "TTL k", ("integer", 6))],
        [plain("k", "1", 5_002)],
    ),
    "half a unit over two keys": ([(0, 1_000, "unit: SET k 1; SET other 1", LOST)], [plain("k", "1")]),
    "half a unit over one": ([(0, 1_000, "unit: QPUSH q a; QPUSH q b", LOST)], [queue("a")]),
    "half a unit whose answer somebody has": (
        [(0, 5, "unit: SET k 1; SET other 1", [OK, OK])],
        [plain("other", "1")],
    ),
    "half a unit whose client left": (
        [(0, 5, "unit: SET k 1; QPUSH q a", LEFT), (6, 7, "GET k", value("1")), (8, 9, "QLEN q", ("integer", 0))],
        [plain("k", "1")],
    ),
    "of a lost pipeline the second part without the first": (
        [(0, 1_000, "pipeline: SET k 1; SET other 1", LOST)],
        [plain("other", "1")],
    ),
    "of a lost pipeline the second part without the first, on one key": (
        [(0, 1_000, "pipeline: QPUSH q a; QPUSH q b", LOST)],
        [queue("b")],
    ),
    "of a pipeline whose client left the second part without the first": (
        [(0, 5, "pipeline: SET k 1; SET other 1", LEFT), (6, 7, "GET k", NOT_FOUND)],
        [plain("other", "1")],
    ),
    "a unit seen on one key, and later not on another": (
        [
            (0, 20, "unit: SET k 1; SET other 1", [OK, OK]),
            (1, 5, "GET k", value("1")),
            (6, 9, "GET other", NOT_FOUND),
        ],
        [plain("k", "1"), plain("other", "1")],
    ),
    "a pipeline seen on a later key, and then not on an earlier one": (
        [
            (0, 20, "pipeline: SET k 1; SET other 1", [OK, OK]),
            (1, 5, "GET other", value("1")),
            (6, 9, "GET k", NOT_FOUND),
        ],
        [plain("k", "1"), plain("other", "1")],
    ),
    "somebody comes in between the commands of a unit": (
        [(0, 9, "unit: QPUSH q a; QPUSH q b", [pushed(1), pushed(3)]), (1, 8, "QPUSH q c", pushed(2))],
        [queue("a", "c", "b")],
    ),
    "a unit that does not see itself": (
        [(0, 5, "unit: QPUSH q a; QLEN q", [pushed(1), ("integer", 0)])],
        [queue("a")],
    ),
    "who waits is served in the middle of a unit": (
        [(0, 20, "BQPOP q", A), (10, 12, "unit: QPUSH q a b; BQPOP q", [pushed(2), B])],
        [queue()],
    ),
    "a refused unit of which something stays": (
        [(0, 5, "SET k 1", OK), (6, 9, "unit: SET other 1; SET k 2 NX", refused(1, "key already exists", 2))],
        [plain("k", "1"), plain("other", "1")],
    ),
    "a unit refused without a reason": ([(0, 5, "unit: SET k 1; SET k 2 XX", refused(1, "key not found", 2))], []),
    "a unit refused for another reason": (
        [(0, 5, "unit: SET k 1; SET k 2 NX", refused(1, "wrong type", 2))],
        [],
    ),
    "a unit refused because of a later command": (
        [(0, 5, "unit: DELETE other; DELETE k", refused(1, "key not found", 2))],
        [],
    ),
    "a unit refused because of a read": ([(0, 5, "unit: SET k 1; GET other", refused(1, "key not found", 2))], []),
    "a unit that should have been refused": (
        [(0, 5, "unit: SET k 1; DELETE other", [OK, NOT_FOUND])],
        [plain("k", "1")],
    ),
    "answers in the wrong order": (
        [(0, 5, "QPUSH q a b", pushed(2)), (6, 9, "pipeline: BQPOP q; BQPOP q", [B, A])],
        [queue()],
    ),
    "what a batch had popped for a client that left is back in the wrong order": (
        [(0, 5, "QPUSH q a b c", pushed(3)), (6, 8, "pipeline: BQPOP q; BQPOP q", LEFT)],
        [queue("b", "a", "c")],
    ),
    "of what a batch had popped for a client that left only one value is back": (
        [(0, 5, "QPUSH q a b c", pushed(3)), (6, 8, "unit: BQPOP q; BQPOP q", LEFT)],
        [queue("b", "c")],
    ),
    "turned away though nobody shuts down": ([(0, 5, "SET k 1", ("error", "unavailable"))], []),
    "the disk said to be full when it is not": ([(0, 5, "SET k 1", ("error", "storage full"))], []),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_history_that_can_be_explained_is_accepted(case: str) -> None:
    assert is_explained(*GOOD[case])


@pytest.mark.parametrize("case", BAD)
def test_a_history_that_cannot_be_explained_is_refused(case: str) -> None:
    assert not is_explained(*BAD[case])


def test_a_refusal_shows_what_was_done_there_and_names_the_key() -> None:
    with pytest.raises(Violation, match=r"(?s)commands on k .*SET k 1 -> ok"):
        judge((life_of([(0, 5, "SET k 1", OK)]), []))


WRITTEN: list[Told] = [(0, 5, "SET k 1", OK), (500, 505, "SET other 2", OK)]


@pytest.mark.parametrize(
    ("found", "explained"),
    [
        ([plain("k", "1"), plain("other", "2")], True),
        ([plain("k", "1")], True),
        ([], False),  # too long ago to be lost
        ([plain("other", "2")], False),  # the later one without the earlier
    ],
)
def test_a_lazy_policy_may_lose_the_latest_part_and_nothing_else(
    found: Sequence[tuple[object, ...]], *, explained: bool
) -> None:
    assert is_explained(WRITTEN, found, end=End.POWER, safe_ms=100) == explained


def test_a_lazy_policy_loses_nothing_by_a_kill() -> None:
    assert is_explained(WRITTEN, [plain("k", "1"), plain("other", "2")], end=End.KILL)
    assert not is_explained(WRITTEN, [plain("k", "1")], end=End.KILL)


def test_what_was_lost_in_one_life_does_not_come_back_in_the_next() -> None:
    first = life_of([(0, 1_000, "SET k 1", LOST)])
    second = life_of([(1_100, 1_101, "GET k", value("1"))], number=1, started_ms=1_100, ended_ms=2_000)
    with pytest.raises(Violation):
        judge((first, []), (second, []))


def test_a_key_that_was_seen_to_have_expired_is_not_shown_again_by_a_clock_that_was_set_back() -> None:
    first = life_of([(0, 5, "SET k 1 PX 20", OK), (40, 41, "GET k", NOT_FOUND)], ended_ms=50)
    back = {"number": 1, "started_ms": 60, "ended_ms": 100, "clock_ms": (5, 50)}
    for answer, explained in ((value("1"), False), (NOT_FOUND, True)):
        second = life_of([(61, 62, "GET k", answer)], **back)  # type: ignore[arg-type]
        try:
            judge((first, [plain("k", "1", 22)]), (second, [plain("k", "1", 22)]))
        except Violation:
            assert not explained
        else:
            assert explained


def test_a_key_that_nobody_saw_expire_may_live_on_when_the_clock_was_set_back() -> None:
    first = life_of([(0, 5, "SET k 1 PX 20", OK)], ended_ms=50)
    second = life_of([(61, 62, "GET k", value("1"))], number=1, started_ms=60, ended_ms=100, clock_ms=(5, 50))
    judge((first, [plain("k", "1", 22)]), (second, [plain("k", "1", 22)]))


def test_after_a_clean_stop_everything_is_there() -> None:
    told: list[Told] = [(0, 5, "SET k 1", OK), (6, 12, "BQPOP q", ("error", "unavailable"))]
    assert is_explained(told, [plain("k", "1")], end=End.STOP, stopping_ms=10)
    assert not is_explained(told, [], end=End.STOP, stopping_ms=10)


def test_one_who_waits_is_not_turned_away_while_there_is_a_value() -> None:
    told: list[Told] = [(0, 12, "BQPOP q", ("error", "unavailable")), (1, 5, "QPUSH q a", pushed(1))]
    dump: Dump = (("queue", b"q", (b"a",)),)
    assert not is_explained(told, dump, end=End.STOP, stopping_ms=10)


def reached(life: Life) -> Life:
    """The life, with all that was sent noticed by the store in the same instant."""
    for now_ms, kind, request in life.events:
        if kind is Kind.SENT:
            request.reached_ms = now_ms
    return life


def test_what_was_noticed_by_the_store_is_done_when_the_instant_is_over() -> None:
    told: list[Told] = [(0, 1_000, "pipeline: QPUSH q a; SET k 1", LOST), (5, 6, "QLEN q", ("integer", 0))]
    assert is_explained(told, [])
    with pytest.raises(Violation):
        judge((reached(life_of(told)), []))


def test_in_a_crash_a_value_may_be_back_and_what_was_sent_in_the_same_instant_lost() -> None:
    """E5"""
    told: list[Told] = [
        (0, 5, "QPUSH q a", pushed(1)),
        (6, 8, "QPOP q", LEFT),
        (7, 7, "GET other", NOT_FOUND),
        (8, 9, "SET k 1", LOST),
    ]
    judge((reached(life_of(told, ended_ms=9)), [queue("a")]))
