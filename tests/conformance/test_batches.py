"""Batches: answers in order, each command by itself (`/pipeline`) or all or nothing (`/multi`)."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from engine.limits import KIB, Limits
from engine.replies import Error, Failure, Integer, Ok, Refused, Value
from tests.conformance.cases import ALREADY_EXISTS, EMPTY, GET_OF_A_QUEUE, NOT_FOUND, NULL, OK, wrong_type
from tests.conformance.store import Backend, Line, Store
from tests.harness.waiting import WITHIN_S, until

PONG = Value(b"PONG")
SHUTTING_DOWN = Failure(Error.UNAVAILABLE, "shutting down")
POPPED_ENOUGH = Failure(Error.TOO_LARGE, "the values popped before make the answer too long")

both = pytest.mark.parametrize("atomic", [False, True])


@both
async def test_commands_are_done_in_order_and_answered_in_order(store: Store, *, atomic: bool) -> None:
    assert await store.do_many(
        *("SET {t}k v", "GET {t}k", "QPUSH {t}q a b c", "BQPOP {t}q", "QPOP {t}q", "QLEN {t}q", "EXISTS {t}k {t}q"),
        *("SET {t}k w EX 1000 XX", "GET {t}k", "DELETE {t}k", "GET {t}k", "TTL {t}k", "SET {t}k x NX", "PING"),
        atomic=atomic,
    ) == [
        *(OK, Value(b"v"), Ok(length=3), Value(b"a"), Value(b"c"), Integer(1), Integer(2)),
        *(OK, Value(b"w"), Integer(1), NOT_FOUND, Integer(-2), OK, PONG),
    ]
    assert store.content() == {b"{t}q": ("queue", b"b"), b"{t}k": ("value", b"x", None)}


@both
async def test_a_blocking_pop_in_it_never_waits(store: Store, *, atomic: bool) -> None:
    assert await store.do_many(
        "BQPOP q", "BQPOP q 60", "QPUSH q a b", "BQPOP q", "BQPOP q 60", "BQPOP q", "BQPOP q 0", atomic=atomic
    ) == [NULL, NULL, Ok(length=2), Value(b"a"), Value(b"b"), NULL, NULL]
    assert store.waiters == 0


@both
async def test_an_empty_one_is_answered_with_nothing(store: Store, *, atomic: bool) -> None:
    assert await store.do_many(atomic=atomic) == []


@both
async def test_one_of_pings_touches_nothing(store: Store, *, atomic: bool) -> None:
    assert await store.do_many("PING", "PING", atomic=atomic) == [PONG, PONG]


@both
async def test_it_counts_as_many_commands(store: Store, *, atomic: bool) -> None:
    before = store.engine.statistics().commands
    await store.do_many("SET k v", "GET k", "PING", atomic=atomic)
    assert store.engine.statistics().commands == before + 3


@both
async def test_a_command_is_not_done_twice_however_alike_they_are(store: Store, *, atomic: bool) -> None:
    assert await store.do_many(*["QPUSH q a"] * 5, *["QPOP q"] * 3, atomic=atomic) == [
        *(Ok(length=number) for number in range(1, 6)),
        *[Value(b"a")] * 3,
    ]


async def test_a_unit_pops_no_more_than_an_answer_may_hold(backend: Backend, nursery: trio.Nursery) -> None:
    """I6: what was popped has to be answered, so all stays where it is."""
    store = await backend.open(nursery, Limits(answer_bytes_max=4))
    await store.do("QPUSH q aa bb cc dd")
    assert await store.do_many("SET {q}k v", "BQPOP q", "QPOP q", "BQPOP q", atomic=True) == Refused(POPPED_ENOUGH, 3)
    assert store.content() == {b"q": ("queue", b"aa", b"bb", b"cc", b"dd")}
    assert await store.do_many("BQPOP q", "QPOP q", atomic=True) == [Value(b"aa"), Value(b"dd")]
    store.close()


async def test_a_pipeline_pops_about_as_much_as_an_answer_may_hold(backend: Backend, nursery: trio.Nursery) -> None:
    """I6: what was popped has to be answered, so the rest stays where it is."""
    store = await backend.open(nursery, Limits(answer_bytes_max=4))
    values = [b"%d" % number for number in range(10, 60)]
    await store.do([b"QPUSH", b"q", *values])
    outcome = await store.do_many(*["BQPOP q"] * 49, "SET k v")
    assert isinstance(outcome, list)
    count = outcome.index(POPPED_ENOUGH)
    assert 2 <= count <= 16
    assert outcome == [*map(Value, values[:count]), *[POPPED_ENOUGH] * (49 - count), OK]
    assert store.content() == {b"q": ("queue", *values[count:]), b"k": ("value", b"v", None)}
    store.close()


@both
async def test_while_shutting_down_it_is_refused_as_a_whole(store: Store, *, atomic: bool) -> None:
    store.engine.shut_down()
    assert await store.do_many("SET k v", "PING", atomic=atomic) == Refused(SHUTTING_DOWN)
    assert await store.do("SET k v") == SHUTTING_DOWN
    assert store.content() == {}


@both
async def test_what_was_submitted_when_the_engine_closes_is_done(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, atomic: bool
) -> None:
    """B9"""
    monkeypatch.setattr("engine.redis.engine.CLOSE_WITHIN_S", WITHIN_S)
    single = store.submit("SET {k}single v")
    batch = store.submit_many(*(f"SET {{k}}{number} v" for number in range(500)), atomic=atomic)
    store.close()
    assert await single.delivered() == [OK]
    assert await batch.delivered() == [[OK] * 500]
    assert len(store.content()) == 501


# Each by itself


async def test_a_command_that_is_refused_does_not_disturb_the_rest(store: Store) -> None:
    await store.do_many("SET k v", "QPUSH empty a", "QPOP empty")
    assert await store.do_many(
        *("SET k w NX", "QPUSH k a", "QPOP k", "BQPOP k", "QLEN k", "SET other v XX", "DELETE none", "GET none"),
        *("QPOP empty", "GET empty", "QPOP none", "SET k w XX"),
    ) == [
        *(ALREADY_EXISTS, *map(wrong_type, ("QPUSH", "QPOP", "BQPOP", "QLEN")), NOT_FOUND, NOT_FOUND, NOT_FOUND),
        *(EMPTY, GET_OF_A_QUEUE, NULL, OK),
    ]


async def test_a_long_one_over_many_keys_is_answered_in_order(store: Store) -> None:
    keys = [f"key{number}" for number in range(1_000)]
    assert await store.do_many(*(f"SET {key} {key}" for key in keys)) == [OK] * len(keys)
    lines, expected = [], []
    for number, key in enumerate(keys):
        lines += [f"GET {key}", f"SET {key} {number}", f"GET {key}", f"EXISTS {key} {keys[0]} none"]
        expected += [Value(key.encode()), OK, Value(b"%d" % number), Integer(2)]
    assert await store.do_many(*lines) == expected
    assert await store.do_many(f"DELETE {' '.join(keys)}", f"GET {keys[7]}", "PING") == [Integer(1000), NOT_FOUND, PONG]


async def test_commands_of_several_keys_see_what_came_before_them_in_their_batch(store: Store) -> None:
    keys = " ".join(f"key{number}" for number in range(20))
    assert await store.do_many(
        *("SET key3 v", "QPUSH key11 a", f"EXISTS {keys}", f"DELETE {keys}", f"EXISTS {keys}", "SET key5 v NX"),
        *(f"DELETE {keys} {keys}", f"DELETE {keys}", "GET key5"),
    ) == [OK, Ok(length=1), Integer(2), Integer(2), Integer(0), OK, Integer(1), NOT_FOUND, NOT_FOUND]


async def test_many_batches_at_once_do_not_get_each_others_answers(store: Store) -> None:
    async def ask(number: int) -> None:
        key = f"key{number}"
        assert await store.do_many(f"SET {key} {number}", f"GET {key}", f"DELETE {key} {key}x", f"GET {key}") == [
            *(OK, Value(b"%d" % number), Integer(1), NOT_FOUND),
        ]
        assert await store.do_many(f"SET {key} {number}", f"GET {key}", atomic=True) == [OK, Value(b"%d" % number)]

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(ask, number)


# All or nothing

BEFORE = (
    *("SET {t}k v", "SET {t}e v PX 6000000", "QPUSH {t}q a b c", "SET {t}x v"),
    *("QPUSH {t}empty a", "QPOP {t}empty"),
)
CHANGES = (
    *("SET {t}k w", "SET {t}e w", "SET {t}e w EX 9", "SET {t}new v PX 5", "DELETE {t}q", "QPUSH {t}q d"),
    *("QPOP {t}q", "BQPOP {t}q", "DELETE {t}k {t}e", "SET {t}q v", "QPUSH {t}new v w", "QPUSH {t}empty a"),
    *("SET {t}empty v", "DELETE {t}empty {t}none"),
)
REFUSED = {
    "SET {t}x v NX": ALREADY_EXISTS,
    "SET {t}none v XX": NOT_FOUND,
    "DELETE {t}none": NOT_FOUND,
    "QPUSH {t}x a": wrong_type("QPUSH"),
    "QPOP {t}x": wrong_type("QPOP"),
    "QPOP {t}empty": EMPTY,
    "BQPOP {t}x": wrong_type("BQPOP"),
}


@pytest.mark.parametrize("bad", REFUSED)
async def test_a_change_that_would_be_refused_leaves_nothing_of_the_unit(store: Store, bad: str) -> None:
    """I2"""
    await store.do_many(*BEFORE)
    before = store.content()
    for change in CHANGES:
        if "{t}empty" in change and "{t}empty" in bad:
            continue
        outcome = await store.do_many(change, "GET {t}none", bad, "SET {t}after v", atomic=True)
        assert outcome == Refused(REFUSED[bad], 2), change
        assert store.content() == before, change
    assert await store.do_many(bad, atomic=True) == Refused(REFUSED[bad], 0)
    assert store.content() == before


async def test_reads_in_it_see_what_it_did_so_far(store: Store) -> None:
    await store.do_many(*BEFORE)
    assert await store.do_many(
        *("SET {t}k w EX 100", "GET {t}k", "TTL {t}k", "DELETE {t}k", "GET {t}k", "EXISTS {t}k {t}q {t}q", "TTL {t}k"),
        *("SET {t}q v", "QLEN {t}q", "GET {t}q", "DELETE {t}q", "QPOP {t}q", "QPUSH {t}q z", "QLEN {t}q", "QPOP {t}q"),
        *("BQPOP {t}q", "EXISTS {t}q", "SET {t}q v NX", "GET {t}q"),
        atomic=True,
    ) == Refused(ALREADY_EXISTS, 17)
    assert await store.do_many(
        *("SET {t}k w EX 100", "GET {t}k", "DELETE {t}k", "GET {t}k", "EXISTS {t}k {t}q {t}q", "TTL {t}k"),
        *("SET {t}q v", "QLEN {t}q", "GET {t}q", "DELETE {t}q", "QPOP {t}q", "QPUSH {t}q z", "QLEN {t}q", "QPOP {t}q"),
        *("BQPOP {t}q", "EXISTS {t}q", "GET {t}q", "QPUSH {t}q y x", "QPOP {t}q"),
        atomic=True,
    ) == [
        *(OK, Value(b"w"), Integer(1), NOT_FOUND, Integer(2), Integer(-2)),
        *(OK, wrong_type("QLEN"), Value(b"v"), Integer(1), NULL, Ok(length=1), Integer(1), Value(b"z")),
        *(NULL, Integer(1), GET_OF_A_QUEUE, Ok(length=2), Value(b"x")),
    ]


async def test_a_read_that_finds_nothing_refuses_nothing(store: Store) -> None:
    await store.do_many(*BEFORE)
    assert await store.do_many(
        *("GET {t}none", "GET {t}q", "TTL {t}none", "QLEN {t}none", "QLEN {t}k", "EXISTS {t}none", "SET {t}k w"),
        atomic=True,
    ) == [NOT_FOUND, GET_OF_A_QUEUE, Integer(-2), Integer(0), wrong_type("QLEN"), Integer(0), OK]


async def test_a_pop_that_finds_no_queue_or_does_not_wait_refuses_nothing(store: Store) -> None:
    await store.do_many(*BEFORE)
    assert await store.do_many(
        "QPOP {t}none", "BQPOP {t}none", "BQPOP {t}empty", "BQPOP {t}empty 5", "SET {t}k w", atomic=True
    ) == [NULL, NULL, NULL, NULL, OK]


async def test_an_expired_key_is_gone_for_a_unit_too(store: Store) -> None:
    await store.do("SET {t}k v PX 1")
    await until(lambda: store.left_ms(b"{t}k") is None)
    assert await store.do_many("SET {t}k w XX", atomic=True) == Refused(NOT_FOUND, 0)
    assert await store.do_many("SET {t}k w NX", "QLEN {t}q", atomic=True) == [OK, Integer(0)]


async def test_a_unit_may_be_long(store: Store) -> None:
    """I2"""
    lines = [f"SET {{t}}{number} {number}" for number in range(1_000)]
    assert await store.do_many(*lines, atomic=True) == [OK] * 1_000
    assert len(store.content()) == 1_000
    lines = [f"DELETE {{t}}{number}" for number in range(999)]
    assert await store.do_many(*lines, "DELETE {t}none", atomic=True) == Refused(NOT_FOUND, 999)
    assert len(store.content()) == 1_000
    assert await store.do_many(*lines, "PING", atomic=True) == [*[Integer(1)] * 999, PONG]
    assert len(store.content()) == 1


async def test_a_unit_with_long_values_is_taken_back_whole(store: Store) -> None:
    """I2"""
    values = [random.Random(number).randbytes(200 * KIB) for number in range(20)]
    await store.do([b"QPUSH", b"q", *values])
    before = store.content()
    unit: list[Line] = [
        [b"BQPOP", b"q"],
        [b"QPOP", b"q"],
        [b"DELETE", b"q"],
        *([b"SET", b"{q}k", value] for value in values),
    ]
    assert await store.do_many(*unit, "QPUSH {q}k a", atomic=True) == Refused(wrong_type("QPUSH"), 23)
    assert store.content() == before
    assert await store.do_many(*unit, atomic=True) == [Value(values[0]), Value(values[-1]), Integer(1), *[OK] * 20]


async def test_a_long_queue_that_a_refused_unit_had_removed_is_back(store: Store) -> None:
    """I2"""
    values = [b"%d" % number for number in range(20_000)]
    await store.do([b"QPUSH", b"q", *values])
    unit: list[Line] = [
        [b"QPUSH", b"{q}r", *values],
        "DELETE {q}r",
        "DELETE q",
        [b"QPUSH", b"q", *values],
        "SET q v",
        "QPUSH q a",
    ]
    assert await store.do_many(*unit, atomic=True) == Refused(wrong_type("QPUSH"), 5)
    assert store.content() == {b"q": ("queue", *values)}


async def test_a_popped_value_finds_its_queue_again_after_a_unit_that_had_removed_it(store: Store) -> None:
    """E5, I2: the very same queue is back."""
    await store.do("QPUSH q a b")
    client = store.submit("BQPOP q")
    await client.delivered()
    unit = ("DELETE q", "QPUSH q new", "SET q v", "QPUSH q w")
    assert await store.do_many(*unit, atomic=True) == Refused(wrong_type("QPUSH"), 3)
    client.leave()
    await store.holds({b"q": ("queue", b"a", b"b")})


async def test_nobody_sees_a_unit_under_way(store: Store) -> None:
    """I2: values are moved from one queue to another and back, and all the time there are six."""
    await store.do_many("QPUSH {t}here 1 2 3 4 5 6", "QPUSH {t}there x", "QPOP {t}there")

    async def move(here: str, there: str) -> None:
        for _ in range(60):
            await store.do_many(f"QPUSH {{t}}{there} value", f"QPOP {{t}}{here}", atomic=True)

    async def look() -> None:
        for _ in range(60):
            lengths = await store.do_many("QLEN {t}here", "QLEN {t}there", atomic=True)
            assert isinstance(lengths, list)
            assert sum(reply.value for reply in lengths if isinstance(reply, Integer)) == 6

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(move, "here", "there")
            nursery.start_soon(move, "there", "here")
            nursery.start_soon(look)


@pytest.mark.parametrize(
    "unit",
    [
        ("SET {a}k v", "SET {b}k v"),
        ("GET {a}k", "GET {b}k"),
        ("PING", "DELETE {a}k {b}k", "PING"),
        ("EXISTS {a}k {b}k",),
        ("QPUSH {a}k v", "BQPOP {b}k"),
    ],
)
async def test_a_unit_on_keys_of_several_slots_is_refused_where_keys_lie_apart(
    store: Store, backend: Backend, unit: tuple[str, ...]
) -> None:
    await store.do_many("SET {a}k old", "SET {b}k old")
    before = store.content()
    outcome = await store.do_many(*unit, atomic=True)
    if backend.splits_keys:
        assert isinstance(outcome, Refused)
        assert outcome.failure.error is Error.INVALID_COMMAND
        assert "{" in outcome.failure.detail, "it says what a hash tag is"
        assert store.content() == before
    elif not isinstance(outcome, Refused):
        assert len(outcome) == len(unit)
    else:
        assert outcome == Refused(wrong_type("QPUSH"), 0)


# Limits


@pytest.mark.parametrize("kind", ["single", "pipeline", "unit"])
async def test_a_full_mailbox_turns_commands_away(backend: Backend, nursery: trio.Nursery, kind: str) -> None:
    store = await backend.open(nursery, Limits(mailbox_max=3))
    full = Failure(Error.UNAVAILABLE, "too many commands are waiting")
    done: Any
    refused: Any
    if kind == "single":
        clients = [store.submit("SET k v") for _ in range(10)]
        done, refused = OK, full
    else:
        clients = [store.submit_many("SET k v", "GET k", atomic=kind == "unit") for _ in range(10)]
        done, refused = [OK, Value(b"v")], Refused(full)
    outcomes = [await client.delivered() for client in clients]
    assert outcomes == [[done]] * 3 + [[refused]] * 7, "each takes one place"
    assert await store.do("GET k") == Value(b"v"), "and gives it back"
    store.close()
