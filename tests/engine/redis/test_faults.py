"""What befalls connections and nodes while a front works, in a cluster in which no replica takes over."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
import trio

from engine.redis.receipts import RETRY_S
from engine.redis.slots import slot_of
from engine.replies import Error, Failure, Integer, Ok, Refused, Value
from tests.conformance.cases import ALREADY_EXISTS, NOT_FOUND, NULL, OK
from tests.conformance.store import content_of
from tests.harness.front import QUEUES, Crowd, start_front, unavailable
from tests.harness.redis import RedisCluster, RedisNode
from tests.harness.waiting import WITHIN_S, until


@pytest.fixture(scope="module")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """What is killed here comes back with all its data, before anybody has missed it."""
    directory = tmp_path_factory.mktemp("cluster")
    with RedisCluster(directory, "--appendonly", "yes", node_timeout_ms=60_000) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: RedisCluster) -> Iterator[RedisCluster]:
    """Without data before a test, and well after it."""
    running_cluster.flush()
    yield running_cluster
    running_cluster.revive()


BUSY = "for i = 1, 1000000 do end"
"""A script that takes some milliseconds."""


async def cut(node: RedisNode) -> None:
    """Cuts all connections to a node at a moment when it has done some of what came by them, and not answered."""
    with node.wire() as killer, node.wire() as busy:
        killer.do("PING")
        busy.do("PING")
        busy.send(("EVAL", BUSY, 0))
        await trio.sleep(0.002)  # what comes meanwhile is read in one go, and so is what follows here
        killer.send(("CLIENT", "KILL", "TYPE", "normal"))
        await trio.to_thread.run_sync(killer.receive)


def fronts_of(node: RedisNode) -> int:
    """How many connections of fronts a node has: they are the ones that speak RESP 3."""
    clients: str = node.do("CLIENT", "LIST").decode()
    return clients.count("resp=3")


def restart(nodes: list[RedisNode]) -> None:
    """Starts dead nodes again, without waiting for them."""
    for node in nodes:
        node.launch()


async def test_what_a_stopped_master_has_not_read_yet_is_done_or_undone_when_it_goes_on(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I6"""
    front = await start_front(nursery, cluster.url, answer_timeout_s=3)
    master = cluster.master_of(b"q")
    other = next(cluster.key_on(node).decode() for node in cluster.masters if node is not master)
    await front.do("QPUSH q a b c d e f")
    (waiter,) = await front.park("BQPOP {q}none")
    master.pause()
    blocking = front.spawn("BQPOP q")
    await until(lambda: front.engine.statistics().waiters == 2)
    jobs = [front.spawn(line) for line in ("QPOP q", "QPUSH {q}p g", "BQPOP q 0", "GET {q}k")]
    unit = front.spawn_many("QPOP q", "QPOP q", atomic=True)
    pipeline = front.spawn_many("QPOP q", f"SET {other} 1")
    assert await front.do(f"SET {other} 2") == OK
    refused = [await job.wait() for job in jobs]
    assert all(map(unavailable, refused)), refused
    assert unavailable(await unit.wait())
    replies = await pipeline.wait()
    assert isinstance(replies, list)
    assert unavailable(replies[0])
    assert replies[1] == OK
    assert unavailable(await front.do("GET q"))
    assert isinstance(front.engine.readiness(), Failure)
    master.resume()
    await front.until_ready()
    assert await blocking.wait() == Value(b"a"), "who waits has waited"
    await until(lambda: not front.owed)
    content = content_of(cluster.masters)
    assert content[b"q"] == ("queue", b"b", b"c", b"d", b"e", b"f")
    assert content.get(b"{q}p", ("queue", b"g")) == ("queue", b"g"), "nobody knows whether it was done"
    assert await front.do("QPUSH {q}none x") == Ok(length=1)
    assert await waiter.wait() == Value(b"x")
    front.close()


