"""Keys and values are bytes, whatever they look like, up to their longest."""

from __future__ import annotations

import random

import pytest

from engine.limits import KIB, MIB
from engine.replies import Integer, Ok, Value
from tests.conformance.cases import NULL, OK
from tests.conformance.store import Store

MARK = b"holdfast:queue:" + b"0" * 32
"""What a queue in Redis begins with."""

ODD = [
    *(
        b"",
        b"\x00",
        b"a\x00b",
        b"\xff\xfe",
        b"\xc3\x28",
        b"\r\n",
        b" ",
        b"*1\r\n$4\r\nPING\r\n",
        "\N{PILE OF POO}".encode(),
    ),
    *(b"{", b"}", b"{}", b"}{", b"{a}b", b"a{b}c", b"{}{a}", b"{{a}}", b"a{", b"{a", b"{\xff}", b"{\x00}x"),
    *(b"0", b"1.0", b"007", b"-1", b"9223372036854775807", b"9223372036854775808", b"1e400", b"nan", b"true"),
    *(b"SET", b"NX", b"OK", MARK, MARK[:-1], b"holdfast:queue:", b"{0}holdfast:popped", b"{a}holdfast:popped:0"),
]
"""Keys and values that some layer below might take for something else."""


@pytest.mark.parametrize("key", ODD)
async def test_any_bytes_are_a_key(store: Store, key: bytes) -> None:
    assert await store.do([b"SET", key, b"v"]) == OK
    assert await store.do([b"GET", key]) == Value(b"v")
    assert await store.do([b"TTL", key]) == Integer(-1)
    assert await store.do([b"EXISTS", key, b"other", key]) == Integer(2)
    assert store.content() == {key: ("value", b"v", None)}
    assert await store.do([b"DELETE", key]) == Integer(1)
    assert await store.do([b"QPUSH", key, b"a", b"b", b"c"]) == Ok(length=3)
    assert store.content() == {key: ("queue", b"a", b"b", b"c")}
    assert await store.do([b"QPOP", key]) == Value(b"c")
    assert await store.do([b"BQPOP", key]) == Value(b"a")
    assert await store.do([b"QLEN", key]) == Integer(1)
    unit = [[b"BQPOP", key], [b"DELETE", key], [b"SET", key, b"w"], [b"GET", key], [b"DELETE", key]]
    assert await store.do_many(*unit, atomic=True) == [Value(b"b"), Integer(1), OK, Value(b"w"), Integer(1)]
    assert store.content() == {}


async def test_any_bytes_are_a_value(store: Store) -> None:
    for value in ODD:
        assert await store.do([b"SET", b"k", value]) == OK
        assert await store.do([b"GET", b"k"]) == Value(value)
        assert await store.do_many([b"SET", b"k", value], [b"GET", b"k"], atomic=True) == [OK, Value(value)]
    assert await store.do([b"QPUSH", b"q", *ODD]) == Ok(length=len(ODD))
    assert store.content()[b"q"] == ("queue", *ODD)
    assert [await store.do("BQPOP q") for _ in ODD] == [Value(value) for value in ODD]
    await store.do([b"QPUSH", b"q", *ODD])
    assert [await store.do("QPOP q") for _ in ODD] == [Value(value) for value in reversed(ODD)]
    for value in ODD:  # each of them alone in a queue
        assert await store.do_many([b"QPUSH", b"r", value], "QLEN r") == [Ok(length=1), Integer(1)]
        assert await store.do_many("QPOP r", "EXISTS r", "BQPOP r") == [Value(value), Integer(1), NULL]


async def test_any_bytes_reach_one_who_waits(store: Store) -> None:
    for value in ODD:
        (job,) = await store.park([b"BQPOP", value])
        await store.do([b"QPUSH", value, value])
        assert await job.wait() == Value(value)
    assert set(store.content().values()) == {("queue",)}


async def test_keys_of_one_tag_and_of_others_are_not_mixed_up(store: Store) -> None:
    keys = [b"{a}%d" % number for number in range(20)] + [b"a%d" % number for number in range(20)]
    for key in keys:
        await store.do([b"SET", key, key])
    assert [await store.do([b"GET", key]) for key in keys] == [Value(key) for key in keys]
    assert await store.do_many(*([b"GET", key] for key in keys)) == [Value(key) for key in keys]


async def test_the_longest_key_and_value_are_taken(store: Store) -> None:
    key, value = b"k" * 4 * KIB, random.Random(1).randbytes(MIB)
    assert await store.do([b"SET", key, value]) == OK
    assert await store.do([b"GET", key]) == Value(value)
    assert await store.do_many([b"DELETE", key], [b"QPUSH", key, value, value], atomic=True) == [
        *(Integer(1), Ok(length=2)),
    ]
    (job,) = await store.park(b"BQPOP other".split())
    await store.do([b"QPUSH", b"other", value])
    assert await job.wait() == Value(value)
    assert await store.do([b"QPOP", key]) == Value(value)
    assert await store.do([b"BQPOP", key]) == Value(value)


@pytest.mark.parametrize("atomic", [None, False, True])
async def test_a_push_takes_as_many_values_as_it_may_have_words(store: Store, *, atomic: bool | None) -> None:
    values = [b"%d" % number for number in range(65_534)]
    push = [b"QPUSH", b"q", *values]
    if atomic is None:
        assert await store.do(push) == Ok(length=len(values))
    else:
        assert await store.do_many("PING", push, atomic=atomic) == [Value(b"PONG"), Ok(length=len(values))]
    assert store.content() == {b"q": ("queue", *values)}
    assert await store.do("QPOP q") == Value(values[-1])
    assert await store.do("BQPOP q") == Value(values[0])
    assert await store.do("DELETE q") == Integer(1)


async def test_a_push_of_many_long_values_is_taken_whole(store: Store) -> None:
    values = [bytes([number]) * 256 * KIB for number in range(60)]
    assert await store.do([b"QPUSH", b"q", *values]) == Ok(length=60)
    assert [await store.do("BQPOP q") for _ in values] == [Value(value) for value in values]
