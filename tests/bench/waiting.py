"""5,000 clients who wait in a BQPOP at one front: what they cost there and in Redis, and how soon a value is with one.

They are compared with the embedded engine, and with the obvious other way, a connection to Redis for each of them:
those wait in raw BLPOPs here, and what each would take of a front's memory is measured with connections of coredis, as
a front has them. And what wakes a front, invalidation messages, with what else could, a message for each push.

As a program (`python -m tests.bench.waiting HOST PORT COUNT`) it makes so many connections of coredis, has a BLPOP
wait on each, and prints how many KiB each of them takes.
"""

from __future__ import annotations

import os
import random
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import trio

from engine.redis.endpoint import Address
from engine.redis.node import Simple, connect, send
from engine.redis.scripts import ALONE
from engine.redis.topology import read_slots
from tests.bench.clients import ANSWER_WITHIN_S, PAUSE_S, Exchange, Wire, http, percentile
from tests.bench.measure import Measure, Row, Setup, Target
from tests.bench.peers import DIES_WITH_US, cpu_s, holdfast, resident_bytes, resp, wait_until
from tests.bench.report import Column
from tests.bench.targets import REST_S, waiters
from tests.bench.wrk import KIB_EACH, P50_MS, P99_MS, Sample
from tests.harness.process import ROOT, Server
from tests.harness.redis import RedisCluster, RedisNode

COUNT = 5000
WOKEN = 500
"""One after the other, of those."""

CONNECTED = 1000
"""Connections of coredis: each takes the same, and more take long to make."""

PUSHES = 40_000
AT_ONCE = 500

CONNECTIONS, FRONT_KIB, REDIS_KIB, PUSH_US = "connections", "front_kib", "redis_kib", "push_us"
COLUMNS = {
    CONNECTIONS: Column("connections to Redis", "{:,.0f}"),
    FRONT_KIB: Column("Holdfast's memory, each", "{:.1f} KiB"),
    REDIS_KIB: Column("Redis's memory, each", "{:.2f} KiB"),
    PUSH_US: Column("Redis's CPU for a push", "{:.1f} µs"),
}

EMBEDDED, FRONT, BLOCKING = "embedded", "1 front", "a connection each, `BLPOP`"
TRACKING, PUBLISHING = "`CLIENT TRACKING`", "`SPUBLISH` with each push"


