"""The router: which master a request goes to, what is sent on, tried again or not, and how it keeps up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from coredis.exceptions import ClusterDownError, MovedError, ReadOnlyError, TryAgainError
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.redis.endpoint import Address, parse_endpoint
from engine.redis.errors import ClusterError, Lost, NotSent
from engine.redis.keeper import REFRESH_S, REFRESH_SOON_S, START_WITHIN_S
from engine.redis.link import LOOK_AGAIN_S, LinkSettings
from engine.redis.masters import UNUSED_S
from engine.redis.node import TurnedAway
from engine.redis.request import Request, script_call
from engine.redis.router import (
    FAULT_OVER_S,
    HANDOVER_S,
    SENT_AT_ONCE_MAX,
    SENT_ON_MAX,
    TRY_AGAIN_MAX,
    TRY_AGAIN_S,
    Router,
)
from engine.redis.scripts import ALONE, SCRIPTS
from engine.redis.slots import SLOTS, slot_of
from tests.harness.fake_redis import HOLD, FakeNet, FakeNode, Fault

A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"
ENDPOINT = parse_endpoint(f"redis://{A},{B}")
SETTINGS = LinkSettings(ENDPOINT.connection_options())
KEY = b"k"
IN_LINKS = (b"CLIENT", b"DBSIZE", b"CLUSTER", b"ROLE", b"TYPE", b"INFO")


class Owner:
    """Whom the router tells."""

    def __init__(self, min_replicas: int = 0) -> None:
        self.router = Router(ENDPOINT, replace(SETTINGS, min_replicas=min_replicas), self)
        self.moved: list[set[int]] = []
        self.up: list[Address] = []
        self.results: list[tuple[Request, Any]] = []

    def link_up(self, address: Address) -> None:
        self.up.append(address)

    def slots_moved(self, slots: set[int]) -> None:
        self.moved.append(set(slots))

    def key_changed(self, key: bytes | None) -> None: ...

    def post(self, *words: bytes, divisible: bool = False) -> Request:
        self._answered = trio.Event()
        answered = self._answered
        request: Request

        def done(result: Any) -> None:
            self.results.append((request, result))
            answered.set()

        request = Request(words[0], words[1:], self.router.slot_of(words[1]), done, divisible=divisible)
        self.router.post(request)
        return request

    async def do(self, *words: bytes, divisible: bool = False) -> Any:
        """Posts a request and returns its result."""
        request = self.post(*words, divisible=divisible)
        await self._answered.wait()
        return self.result(request)

    def result(self, request: Request) -> Any:
        [result] = [result for other, result in self.results if other is request]
        return result


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> FakeNet:
    """A cluster of two masters, each with half the slots, and a node without any."""
    net = FakeNet(monkeypatch, A, B, C)
    net[A].slots, net[B].slots = set(range(SLOTS // 2)), set(range(SLOTS // 2, SLOTS))
    return net


@pytest.fixture
async def owner(net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock) -> AsyncIterator[Owner]:
    owner = Owner()
    await nursery.start(owner.router.run)
    yield owner
    nursery.cancel_scope.cancel()


def of(node: FakeNode) -> list[list[tuple[bytes, ...]]]:
    """What requests came to a node."""
    return node.pipelines(without=IN_LINKS)


def move(slot: int, source: FakeNode, target: FakeNode) -> None:
    source.slots.discard(slot)
    target.slots.add(slot)
    source.moving.pop(slot, None)
    target.importing.discard(slot)
    for key in [key for key in source.keys.held if slot_of(key) == slot]:
        target.keys.held[key] = source.keys.held.pop(key)


def key_in(slots: range, start: int = 0) -> bytes:
    return next(key for key in (b"%d" % number for number in range(start, 10**6)) if slot_of(key) in slots)


LOW, HIGH = key_in(range(SLOTS // 2)), key_in(range(SLOTS // 2, SLOTS))


# Where requests go


async def test_each_request_goes_to_the_master_of_its_slot(owner: Owner, net: FakeNet) -> None:
    assert await owner.do(b"SET", LOW, b"1") == b"OK"
    assert await owner.do(b"SET", HIGH, b"2") == b"OK"
    assert (net[A].keys.held, net[B].keys.held) == ({LOW: b"1"}, {HIGH: b"2"})
    assert not net[C].connections, "who is no master is not connected to"
    assert sorted(owner.up) == [Address("10.0.0.1", 7000), Address("10.0.0.2", 7000)]


async def test_a_request_is_sent_on_to_where_its_slot_has_moved_and_that_is_remembered(
    owner: Owner, net: FakeNet
) -> None:
    await owner.do(b"SET", LOW, b"v")
    move(slot_of(LOW), net[A], net[C])
    assert await owner.do(b"GET", LOW) == b"v"
    assert owner.moved == [{slot_of(LOW)}]
    before = len(of(net[A]))
    assert await owner.do(b"GET", LOW) == b"v"
    assert len(of(net[A])) == before
    assert owner.router.redirections == 1


async def test_a_request_is_sent_on_to_where_its_key_is_while_its_slot_is_being_moved(
    owner: Owner, net: FakeNet
) -> None:
    slot = slot_of(LOW)
    net[A].moving[slot] = net[B]
    net[B].importing.add(slot)
    for _ in range(2):
        assert await owner.do(b"SET", LOW, b"v") == b"OK"
    assert of(net[A]) == [[(b"SET", LOW, b"v")]] * 2, "which is not remembered"
    assert of(net[B]) == [[(b"ASKING",), (b"SET", LOW, b"v")]] * 2
    assert net[B].keys.held == {LOW: b"v"}
    assert owner.moved == [{slot}], "who waits for that key is told, and once is enough"


async def test_nodes_that_send_on_in_a_circle_are_not_followed_for_ever(owner: Owner, net: FakeNet) -> None:
    def moved(there: str, words: Sequence[bytes]) -> Fault:
        return Fault(f"MOVED {slot_of(words[1])} {there}")

    for here, there in ((A, B), (B, A)):
        net[here].answers[b"GET"] = partial(moved, there)
    assert isinstance(await owner.do(b"GET", KEY), MovedError)
    assert owner.router.redirections == SENT_ON_MAX


async def test_a_thousand_requests_to_a_node_that_sends_all_on_to_itself_are_soon_answered(
    owner: Owner, net: FakeNet
) -> None:
    net[A].answers[b"SET"] = lambda _words: Fault(f"MOVED {slot_of(LOW)} {A}")
    results: list[Any] = []
    for _ in range(1_000):
        owner.router.post(Request(b"SET", (LOW, b"1"), slot_of(LOW), results.append, writes=True))
    await trio.sleep(1)
    assert [type(result) for result in results] == [MovedError] * 1_000
    assert owner.router.redirections == 1_000 * SENT_ON_MAX
    assert await owner.do(b"GET", LOW) is None, "it goes on"


@pytest.mark.parametrize("host", ["", "?"])
async def test_a_node_may_leave_its_own_host_out(owner: Owner, net: FakeNet, host: str) -> None:
    answers = iter([Fault(f"MOVED {slot_of(LOW)} {host}:7000"), b"v"])
    net[A].answers[b"GET"] = lambda _words: next(answers)
    assert await owner.do(b"GET", LOW) == b"v"


async def test_a_script_that_a_node_has_forgotten_is_sent_whole(owner: Owner, net: FakeNet) -> None:
    node = net[A]
    node.answers[b"EVALSHA"] = lambda _words: Fault("NOSCRIPT No matching script")
    node.answers[b"EVAL"] = lambda words: 7 if SCRIPTS[ALONE["QLEN"].digest].source == words[1] else None
    results: list[Any] = []
    owner.router.post(script_call(ALONE["QLEN"], (LOW,), (), slot_of(LOW), results.append))
    await wait_all_tasks_blocked()
    assert results == [7]


async def test_a_slot_on_its_way_is_tried_again_a_little_later(owner: Owner, net: FakeNet) -> None:
    answers = iter([Fault("TRYAGAIN Multiple keys"), Fault("TRYAGAIN Multiple keys"), 2])
    net[A].answers[b"EXISTS"] = lambda _words: next(answers)
    began_s = trio.current_time()
    assert await owner.do(b"EXISTS", LOW, LOW) == 2
    assert owner.router.retries == 2
    assert trio.current_time() - began_s < 1


async def test_a_slot_that_is_on_its_way_for_long_is_given_up(owner: Owner, net: FakeNet) -> None:
    net[A].answers[b"EXISTS"] = lambda _words: Fault("TRYAGAIN Multiple keys")
    assert isinstance(await owner.do(b"EXISTS", LOW, LOW), TryAgainError)
    assert owner.router.retries == TRY_AGAIN_MAX


async def test_what_can_be_asked_key_by_key_is_not_tried_again(owner: Owner, net: FakeNet) -> None:
    net[A].answers[b"EXISTS"] = lambda _words: Fault("TRYAGAIN Multiple keys")
    assert isinstance(await owner.do(b"EXISTS", LOW, LOW, divisible=True), TryAgainError)
    assert owner.router.retries == 0


async def test_what_got_lost_is_never_sent_again(owner: Owner, net: FakeNet) -> None:
    """I6"""
    net[A].answers[b"GET"] = lambda _words: HOLD
    request = owner.post(b"GET", LOW)
    await wait_all_tasks_blocked()
    net[A].cut()
    await trio.sleep(5)
    assert isinstance(owner.result(request), Lost)
    assert of(net[A]) == [[(b"GET", LOW)]]


# While a replica takes over


async def test_a_request_waits_while_a_node_takes_the_cluster_for_down(owner: Owner, net: FakeNet) -> None:
    answers = iter([Fault("CLUSTERDOWN Hash slot not served"), Fault("CLUSTERDOWN The cluster is down"), b"v"])
    net[A].answers[b"GET"] = lambda _words: next(answers)
    assert await owner.do(b"GET", LOW) == b"v"
    assert owner.router.retries == 2


async def test_a_request_waits_while_nobody_serves_its_slot(owner: Owner, net: FakeNet) -> None:
    """A node that hears that its master has become a replica, and not yet of whom, takes its slots for nobody's."""
    slots, net[A].slots = net[A].slots, set()
    await trio.sleep(2 * REFRESH_S)
    results: list[Any] = []
    for _ in range(3 * SENT_AT_ONCE_MAX):
        owner.router.post(Request(b"SET", (LOW, b"1"), slot_of(LOW), results.append, writes=True))
    await trio.sleep(HANDOVER_S / 2)
    assert not results
    net[C].slots = slots
    await trio.sleep(REFRESH_SOON_S + 2 * TRY_AGAIN_S)
    assert results == [b"OK"] * (3 * SENT_AT_ONCE_MAX)