@pytest.mark.costly("a crowd through forty cuts")
async def test_connections_that_are_cut_again_and_again_lose_and_double_nothing(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I1, I2, I3, I6"""
    fronts = [await start_front(nursery, cluster.url) for _ in range(2)]
    crowd = Crowd(fronts, 3)
    rng = random.Random(3)
    await nursery.start(crowd.run)
    for _ in range(40):
        await crowd.answered(rng.randrange(60))
        await trio.sleep(rng.random() / 100)
        for node in rng.sample(cluster.masters, rng.randint(1, 3)):
            await cut(node)
    await crowd.answered(200)
    await crowd.stop()
    await crowd.check(cluster.masters)
    assert crowd.answers[Error.UNAVAILABLE.value] > 0
    for front in fronts:
        front.close()


@pytest.mark.costly("a crowd through twenty faults of a cluster")
async def test_whatever_happens_nothing_is_lost_or_doubled(nursery: trio.Nursery, cluster: RedisCluster) -> None:
    """I1, I2, I3, I6"""
    fronts = [await start_front(nursery, cluster.url, answer_timeout_s=0.5) for _ in range(2)]
    crowd = Crowd(fronts, 5)
    rng = random.Random(5)
    await nursery.start(crowd.run)

    def move(slot: int) -> None:
        source = cluster.master_of_slot(slot)
        cluster.migrate_slot(slot, rng.choice([node for node in cluster.masters if node is not source]))

    for _ in range(20):
        await crowd.answered(rng.randrange(100))
        node = rng.choice(cluster.masters)
        match rng.choice(["cut", "cut", "stop", "forget", "move", "restart"]):
            case "cut":
                await cut(node)
            case "stop":
                node.pause()
                await trio.sleep(rng.choice([0.01, 0.1, 0.7]))
                node.resume()
            case "forget":
                node.do("SCRIPT", "FLUSH")
            case "move":
                await trio.to_thread.run_sync(move, slot_of(crowd.queue(rng.randrange(QUEUES)).encode()))
            case "restart":
                node.kill()
                node.launch()
                await trio.to_thread.run_sync(node.wait_until_answering)
                await trio.to_thread.run_sync(cluster.wait_until_healthy)
    for front in fronts:
        await front.until_ready()
    await crowd.answered(200)
    await crowd.stop()
    await trio.to_thread.run_sync(cluster.wait_until_healthy)
    await crowd.check(cluster.masters)
    for front in fronts:
        front.close()


async def test_a_cluster_that_is_gone_and_comes_back_has_everything_and_serves_who_waits(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I1, I2, I3, I6"""
    front = await start_front(nursery, cluster.url)
    waiters = await front.park(*(f"BQPOP wait{number}" for number in range(20)))
    crowd = Crowd([front], 4)
    await nursery.start(crowd.run)
    await crowd.answered(300)
    for node in cluster.nodes:
        node.kill()
    await front.until_unavailable("GET k")
    await front.until_unavailable("QPUSH k v")
    restart(cluster.nodes)
    await front.until_ready()
    await crowd.answered(300)
    await crowd.stop()
    await trio.to_thread.run_sync(cluster.wait_until_healthy)
    await crowd.check(cluster.masters)
    for number, job in enumerate(waiters):
        assert await front.do(f"QPUSH wait{number} v") == Ok(length=1)
        assert await job.wait() == Value(b"v")
    front.close()


async def test_a_front_that_starts_without_one_of_the_masters_serves_the_others(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    dead, *others = cluster.masters
    keys = [cluster.key_on(node).decode() for node in (dead, *others)]
    dead.kill()
    front = await start_front(nursery, cluster.url)
    refused = await front.do(f"SET {keys[0]} v")
    assert isinstance(refused, Failure)
    assert refused.error is Error.UNAVAILABLE
    assert f"127.0.0.1:{dead.port} does not answer: " in refused.detail
    assert unavailable(await front.do(f"BQPOP {keys[0]} 0"))
    assert front.engine.readiness() == refused
    for key in keys[1:]:
        assert await front.do(f"SET {key} v") == OK
    assert unavailable(await front.do(f"EXISTS {' '.join(keys)}"))
    assert unavailable(await front.do_many(f"SET {keys[0]} v", atomic=True))
    restart([dead])
    assert await front.eventually(f"SET {keys[0]} v") == OK
    assert await front.do(f"EXISTS {' '.join(keys)}") == Integer(3)
    assert isinstance(front.engine.readiness(), dict)
    front.close()


async def test_scripts_that_are_forgotten_are_sent_again(nursery: trio.Nursery, cluster: RedisCluster) -> None:
    front = await start_front(nursery, cluster.url)

    def forget() -> None:
        for node in cluster.masters:
            node.do("SCRIPT", "FLUSH")

    expected = {"QPUSH q a b c": Ok(length=3), "QLEN q": Integer(3), "QPOP q": Value(b"c"), "BQPOP q": Value(b"a")}
    for line, reply in expected.items():
        forget()
        assert await front.do(line) == reply
    forget()
    assert await front.do_many("QPUSH q x", "QPOP q", "QPOP q", "QPUSH q y") == [
        *(Ok(length=2), Value(b"x"), Value(b"b"), Ok(length=1)),
    ]
    forget()
    assert await front.do_many("QPUSH q z", "QPOP q", atomic=True) == [Ok(length=2), Value(b"z")]
    (job,) = await front.park("BQPOP r")
    forget()
    assert await front.do("QPUSH r v") == Ok(length=1)
    assert await job.wait() == Value(b"v")
    left = front.submit("BQPOP q")
    assert await left.delivered() == [Value(b"y")]
    forget()
    left.leave()
    await until(lambda: content_of(cluster.masters)[b"q"] == ("queue", b"y"))
    front.close()


async def test_a_full_memory_refuses_what_grows_and_nothing_else(nursery: trio.Nursery, cluster: RedisCluster) -> None:
    front = await start_front(nursery, cluster.url)
    await front.do("QPUSH q a b c d e")
    await front.do("SET k v")

    def set_maxmemory(limit: int) -> None:
        for node in cluster.masters:
            node.do("CONFIG", "SET", "maxmemory", limit)

    full = Failure(Error.STORAGE_FULL, "redis has reached its maxmemory")
    set_maxmemory(1)
    try:
        for line in ("SET k2 v", "SET k w", "QPUSH q f", "QPUSH q2 f"):
            assert await front.do(line) == full
        assert await front.do_many("GET k", "SET {k}2 v", atomic=True) == Refused(full)
        assert await front.do_many("QPUSH q f", "QPOP q") == [full, Value(b"e")]
        left = front.submit("QPOP q", "BQPOP q")
        assert await left.delivered() == [Value(b"d"), Value(b"a")]
        left.leave()
        await until(lambda: content_of(cluster.masters)[b"q"] == ("queue", b"a", b"b", b"c", b"d"))
        assert await front.do("BQPOP q 0") == Value(b"a")
        assert await front.do_many("QPOP q", "BQPOP q", "QLEN q", atomic=True) == [
            *(Value(b"d"), Value(b"b"), Integer(1)),
        ]
        (job,) = await front.park("BQPOP q3")
        assert await front.do("QPOP q") == Value(b"c")
        assert await front.do("GET k") == Value(b"v")
        assert await front.do("DELETE k q") == Integer(2)
    finally:
        set_maxmemory(0)
    assert await front.do("QPUSH q3 v") == Ok(length=1)
    assert await job.wait() == Value(b"v")
    front.close()


async def test_who_waits_outlives_the_loss_of_all_data(nursery: trio.Nursery, cluster: RedisCluster) -> None:
    front = await start_front(nursery, cluster.url)
    await front.do_many("QPUSH emptied x", "QPOP emptied")
    jobs = await front.park("BQPOP emptied", "BQPOP none")
    held = front.submit("QPOP none")
    assert await held.delivered() == [NULL]
    cluster.flush()
    assert await front.do("QPOP emptied") == NULL
    for name, job in zip(("emptied", "none"), jobs, strict=True):
        assert await front.do(f"QPUSH {name} a") == Ok(length=1)
        assert await job.wait() == Value(b"a")
    front.close()


@pytest.mark.parametrize(
    "make",
    [("RPUSH", "a", "b"), ("HSET", "a", "b"), ("SADD", "a"), ("ZADD", "1", "a"), ("XADD", "*", "a", "b")],
    ids=lambda words: words[0],
)
async def test_what_is_not_ours_is_the_wrong_type_and_stays_as_it_is(
    nursery: trio.Nursery, cluster: RedisCluster, make: tuple[str, ...]
) -> None:
    held = "something that is nothing of Holdfast's"
    front = await start_front(nursery, cluster.url)
    cluster.do(make[0], b"k", *make[1:])
    before = cluster.do("DUMP", b"k")
    for line in ("QPUSH k v", "QPOP k", "BQPOP k", "BQPOP k 0", "QLEN k"):
        wrong = Failure(Error.WRONG_TYPE, f"the key holds {held}, {line.split()[0]} needs a queue")
        assert await front.do(line) == wrong
        assert await front.do_many(line) == [wrong]
        if line != "QLEN k":
            assert await front.do_many("SET {k}2 v", line, atomic=True) == Refused(wrong, 1)
    held = "a queue" if make[0] == "RPUSH" else held
    unreadable = Failure(Error.WRONG_TYPE, f"the key holds {held}, GET reads plain values")
    assert await front.do("GET k") == unreadable
    assert await front.do_many("GET k", "EXISTS k", atomic=True) == [unreadable, Integer(1)]
    assert await front.do("EXISTS k {k}2") == Integer(1)
    assert await front.do("TTL k") == Integer(-1)
    assert cluster.do("DUMP", b"k") == before
    assert await front.do("DELETE k") == Integer(1)
    cluster.do(make[0], b"k", *make[1:])
    assert await front.do("SET k v") == OK
    assert await front.do("GET k") == Value(b"v")
    front.close()


@pytest.mark.parametrize("fault", ["pause", "kill"])
async def test_while_too_few_replicas_follow_writes_are_refused_at_once_and_not_done(
    nursery: trio.Nursery, cluster: RedisCluster, fault: str
) -> None:
    """I6: and reads do not wait behind them."""
    front = await start_front(nursery, cluster.url, min_replicas=1)
    await front.do_many("QPUSH q a b", "SET {q}k v", "QPUSH {q}emptied x", "QPOP {q}emptied")
    (waiter,) = await front.park("BQPOP {q}wait")
    replica = cluster.replica_of(cluster.master_of(b"q"))
    getattr(replica, fault)()
    jobs = []
    with trio.fail_after(60):
        while not isinstance(refused := front.engine.readiness(), Failure):
            jobs.append(front.spawn("SET {q}written w"))  # all of which are waited for
            await trio.sleep(0.01)
    assert (refused.detail or "").endswith(", and writes need 1")
    for job in jobs:
        await job.wait()
    for line in ("SET {q}k w", "QPUSH q d", "QPOP q", "BQPOP q", "BQPOP q 0", "DELETE {q}k", "QPUSH {q}wait a"):
        assert await front.do(line) == refused
    assert await front.do_many("GET {q}k", "QLEN q", atomic=True) == Refused(refused)
    read = await front.do_many("GET {q}k", "QLEN q", "EXISTS {q}k q", "TTL {q}k", "QLEN {q}wait")
    assert read == [Value(b"v"), *map(Integer, (2, 2, -1, 0))]
    replica.revive()
    assert await front.eventually("SET {q}k x") == OK
    assert await front.eventually("QPUSH {q}wait a") == Ok(length=1)
    assert await waiter.wait() == Value(b"a")
    assert await front.do("BQPOP q") == Value(b"a")
    front.close()


async def test_when_replicas_follow_again_what_is_owed_goes_back_before_anybody_is_served(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I6"""
    front = await start_front(nursery, cluster.url, min_replicas=1)
    queues = [f"{{q}}{number}" for number in range(5)]
    leaving, waiters = [], []
    for queue in queues:
        await front.do(f"QPUSH {queue} first")
        leaving.append(front.submit(f"BQPOP {queue}"))
        await until(lambda: leaving[-1].calls[0].reply is not None)
        waiters += await front.park(f"BQPOP {queue}")
    replica = cluster.replica_of(cluster.master_of(b"q"))
    replica.kill()
    await until(lambda: isinstance(front.engine.readiness(), Failure))
    for client, queue in zip(leaving, queues, strict=True):
        front.engine.withdraw(client.calls[0])
        cluster.do("RPUSH", queue.encode(), "second")  # by somebody who waits for no replica
    replica.revive()
    assert [await waiter.wait() for waiter in waiters] == [Value(b"first")] * len(queues)
    front.close()


async def test_a_front_that_ends_puts_back_what_it_owes_though_too_few_replicas_follow(cluster: RedisCluster) -> None:
    """I6, E8"""
    async with trio.open_nursery() as nursery:
        front = await start_front(nursery, cluster.url, min_replicas=1)
        await front.do("QPUSH q a b")
        client = front.submit("QPOP q")
        await until(lambda: client.calls[0].reply is not None)
        cluster.replica_of(cluster.master_of(b"q")).kill()
        await until(lambda: isinstance(front.engine.readiness(), Failure))
        front.engine.withdraw(client.calls[0])
        await trio.sleep(2 * RETRY_S)
        assert front.owed == 1
        front.close()
    assert content_of(cluster.masters)[b"q"] == ("queue", b"a", b"b")


async def test_what_a_replica_does_not_have_in_time_is_refused_though_it_was_done(
    nursery: trio.Nursery, cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I6"""
    monkeypatch.setattr("engine.redis.group.WAIT_TIMEOUT_S", WITHIN_S)
    monkeypatch.setattr("engine.redis.vitals.KEEPS_UP_S", math.inf)
    front = await start_front(nursery, cluster.url, min_replicas=1)
    await front.do_many("QPUSH q a b c", "SET {q}k v", "QPUSH {q}emptied x", "QPOP {q}emptied")
    (waiter,) = await front.park("BQPOP {q}wait")
    replica = cluster.replica_of(cluster.master_of(b"q"))
    replica.pause()
    monkeypatch.setattr("engine.redis.group.WAIT_TIMEOUT_S", 0.1)
    behind = Failure(Error.UNAVAILABLE, "done, but too few replicas have it yet: it may be lost if the master fails")
    undone = Failure(Error.UNAVAILABLE, "too few replicas are there: what was popped goes back")
    for line in ("SET {q}k w", "QPUSH q d", "QPOP q", "BQPOP q", "BQPOP q 0", "DELETE {q}k"):
        assert await front.do(line) == (undone if "POP" in line else behind)
        await until(lambda: not front.owed)
    unit = Failure(Error.UNAVAILABLE, f"{behind.detail}; what was popped goes back")
    assert await front.do_many("BQPOP q", "QPOP q", "SET {q}new v", atomic=True) == Refused(unit)
    await until(lambda: not front.owed)
    assert await front.do_many("QPOP q", "QLEN q") == [undone, Integer(3)]
    await until(lambda: not front.owed)
    # What changes nothing has nothing to wait for.
    assert await front.do("GET {q}new") == Value(b"v")
    assert await front.do("QLEN q") == Integer(4)
    assert await front.do("QPOP {q}emptied") == Failure(Error.QUEUE_IS_EMPTY)
    assert await front.do("BQPOP {q}emptied 0.01") == NULL
    assert await front.do("SET {q}k v XX") == NOT_FOUND
    assert await front.do_many("GET {q}k", "SET q v NX", atomic=True) == Refused(ALREADY_EXISTS, 1)
    assert await front.do("QPUSH {q}wait a") == behind  # last: who waits takes it and gives it back all the time
    replica.resume()
    monkeypatch.setattr("engine.redis.group.WAIT_TIMEOUT_S", WITHIN_S)
    assert await front.eventually("SET {q}k x") == OK
    assert await front.do("BQPOP q") == Value(b"a")
    assert await front.do("QPOP q") == Value(b"d")
    assert content_of(cluster.masters)[b"q"] == ("queue", b"b", b"c")
    assert await waiter.wait() == Value(b"a")
    front.close()


async def test_a_front_ends_before_long_whatever_its_masters_do(cluster: RedisCluster) -> None:
    """E8"""
    dead, stopped, _ = cluster.masters
    keys = [cluster.key_on(node).decode() for node in cluster.masters]
    async with trio.open_nursery() as nursery:
        front = await start_front(nursery, cluster.url)
        waiters = await front.park(*(f"BQPOP {key}" for key in keys))
        dead.kill()
        stopped.pause()
        jobs = [front.spawn(f"{line} {key}") for key in keys for line in ("GET", "QPOP", "BQPOP", "QPUSH 1")]
        units = [front.spawn_many(f"SET {key} 1", f"QPOP {key}q") for key in keys]
        await front.until_unavailable(f"GET {keys[0]}")
        front.close()
        replies = [await job.wait() for job in (*waiters, *jobs)]
        for unit in units:
            await unit.wait()
    assert all(map(unavailable, replies[:3]))
    assert Failure(Error.UNAVAILABLE, "shutting down") in replies


async def test_five_thousand_wait_at_the_cost_of_one_connection_to_each_master(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I6"""
    front = await start_front(nursery, cluster.url)
    apart = {f"q{number}": front.spawn(f"BQPOP q{number}") for number in range(2_500)}
    crowd = [front.spawn("BQPOP q") for _ in range(2_500)]
    await until(lambda: front.engine.statistics().waiters == 5_000 and not front.engine._lines.trying)
    # For a moment there is another, to ask who is who, when a master was too busy to say.
    await until(lambda: [fronts_of(node) for node in cluster.masters] == [1, 1, 1])
    pushes = [front.spawn(f"QPUSH {name} {name}") for name in apart]
    await front.do("QPUSH q " + " ".join(map(str, range(2_500))))
    for name, job in apart.items():
        assert await job.wait() == Value(name.encode())
    crowd.sort(key=lambda job: job.submitted or 0)
    for number, job in enumerate(crowd):
        assert await job.wait() == Value(b"%d" % number), "first come, first served"
    assert [await job.wait() for job in pushes] == [Ok(length=1)] * len(pushes)
    assert front.engine.statistics().waiters == 0
    front.close()
