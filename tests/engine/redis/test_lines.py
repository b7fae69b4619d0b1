"""Lines: who waits for a value, tried by scripts and woken by keys that change; the test is Redis here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from coredis.exceptions import ClusterDownError, ResponseError, WrongTypeError
from trio.testing import wait_all_tasks_blocked

from engine.calls import Call
from engine.commands.queues import BQPop
from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.redis.lines import REFUSED_S, TAKE_MAX, TELL_MAX, TRIES_MAX, TRY_AGAIN_S, Lines
from engine.redis.receipts import RETRY_S, Receipt, Receipts
from engine.redis.request import Request
from engine.redis.scripts import ALONE, GIVE_BACK
from engine.replies import NULL, Error, Failure, Reply, Value
from tests.harness.fake_redis import MARK, FakeRouter, Steps

BROKEN = [Lost("the connection broke"), NotSent("no connection")]
REFUSED = [ClusterDownError("the cluster is down"), ResponseError("MISCONF disk"), NotSent("gone")]


class Hall:
    """Lines, what they send, and what clients get."""

    def __init__(self) -> None:
        self.router = FakeRouter()
        self.receipts = Receipts(b"front", self.router)
        self.lines = Lines(self.router, self.receipts, self._answer)
        self.replies: dict[Call, Reply] = {}
        self.order: list[Call] = []
        self.on_answer: Callable[[Call], None] = lambda _call: None

    def _answer(self, call: Call, reply: Reply) -> None:
        assert call not in self.replies, "answered twice"
        assert call.waiter is None
        self.replies[call] = reply
        self.order.append(call)
        self.on_answer(call)

    def park(self, key: bytes = b"q", timeout_s: float | None = None) -> Call:
        call = Call(BQPop(key, None if timeout_s is None else round(timeout_s * 1000)), lambda _call: None)
        self.lines.park(call)
        return call

    async def waiting(self, key: bytes = b"q", timeout_s: float | None = None) -> Call:
        """One who waits, and has seen that there is nothing."""
        call = self.park(key, timeout_s)
        await wait_all_tasks_blocked()
        while self.tries(key):
            self.answer(None, key)
        assert call not in self.replies
        return call

    def tries(self, key: bytes = b"q") -> list[Request]:
        return [
            request
            for request in self.router.posted
            if request.serialized_arguments[:3:2] == (ALONE["BQPOP"].digest, key)
        ]

    def answer(self, result: Any, key: bytes = b"q") -> None:
        """Redis answers the one try that is under way."""
        [request] = self.tries(key)
        self.router.answer(request, result)

    def took(self, *values: bytes) -> list[bytes]:
        return [MARK, *values]

    def returns(self) -> list[tuple[int | bytes, ...]]:
        """What is being put back, token and receipt by turns."""
        return [
            request.serialized_arguments[4:]
            for request in self.router.posted
            if request.serialized_arguments[0] == GIVE_BACK.digest
        ]

    def nothing_is_left(self) -> bool:
        lines = self.lines
        return not (len(lines) or lines._lines or lines._deadlines or lines._backlog)


@pytest.fixture
async def hall(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> AsyncIterator[Hall]:
    hall = Hall()
    nursery.start_soon(hall.lines.run)
    nursery.start_soon(hall.receipts.run)
    await wait_all_tasks_blocked()
    yield hall
    nursery.cancel_scope.cancel()


def asked_for(request: Request) -> int:
    """How many values a try asks for."""
    count = request.serialized_arguments[3]
    assert isinstance(count, int)
    return count


# Coming and being served


async def test_who_comes_has_the_queue_tried_and_gets_what_is_there(hall: Hall) -> None:
    call = hall.park()
    hall.answer(hall.took(b"a"))
    assert hall.replies == {call: Value(b"a")}
    assert call.taken == [Receipt(1, b"q", b"<" + MARK + b"a")]
    assert hall.nothing_is_left()
    assert not hall.router.posted, "nobody is left to ask for"


async def test_a_try_is_tracked_and_says_that_it_writes(hall: Hall) -> None:
    hall.park()
    [request] = hall.tries()
    assert request.tracked
    assert request.writes


async def test_who_waits_asks_nothing_until_the_key_changes(hall: Hall) -> None:
    call = await hall.waiting()
    await trio.sleep(3600)
    assert not hall.router.posted
    hall.lines.key_changed(b"q")
    hall.answer(hall.took(b"a"))
    assert hall.replies == {call: Value(b"a")}


async def test_a_change_of_another_key_concerns_nobody(hall: Hall) -> None:
    await hall.waiting()
    hall.lines.key_changed(b"other")
    assert not hall.router.posted


async def test_a_change_while_a_try_is_under_way_has_one_more_made(hall: Hall) -> None:
    """E2: the change may be told before the answer is looked at, that there is nothing."""
    call = hall.park()
    hall.lines.key_changed(b"q")
    hall.lines.key_changed(b"q")
    assert len(hall.tries()) == 1
    hall.answer(None)
    hall.answer(hall.took(b"a"))
    assert hall.replies == {call: Value(b"a")}
    assert not hall.router.posted


async def test_many_who_wait_are_one_try_and_are_served_in_their_order(hall: Hall) -> None:
    calls = [await hall.waiting() for _ in range(3)]
    hall.lines.key_changed(b"q")
    assert asked_for(hall.tries()[0]) == 3
    hall.answer(hall.took(b"a", b"b"))
    assert hall.order == calls[:2]
    assert [hall.replies[call] for call in hall.order] == [Value(b"a"), Value(b"b")]
    assert asked_for(hall.tries()[0]) == 1, "there may be more"
    hall.answer(None)
    assert not hall.router.posted


async def test_a_try_takes_no_more_than_the_event_loop_can_hand_out(hall: Hall) -> None:
    calls = [await hall.waiting() for _ in range(TAKE_MAX + 6)]
    hall.lines.key_changed(b"q")
    assert asked_for(hall.tries()[0]) == TAKE_MAX
    hall.answer(hall.took(*[b"%d" % number for number in range(TAKE_MAX)]))
    assert asked_for(hall.tries()[0]) == 6
    hall.answer(hall.took(*[b"%d" % number for number in range(TAKE_MAX, TAKE_MAX + 6)]))
    assert hall.order == calls
    assert [hall.replies[call] for call in calls] == [Value(b"%d" % number) for number in range(TAKE_MAX + 6)]
    tokens = [call.taken[0].token for call in calls]
    assert len(set(tokens)) == len(tokens)


async def test_who_comes_to_a_line_that_is_watched_asks_nothing(hall: Hall) -> None:
    first, second = await hall.waiting(), hall.park()
    assert not hall.router.posted
    hall.lines.key_changed(b"q")
    hall.answer(hall.took(b"a", b"b"))
    assert hall.order == [first, second]


async def test_a_value_for_somebody_who_has_left_goes_to_the_next(hall: Hall) -> None:
    first, second = await hall.waiting(), await hall.waiting()
    hall.lines.key_changed(b"q")
    hall.lines.leave(first)
    hall.answer(hall.took(b"a"))
    assert hall.replies == {second: Value(b"a")}
    assert not hall.receipts.owed


async def test_values_for_which_nobody_is_left_go_back(hall: Hall) -> None:
    """I6"""
    calls = [await hall.waiting() for _ in range(3)]
    hall.lines.key_changed(b"q")
    hall.lines.leave(calls[0])
    hall.lines.leave(calls[2])
    hall.answer(hall.took(b"a", b"b", b"c"))
    assert hall.replies == {calls[1]: Value(b"a")}
    assert hall.receipts.owed == 2
    await wait_all_tasks_blocked()
    first = calls[1].taken[0].token
    assert hall.returns() == [(first + 2, b"<" + MARK + b"c", first + 1, b"<" + MARK + b"b")], "the last pop first"


async def test_all_who_left_while_the_try_was_under_way_leave_nothing_behind(hall: Hall) -> None:
    calls = [hall.park() for _ in range(3)]
    for call in calls:
        hall.lines.leave(call)
    assert hall.lines.trying
    hall.answer(None)
    assert not hall.lines.trying
    assert hall.nothing_is_left()


# Time


async def test_a_timeout_of_zero_gets_null_when_nothing_is_there_and_not_before(hall: Hall) -> None:
    """E4"""
    call = hall.park(timeout_s=0)
    await trio.sleep(2)
    assert not hall.replies
    hall.answer(None)
    assert hall.replies == {call: NULL}
    assert hall.nothing_is_left()


async def test_a_timeout_of_zero_gets_what_is_there(hall: Hall) -> None:
    call = hall.park(timeout_s=0)
    hall.answer(hall.took(b"a"))
    assert hall.replies == {call: Value(b"a")}


async def test_a_timeout_of_zero_behind_others_gets_null_when_they_got_everything(hall: Hall) -> None:
    first, hasty = await hall.waiting(), hall.park(timeout_s=0)
    hall.answer(hall.took(b"a"))
    assert hall.order == [first]
    hall.answer(None)
    assert hall.replies[hasty] == NULL


async def test_a_timeout_of_zero_that_comes_while_a_try_is_under_way_has_its_own(hall: Hall) -> None:
    """E4: what that try has not seen may have been there when this one came."""
    hall.park()
    hasty = hall.park(timeout_s=0)
    hall.answer(None)
    assert not hall.replies
    hall.answer(None)
    assert hall.replies == {hasty: NULL}


async def test_a_timeout_is_told_at_its_time(hall: Hall) -> None:
    call = await hall.waiting(timeout_s=5)
    began_s = trio.current_time()
    hall.on_answer = lambda _call: times.append(trio.current_time() - began_s)
    times: list[float] = []
    await trio.sleep(10)
    assert hall.replies == {call: NULL}
    assert times == [pytest.approx(5)]
    assert hall.nothing_is_left()


async def test_a_timeout_while_the_first_try_is_under_way_is_told_behind_it(hall: Hall) -> None:
    """E4"""
    call = hall.park(timeout_s=1)
    await trio.sleep(3)
    assert not hall.replies
    hall.answer(hall.took(b"a"))
    assert hall.replies == {call: Value(b"a")}


async def test_a_timeout_while_a_later_try_is_under_way_is_told_at_once(hall: Hall) -> None:
    call = await hall.waiting(timeout_s=1)
    hall.lines.key_changed(b"q")
    await trio.sleep(2)
    assert hall.replies == {call: NULL}
    hall.answer(hall.took(b"a"))
    assert hall.receipts.owed == 1


async def test_short_waits_have_the_line_tried_though_it_is_watched(hall: Hall) -> None:
    await hall.waiting()
    hasty = hall.park(timeout_s=0.5)
    hall.answer(None)
    await trio.sleep(0.6)
    assert hall.replies == {hasty: NULL}


async def test_a_waiter_that_left_is_not_told_of_its_timeout(hall: Hall) -> None:
    call = await hall.waiting(timeout_s=5)
    hall.lines.leave(call)
    await trio.sleep(10)
    assert not hall.replies
    assert hall.nothing_is_left()


async def test_thousands_whose_time_is_up_together_are_told_some_at_a_time(hall: Hall) -> None:
    first = await hall.waiting(timeout_s=60)
    for _ in range(4 * TELL_MAX):
        hall.park(timeout_s=60)
    with Steps(lambda: len(hall.replies)) as steps:
        await trio.sleep(61)
    assert hall.order[0] is first
    assert sum(steps.growth) == 4 * TELL_MAX + 1
    assert max(steps.growth) <= TELL_MAX
    assert hall.nothing_is_left()


# What goes wrong


async def test_a_wrong_type_refuses_who_comes_and_lets_wait_who_waits(hall: Hall) -> None:
    """E3"""
    wrong = WrongTypeError("the key holds a plain value")
    old = await hall.waiting()
    hall.lines.key_changed(b"q")
    hall.answer(wrong)
    assert not hall.replies
    fresh = hall.park()
    hall.answer(wrong)
    assert list(hall.replies) == [fresh]
    refused = hall.replies[fresh]
    assert isinstance(refused, Failure)
    assert refused.error is Error.WRONG_TYPE
    hall.lines.key_changed(b"q")
    hall.answer(hall.took(b"a"))
    assert hall.replies[old] == Value(b"a")


@pytest.mark.parametrize("error", REFUSED, ids=repr)
async def test_an_error_refuses_who_comes_and_lets_wait_who_waits(hall: Hall, error: Exception) -> None:
    old = await hall.waiting(timeout_s=60)
    hall.lines.key_changed(b"q")
    fresh = hall.park()
    hall.answer(error)
    assert not hall.replies, "the try began before this one came"
    await trio.sleep(TRY_AGAIN_S * 1.5)
    hall.answer(error)
    assert list(hall.replies) == [fresh]
    assert isinstance(hall.replies[fresh], Failure)
    pause_s = REFUSED_S if isinstance(error, NotSent) else TRY_AGAIN_S
    await trio.sleep(pause_s * 0.9)
    assert not hall.tries()
    await trio.sleep(pause_s * 0.2)
    hall.answer(hall.took(b"a"))
    assert hall.replies[old] == Value(b"a")
    assert hall.nothing_is_left()


async def test_a_lost_try_lets_everybody_wait_for_the_next(hall: Hall) -> None:
    old = await hall.waiting()
    hall.lines.key_changed(b"q")
    hall.answer(Lost("broken"))
    fresh = hall.park()
    hall.answer(Lost("broken"))
    assert not hall.replies
    await trio.sleep(TRY_AGAIN_S * 1.5)
    hall.answer(hall.took(b"a", b"b"))
    assert hall.order == [old, fresh]


async def test_a_lost_try_refuses_whose_time_is_up(hall: Hall) -> None:
    call = hall.park(timeout_s=0)
    hall.answer(Lost("broken"))
    refused = hall.replies[call]
    assert isinstance(refused, Failure)
    assert refused.error is Error.UNAVAILABLE


async def test_a_lost_try_owes_exactly_what_it_may_have_taken(hall: Hall) -> None:
    """I6: a token beyond is another pop's, whose receipt must not be touched."""
    calls = [hall.park(), hall.park()]
    hall.answer(None)
    hall.lines.key_changed(b"q")
    first = hall.receipts.new_tokens(0)
    hall.answer(Lost("broken"))
    assert hall.receipts.owed == len(calls)
    assert hall.receipts.new_tokens(1) == first, "no tokens but those of the try"
    await wait_all_tasks_blocked()
    assert hall.returns() == [(first - 1, b"", first - 2, b"")]


