"""What a master says about itself, and what a front makes of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.redis.endpoint import Address
from engine.redis.vitals import KEEPS_UP_S, Vitals

NAME = "10.0.0.1:7000"
ADDRESS = Address("10.0.0.1", 7000)
REFUSED = Exception("NOPERM")


def role(offset: int, *replicas: int) -> list[Any]:
    """The answer to ROLE: what the master has, and what each replica said last that it has."""
    return [b"master", offset, [[b"10.0.0.2", b"7000", b"%d" % has] for has in replicas]]


def learn(vitals: Vitals, role: Any = REFUSED, config: Any = REFUSED, memory: Any = REFUSED) -> None:
    vitals.learn(REFUSED, role, config, memory)


@pytest.fixture
async def vitals(autojump_clock: MockClock) -> Vitals:
    """Of a master of whom writes need one replica to follow."""
    return Vitals(ADDRESS, 1)


async def test_nothing_is_held_against_a_master_that_says_nothing(vitals: Vitals) -> None:
    learn(vitals)
    assert (vitals.keys, vitals.full, vitals.abandoned, vitals.lack, vitals.config) == (0, False, "", "", {})
    vitals.learn(7, [b"slave", b"10.0.0.2", 7000], REFUSED, REFUSED)
    assert (vitals.keys, vitals.abandoned) == (7, "")


async def test_a_master_without_enough_replicas_is_abandoned(vitals: Vitals) -> None:
    learn(vitals, role(5))
    assert vitals.abandoned == vitals.lack == f"{NAME} has 0 replicas, and writes need 1"
    learn(vitals, role(5, 5))
    assert vitals.abandoned == vitals.lack == ""


async def test_a_replica_that_stands_still_while_its_master_goes_on_counts_as_none(vitals: Vitals) -> None:
    learn(vitals, role(100, 100))
    await trio.sleep(KEEPS_UP_S)
    learn(vitals, role(200, 100))  # it may be about to say so
    assert vitals.abandoned == ""
    await trio.sleep(KEEPS_UP_S)
    learn(vitals, role(300, 100))
    assert vitals.abandoned == f"{NAME} has 0 replicas that keep up, and writes need 1"
    learn(vitals, role(300, 100, 300))
    assert vitals.abandoned == ""
    await trio.sleep(KEEPS_UP_S)
    learn(vitals, role(400, 250))
    assert vitals.abandoned != ""
    learn(vitals, role(400, 300))
    assert vitals.abandoned == ""


@pytest.mark.parametrize("pause_s", [0.2, 0.9, KEEPS_UP_S, 10.0])
async def test_a_replica_that_says_every_second_what_it_has_keeps_up_however_often_one_looks(
    vitals: Vitals, pause_s: float
) -> None:
    for _ in range(30):
        await trio.sleep(pause_s)
        offset = 5_000 + int(trio.current_time() * 1000)  # a byte each millisecond
        learn(vitals, role(offset, offset - 1_100))
        assert vitals.abandoned == ""


async def test_a_replica_that_has_all_there_is_keeps_up_though_nothing_happens(vitals: Vitals) -> None:
    for _ in range(10):
        await trio.sleep(KEEPS_UP_S)
        learn(vitals, role(1_000, 1_000))
        assert vitals.abandoned == ""


async def test_a_master_that_has_started_again_counts_from_the_start_and_so_do_we(vitals: Vitals) -> None:
    for _ in range(3):
        await trio.sleep(KEEPS_UP_S)
        learn(vitals, role(10**9, 10**9))
    vitals.start_again()
    learn(vitals, role(7, 7))
    assert vitals.abandoned == ""


async def test_a_master_that_was_a_replica_meanwhile_has_the_history_of_another(vitals: Vitals) -> None:
    for _ in range(3):
        await trio.sleep(KEEPS_UP_S)
        learn(vitals, role(10**9, 10**9))
    learn(vitals, [b"slave", b"10.0.0.2", 7000])
    learn(vitals, role(7, 7))
    assert vitals.abandoned == ""


@pytest.mark.parametrize(
    "answer",
    [
        *([], [b"master"], [b"master", 1], [b"master", b"x", []], [b"master", 1, None], [1, 2, 3]),
        *([b"master", 1, [[b"10.0.0.2", b"7000"]]], [b"master", 1, [[b"10.0.0.2", b"7000", b"online"]]], b"master"),
    ],
    ids=str,
)
async def test_an_answer_that_is_none_is_held_against_nobody(vitals: Vitals, answer: Any) -> None:
    learn(vitals, answer)
    assert (vitals.replicas, vitals.abandoned, vitals.lack) == (None, "", "")


async def test_what_redis_asks_for_itself_it_refuses_itself(vitals: Vitals) -> None:
    learn(vitals, role(5, 5), {b"min-replicas-to-write": b"2"})
    assert vitals.abandoned == ""
    assert vitals.lack == f"{NAME} has 1 replicas, and writes need 2"


async def test_who_waits_for_no_replica_misses_none(autojump_clock: MockClock) -> None:
    vitals = Vitals(ADDRESS, 0)
    learn(vitals, role(5))
    assert vitals.abandoned == vitals.lack == ""


@pytest.mark.parametrize(
    ("policy", "memory", "full"),
    [
        (b"noeviction", b"used_memory:1000\r\nmaxmemory:1000\r\n", True),
        (b"noeviction", b"used_memory:999\r\nmaxmemory:1000\r\n", False),
        (b"noeviction", b"used_memory:999\r\nmaxmemory:0\r\n", False),
        (b"allkeys-lru", b"used_memory:1000\r\nmaxmemory:1000\r\n", False),
    ],
)
async def test_a_master_is_full_when_it_has_reached_its_memory_and_throws_nothing_away(
    vitals: Vitals, policy: bytes, memory: bytes, full: bool
) -> None:
    learn(vitals, config={b"maxmemory-policy": policy}, memory=b"# Memory\r\n" + memory)
    assert vitals.full is full


async def test_a_master_that_may_throw_keys_away_is_warned_of_once(
    vitals: Vitals, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "holdfast.redis"):
        for _ in range(2):
            learn(vitals, config={b"maxmemory-policy": b"allkeys-lru"})
    assert caplog.messages == [
        f"redis: {NAME} may throw keys away when its memory is full: maxmemory-policy allkeys-lru"
    ]


async def test_a_master_that_keeps_no_log_is_warned_of(vitals: Vitals, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "holdfast.redis"):
        learn(vitals, config={b"appendonly": b"yes"})
        for _ in range(2):
            learn(vitals, config={b"appendonly": b"no"})
    assert caplog.messages == [f"redis: {NAME} keeps no log of writes on its disk: appendonly no"]


async def test_what_has_writes_refused_is_logged_when_it_begins_and_when_it_is_over(
    vitals: Vitals, caplog: pytest.LogCaptureFixture
) -> None:
    full, empty = (b"used_memory:%d\r\nmaxmemory:10\r\n" % used for used in (10, 9))
    with caplog.at_level(logging.INFO, "holdfast.redis"):
        for replicas in ((0,), (), (), (0,), (0,)):
            learn(vitals, role(0, *replicas))
        for memory in (empty, full, full, empty, empty):
            learn(vitals, memory=memory)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"redis: {NAME} has 0 replicas, and writes need 1"),
        ("INFO", f"redis: {NAME} has replicas enough again"),
        ("WARNING", f"redis: {NAME} has reached its maxmemory"),
        ("INFO", f"redis: {NAME} has room again"),
    ]
