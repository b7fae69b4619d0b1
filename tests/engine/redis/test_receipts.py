"""Receipts: what was popped is thrown away or put back, exactly once; the test is Redis here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from coredis.exceptions import ClusterDownError, ResponseError
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.redis.receipts import (
    AT_ONCE_MAX,
    CONFIRM_S,
    FIRST,
    GIVE_BACK_BYTES_MAX,
    RETRY_S,
    TOKENS_MAX,
    Receipt,
    Receipts,
    receipts_in,
)
from engine.redis.scripts import GIVE_BACK
from tests.harness.fake_redis import MARK, FakeRouter, Steps


def popped(token: int, key: bytes = b"q", value: bytes = b"v") -> Receipt:
    return Receipt(token, key, b"<" + MARK + value)


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
async def receipts(router: FakeRouter, nursery: trio.Nursery, autojump_clock: MockClock) -> AsyncIterator[Receipts]:
    receipts = Receipts(b"front", router)
    nursery.start_soon(receipts.run)
    await wait_all_tasks_blocked()
    yield receipts
    nursery.cancel_scope.cancel()


def tokens_going_back(router: FakeRouter) -> list[list[int | bytes]]:
    """Of each request under way that puts values back."""
    return [
        list(request.serialized_arguments[4::2])
        for request in router.posted
        if request.serialized_arguments[0] == GIVE_BACK.digest
    ]


async def test_tokens_are_never_given_twice(receipts: Receipts) -> None:
    first = receipts.new_tokens(3)
    assert receipts.new_tokens(1) == first + 3


async def test_what_was_handed_over_is_thrown_away_a_little_later(receipts: Receipts, router: FakeRouter) -> None:
    receipts.settle([popped(1), popped(2)])
    receipts.settle([popped(3, b"other")])
    await wait_all_tasks_blocked()
    assert not router.posted
    await trio.sleep(CONFIRM_S * 2)
    assert [(request.name, request.serialized_arguments, request.writes) for request in router.posted] == [
        (b"HDEL", (receipts.key_for(router.slot_of(b"q")), 1, 2), False),
        (b"HDEL", (receipts.key_for(router.slot_of(b"other")), 3), False),
    ]
    for request in list(router.posted):
        router.answer(request, 1)
    await trio.sleep(60)
    assert not router.posted


async def test_what_was_not_thrown_away_because_a_connection_broke_is_thrown_away_later(
    receipts: Receipts, router: FakeRouter
) -> None:
    """Receipts of a slot expire together, and not as long as this front pops there."""
    receipts.settle([popped(1), popped(2)])
    await trio.sleep(CONFIRM_S * 2)
    for error in (Lost("it broke"), NotSent("it is not there yet")):
        request = router.answer_next(error)
        assert not router.posted, "not at once"
        await trio.sleep(CONFIRM_S * 2)
        [again] = router.posted
        assert again.serialized_arguments == request.serialized_arguments
    router.answer_next(ResponseError("NOPERM it will not do so the next time either"))
    await trio.sleep(60)
    assert not router.posted


async def test_very_many_are_thrown_away_in_portions(receipts: Receipts, router: FakeRouter) -> None:
    receipts.settle([popped(number) for number in range(2 * TOKENS_MAX + 1)])
    receipts.confirm()
    assert [len(request.serialized_arguments) - 1 for request in router.posted] == [TOKENS_MAX, TOKENS_MAX, 1]


async def test_what_nobody_got_goes_back_at_once_the_last_pop_first(receipts: Receipts, router: FakeRouter) -> None:
    """I6"""
    receipts.take_back([popped(1, value=b"a"), popped(2, value=b"b")])
    assert receipts.owed == 2
    await wait_all_tasks_blocked()
    [request] = router.posted
    key = receipts.key_for(request.slot)
    assert request.serialized_arguments == (
        *(GIVE_BACK.digest, 1, b"q", key),
        *(2, b"<" + MARK + b"b", 1, b"<" + MARK + b"a"),
    )
    assert request.writes
    assert receipts.owed == 2, "until it is known to be there"
    router.answer(request, 2)
    assert receipts.owed == 0
    assert receipts.returned_values == 2


async def test_each_queue_has_a_request_of_its_own(receipts: Receipts, router: FakeRouter) -> None:
    receipts.take_back([popped(1, b"{t}a"), popped(2, b"{t}b"), popped(3, b"{t}a")])
    receipts.give_back()
    assert tokens_going_back(router) == [[3, 1], [2]]


async def test_many_go_back_in_portions_of_tokens_and_of_bytes(receipts: Receipts, router: FakeRouter) -> None:
    receipts.take_back(popped(number) for number in range(TOKENS_MAX + 1))
    receipts.give_back()
    assert [len(tokens) for tokens in tokens_going_back(router)] == [TOKENS_MAX, 1]
    router.posted.clear()
    large = b"x" * (GIVE_BACK_BYTES_MAX // 2)
    receipts.take_back(popped(number, value=large) for number in range(3))
    receipts.give_back()
    assert [len(tokens) for tokens in tokens_going_back(router)] == [1, 1, 1]


async def test_very_many_are_dealt_with_some_at_a_time(receipts: Receipts, router: FakeRouter) -> None:
    many = [popped(number, b"q%d" % (number % 7)) for number in range(3 * AT_ONCE_MAX + 1)]
    for deal_with in (receipts.take_back, receipts.settle):
        with Steps(lambda: sum(len(request.serialized_arguments) // 2 for request in router.posted)) as steps:
            deal_with(many)
            await trio.sleep(2 * CONFIRM_S)
        assert max(steps.growth) <= 1.2 * AT_ONCE_MAX
        for request in list(router.posted):
            router.answer(request, 0)
    assert receipts.owed == 0


async def test_of_very_many_the_last_pops_go_back_first(receipts: Receipts, router: FakeRouter) -> None:
    """I6"""
    receipts.take_back([popped(number) for number in range(1, 2 * AT_ONCE_MAX)])
    receipts.take_back([popped(2 * AT_ONCE_MAX)])
    await trio.sleep(0.1)
    going = [token for tokens in tokens_going_back(router) for token in tokens]
    assert going == list(range(2 * AT_ONCE_MAX, 0, -1))


async def test_a_lost_return_is_asked_for_again_by_its_receipt_alone(receipts: Receipts, router: FakeRouter) -> None:
    """I6: it may have been done, and then the value must not come a second time."""
    receipts.take_back([popped(1)])
    await wait_all_tasks_blocked()
    router.answer_next(Lost("broken"))
    assert receipts.owed == 1
    receipts.give_back()
    [request] = router.posted
    assert request.serialized_arguments[4:] == (1, b"")
    router.answer(request, 0)
    assert receipts.owed == 0
    assert receipts.returned_values == 0


@pytest.mark.parametrize(
    "error", [NotSent("away"), ClusterDownError("down"), ResponseError("MISCONF disk")], ids=lambda error: str(error)
)
async def test_a_return_that_was_not_done_is_tried_again_as_it_was(
    receipts: Receipts, router: FakeRouter, error: Exception
) -> None:
    """I6: by itself, without anything else happening."""
    receipts.take_back([popped(1)])
    await wait_all_tasks_blocked()
    for _ in range(3):
        before = router.posted[0].serialized_arguments
        router.answer_next(error)
        await wait_all_tasks_blocked()
        assert not router.posted, "not at once"
        await trio.sleep(2 * RETRY_S)
        assert router.posted[0].serialized_arguments == before
    router.answer_next(1)
    await trio.sleep(60)
    assert not router.posted
    assert receipts.owed == 0


async def test_a_return_that_too_few_replicas_have_is_done_again_as_far_as_it_was_not(
    receipts: Receipts, router: FakeRouter, autojump_clock: MockClock
) -> None:
    """I6: if the master dies before they have it, the next one has the receipt still."""
    receipts.take_back([popped(1)])
    await wait_all_tasks_blocked()
    assert router.posted[0].serialized_arguments[-1] != b""
    router.answer_next(NotReplicated(1))
    assert receipts.owed == 1
    await trio.sleep(2 * RETRY_S)
    assert router.answer_next(0).serialized_arguments[-2:] == (1, b"")
    assert receipts.owed == 0
    assert receipts.returned_values == 1


async def test_what_too_few_replicas_would_follow_goes_back_only_when_the_front_ends(
    receipts: Receipts, router: FakeRouter
) -> None:
    router.abandoned = {router.slot_of(b"q")}
    receipts.take_back([popped(1)])
    await trio.sleep(60)
    assert receipts.owed == 1
    receipts.insists = True
    await trio.sleep(2 * RETRY_S)
    assert router.answer_next(NotReplicated(1)).insists
    assert (receipts.owed, receipts.returned_values) == (0, 1)


async def test_very_much_that_waits_for_replicas_keeps_nothing_else_waiting(
    receipts: Receipts, router: FakeRouter
) -> None:
    """It was tried again at once, for ever, and nothing else came to its turn."""
    router.abandoned = {router.slot_of(b"q")}
    receipts.take_back([popped(1, b"other"), *(popped(number) for number in range(2, AT_ONCE_MAX + 3))])
    receipts.give_back()
    assert tokens_going_back(router) == [[1]]
    router.answer_next(1)
    router.abandoned.clear()
    await trio.sleep(2 * RETRY_S)
    assert sum(map(len, tokens_going_back(router))) == AT_ONCE_MAX + 1


async def test_what_is_owed_waits_for_its_master(receipts: Receipts, router: FakeRouter) -> None:
    router.down = NotSent("away")
    receipts.take_back([popped(1)])
    await trio.sleep(60)
    assert receipts.owed == 1
    router.down = None
    await trio.sleep(2 * RETRY_S)
    assert tokens_going_back(router) == [[1]]


async def test_a_pop_whose_receipt_lies_in_redis_goes_back_by_it_alone(receipts: Receipts, router: FakeRouter) -> None:
    """I6: it may be another master by then, which knows nothing of that pop and has the value still."""
    receipts.take_back(receipts_in([b"", b"v"], 1, b"q", FIRST) + receipts_in([MARK, b"left out"], 2, b"q", FIRST))
    await wait_all_tasks_blocked()
    assert router.posted[0].serialized_arguments[4:] == (2, b"<" + MARK + b"left out", 1, b"")


async def test_a_return_in_two_portions_of_which_one_is_lost_keeps_them_apart(
    receipts: Receipts, router: FakeRouter
) -> None:
    receipts.take_back(popped(number) for number in range(TOKENS_MAX + 1))
    receipts.give_back()
    first, second = router.posted
    router.answer(second, 1)
    router.answer(first, Lost("broken"))
    assert receipts.owed == TOKENS_MAX
    receipts.give_back()
    [again] = router.posted
    assert set(again.serialized_arguments[5::2]) == {b""}
    assert again.serialized_arguments[4] == TOKENS_MAX


async def test_thousands_leave_nothing_behind(receipts: Receipts, router: FakeRouter) -> None:
    for number in range(3000):
        (receipts.settle if number % 2 else receipts.take_back)([popped(number, b"q%d" % (number % 5))])
    await trio.sleep(2 * CONFIRM_S)
    for request in list(router.posted):
        router.answer(request, 0)
    await trio.sleep(60)
    assert not router.posted
    assert not receipts._handed_over
    assert receipts.owed == 0