async def test_values_that_too_few_replicas_have_go_back_and_who_waits_for_them_waits_on(hall: Hall) -> None:
    """I6: but who has just come is refused."""
    first, late = await hall.waiting(), await hall.waiting(timeout_s=1)
    hall.lines.key_changed(b"q")
    await trio.sleep(2)
    hall.answer(NotReplicated(hall.took(b"a")))
    assert hall.replies == {late: NULL}
    assert not first.taken
    assert hall.receipts.owed == 1
    await trio.sleep(TRY_AGAIN_S * 0.9)
    assert not hall.tries()
    second = hall.park()
    hall.answer(NotReplicated(hall.took(b"a")))
    assert isinstance(hall.replies.pop(second), Failure)
    await trio.sleep(TRY_AGAIN_S * 1.5)
    hall.answer(hall.took(b"a"))
    assert hall.replies == {late: NULL, first: Value(b"a")}


@pytest.mark.parametrize("error", BROKEN, ids=repr)
async def test_a_timeout_is_told_while_the_master_is_away(hall: Hall, error: Exception) -> None:
    """E4"""
    old = await hall.waiting(timeout_s=5)
    hall.router.down = error
    hall.lines.try_all()
    began_s = trio.current_time()
    hall.on_answer = lambda _call: times.append(trio.current_time() - began_s)
    times: list[float] = []
    await trio.sleep(6)
    assert hall.replies == {old: NULL}
    assert times == [pytest.approx(5)]
    assert hall.nothing_is_left()


