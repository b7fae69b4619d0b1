"""Every command for every kind of key: alone, in a pipeline, and in a unit."""

from __future__ import annotations

import pytest

from engine.commands.keys import Delete
from engine.commands.queues import BQPop, QPop, QPush
from engine.commands.values import Set
from engine.replies import Error, Failure, Integer, Ok, Refused, Reply, Value
from tests.conformance.store import Store
from tests.harness.cases import AS_IT_WAS, CASES, KINDS, NOT_FOUND, NULL, OK, WAITS
from tests.harness.model import Content
from tests.harness.waiting import until

MAKING = {
    "missing": (),
    "plain": ("SET k old",),
    "expiring": ("SET k old PX 1500000",),
    "expired": ("SET k old PX 1",),
    "queue": ("QPUSH k first mid last",),
    "emptied": ("QPUSH k only", "QPOP k"),
}
"""The kinds of the table; what expires lives a thousand times as long as there."""

CHANGING = (Set, Delete, QPush, QPop, BQPop)
"""Those whose refusal refuses the unit that they are in."""


async def make(store: Store, kind: str) -> None:
    """Makes `k` what it shall be, whatever it was."""
    await store.do("DELETE k")
    for line in MAKING[kind]:
        await store.do(line)
    if kind == "expired":
        await gone(store, "k")


async def gone(store: Store, key: str) -> None:
    """Returns when a key has expired."""
    while await store.do(f"EXISTS {key}") != Integer(0):
        pass


def longer(line: str) -> str:
    """A command of the table with a longer expiry."""
    return line.replace("EX 2", "EX 2000")


def check_reply(line: str, kind: str, reply: Reply, expected: Reply) -> None:
    if (line, kind) == ("TTL k", "expiring"):
        assert isinstance(reply, Integer)
        assert 1400 < reply.value <= 1500
    else:
        assert reply == expected


def check_content(before: Content, after: Content, expected: Content | None) -> None:
    if expected is AS_IT_WAS:
        assert after == before
        return
    assert {key: entry[:2] for key, entry in after.items() if entry[0] == "value"} == {
        key: entry[:2] for key, entry in expected.items() if entry[0] == "value"
    }
    for key, entry in expected.items():
        if entry[0] == "queue":
            assert after[key] == entry
        else:
            assert (after[key][2] is None) == (entry[2] is None), "it expires, or it does not"
    assert after.keys() == expected.keys()


@pytest.mark.parametrize("line", CASES)
async def test_each_command_meets_each_kind_of_key(store: Store, line: str) -> None:
    for kind in KINDS:
        await make(store, kind)
        before = store.content()
        expected, content = CASES[line][kind]
        if expected is WAITS:
            (job,) = await store.park(line)
            job.leave()
            await until(lambda: store.waiters == 0)
        else:
            check_reply(line, kind, await store.do(longer(line)), expected)
        check_content(before, store.content(), content)


@pytest.mark.parametrize("line", CASES)
async def test_each_command_meets_each_kind_of_key_in_a_pipeline(store: Store, line: str) -> None:
    for kind in KINDS:
        await make(store, kind)
        before = store.content()
        expected, content = CASES[line][kind]
        replies = await store.do_many("PING", longer(line), "PING")
        assert isinstance(replies, list)
        assert replies[0] == replies[2] == Value(b"PONG")
        check_reply(line, kind, replies[1], NULL if expected is WAITS else expected)
        check_content(before, store.content(), content)


@pytest.mark.parametrize("line", CASES)
async def test_each_command_meets_each_kind_of_key_in_a_unit(store: Store, line: str) -> None:
    """I2"""
    line = line.replace(" x", " {k}x")  # on a cluster the keys of a unit are in one slot
    for kind in KINDS:
        await make(store, kind)
        before = store.content()
        expected, content = CASES[line.replace("{k}", "")][kind]
        outcome = await store.do_many("PING", longer(line), "PING", atomic=True)
        if isinstance(expected, Failure) and isinstance(store.parse(line), CHANGING):
            assert outcome == Refused(expected, 1)
        else:
            assert isinstance(outcome, list)
            assert outcome[0] == outcome[2] == Value(b"PONG")
            check_reply(line, kind, outcome[1], NULL if expected is WAITS else expected)
        check_content(before, store.content(), content)


# Expiry


async def test_a_key_is_gone_for_every_command_when_its_time_is_up(store: Store) -> None:
    for line in (
        "GET k",
        "DELETE k",
        "TTL k",
        "QPOP k",
        "QLEN k",
        "BQPOP k 0",
        "SET k w NX",
        "SET k w XX",
        "QPUSH k a",
    ):
        await make(store, "missing")
        never_there = await store.do_many(line)
        await make(store, "expired")
        assert await store.do_many(line) == never_there, line


