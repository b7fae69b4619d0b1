"""The engine on Redis as a whole, on nodes of a fake network: its face, counters, end; and crowds that keep books."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.calls import ANSWERED, SETTLED, AnyCall, Batch, Call, Command
from engine.commands.queues import BQPop
from engine.commands.table import parse
from engine.limits import Limits
from engine.redis.endpoint import parse_endpoint
from engine.redis.engine import CLOSE_WITHIN_S, ClusterEngine
from engine.redis.errors import ClusterError
from engine.redis.slots import SLOTS, slot_of
from engine.replies import (
    MAILBOX_FULL,
    NULL,
    OK,
    SHUTTING_DOWN,
    WAITERS_FULL,
    Error,
    Failure,
    Integer,
    Ok,
    Refused,
    Value,
)
from tests.harness.effort import many
from tests.harness.fake_redis import HOLD, FakeNet, FakeNode, Fault

A, B, C = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"
SEEDS = many(60)
LIMITS = Limits(waiters_max=50, mailbox_max=100)


def make(limits: Limits = LIMITS, *, min_replicas: int = 0) -> ClusterEngine:
    return ClusterEngine(parse_endpoint(f"redis://{A},{B}"), limits, min_replicas=min_replicas)


def command(line: str) -> Command:
    return parse(line.encode().split(b" "), Limits())


class Client:
    """Somebody who submits, and takes the answers when the test says so.

    Attributes:
        calls: in the order they were submitted; answered: in the order they were answered.
    """

    def __init__(self, engine: ClusterEngine) -> None:
        self.engine = engine
        self.calls: list[AnyCall] = []
        self.answered: list[AnyCall] = []

    def submit(self, *lines: str) -> AnyCall:
        for line in lines:
            self.calls.append(self.engine.submit_nowait(command(line), self.answered.append))
        return self.calls[-1]

    def submit_many(self, *lines: str, atomic: bool = False) -> AnyCall:
        commands = [command(line) for line in lines]
        self.calls.append(self.engine.submit_many_nowait(commands, atomic, self.answered.append))
        return self.calls[-1]


def counters(engine: ClusterEngine) -> tuple[int, ...]:
    """What has to be 0 when nobody wants anything."""
    return (engine._callers, engine._under_way, engine._batched_commands, len(engine._lines), engine._receipts.owed)


NOTHING = (0, 0, 0, 0, 0)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> FakeNet:
    """A cluster of two masters, each with half the slots, and a node without any."""
    net = FakeNet(monkeypatch, A, B, C)
    net[A].slots, net[B].slots = set(range(SLOTS // 2)), set(range(SLOTS // 2, SLOTS))
    return net


@pytest.fixture
async def engine(net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock) -> AsyncIterator[ClusterEngine]:
    engine = make()
    await nursery.start(engine.run)
    yield engine
    nursery.cancel_scope.cancel()


def held(net: FakeNet, *names: bytes) -> None:
    for node in net.nodes.values():
        for name in names:
            node.answers[name] = lambda _words: HOLD


# Commands


async def test_commands_are_done(engine: ClusterEngine) -> None:
    expected = [
        ("PING", Value(b"PONG")),
        ("SET k v", OK),
        ("SET k v NX", Failure(Error.KEY_ALREADY_EXISTS)),
        ("SET other v XX", Failure(Error.KEY_NOT_FOUND)),
        ("SET e v PX 1500", OK),
        ("TTL e", Integer(2)),
        ("TTL k", Integer(-1)),
        ("TTL nothing", Integer(-2)),
        ("GET k", Value(b"v")),
        ("GET nothing", Failure(Error.KEY_NOT_FOUND)),
        ("QPUSH q a b c", Ok(length=3)),
        ("QLEN q", Integer(3)),
        ("QPOP q", Value(b"c")),
        ("BQPOP q", Value(b"a")),
        ("EXISTS k e q nothing k", Integer(4)),
        ("DELETE k e k nothing", Integer(2)),
        ("DELETE nothing", Failure(Error.KEY_NOT_FOUND)),
        ("QPOP nothing", NULL),
        ("BQPOP nothing 0", NULL),
        ("QPOP q", Value(b"b")),
    ]
    for line, reply in expected:
        assert await engine.submit(command(line)) == reply, line
    await trio.sleep(1)
    assert counters(engine) == NOTHING


async def test_a_wrong_type_is_told_apart_from_a_failure(engine: ClusterEngine) -> None:
    await engine.submit(command("SET k v"))
    for line in ("QPUSH k a", "QPOP k", "BQPOP k", "QLEN k"):
        reply = await engine.submit(command(line))
        assert isinstance(reply, Failure)
        assert reply.error is Error.WRONG_TYPE


async def test_a_pipeline_is_answered_in_its_order_from_all_masters(engine: ClusterEngine, net: FakeNet) -> None:
    lines = [f"SET {number} v" for number in range(600)]
    assert await engine.submit_many([command(line) for line in lines]) == [OK] * 600
    assert len(net[A].keys.held) + len(net[B].keys.held) == 600
    reply = await engine.submit_many([command(line) for line in ("QPUSH q a", "BQPOP q", "GET 7", "GET q")])
    assert isinstance(reply, list)
    assert reply[:3] == [Ok(length=1), Value(b"a"), Value(b"v")]
    await trio.sleep(1)
    assert counters(engine) == NOTHING


async def test_a_unit_on_keys_of_two_slots_is_refused_by_us(engine: ClusterEngine, net: FakeNet) -> None:
    reply = await engine.submit_many([command("SET a 1"), command("SET b 2")], atomic=True)
    assert isinstance(reply, Refused)
    assert (reply.index, reply.failure.error) == (1, Error.INVALID_COMMAND)
    assert "{user1}:name" in reply.failure.detail
    assert not net[A].keys.held
    assert counters(engine) == NOTHING


async def test_a_unit_without_keys_goes_nowhere(engine: ClusterEngine) -> None:
    assert await engine.submit_many([command("PING")] * 3, atomic=True) == [Value(b"PONG")] * 3


# Calls


async def test_who_withdraws_an_answered_pop_has_it_go_back(engine: ClusterEngine, net: FakeNet) -> None:
    """I6"""
    await engine.submit(command("QPUSH q a b"))
    client = Client(engine)
    first, last = client.submit("BQPOP q"), client.submit("QPOP q")
    await wait_all_tasks_blocked()
    assert [call.stage for call in client.calls] == [ANSWERED, ANSWERED]
    for call in (last, first):
        engine.withdraw(call)
    await wait_all_tasks_blocked()
    assert await engine.submit_many([command("QLEN q"), command("BQPOP q"), command("BQPOP q")]) == [
        *(Integer(2), Value(b"a"), Value(b"b"))
    ]
    await trio.sleep(1)
    assert counters(engine) == NOTHING
    assert engine.statistics().returned_values == 2


@pytest.mark.parametrize("line", ["SET k v", "QPOP q", "BQPOP q", "DELETE a b c d", "QPUSH q v"])
async def test_who_withdraws_a_command_under_way_is_not_answered(
    engine: ClusterEngine, net: FakeNet, line: str
) -> None:
    await engine.submit(command("QPUSH q a"))
    for node in net.nodes.values():
        node.silent = True
    client = Client(engine)
    call = client.submit(line)
    await wait_all_tasks_blocked()
    engine.withdraw(call)
    engine.withdraw(call)
    for node in net.nodes.values():
        node.speak()
    await trio.sleep(1)
    assert not client.answered
    assert counters(engine) == NOTHING
    assert await engine.submit(command("BQPOP q")) == Value(b"a")


@pytest.mark.parametrize("atomic", [False, True])
async def test_who_withdraws_a_batch_under_way_is_not_answered(
    engine: ClusterEngine, net: FakeNet, *, atomic: bool
) -> None:
    await engine.submit(command("QPUSH q a b"))
    for node in net.nodes.values():
        node.silent = True
        node.answers[b"EVALSHA"] = lambda _words: Fault("MISCONF no disk")
    client = Client(engine)
    call = client.submit_many(*["QPOP q"] * 40, atomic=atomic)
    await wait_all_tasks_blocked()
    assert engine._batched_commands == 40
    engine.withdraw(call)
    for node in net.nodes.values():
        node.speak()
    await trio.sleep(1)
    assert not client.answered
    assert counters(engine) == NOTHING


async def test_the_rest_of_a_pipeline_is_not_done_when_its_client_has_left(engine: ClusterEngine, net: FakeNet) -> None:
    await engine.submit(command("QPUSH q " + " ".join("abcdefghijklmnopqrstuvwxyz")))
    client = Client(engine)
    node = next(node for node in (net[A], net[B]) if b"q" in node.keys.held)
    node.silent = True
    call = client.submit_many(*["QPOP q"] * 20, "SET k v")
    await wait_all_tasks_blocked()
    engine.withdraw(call)
    node.speak()
    await trio.sleep(1)
    assert await engine.submit(command("EXISTS k")) == Integer(0)
    assert await engine.submit(command("QLEN q")) == Integer(26), "what was popped is back"
    assert counters(engine) == NOTHING


async def test_a_client_may_come_back_from_within_its_answer(engine: ClusterEngine) -> None:
    replies: list[Any] = []

    def again(call: Call) -> None:
        replies.append(call.reply)
        engine.settle(call)
        if len(replies) < 5:
            engine.submit_nowait(command("BQPOP q"), again)

    engine.submit_nowait(command("BQPOP q"), again)
    await engine.submit(command("QPUSH q 1 2 3"))
    await engine.submit(command("QPUSH q 4 5"))
    await trio.sleep(1)
    assert replies == [Value(b"%d" % number) for number in (1, 2, 3, 4, 5)]
    assert counters(engine) == NOTHING


async def test_a_cancelled_submit_is_withdrawn(engine: ClusterEngine, nursery: trio.Nursery) -> None:
    with trio.move_on_after(5):
        await engine.submit(command("BQPOP q"))
    assert counters(engine) == NOTHING
    await engine.submit(command("QPUSH q a"))
    assert await engine.submit(command("QLEN q")) == Integer(1)


# Limits


async def test_too_many_are_refused_at_once(engine: ClusterEngine, net: FakeNet) -> None:
    for node in net.nodes.values():
        node.silent = True
    client = Client(engine)
    client.submit(*["GET k"] * (LIMITS.mailbox_max - 1))
    client.submit_many("GET k", "GET k")
    for refused in (client.submit("GET k"), client.submit("BQPOP q"), client.submit_many("GET k")):
        assert refused.stage is SETTLED
        assert refused.reply in (MAILBOX_FULL, Refused(MAILBOX_FULL))
    for node in net.nodes.values():
        node.speak()
    await trio.sleep(1)
    assert len(client.answered) == LIMITS.mailbox_max + 3
    assert counters(engine) == NOTHING


async def test_too_many_who_wait_are_refused_but_get_what_is_there(engine: ClusterEngine) -> None:
    client = Client(engine)
    client.submit(*["BQPOP q"] * LIMITS.waiters_max)
    late, hasty = client.submit("BQPOP other"), client.submit("BQPOP other 0")
    await wait_all_tasks_blocked()
    assert (late.reply, hasty.reply) == (WAITERS_FULL, NULL)
    await engine.submit(command("QPUSH other a"))
    assert await engine.submit(command("BQPOP other")) == Value(b"a")
    for call in client.calls[: LIMITS.waiters_max]:
        engine.withdraw(call)
    await trio.sleep(1)
    assert counters(engine) == NOTHING


# The end


async def test_closing_answers_those_who_wait_and_does_what_is_under_way(
    net: FakeNet, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """E7"""
    engine = make()
    await nursery.start(engine.run)
    client = Client(engine)
    waiter, set_ = client.submit("BQPOP q"), client.submit("SET k v")
    batch = client.submit_many("SET l v", "QPUSH r 1", "QPOP r")
    engine.close()
    late = client.submit("GET k")
    late_batch = client.submit_many("GET k")
    assert (late.reply, late_batch.reply) == (SHUTTING_DOWN, Refused(SHUTTING_DOWN))
    await wait_all_tasks_blocked()
    assert waiter.reply == SHUTTING_DOWN
    assert set_.reply == OK
    assert batch.reply == [OK, Ok(length=1), Value(b"1")]
    engine.settle(batch)
    began_s = trio.current_time()
    while net[A].connections or net[B].connections:  # noqa: ASYNC110  # the engine has no event for us
        await trio.sleep(0.01)
    assert trio.current_time() - began_s < 0.1, "it waits for nothing"
    assert counters(engine) == NOTHING
    assert engine.readiness() == SHUTTING_DOWN


async def test_closing_does_not_wait_for_ever_and_leaves_nobody_without_an_answer(
    net: FakeNet, autojump_clock: MockClock
) -> None:
    """E7"""
    engine = make()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        for node in net.nodes.values():
            node.silent = True
        client = Client(engine)
        client.submit("BQPOP q", "SET k v", "QPOP q", "DELETE a b c d e", "BQPOP q 5")
        client.submit_many(*["SET k v"] * 400)
        client.submit_many("SET k v", "SET k w", atomic=True)
        await wait_all_tasks_blocked()
        engine.close()
    assert trio.current_time() < CLOSE_WITHIN_S + 0.5
    assert len(client.answered) == len(client.calls)
    assert counters(engine)[:4] == NOTHING[:4]


async def test_the_start_fails_with_one_error_for_the_operator(net: FakeNet, autojump_clock: MockClock) -> None:
    for node in net.nodes.values():
        node.answers[b"HELLO"] = lambda _words: Fault("WRONGPASS invalid username-password pair")
    engine = make()
    with pytest.raises(BaseExceptionGroup) as raised:
        await engine.run()
    leaf: BaseException = raised.value
    while isinstance(leaf, BaseExceptionGroup):
        [leaf] = leaf.exceptions
    assert isinstance(leaf, ClusterError)
    assert not engine.accepting


# When Redis was away


@pytest.mark.parametrize("seconds", [30, 30.2, 30.4, 300])
async def test_commands_are_done_again_within_two_seconds_of_its_return(
    engine: ClusterEngine, net: FakeNet, seconds: float
) -> None:
    client = Client(engine)
    for node in net.nodes.values():
        node.refuses = True
        node.cut()
    await trio.sleep(seconds)
    refused = client.submit("SET k v")
    await wait_all_tasks_blocked()
    assert isinstance(refused.reply, Failure)
    for node in net.nodes.values():
        node.refuses = False
    returned_s = trio.current_time()
    while isinstance((call := client.submit("SET k v")).reply, Failure):
        await trio.sleep(0.05)
        assert trio.current_time() < returned_s + 2
    await wait_all_tasks_blocked()
    assert call.reply == OK


# What it tells


async def test_readiness_tells_what_is_in_force_or_who_is_missing(engine: ClusterEngine, net: FakeNet) -> None:
    assert engine.readiness() == {
        "engine": "redis cluster",
        "masters": 2,
        "min_replicas": 0,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory_policy": "noeviction",
    }
    net[B].refuses = True
    net[B].cut()
    await trio.sleep(1)
    missing = engine.readiness()
    assert isinstance(missing, Failure)
    assert missing.detail == f"{B} does not answer: Connection refused"
    assert engine.statistics().masters_up == 1


async def test_readiness_is_degraded_while_a_master_has_no_room(engine: ClusterEngine, net: FakeNet) -> None:
    net[A].answers[b"INFO"] = lambda _words: b"used_memory:1000\r\nmaxmemory:1000\r\n"
    await trio.sleep(5)
    degraded = engine.readiness()
    assert isinstance(degraded, dict)
    assert (degraded["status"], degraded["masters"]) == ("degraded", 2)
    assert str(degraded["detail"]).startswith(f"{A} has reached its maxmemory: ")
    net[A].answers[b"INFO"] = lambda _words: b"used_memory:999\r\nmaxmemory:1000\r\n"
    await trio.sleep(5)
    ready = engine.readiness()
    assert isinstance(ready, dict)
    assert "status" not in ready


async def test_numbers_are_told(engine: ClusterEngine) -> None:
    client = Client(engine)
    client.submit("SET k v", "GET k", "BQPOP q")
    await trio.sleep(5)
    numbers = engine.statistics()
    assert (numbers.commands, numbers.waiters, numbers.mailbox, numbers.keys) == (3, 1, 0, 1)
    assert (numbers.masters, numbers.masters_up, numbers.connections_lost) == (2, 2, 0)
    assert numbers.uptime_s == 5.0


# Crowds


@dataclass
class Books:
    """What a crowd has pushed and got, over all fronts."""

    pushed: dict[bytes, bool | None] = field(default_factory=dict)  # whether it was, None is perhaps
    got: Counter[bytes] = field(default_factory=Counter)


class Crowd:
    """Clients of two fronts who push, pop, wait and leave at random, while nodes fall silent, die and change places."""

    def __init__(self, net: FakeNet, nursery: trio.Nursery, seed: int) -> None:
        self.net = net
        self.rng = random.Random(seed)
        self.books = Books()
        self.engines = [make(), make()]
        self.nursery = nursery
        self.held: list[tuple[ClusterEngine, AnyCall]] = []  # answered, and neither settled nor withdrawn yet
        self.parked: dict[Call, ClusterEngine] = {}
        self.timeouts = self.rng.choice(((" 0", " 0.2", " 2", ""), (" 20", ""), (" 1", " 5")))

    async def run(self) -> None:
        for engine in self.engines:
            await self.nursery.start(engine.run)
        for _ in range(60):
            for _ in range(self.rng.randrange(1, 6)):
                self._act()
            if self.rng.random() < 0.3:
                self._disturb()
            for _ in range(self.rng.choice((0, 1, 2, 5))):
                await trio.lowlevel.checkpoint()
            await trio.sleep(self.rng.choice((0, 0, 0.001, 0.05, 0.3, 1)))
        await self._heal()

    async def _heal(self) -> None:
        for node in self.net.nodes.values():
            node.refuses = False
            node.speak()
        await self._calm_down()
        for key in KEYS:
            self._push(self.engines[0], key.decode())
        await self._calm_down()
        for call, engine in list(self.parked.items()):
            assert isinstance(call.command, BQPop)
            assert call.command.timeout_ms is None, "it waits beyond its time"
            assert not self.queue(call.command.key), "it waits, and something is there"
            engine.withdraw(call)
        for engine in self.engines:
            assert counters(engine) == NOTHING
            assert not engine._lines._lines
            assert not engine._lines._deadlines
        self._judge()

    async def _calm_down(self) -> None:
        for _ in range(30):
            await trio.sleep(1)
            while self.held:
                self._take()

    def _judge(self) -> None:
        there = Counter(value for key in KEYS for value in self.queue(key))
        for value, pushed in self.books.pushed.items():
            copies = there[value] + self.books.got[value]
            assert copies <= 1, f"{value!r} is there {there[value]} times and was got {self.books.got[value]} times"
            assert pushed is None or copies == pushed, f"{value!r} was pushed: {pushed}, and is there {copies} times"

    def queue(self, key: bytes) -> list[bytes]:
        owner = next(node for node in self.net.nodes.values() if slot_of(key) in node.slots)
        return owner.keys.queue(key)

    # What clients do

    def _act(self) -> None:
        engine, key = self.rng.choice(self.engines), self.rng.choice(KEYS).decode()
        action = self.rng.random()
        if action < 0.3:
            self._push(engine, key)
        elif action < 0.5:
            timeout = self.rng.choice(self.timeouts)
            call = engine.submit_nowait(command(f"BQPOP {key}{timeout}"), self._answered(engine))
            if not call.reply:
                self.parked[call] = engine
        elif action < 0.6:
            engine.submit_nowait(command(f"QPOP {key}"), self._answered(engine))
        elif action < 0.7:
            lines = [f"{self.rng.choice(('QPOP', 'BQPOP'))} {self.rng.choice(KEYS).decode()}" for _ in range(20)]
            engine.submit_many_nowait([command(line) for line in lines], False, self._answered(engine))
        elif action < 0.8 and self.parked:
            leaving = self.rng.choice(list(self.parked))
            self.parked.pop(leaving).withdraw(leaving)
        else:
            self._take()

    def _push(self, engine: ClusterEngine, key: str) -> None:
        values = [b"%d" % (len(self.books.pushed) + number) for number in range(self.rng.randrange(1, 4))]
        self.books.pushed |= dict.fromkeys(values, None)

        def done(call: Call) -> None:
            if isinstance(call.reply, Ok):
                self.books.pushed |= dict.fromkeys(values, True)
            elif isinstance(call.reply, Failure) and "may have been done" not in call.reply.detail:
                self.books.pushed |= dict.fromkeys(values, False)

        engine.submit_nowait(command(f"QPUSH {key} {b' '.join(values).decode()}"), done)

    def _answered(self, engine: ClusterEngine) -> Callable[[AnyCall], None]:
        def answered(call: AnyCall) -> None:
            if isinstance(call, Call):
                self.parked.pop(call, None)
            if call.taken:
                self.held.append((engine, call))
                if self.rng.random() < 0.5:
                    self._take()

        return answered

    def _take(self) -> None:
        """Somebody takes an answer, or leaves without."""
        if not self.held:
            return
        engine, call = self.held.pop(self.rng.randrange(len(self.held)))
        if self.rng.random() < 0.3:
            engine.withdraw(call)
            return
        replies = call.reply if isinstance(call, Batch) else [call.reply]
        assert isinstance(replies, list)
        self.books.got.update(reply.value for reply in replies if isinstance(reply, Value) and reply.value is not None)
        engine.settle(call)

    # What nodes do

    def _disturb(self) -> None:
        node = self.rng.choice(list(self.net.nodes.values()))
        kind = self.rng.randrange(7)
        if kind == 0:
            node.cut(losing=self.rng.random() < 0.5)
        elif kind == 1:
            node.silent = True
            self.nursery.start_soon(self._speak_later, node, self.rng.choice((0.1, 1, 6, 8)))
        elif kind == 2:
            node.refuses = True
            node.cut()
            self.nursery.start_soon(self._speak_later, node, self.rng.choice((0.1, 1, 6, 8)))
        elif kind in (3, 4):
            node.silent = True
            self.nursery.start_soon(self._speak_later, node, 0.01, kind == 3)
        elif kind == 5 and node.slots:
            self._fail_over(node)
        else:
            self._move(node)

    async def _speak_later(self, node: FakeNode, delay_s: float, lost: bool = False) -> None:
        await trio.sleep(delay_s)
        node.refuses = False
        node.speak()
        if lost:  # everything was done, and nobody has an answer
            node.cut(losing=True)

    def _fail_over(self, node: FakeNode) -> None:
        """A node without slots has all that another had, and takes its place; the other may be silent, and not know."""
        successor = next((other for other in self.net.nodes.values() if not other.slots), None)
        if successor is not None:
            successor.slots, node.slots = node.slots, set()
            successor.keys.held, node.keys.held = node.keys.held, {}

    def _move(self, target: FakeNode) -> None:
        """A slot is moved to a node, all at once."""
        slot = slot_of(self.rng.choice(KEYS))
        source = next(node for node in self.net.nodes.values() if slot in node.slots)
        if source is not target:
            source.slots.discard(slot)
            target.slots.add(slot)
            for key in [key for key in source.keys.held if slot_of(key) == slot]:
                target.keys.held[key] = source.keys.held.pop(key)


KEYS = (b"{one}a", b"{one}b", b"c", b"d")
"""Two of a slot, for their receipts lie together."""


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_crowd_loses_nothing_and_gets_nothing_twice(net: FakeNet, autojump_clock: MockClock, seed: int) -> None:
    """I6, E2, E4"""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(net, nursery, seed)
        await crowd.run()
        for engine in crowd.engines:
            engine.close()