async def test_who_comes_while_the_master_is_away_is_refused_at_once(hall: Hall) -> None:
    old = await hall.waiting()
    hall.router.down = NotSent("127.0.0.1:7001 does not answer")
    fresh = hall.park()
    assert hall.replies == {fresh: Failure(Error.UNAVAILABLE, "127.0.0.1:7001 does not answer")}
    hall.router.down = None
    hall.lines.try_all()
    await wait_all_tasks_blocked()
    hall.answer(hall.took(b"a"))
    assert hall.replies[old] == Value(b"a")


async def test_who_comes_while_too_few_replicas_follow_is_refused_though_the_line_is_watched(hall: Hall) -> None:
    old = await hall.waiting()
    hall.router.abandoned = {hall.router.slot_of(b"q")}
    fresh = hall.park()
    assert hall.replies == {fresh: Failure(Error.UNAVAILABLE, "too few replicas")}
    hall.router.abandoned.clear()
    hall.lines.try_all()
    await wait_all_tasks_blocked()
    hall.answer(hall.took(b"a"))
    assert hall.replies[old] == Value(b"a")


async def test_a_line_that_fails_is_tried_at_its_pace_however_many_come(hall: Hall) -> None:
    """Each of them once had a timer of its own, for ever."""
    wrong = ClusterDownError("the cluster is down")
    await hall.waiting()
    hall.lines.key_changed(b"q")
    hall.answer(wrong)
    for _ in range(50):
        await trio.sleep(TRY_AGAIN_S / 50)
        hall.park(timeout_s=0)
        hall.answer(wrong)
    tries = 0
    for _ in range(100):
        await trio.sleep(TRY_AGAIN_S / 10)
        for _ in hall.tries():
            tries += 1
            hall.answer(wrong)
    assert tries <= 11


