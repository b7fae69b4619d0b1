"""Slots that move from master to master while a front works: MOVED, ASK and TRYAGAIN."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from engine.redis.slots import slot_of
from engine.replies import Error, Failure, Integer, Ok, Value
from tests.conformance.cases import GET_OF_A_QUEUE, NOT_FOUND, NULL, OK
from tests.conformance.store import content_of
from tests.harness.front import QUEUES, Crowd, start_front, unavailable
from tests.harness.redis import Migration, RedisCluster, RedisNode
from tests.harness.waiting import until


@asynccontextmanager
async def moving(cluster: RedisCluster, key: str) -> AsyncIterator[Migration]:
    """A slot that is being moved, with nothing moved yet; in the end what is left is."""
    slot = slot_of(key.encode())
    source = cluster.master_of_slot(slot)
    target = next(node for node in cluster.masters if node is not source)
    migration = Migration(cluster, slot, source, target)
    yield migration
    await trio.to_thread.run_sync(migration.finish)


@pytest.mark.costly("a crowd while some 80 slots move")
async def test_under_load_slots_move_to_and_fro_and_nobody_notices(
    nursery: trio.Nursery, own_redis_cluster: RedisCluster
) -> None:
    """I1, I3, I6"""
    cluster = own_redis_cluster
    fronts = [await start_front(nursery, cluster.url) for _ in range(2)]
    crowd = Crowd(fronts, 1)
    await nursery.start(crowd.run)

    def move(names: list[str]) -> None:
        for name in names:
            slot = slot_of(name.encode())
            source = cluster.master_of_slot(slot)
            target = next(node for node in cluster.masters if node is not source)
            cluster.migrate_slot(slot, target)

    for _ in range(3):
        await crowd.answered(200)
        await trio.to_thread.run_sync(move, [crowd.queue(number) for number in range(QUEUES)])
        await crowd.answered(200)
        await trio.to_thread.run_sync(move, [f"client{number}" for number in range(20)])
    await crowd.answered(200)
    await crowd.stop()
    await crowd.check(cluster.masters)
    for front in fronts:
        front.close()


async def test_in_a_slot_half_moved_every_key_is_found(nursery: trio.Nursery, own_redis_cluster: RedisCluster) -> None:
    cluster = own_redis_cluster
    front = await start_front(nursery, cluster.url)
    for name in ("{h}here", "{h}there"):
        await front.do(f"SET {name} 1 EX 1000")
        await front.do(f"QPUSH {name}.q a b c")
    async with moving(cluster, "h") as migration:
        for moved in (b"{h}there", b"{h}there.q"):
            await trio.to_thread.run_sync(migration.move_key, moved)
        for name in ("{h}here", "{h}there"):
            assert await front.do(f"GET {name}") == Value(b"1")
            left = await front.do(f"TTL {name}")
            assert isinstance(left, Integer)
            assert 900 < left.value <= 1000
            assert await front.do(f"QLEN {name}.q") == Integer(3)
            assert await front.do(f"SET {name} 2 NX") == Failure(Error.KEY_ALREADY_EXISTS)
            assert await front.do(f"SET {name} 2 XX") == OK
            assert await front.do(f"QPUSH {name}.q d") == Ok(length=4)
            assert await front.do(f"QPOP {name}.q") == Value(b"d")
            assert await front.do(f"BQPOP {name}.q") == Value(b"a")
            assert await front.do(f"GET {name}.q") == GET_OF_A_QUEUE
        assert await front.do("EXISTS {h}here {h}there {h}new {h}here.q") == Integer(3)
        assert await front.do("GET {h}new") == NOT_FOUND
        assert await front.do("QPOP {h}new") == NULL
        assert await front.do("BQPOP {h}new 0.01") == NULL
        assert await front.do("SET {h}new 3") == OK
        assert await front.do("QPUSH {h}new.q x y") == Ok(length=2)
        assert await front.do("BQPOP {h}new.q") == Value(b"x")
        assert await front.do("QPOP {h}new.q") == Value(b"y")
        assert await front.do("EXISTS {h}here {h}there {h}new {h}new.q") == Integer(4)
        assert await front.do("DELETE {h}here.q {h}there.q {h}new {h}none") == Integer(3)
        assert await front.do("EXISTS {h}here.q {h}there.q {h}new {h}none") == Integer(0)
    assert await front.do_many("GET {h}here", "GET {h}there", atomic=True) == [Value(b"2"), Value(b"2")]
    front.close()


async def test_receipts_of_pops_do_not_stand_in_the_way_of_a_move(
    nursery: trio.Nursery, own_redis_cluster: RedisCluster
) -> None:
    cluster = own_redis_cluster
    front = await start_front(nursery, cluster.url)
    await front.do("QPUSH {r}q a b c d e f g h")
    held = front.submit("BQPOP {r}q")  # its receipt stays until it is taken
    assert await held.delivered() == [Value(b"a")]
    assert [receipt.body for receipt in held.calls[0].taken] == [b""]
    async with moving(cluster, "r") as migration:
        assert await front.do("BQPOP {r}q") == Value(b"b")
        await trio.to_thread.run_sync(migration.move_key, b"{r}q")
        later = front.submit("BQPOP {r}q")
        assert await later.delivered() == [Value(b"c")]
        assert later.calls[0].taken[0].body.endswith(b"c"), "for there was no room for a receipt"
    held.leave()
    later.leave()
    await until(lambda: content_of(cluster.masters).get(b"{r}q") == ("queue", *b"a c d e f g h".split()))
    front.close()


async def test_who_waits_is_served_before_during_and_after_a_move(
    nursery: trio.Nursery, own_redis_cluster: RedisCluster
) -> None:
    """I6"""
    cluster = own_redis_cluster
    front, other = [await start_front(nursery, cluster.url) for _ in range(2)]
    await front.do_many("QPUSH {w}emptied x", "QPOP {w}emptied")
    names = ("{w}emptied", "{w}new1", "{w}new2", "{w}late1", "{w}late2")
    jobs = dict(zip(names, await front.park(*(f"BQPOP {name}" for name in names)), strict=True))
    async with moving(cluster, "w") as migration:
        await trio.to_thread.run_sync(migration.move_key, b"{w}emptied")
        (more,) = await front.park("BQPOP {w}during")
        assert await other.do("QPUSH {w}emptied a") == Ok(length=1)
        assert await jobs["{w}emptied"].wait() == Value(b"a")
        assert await front.do("QPUSH {w}new1 b") == Ok(length=1)
        assert await jobs["{w}new1"].wait() == Value(b"b")
        assert await other.do("QPUSH {w}during c") == Ok(length=1)
        assert await more.wait() == Value(b"c")
        assert await other.do("QPUSH {w}new2 d") == Ok(length=1)
    assert await jobs["{w}new2"].wait() == Value(b"d")
    assert await other.do("QPUSH {w}late1 e") == Ok(length=1)
    assert await jobs["{w}late1"].wait() == Value(b"e")
    await front.do("SET {w}key 1")  # now it knows that the slot has moved
    assert await other.do("QPUSH {w}late2 f") == Ok(length=1)
    assert await jobs["{w}late2"].wait() == Value(b"f")
    front.close()
    other.close()


async def test_units_wait_for_a_move_or_answer_that_they_cannot_and_work_after_it(
    nursery: trio.Nursery, own_redis_cluster: RedisCluster
) -> None:
    """I2"""
    cluster = own_redis_cluster
    front = await start_front(nursery, cluster.url)
    for name in ("{u}a", "{u}b"):
        await front.do(f"SET {name} 0")
    async with moving(cluster, "u") as migration:
        await trio.to_thread.run_sync(migration.move_key, b"{u}b")
        unit = front.spawn_many("SET {u}a 1", "SET {u}b 1", "QPUSH {u}q v", atomic=True)
        refused = await front.do_many("SET {u}a 2", "QPUSH {u}q w", atomic=True)
        assert unavailable(refused), refused
        assert await front.do("GET {u}a") == Value(b"0")
        assert await front.do("EXISTS {u}q") == Integer(0)
    replies = await unit.wait()
    assert unavailable(replies) or replies == [OK, OK, Ok(length=1)]
    done = await front.do_many("SET {u}a 3", "SET {u}b 3", "QPUSH {u}q y", "QPOP {u}q", atomic=True)
    assert isinstance(done, list)
    assert done[3] == Value(b"y")
    assert await front.do_many("GET {u}a", "GET {u}b", atomic=True) == [Value(b"3"), Value(b"3")]
    front.close()


@pytest.mark.costly("a crowd while three masters hand over")
async def test_under_load_masters_hand_over_to_their_replicas_and_nobody_is_refused(
    nursery: trio.Nursery, own_redis_cluster: RedisCluster
) -> None:
    """I1, I3, I6: `CLUSTER FAILOVER`, with a replica that writes wait for."""
    cluster = own_redis_cluster
    await trio.to_thread.run_sync(cluster.wait_until_healthy)
    cluster.flush()
    fronts = [await start_front(nursery, cluster.url, min_replicas=1) for _ in range(2)]
    crowd = Crowd(fronts, 3)
    await nursery.start(crowd.run)
    for master in cluster.masters:
        await crowd.answered(200)
        replica = cluster.replica_of(master)
        await trio.to_thread.run_sync(replica.do, "CLUSTER", "FAILOVER")
        await until(partial(_is_master, cluster, replica))
        await trio.to_thread.run_sync(cluster.wait_until_healthy)
    await crowd.answered(200)
    await crowd.stop()
    await crowd.check(cluster.masters)
    assert not crowd.answers[Error.UNAVAILABLE.value], crowd.answers
    for front in fronts:
        front.close()


def _is_master(cluster: RedisCluster, node: RedisNode) -> bool:
    return node in cluster.masters