class Masters:
    """The masters of a cluster, and which key belongs to whom; nobody is promoted meanwhile."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.nodes = cluster.masters
        first = self.nodes[0]
        self._topology = read_slots(first.do("CLUSTER", "SLOTS"), Address("127.0.0.1", first.port))
        self._by_port = {node.port: node for node in self.nodes}

    def of(self, key: str) -> RedisNode:
        """The master of a key."""
        owner = self._topology.owner(self._topology.slot_of(key.encode()))
        assert owner is not None
        return self._by_port[owner.port]

    def total(self, section: str, name: str) -> int:
        """The sum of what they say about themselves."""
        return sum(int(node.info(section)[name]) for node in self.nodes)


@dataclass(frozen=True)
class Ask:
    """Where a client connects, and what it sends."""

    address: tuple[str, int]
    exchange: Exchange


class Crowd:
    """Clients of this process that wait, for as long as the `with` block lasts.

    Args:
        parks: what each waits with.
    """

    def __init__(self, parks: Sequence[Ask]) -> None:
        self._parks = parks
        self._stack = ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())

    def __enter__(self) -> Crowd:
        for park in self._parks:
            wire = Wire(park.address)
            self._stack.enter_context(wire.socket)
            self._selector.register(wire.socket, selectors.EVENT_READ, (wire, park.exchange))
            wire.send(park.exchange)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def wake(self, pushes: Sequence[Ask]) -> Sample:
        """Has values pushed, one after the other, and each arrive at somebody who then waits no more."""
        latencies_s = []
        pushers = {address: Wire(address) for address in {push.address for push in pushes}}
        with ExitStack() as stack:
            for pusher in pushers.values():
                stack.enter_context(pusher.socket)
            for push in pushes:
                time.sleep(PAUSE_S)
                pusher = pushers[push.address]
                sent_s = time.perf_counter()
                pusher.send(push.exchange)
                self._receive()
                latencies_s.append(time.perf_counter() - sent_s)
                pusher.receive(push.exchange)
        latencies_s.sort()
        return {P50_MS: percentile(latencies_s, 50) * 1000, P99_MS: percentile(latencies_s, 99) * 1000}

    def _receive(self) -> None:
        ((key, _),) = self._selector.select(ANSWER_WITHIN_S)
        wire, exchange = key.data
        wire.receive(exchange)
        self._selector.unregister(wire.socket)


# Who waits where


def at_holdfast(server: Server, key: str) -> Ask:
    """A BQPOP."""
    address = server.host, server.port
    return Ask(address, http(address, f"BQPOP {key}", b'"}'))


def push_at_holdfast(server: Server, key: str) -> Ask:
    """A QPUSH."""
    address = server.host, server.port
    return Ask(address, http(address, f"QPUSH {key} value", b"\r\n\r\n"))


def at_redis(masters: Masters, key: str) -> Ask:
    """A BLPOP at the master of a key."""
    return Ask(("127.0.0.1", masters.of(key).port), Exchange(resp("BLPOP", key, "0"), b"*2\r\n", b"value\r\n"))


def push_at_redis(masters: Masters, key: str) -> Ask:
    """An RPUSH there."""
    return Ask(("127.0.0.1", masters.of(key).port), Exchange(resp("RPUSH", key, "value"), b":", b"\r\n"))


def woken_of(keys: Sequence[str]) -> list[str]:
    """For which of them something is pushed."""
    return random.Random(1).sample(keys, WOKEN)


def measure_holdfast(setup: Setup, masters: Masters, keys: Sequence[str], url: str | None) -> Sample:
    """Starts a server, which is a front if there is a URL, and has clients wait there."""
    connections = masters.total("clients", "connected_clients")
    with holdfast(setup.directory / "data", engine=url) as server:
        assert server.post({"command": "BQPOP nothing 0"})[0] == 200
        connections = masters.total("clients", "connected_clients") - connections
        server_bytes, redis_bytes = resident_bytes(server.pid), masters.total("memory", "used_memory")
        with Crowd([at_holdfast(server, key) for key in keys]) as crowd:
            wait_until(lambda: waiters(server) == len(keys), f"{len(keys):,} are parked")
            time.sleep(REST_S)
            server_bytes = resident_bytes(server.pid) - server_bytes
            redis_bytes = masters.total("memory", "used_memory") - redis_bytes
            sample = crowd.wake([push_at_holdfast(server, key) for key in woken_of(keys)])
        sample[FRONT_KIB] = server_bytes / len(keys) / 1024
        if url is not None:
            sample |= {CONNECTIONS: connections, REDIS_KIB: max(0, redis_bytes) / len(keys) / 1024}
        return sample


def measure_blocking(masters: Masters, keys: Sequence[str]) -> Sample:
    """Has clients wait at Redis itself, each by a connection."""
    connections = masters.total("clients", "connected_clients")
    redis_bytes = masters.total("memory", "used_memory")
    with Crowd([at_redis(masters, key) for key in keys]) as crowd:
        wait_until(lambda: masters.total("clients", "blocked_clients") == len(keys), f"{len(keys):,} are blocked")
        time.sleep(REST_S)
        connections = masters.total("clients", "connected_clients") - connections
        redis_bytes = masters.total("memory", "used_memory") - redis_bytes
        sample = crowd.wake([push_at_redis(masters, key) for key in woken_of(keys)])
    sample |= {CONNECTIONS: connections, REDIS_KIB: max(0, redis_bytes) / len(keys) / 1024}
    return sample | {FRONT_KIB: connection_kib(masters.nodes[0])}


def connection_kib(node: RedisNode) -> float:
    """What a connection takes of a front's memory."""
    command = [*DIES_WITH_US, sys.executable, "-m", "tests.bench.waiting", "127.0.0.1", str(node.port), str(CONNECTED)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    return float(ran.stdout)


# How a front is told


@contextmanager
def tracking(node: RedisNode, keys: Sequence[str]) -> Iterator[None]:
    """A connection that is told when one of these keys changes."""
    with node.wire() as told, node.wire() as wire:
        identity = told.do("CLIENT", "ID")
        told.do("SUBSCRIBE", "__redis__:invalidate")
        wire.do("CLIENT", "TRACKING", "ON", "REDIRECT", identity, "OPTIN")
        for start in range(0, len(keys), AT_ONCE):
            wire.do_many(
                [
                    words
                    for key in keys[start : start + AT_ONCE]
                    for words in (("CLIENT", "CACHING", "YES"), ("LLEN", key))
                ]
            )
        yield


@contextmanager
def subscribing(node: RedisNode, keys: Sequence[str]) -> Iterator[None]:
    """A connection that gets the messages for these keys."""
    with node.wire() as wire:
        for start in range(0, len(keys), AT_ONCE):
            wire.do_many([("SSUBSCRIBE", key) for key in keys[start : start + AT_ONCE]])
        yield


def measure_telling(
    masters: Masters,
    keys: Sequence[str],
    watching: Callable[[RedisNode, Sequence[str]], AbstractContextManager[None]],
    script: bytes,
) -> Sample:
    """What watching keys takes, and what a push takes for which nobody waits."""
    node = masters.nodes[0]
    own = [key for key in keys if masters.of(key) is node]
    before = int(node.info("memory")["used_memory"])
    with watching(node, own):
        time.sleep(REST_S)
        kib_each = (int(node.info("memory")["used_memory"]) - before) / len(own) / 1024
    digest = node.do("SCRIPT", "LOAD", script)
    others = [key for key in (f"other:{key}" for key in keys) if masters.of(key) is node][:AT_ONCE]
    mark, values = b"holdfast:queue:" + b"0" * 32, b"\x91\xa5value"
    pushes = [("EVALSHA", digest, 1, key, mark, values) for key in others]
    pid = int(node.info("server")["process_id"])
    with node.wire() as wire:
        before_s = cpu_s(pid)
        for _ in range(PUSHES // len(pushes)):
            wire.do_many(pushes)
        taken_s = cpu_s(pid) - before_s
        wire.do_many([("DEL", key) for key in others])
    return {KIB_EACH: kib_each, PUSH_US: taken_s * 1e6 / (PUSHES // len(pushes) * len(pushes))}


def publishing_script() -> bytes:
    """QPUSH that tells whoever may wait."""
    first_line, _, rest = ALONE["QPUSH"].source.partition(b"\n")
    return b"\n".join((first_line, b"redis.call('SPUBLISH', KEYS[1], '')", rest))


# The rows


def waiting_rows(cluster: RedisCluster) -> list[Row]:
    """Who waits for many queues, for one, and what it takes to be told."""
    masters = Masters(cluster)
    keys = [f"waited-for:{number}" for number in range(COUNT)]
    group = f"{COUNT:,} clients who wait in a `BQPOP`"
    note = (
        f"{WOKEN} pushes, one after the other: the time from the push until the client has the value. `BLPOP`: clients"
        " of Redis itself, without HTTP or a front in between; Holdfast's memory is what a connection of coredis takes."
    )
    told = Row(
        "waiting-told",
        "How a front is told that there may be something",
        "5,000 keys watched",
        [
            of(TRACKING, lambda _: measure_telling(masters, keys, tracking, ALONE["QPUSH"].source)),
            of(PUBLISHING, lambda _: measure_telling(masters, keys, subscribing, publishing_script())),
        ],
        TRACKING,
        "Memory of Redis for each key, and what a push takes for which nobody waits.",
        rounds_max=1,
    )
    return [
        waiting_row("waiting-many", group, "a queue each", masters, keys, cluster.url, note),
        waiting_row("waiting-one", group, "one queue", masters, keys[:1] * COUNT, cluster.url),
        told,
    ]


def waiting_row(
    name: str, group: str, title: str, masters: Masters, keys: Sequence[str], url: str, note: str = ""
) -> Row:
    """Clients who wait for these keys."""
    targets = [
        of(EMBEDDED, lambda setup: measure_holdfast(setup, masters, keys, None)),
        of(BLOCKING, lambda _: measure_blocking(masters, keys)),
        of(FRONT, lambda setup: measure_holdfast(setup, masters, keys, url)),
    ]
    return Row(name, group, title, targets, FRONT, note, rounds_max=1)


def of(name: str, take: Callable[[Setup], Sample]) -> Target:
    """A target that starts what it measures by itself."""

    def start(setup: Setup) -> nullcontext[Measure]:
        return nullcontext(partial(take, setup))

    return Target(name, start)


# The program


async def connect_many(address: Address, count: int) -> None:
    """Prints how many KiB each of so many connections takes."""
    options = {"username": None, "password": None, "db": 0, "ssl_context": None}
    blocking = [Simple(b"BLPOP", (b"nothing", 0))]
    async with trio.open_nursery() as nursery:
        send(await connect(address, options, nursery, ANSWER_WITHIN_S), blocking)
        before = resident_bytes(os.getpid())
        for _ in range(count):
            send(await connect(address, options, nursery, ANSWER_WITHIN_S), blocking)
        print((resident_bytes(os.getpid()) - before) / count / 1024)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(connect_many, Address(sys.argv[1], int(sys.argv[2])), int(sys.argv[3]))