async def test_a_slot_that_is_being_moved_is_asked_again_and_again(hall: Hall) -> None:
    """Its new master tells nothing before it is the owner."""
    call = hall.park()
    [request] = hall.tries()
    request.asking = True
    hall.answer(None)
    hall.router.posted.clear()
    await trio.sleep(TRY_AGAIN_S * 1.5)
    hall.answer(hall.took(b"a"))
    assert hall.replies == {call: Value(b"a")}


async def test_lines_of_slots_that_moved_are_tried_and_what_is_owed_goes_back_before(hall: Hall) -> None:
    moved, other = b"q", b"other"
    await hall.waiting(moved)
    await hall.waiting(other)
    hall.router.down = NotSent("away")
    hall.receipts.take_back([Receipt(7, moved, b"")])
    await wait_all_tasks_blocked()
    hall.router.down = None
    for _ in range(1000):  # as many as a failover brings
        hall.lines.try_all({hall.router.slot_of(moved)})
    await wait_all_tasks_blocked()
    assert [request.serialized_arguments[0] for request in hall.router.posted] == [
        GIVE_BACK.digest,
        ALONE["BQPOP"].digest,
    ]


async def test_very_many_lines_are_tried_some_at_a_time(hall: Hall) -> None:
    for number in range(5 * TRIES_MAX):
        hall.park(b"q%d" % number)
        hall.answer(None, b"q%d" % number)
    with Steps(lambda: len(hall.router.posted)) as steps:
        hall.lines.try_all()
        await wait_all_tasks_blocked()
    assert sum(steps.growth) == 5 * TRIES_MAX
    assert max(steps.growth) <= TRIES_MAX