async def test_a_set_drops_an_older_expiry_and_a_refused_one_does_not(store: Store) -> None:
    await store.do("SET k v EX 1000")
    before = store.content()
    assert await store.do("SET k w NX") == Failure(Error.KEY_ALREADY_EXISTS)
    assert await store.do("SET k w EX 5 NX") == Failure(Error.KEY_ALREADY_EXISTS)
    assert store.content() == before
    assert await store.do("SET k w XX") == OK
    assert await store.do("TTL k") == Integer(-1)
    assert await store.do("SET k w PX 5000000 XX") == OK
    await store.do("DELETE k")
    await store.do("QPUSH k a")
    assert await store.do("TTL k") == Integer(-1), "and a queue has none"


async def test_the_seconds_left_are_rounded_up_and_never_zero_while_the_key_is_there(store: Store) -> None:
    for ttl_ms in (1, 30, 60, 999, 1000, 1001, 1500, 2001, 60_000):
        await store.do(f"SET k v PX {ttl_ms}")
        for _ in range(20):
            before_ms = store.left_ms(b"k")
            reply = await store.do("TTL k")
            after_ms = store.left_ms(b"k")
            assert isinstance(reply, Integer)
            if reply != Integer(-2):
                assert before_ms is not None
                assert seconds(after_ms or 1) <= reply.value <= seconds(before_ms or 1)
            else:
                assert after_ms is None


def seconds(ms: int) -> int:
    return -(-ms // 1000)


async def test_the_longest_expiry_is_kept(store: Store) -> None:
    assert await store.do(f"SET k v EX {10**12}") == OK
    left = await store.do("TTL k")
    assert isinstance(left, Integer)
    assert 10**12 - 60 < left.value <= 10**12
    assert await store.do(f"SET k v PX {10**15}") == OK
    assert await store.do("GET k") == Value(b"v")


# Queues


async def test_qpop_takes_the_last_and_bqpop_the_first(store: Store) -> None:
    assert await store.do("QPUSH q a b c d") == Ok(length=4)
    assert await store.do("QPUSH q e") == Ok(length=5)
    replies = [await store.do(line) for line in ("QPOP q", "BQPOP q", "QPOP q", "BQPOP q 0", "BQPOP q 5")]
    assert replies == [Value(b"e"), Value(b"a"), Value(b"d"), Value(b"b"), Value(b"c")]


async def test_an_emptied_queue_exists_until_it_is_deleted_or_overwritten(store: Store) -> None:
    for pop in ("QPOP q", "BQPOP q"):
        await store.do("QPUSH q a")
        assert await store.do(pop) == Value(b"a")
        assert store.content() == {b"q": ("queue",)}
        assert await store.do("EXISTS q") == Integer(1)
        assert await store.do("QPOP q") == Failure(Error.QUEUE_IS_EMPTY)
        assert await store.do("BQPOP q 0") == NULL
        assert await store.do("SET q v NX") == Failure(Error.KEY_ALREADY_EXISTS)
        assert await store.do("DELETE q") == Integer(1)
        assert await store.do("QPOP q") == NULL
    await store.do_many("QPUSH q a", "QPOP q")
    assert await store.do("SET q v XX") == OK
    assert await store.do("GET q") == Value(b"v")


# Several keys


async def test_exists_counts_a_key_as_often_as_it_is_named_and_delete_once(store: Store) -> None:
    keys = [f"key{number}" for number in range(50)]
    for key in keys[:20]:
        await store.do(f"SET {key} v")
    await store.do("QPUSH key20 a")
    assert await store.do("EXISTS " + " ".join(keys)) == Integer(21)
    assert await store.do("EXISTS " + " ".join([*keys, *keys, keys[0]])) == Integer(43)
    assert await store.do("DELETE " + " ".join([*keys, *keys])) == Integer(21)
    assert await store.do("DELETE " + " ".join(keys)) == NOT_FOUND
    assert await store.do("EXISTS " + " ".join(keys)) == Integer(0)
    assert store.content() == {}


async def test_a_command_takes_as_many_keys_as_it_may_have_words(store: Store) -> None:
    keys = [b"key%d" % number for number in range(65_535)]
    assert await store.do_many(*([b"SET", key, b"v"] for key in keys[::100])) == [OK] * len(keys[::100])
    assert await store.do([b"EXISTS", *keys]) == Integer(len(keys[::100]))
    assert await store.do([b"DELETE", *keys]) == Integer(len(keys[::100]))
    assert store.content() == {}