async def test_a_write_waits_while_a_new_master_has_no_replica(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    owner = Owner(min_replicas=1)
    net[B].replicas = 1
    await nursery.start(owner.router.run)
    results: list[Any] = []
    owner.router.post(Request(b"SET", (LOW, b"1"), slot_of(LOW), results.append, writes=True))
    assert await owner.do(b"GET", LOW) is None, "reads need no replica"
    assert not results
    net[A].replicas = 1
    await trio.sleep(LOOK_AGAIN_S + 2 * TRY_AGAIN_S)
    assert results == [b"OK"]
    nursery.cancel_scope.cancel()


async def test_what_is_refused_for_longer_than_a_handover_takes_is_refused_at_once_from_then_on(
    owner: Owner, net: FakeNet
) -> None:
    net[A].answers[b"GET"] = lambda _words: Fault("CLUSTERDOWN The cluster is down")
    for waits_s in (HANDOVER_S, 0, 0):
        began_s = trio.current_time()
        assert isinstance(await owner.do(b"GET", LOW), ClusterDownError)
        assert trio.current_time() - began_s == pytest.approx(waits_s, abs=2 * TRY_AGAIN_S)
    await trio.sleep(FAULT_OVER_S)
    del net[A].answers[b"GET"]
    answers = iter([Fault("CLUSTERDOWN The cluster is down"), b"v"])
    net[A].answers[b"GET"] = lambda _words: next(answers)
    assert await owner.do(b"GET", LOW) == b"v", "that was another one"


async def test_who_waits_for_a_replica_to_take_over_is_answered_when_the_front_shuts_down(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    owner = Owner()
    net[A].answers[b"GET"] = lambda _words: Fault("CLUSTERDOWN The cluster is down")
    await nursery.start(owner.router.run)
    requests = [owner.post(b"GET", LOW) for _ in range(2)]
    await trio.sleep(HANDOVER_S / 2)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.lowlevel.checkpoint()
    assert {str(owner.result(request)) for request in requests} == {"the server is shutting down"}


async def test_an_answer_of_a_node_that_is_no_cluster_any_more_is_an_error_and_no_more(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    net[A].cluster = False
    net[B].refuses = True
    owner = Owner()
    await nursery.start(owner.router.run)
    net[A].answers[b"GET"] = lambda _words: Fault(f"MOVED 12000 {B}")
    assert isinstance(await owner.do(b"GET", KEY), MovedError)
    nursery.cancel_scope.cancel()


async def test_what_waits_for_its_next_try_at_the_end_is_answered(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    owner = Owner()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            await inner.start(owner.router.run)
            net[A].answers[b"EXISTS"] = lambda _words: Fault("TRYAGAIN Multiple keys")
            net[B].answers[b"GET"] = lambda _words: HOLD
            trying, lost = owner.post(b"EXISTS", LOW, LOW), owner.post(b"GET", HIGH)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert isinstance(owner.result(trying), NotSent)
    assert isinstance(owner.result(lost), Lost)


# Keeping up


async def test_a_slot_that_has_moved_is_found_without_a_request_for_it(owner: Owner, net: FakeNet) -> None:
    move(slot_of(LOW), net[A], net[C])
    await trio.sleep(3 * REFRESH_S)
    assert owner.moved == [{slot_of(LOW)}]
    await owner.do(b"SET", LOW, b"v")
    assert net[C].keys.held == {LOW: b"v"}
    assert owner.router.redirections == 0


async def test_nothing_is_told_while_nothing_changes(owner: Owner) -> None:
    await trio.sleep(10 * REFRESH_S)
    assert not owner.moved
    assert owner.router.masters.fault == ""


@pytest.mark.parametrize("answer", [[], 7, [[0]]])
async def test_a_node_that_knows_nobody_any_more_or_talks_nonsense_changes_nothing(
    owner: Owner, net: FakeNet, answer: Any
) -> None:
    net[B].answers[b"CLUSTER"] = lambda _words: answer
    await trio.sleep(10 * REFRESH_S)
    assert not owner.moved
    assert owner.router.masters.fault == ""
    move(slot_of(LOW), net[A], net[C])
    await trio.sleep(3 * REFRESH_S)
    assert owner.moved == [{slot_of(LOW)}], "the others are listened to"


async def test_a_master_that_dies_is_replaced_as_soon_as_the_others_say_by_whom(owner: Owner, net: FakeNet) -> None:
    net[A].refuses = True
    net[A].cut()
    await wait_all_tasks_blocked()
    assert isinstance(await owner.do(b"GET", LOW), NotSent)
    assert A in owner.router.masters.fault
    assert await owner.do(b"GET", HIGH) is None, "the others go on"
    net[A].slots, net[C].slots = set(), net[A].slots
    await trio.sleep(2 * REFRESH_S)
    assert await owner.do(b"SET", LOW, b"v") == b"OK"
    assert net[C].keys.held == {LOW: b"v"}
    assert owner.moved == [set(range(SLOTS // 2))]
    assert owner.router.masters.fault == ""
    await trio.sleep(UNUSED_S + 2 * REFRESH_S)
    assert set(owner.router.masters.links) == {Address("10.0.0.2", 7000), Address("10.0.0.3", 7000)}


async def test_when_all_links_are_down_everybody_known_is_asked(owner: Owner, net: FakeNet) -> None:
    for name in (A, B):
        net[name].refuses = True
        net[name].cut()
    await trio.sleep(10)
    for name in (A, B):
        net[name].refuses = False
    await trio.sleep(5)
    assert owner.router.masters.fault == ""
    assert await owner.do(b"GET", KEY) is None


async def test_what_was_read_before_all_links_were_down_is_read_again_afterwards(owner: Owner, net: FakeNet) -> None:
    """The first to be asked then may have it wrong, and what is right may be what was known before."""
    await trio.sleep(2 * REFRESH_S)
    net[B].answers[b"CLUSTER"] = lambda _words: [[0, SLOTS - 1, [b"10.0.0.2", 7000, b"id"]]]
    net[B].answers[b"SCRIPT"] = lambda _words: Fault("BUSY Redis is busy running a script")
    net[A].refuses = True
    for name in (A, B):
        net[name].cut()
    await trio.sleep(5)
    assert owner.router.masters.topology.owner(slot_of(LOW)) == Address("10.0.0.2", 7000)
    net[A].refuses = False
    net[B].answers.clear()
    await trio.sleep(5 * REFRESH_S)
    assert owner.router.masters.topology.owner(slot_of(LOW)) == Address("10.0.0.1", 7000)


async def test_slots_that_nobody_serves_are_a_fault_until_somebody_does(owner: Owner, net: FakeNet) -> None:
    net[B].slots.discard(slot_of(HIGH))
    await trio.sleep(3 * REFRESH_S)
    assert owner.router.masters.fault == "1 slots are served by no node"
    assert isinstance(await owner.do(b"GET", HIGH), NotSent)
    net[A].slots.add(slot_of(HIGH))
    await trio.sleep(3 * REFRESH_S)
    assert owner.router.masters.fault == ""
    assert await owner.do(b"GET", HIGH) is None


async def test_one_redis_that_is_no_master_any_more_is_left_for_the_new_one(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    def demote(node: FakeNode) -> None:
        node.answers[b"ROLE"] = lambda _words: [b"slave", b"other", 7000, b"connected", 0]
        node.answers[b"SET"] = lambda _words: Fault("READONLY You can't write against a read only replica.")

    for name in (A, B):
        net[name].cluster = False
    demote(net[B])
    owner = Owner()
    await nursery.start(owner.router.run)
    assert await owner.do(b"SET", KEY, b"1") == b"OK"
    demote(net[A])
    net[B].answers.clear()
    assert await owner.do(b"SET", KEY, b"2") == b"OK", "it is tried again until the new one is known"
    assert net[B].keys.held == {KEY: b"2"}
    assert owner.moved == [{0}]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [[], [b"master"], 7], ids=str)
async def test_a_redis_that_does_not_know_its_role_any_more_is_kept(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock, answer: Any
) -> None:
    net[A].cluster = False
    net[B].refuses = True
    owner = Owner()
    await nursery.start(owner.router.run)
    net[A].answers[b"ROLE"] = lambda _words: answer
    await trio.sleep(3 * REFRESH_S)
    assert await owner.do(b"SET", KEY, b"v") == b"OK"
    nursery.cancel_scope.cancel()


async def test_a_redis_that_stays_read_only_is_given_up(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    net[A].cluster = False
    net[B].refuses = True
    owner = Owner()
    await nursery.start(owner.router.run)
    net[A].answers[b"SET"] = lambda _words: Fault("READONLY You can't write against a read only replica.")
    assert isinstance(await owner.do(b"SET", KEY, b"2"), ReadOnlyError)
    nursery.cancel_scope.cancel()


async def test_thousands_of_redirections_at_once_are_followed(owner: Owner, net: FakeNet) -> None:
    net[A].slots, net[C].slots = set(), net[A].slots
    requests = [owner.post(b"SET", key_in(range(SLOTS // 2), 100 * number), b"v") for number in range(1000)]
    await trio.sleep(1)
    assert [owner.result(request) for request in requests] == [b"OK"] * 1000
    assert await owner.do(b"GET", key_in(range(SLOTS // 2))) == b"v"


# Starting


async def test_at_the_start_nobody_is_there(net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    for node in net.nodes.values():
        node.refuses = True
    with pytest.raises(ClusterError, match=r"10\.0\.0\.1:7000 does not answer.*; 10\.0\.0\.2:7000 does not answer"):
        await nursery.start(Owner().router.run)
    assert START_WITHIN_S <= trio.current_time() < START_WITHIN_S + 10


async def test_at_the_start_somebody_comes_late(net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    for name in (A, B):
        net[name].refuses = True

    async def appear() -> None:
        await trio.sleep(START_WITHIN_S / 2)
        for name in (A, B):
            net[name].refuses = False

    nursery.start_soon(appear)
    owner = Owner()
    await nursery.start(owner.router.run)
    assert owner.router.masters.fault == ""
    nursery.cancel_scope.cancel()


async def test_at_the_start_a_part_of_the_masters_will_do(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    net[B].refuses = True
    owner = Owner()
    await nursery.start(owner.router.run)
    assert B in owner.router.masters.fault
    assert await owner.do(b"GET", LOW) is None
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("text", ["WRONGPASS invalid username-password pair", "NOAUTH HELLO must be called"])
async def test_at_the_start_the_password_is_wrong(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock, text: str
) -> None:
    for node in net.nodes.values():
        node.answers[b"HELLO"] = lambda _words: Fault(text)
    with pytest.raises(TurnedAway, match="refuses the name or the password"):
        await nursery.start(Owner().router.run)
    assert trio.current_time() < 1


async def test_at_the_start_all_are_too_old(net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    for node in net.nodes.values():
        node.version = b"6.2.14"
    with pytest.raises(BaseExceptionGroup) as raised:
        await nursery.start(Owner().router.run)
    [error] = raised.value.exceptions
    assert isinstance(error, ClusterError)
    assert "too old" in str(error)


async def test_at_the_start_somebody_hangs_up_after_hello(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    def hang_up(words: Sequence[bytes]) -> Any:
        for connection in net[A].connections:
            trio.lowlevel.current_trio_token().run_sync_soon(connection.end)
        return {b"version": b"7.0.15", b"proto": 3, b"id": 1}

    net[A].answers[b"HELLO"] = hang_up
    net[B].refuses = True
    with pytest.raises(ClusterError, match="does not answer"):
        await nursery.start(Owner().router.run)


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        (b"CLUSTER", Fault("NOPERM no permission"), "CLUSTER SLOTS: no permission"),
        (b"CLUSTER", Fault("LOADING Redis is loading the dataset in memory"), "loading"),
        (b"CLUSTER", [], "a node of a cluster without any slots"),
        (b"CLUSTER", 7, "the answer to CLUSTER SLOTS is none"),
        (b"CLUSTER", [[0]], "the answer to CLUSTER SLOTS is none"),
        (b"CLUSTER", [[0, 1, []]], "the answer to CLUSTER SLOTS is none"),
        (b"CLUSTER", [[0, SLOTS, [b"10.0.0.1", 7000]]], "the answer to CLUSTER SLOTS is none"),
    ],
)
async def test_at_the_start_nobody_knows_the_cluster(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock, name: bytes, answer: Any, says: str
) -> None:
    for node in net.nodes.values():
        node.answers[name] = lambda _words: answer
    with pytest.raises(ClusterError, match=says):
        await nursery.start(Owner().router.run)


async def test_a_redis_that_holds_an_unfinished_import_is_refused(net: FakeNet, nursery: trio.Nursery) -> None:
    for name in (A, B):
        net[name].answers[b"TYPE"] = lambda _words: b"string"
    with pytest.raises(ExceptionGroup) as refused:
        await nursery.start(Owner().router.run)
    assert refused.group_contains(ClusterError, match="an import that was not finished")


# Telling


async def test_an_import_that_begins_later_is_told(owner: Owner, net: FakeNet) -> None:
    assert owner.router.masters.fault == ""
    for name in (A, B):
        net[name].answers[b"TYPE"] = lambda _words: b"string"
    await trio.sleep(2 * REFRESH_S)
    assert "an import that was not finished" in owner.router.masters.fault


async def test_a_master_whose_memory_is_full_is_told(owner: Owner, net: FakeNet) -> None:
    assert owner.router.masters.full == ""
    net[A].answers[b"INFO"] = lambda _words: b"used_memory:1001\r\nused_memory_rss:1\r\nmaxmemory:1000\r\n"
    await trio.sleep(2 * REFRESH_S)
    assert owner.router.masters.full.startswith(f"{A} has reached its maxmemory: commands that store something are ")
    net[A].answers[b"CONFIG"] = lambda _words: {b"maxmemory-policy": b"allkeys-lru"}
    await trio.sleep(2 * REFRESH_S)
    assert owner.router.masters.full == ""


async def test_a_master_with_too_few_replicas_for_writes_is_told(owner: Owner, net: FakeNet) -> None:
    assert owner.router.masters.fault == ""
    net[A].answers[b"CONFIG"] = lambda _words: {b"min-replicas-to-write": b"1"}
    await trio.sleep(2 * REFRESH_S)
    assert owner.router.masters.fault == f"{A} has 0 replicas, and writes need 1"
    net[A].answers[b"ROLE"] = lambda _words: [b"master", 0, [[b"a", b"1", b"0"]]]
    await trio.sleep(2 * REFRESH_S)
    assert owner.router.masters.fault == ""


async def test_keys_are_counted_now_and_then(owner: Owner, net: FakeNet) -> None:
    net[A].keys.held |= {b"a": b"", b"b": b""}
    net[B].keys.held |= {b"c": b""}
    net[C].keys.held |= {b"d": b""}
    await trio.sleep(2 * REFRESH_S)
    assert owner.router.masters.keys == 3


async def test_what_masters_say_of_themselves_is_one_word_or_several(owner: Owner, net: FakeNet) -> None:
    assert owner.router.masters.config("appendfsync") == "everysec"
    net[A].answers[b"CONFIG"] = lambda _words: {b"appendfsync": b"always"}
    await trio.sleep(2 * REFRESH_S)
    assert owner.router.masters.config("appendfsync") == "always/everysec"
    assert owner.router.masters.config("appendonly") == "unknown/yes"


async def test_round_trips_are_told_as_percentiles(owner: Owner) -> None:
    assert owner.router.percentile_ms(99) == 0.0
    for number in range(1024):
        owner.router.round_trip(number / 1000, 2)
    assert [owner.router.percentile_ms(percent) for percent in (0, 50, 99, 100)] == [0.0, 512.0, 1013.0, 1023.0]