async def test_turning_away_answers_everybody_and_takes_nothing(hall: Hall) -> None:
    """E7"""
    away = Failure(Error.UNAVAILABLE, "shutting down")
    calls = [await hall.waiting(), await hall.waiting(timeout_s=5), hall.park(b"other", 0)]
    hall.lines.turn_away(away)
    await wait_all_tasks_blocked()
    assert hall.replies == dict.fromkeys(calls, away)
    hall.answer(hall.took(b"a"), b"other")
    assert hall.receipts.owed == 1
    assert hall.nothing_is_left()


async def test_very_many_are_turned_away_some_at_a_time(hall: Hall) -> None:
    """E7"""
    for _ in range(5 * TELL_MAX):
        hall.park()
    with Steps(lambda: len(hall.replies)) as steps:
        hall.lines.turn_away(Failure(Error.UNAVAILABLE, "shutting down"))
        await wait_all_tasks_blocked()
    assert sum(steps.growth) == 5 * TELL_MAX
    assert max(steps.growth) <= TELL_MAX


# From within


async def test_who_is_answered_may_come_back_at_once(hall: Hall) -> None:
    first = await hall.waiting()
    hall.on_answer = lambda call: again.append(hall.park()) if call is first else None
    again: list[Call] = []
    hall.lines.key_changed(b"q")
    hall.answer(hall.took(b"a"))
    assert len(hall.tries()) == 1
    hall.answer(hall.took(b"b"))
    assert [hall.replies[call] for call in (first, again[0])] == [Value(b"a"), Value(b"b")]
    assert hall.nothing_is_left()


