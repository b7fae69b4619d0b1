"""Either engine behind the same few calls, on the real clock.

async def test_a_value_is_read_back(store):
    await store.do("SET k v")
    assert await store.do("GET k") == Value(b"v")
    assert store.content() == {b"k": ("value", b"v", None)}
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import trio
import trio.testing

from engine.calls import AnyCall, Command
from engine.commands.table import parse
from engine.embedded.engine import Engine
from engine.limits import Limits
from engine.redis.endpoint import parse_endpoint
from engine.redis.engine import ClusterEngine
from engine.redis.format import is_mark, is_receipts_key
from engine.replies import Refused, Reply
from tests.harness.model import Content
from tests.harness.redis import RedisError, RedisNode
from tests.harness.waiting import WITHIN_S, until
from tests.harness.world import BatchJob, Job, World

AnyEngine = Engine | ClusterEngine

Line = str | list[bytes]
"""A command, words split at spaces; or word by word."""


class Store:
    """An engine that runs, and its clients.

    Args:
        nursery: where the clients run.
        engine: started.
        limits: of the engine.
    """

    def __init__(self, nursery: trio.Nursery, engine: AnyEngine, limits: Limits) -> None:
        self.engine = engine
        self._limits = limits
        self._nursery = nursery
        self._submitted = 0
        nursery.start_soon(_complain)

    def content(self) -> Content:
        """What is stored now, read behind the engine's back; deadlines by the store's own clock."""
        raise NotImplementedError

    def left_ms(self, key: bytes) -> int | None:
        """How long a key still lives by that clock; None when it does not exist."""
        raise NotImplementedError

    @property
    def waiters(self) -> int:
        """How many wait."""
        return self.engine.statistics().waiters

    async def do(self, line: Line) -> Reply:
        """Has a command done."""
        return await self.engine.submit(self.parse(line))

    async def do_many(self, *lines: Line, atomic: bool = False) -> list[Reply] | Refused:
        """Has a batch done."""
        return await self.engine.submit_many([self.parse(line) for line in lines], atomic=atomic)

    def spawn(self, line: Line) -> Job:
        """Submits a command as a client of its own, at the next tick; those of one tick in any order."""
        job = Job(self.parse(line))
        self._nursery.start_soon(self._run, job, self.engine.submit)
        return job

    def spawn_many(self, *lines: Line, atomic: bool = False) -> BatchJob:
        """Submits a batch, like `spawn`."""
        job = BatchJob([self.parse(line) for line in lines])
        self._nursery.start_soon(self._run, job, partial(self.engine.submit_many, atomic=atomic))
        return job

    async def park(self, *lines: Line) -> list[Job]:
        """Submits commands that wait, one after the other, and returns when all of them do."""
        before, jobs = self.waiters, []
        for line in lines:
            jobs.append(self.spawn(line))
            await trio.testing.wait_all_tasks_blocked()
        await until(lambda: self.waiters == before + len(jobs))
        return jobs

    def submit(self, *lines: Line) -> Client:
        """Submits commands in this very order, for a client that is answered when it says so."""
        client = Client(self.engine)
        for line in lines:
            client.calls.append(self.engine.submit_nowait(self.parse(line), client.deliver))
        return client

    def submit_many(self, *lines: Line, atomic: bool = False) -> Client:
        """Submits a batch for such a client."""
        client = Client(self.engine)
        commands = [self.parse(line) for line in lines]
        client.calls.append(self.engine.submit_many_nowait(commands, atomic, client.deliver))
        return client

    async def holds(self, content: Content) -> None:
        """Returns when this is stored, and nothing else."""
        await until(lambda: self.content() == content, lambda: f"{self.content()} is stored, not {content}")

    def close(self) -> None:
        """Has the engine finish."""
        self.engine.close()

    async def _run(self, job: Job | BatchJob, submit: Callable[..., Awaitable[Any]]) -> None:
        self._submitted += 1
        await job.run(submit, self._submitted)

    def parse(self, line: Line) -> Command:
        """What the grammar makes of it."""
        return parse(line.encode().split(b" ") if isinstance(line, str) else line, self._limits)


class Client:
    """Somebody to whom answers are delivered, and who may leave before taking them."""

    def __init__(self, engine: AnyEngine) -> None:
        self.calls: list[AnyCall] = []
        self._engine = engine
        self.delivered_calls: list[AnyCall] = []

    def deliver(self, call: AnyCall) -> None:
        """Called by the engine."""
        self.delivered_calls.append(call)

    async def delivered(self) -> list[Any]:
        """Waits until all is delivered, and returns the replies in the order of the calls."""
        await until(lambda: len(self.delivered_calls) == len(self.calls))
        return [call.reply for call in self.calls]

    def take(self) -> None:
        """Takes the answers."""
        for call in self.calls:
            self._engine.settle(call)

    def leave(self, order: Sequence[int] | None = None) -> None:
        """Goes away without them; the calls are withdrawn in this order."""
        for number in range(len(self.calls)) if order is None else order:
            self._engine.withdraw(self.calls[number])


class Backend(Protocol):
    """What stores are made on.

    Attributes:
        url: for `--engine`; None is the embedded one.
    """

    url: str | None

    @property
    def splits_keys(self) -> bool:
        """Whether keys lie in slots of several nodes."""
        ...

    def clear(self) -> None:
        """Removes what a store has left."""
        ...

    async def open(self, nursery: trio.Nursery, limits: Limits | None = None) -> Store:
        """Starts an engine."""
        ...


class EmbeddedStore(Store):
    """The engine of a world."""

    def __init__(self, nursery: trio.Nursery, world: World) -> None:
        super().__init__(nursery, world.engine, world.limits)
        self._world = world

    def content(self) -> Content:
        now_ms = self._now_ms()
        content: Content = {}
        for kind, key, *rest in self._world.dump():
            if kind == "queue":
                content[key] = ("queue", *rest[0])
            elif rest[1] is None or rest[1] > now_ms:
                content[key] = ("value", *rest)
        return content

    def left_ms(self, key: bytes) -> int | None:
        left_ms = next((entry[3] - self._now_ms() for entry in self._world.dump() if entry[1] == key), 0)
        return left_ms if left_ms > 0 else None

    def _now_ms(self) -> int:
        return self._world.engine._clock.now_ms()


class Embedded:
    """The engine with a log of its own, on a fake disk."""

    url: str | None = None
    splits_keys = False

    def clear(self) -> None:
        """Each store has a new disk."""

    async def open(self, nursery: trio.Nursery, limits: Limits | None = None) -> Store:
        world = World(nursery, limits=limits)
        await world.start()
        return EmbeddedStore(nursery, world)


class RedisStore(Store):
    """A front of a Redis."""

    def __init__(
        self, nursery: trio.Nursery, engine: ClusterEngine, limits: Limits, nodes: Sequence[RedisNode]
    ) -> None:
        super().__init__(nursery, engine, limits)
        self._nodes = nodes

    def content(self) -> Content:
        return content_of(self._nodes)

    def left_ms(self, key: bytes) -> int | None:
        for node in self._nodes:
            with suppress(RedisError):  # it has moved: another node has it
                left_ms: int = node.do("PTTL", key)
                return left_ms if left_ms >= 0 else None  # it is there while the last millisecond is running
        raise AssertionError("nobody has it")


class OnRedis:
    """The engine on a cluster, or on one Redis.

    Args:
        url: for `--engine`.
        masters: that have the slots.
    """

    def __init__(self, url: str, masters: Sequence[RedisNode]) -> None:
        self.url: str | None = url
        self._masters = masters

    @property
    def splits_keys(self) -> bool:
        return len(self._masters) > 1

    def clear(self) -> None:
        for node in self._masters:
            node.do("FLUSHALL")

    async def open(self, nursery: trio.Nursery, limits: Limits | None = None) -> Store:
        limits = limits or Limits()
        assert self.url is not None
        engine = ClusterEngine(parse_endpoint(self.url), limits)
        await nursery.start(engine.run)
        return RedisStore(nursery, engine, limits, self._masters)


async def _complain() -> None:
    """Fails a test that waits for ever."""
    await trio.sleep(5 * WITHIN_S)
    raise AssertionError("the test waits for ever")


READ = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local held = {}
  if kind == 'string' then held = {redis.call('GET', key)} end
  if kind == 'list' then held = redis.call('LRANGE', key, 0, -1) end
  found[#found + 1] = {kind, key, held, redis.call('PEXPIRETIME', key)}
end
return found
"""


def content_of(nodes: Sequence[RedisNode]) -> Content:
    """What Redis holds, as it is laid down in engine/redis/format.py."""
    content: Content = {}
    for node in nodes:
        for kind, key, held, deadline_ms in node.do("EVAL", READ, 0):
            if kind == b"string":
                content[key] = ("value", held[0], deadline_ms if deadline_ms > 0 else None)
            elif kind == b"list":
                assert is_mark(held[0]), f"{key} is a list without a mark"
                assert deadline_ms == -1, "queues do not expire"
                content[key] = ("queue", *held[1:])
            else:
                assert is_receipts_key(key), f"{key} is a {kind}"
    return content
