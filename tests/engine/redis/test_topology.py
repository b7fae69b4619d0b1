"""Which node is the master of which slot, as nodes tell it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from engine.redis.endpoint import Address
from engine.redis.errors import ClusterError
from engine.redis.node import TurnedAway
from engine.redis.slots import SLOTS, slot_of
from engine.redis.topology import Topology, discover, read_slots
from tests.harness.fake_redis import FakeNet, Fault

ASKED = Address("asked", 7000)
OPTIONS = {"username": None, "password": None, "db": 0, "ssl_context": None}
A, B = Address("a", 1), Address("b", 2)


def node(host: str | None, port: int = 7000) -> list[object]:
    return [host.encode() if host is not None else None, port, b"id", {}]


def test_slots_have_the_masters_that_are_named_first() -> None:
    topology = read_slots([[0, 99, node("a"), node("r")], [100, 100, node("b")], [200, 16383, node("a")]], ASKED)
    assert topology.owners[0] == topology.owners[99] == topology.owners[16383] == Address("a", 7000)
    assert topology.owners[100] == Address("b", 7000)
    assert topology.owners[101:200] == [None] * 99
    assert len(topology.owners) == SLOTS
    assert topology.masters == (Address("a", 7000), Address("b", 7000))
    assert topology.nodes == (*topology.masters, Address("r", 7000))
    assert topology.slot_of(b"k") == slot_of(b"k")


def test_a_node_that_has_no_name_though_it_should_goes_by_its_address() -> None:
    named, nameless, unknown = node("a"), [b"?", 7001, b"id", {b"ip": b"10.0.0.1"}], [b"?", 7002, b"id"]
    topology = read_slots([[0, 99, named], [100, 199, nameless], [200, 16383, unknown]], ASKED)
    assert topology.masters == (Address("a", 7000), Address("10.0.0.1", 7001), Address("asked", 7002))


@pytest.mark.parametrize("host", [None, ""])
def test_a_node_may_leave_its_own_name_out(host: str | None) -> None:
    assert read_slots([[0, 16383, node(host, 7001)]], ASKED).masters == (Address("asked", 7001),)


def test_a_node_that_is_master_here_and_replica_there_is_one_node() -> None:
    topology = read_slots([[0, 99, node("a"), node("b")], [100, 199, node("b"), node("a")]], ASKED)
    assert topology.nodes == topology.masters


def test_a_slot_that_moves_may_bring_a_new_master() -> None:
    topology = read_slots([[0, 16383, node("a")]], ASKED)
    topology.move(7, B)
    assert topology.owner(7) == B
    assert topology.owner(8) == Address("a", 7000)
    assert topology.masters == (Address("a", 7000), B)


def test_one_redis_has_one_slot() -> None:
    topology = Topology(False, [A])
    assert {topology.slot_of(key) for key in (b"", b"a", b"{b}c")} == {0}
    assert topology.masters == (A,)


async def test_the_first_that_knows_is_believed(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    net = FakeNet(monkeypatch, "a:1", "b:2")
    net["a:1"].silent = True
    topology = await discover([A, B, A, Address("nobody", 3)], OPTIONS)
    assert topology.owners == [A] * SLOTS
    assert trio.current_time() < 1, "nobody waits for the one that is silent"
    assert not net["b:2"].connections, "and nothing is left open"


async def test_of_several_redis_the_one_is_taken_that_is_a_master(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    net = FakeNet(monkeypatch, "a:1", "b:2")
    net["a:1"].cluster = net["b:2"].cluster = False
    net["a:1"].answers[b"ROLE"] = lambda _words: [b"slave", b"b", 2, b"connected", 0]
    topology = await discover([A, B], OPTIONS)
    assert not topology.cluster
    assert topology.owners == [B]
    assert topology.nodes == (A, B)


async def test_when_nobody_knows_each_is_quoted(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    net = FakeNet(monkeypatch, "a:1", "b:2")
    net["a:1"].cluster = False
    net["a:1"].answers[b"ROLE"] = lambda _words: [b"slave", b"b", 2, b"connected", 0]
    net["b:2"].refuses = True
    with pytest.raises(ClusterError) as refused:
        await discover([A, B], OPTIONS)
    said = sorted(str(refused.value).split("; "))
    assert said == ["a:1 is no master but a slave", "b:2 does not answer: Connection refused"]


async def test_a_password_that_is_refused_is_what_has_to_be_said(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    net = FakeNet(monkeypatch, "a:1", "b:2")
    net["a:1"].refuses = True
    net["b:2"].answers[b"HELLO"] = lambda _words: Fault("WRONGPASS invalid username-password pair or user is disabled.")
    with pytest.raises(TurnedAway, match="b:2 refuses the name or the password"):
        await discover([A, B], OPTIONS)


async def test_a_node_that_hangs_up_while_it_is_asked_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    net = FakeNet(monkeypatch, "a:1")
    net["a:1"].answers[b"CLUSTER"] = lambda _words: net["a:1"].cut()
    with pytest.raises(ClusterError, match="a:1 does not answer"):
        await discover([A], OPTIONS)