async def test_who_is_answered_may_have_others_leave(hall: Hall) -> None:
    calls = [await hall.waiting() for _ in range(3)]
    hall.on_answer = lambda call: hall.lines.leave(calls[1]) if call is calls[0] else None
    hall.lines.key_changed(b"q")
    hall.answer(hall.took(b"a", b"b"))
    assert hall.order == [calls[0], calls[2]]
    assert hall.nothing_is_left()


@pytest.mark.parametrize(
    "result", [None, NotSent("gone"), Lost("gone"), NotReplicated([MARK, b"a", b"b", b"c"])], ids=repr
)
async def test_who_is_refused_may_have_others_leave_and_come_back(hall: Hall, result: Any) -> None:
    calls = [hall.park(timeout_s=0) for _ in range(3)]
    hall.answer(None)  # for the first one

    def leave(call: Call) -> None:
        if call is calls[1]:
            hall.lines.leave(calls[2])
            calls.append(hall.park())

    hall.on_answer = leave
    hall.answer(result)
    assert set(hall.replies) == set(calls[:2])
    await trio.sleep(1)
    hall.answer(hall.took(b"d"))
    assert hall.replies[calls[3]] == Value(b"d")
    assert hall.nothing_is_left()


async def test_who_is_refused_may_come_back_again_and_again(hall: Hall) -> None:
    """A client that has sent a thousand pops in one go, each of which is started when the one before is answered."""

    def come_back(_call: Call) -> None:
        if len(hall.replies) < 1000:
            hall.park()

    hall.on_answer = come_back
    hall.park()
    hall.router.down = NotSent("away")
    hall.answer(NotSent("away"))
    await wait_all_tasks_blocked()
    assert len(hall.replies) == 1000
    assert hall.nothing_is_left()


async def test_whose_time_is_up_may_have_others_leave_and_come_back(hall: Hall) -> None:
    calls = [await hall.waiting(timeout_s=1) for _ in range(3)]
    came: list[Call] = []

    def leave(call: Call) -> None:
        if call is calls[0]:
            hall.lines.leave(calls[1])
            came.append(hall.park(timeout_s=1))

    hall.on_answer = leave
    await trio.sleep(1.5)
    assert set(hall.replies) == {calls[0], calls[2]}
    if hall.tries():
        hall.answer(None)
    await trio.sleep(2)
    assert hall.replies[came[0]] == NULL
    assert hall.nothing_is_left()


async def test_thousands_who_come_and_leave_are_forgotten(hall: Hall) -> None:
    for number in range(3000):
        key = b"q%d" % (number % 7)
        call = hall.park(key, (None, 0.5, 100)[number % 3])
        if number % 2:
            hall.lines.leave(call)
            hall.answer(None, key)
        else:
            hall.answer(None, key)
            hall.lines.leave(call)
    await trio.sleep(RETRY_S + 1)
    assert hall.nothing_is_left()
    assert not hall.lines._later
    assert not hall.replies
