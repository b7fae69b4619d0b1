"""Every command for every kind of key: alone, in a pipeline, and in a unit."""

from __future__ import annotations

import pytest

from engine.commands.keys import Delete
from engine.commands.queues import BQPop, QPop, QPush
from engine.commands.values import Set
from engine.replies import Failure, Integer, Refused, Reply, Value
from tests.conformance.cases import AS_IT_WAS, KINDS, NULL, WAITS
from tests.conformance.store import Store
from tests.conformance.table import CASES
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
