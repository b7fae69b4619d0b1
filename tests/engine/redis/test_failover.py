"""Masters that die, or stop, while fronts work: what is answered meanwhile, and what is there afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from engine.replies import Error, Failure, Ok, Value
from tests.conformance.cases import OK
from tests.conformance.store import content_of
from tests.harness.front import Crowd, Front, start_front, unavailable
from tests.harness.redis import RedisCluster
from tests.harness.waiting import until


@pytest.fixture
def cluster(own_redis_cluster: RedisCluster) -> Iterator[RedisCluster]:
    """All is well with it, before a test and after it."""
    own_redis_cluster.flush()
    yield own_redis_cluster
    own_redis_cluster.revive()


async def heal(cluster: RedisCluster) -> None:
    """Starts again what was killed, and returns when all is well; whoever runs here runs on."""
    for node in cluster.nodes:
        node.revive()
    await trio.to_thread.run_sync(cluster.wait_until_healthy)


def keys_on(cluster: RedisCluster) -> list[str]:
    """A key of each master."""
    return [cluster.key_on(master).decode() for master in cluster.masters]


async def test_without_a_master_its_keys_are_unavailable_until_a_replica_takes_over(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    front = await start_front(nursery, cluster.url)
    dying, *others = keys_on(cluster)
    for key in (dying, *others):
        await front.do(f"SET {key} 1")
    (job,) = await front.park(f"BQPOP {{{dying}}}.q")
    master = cluster.master_of(dying.encode())
    await trio.to_thread.run_sync(master.do, "WAIT", 1, 1000)
    master.kill()
    refused = await front.until_unavailable(f"GET {dying}")
    assert str(master.port) in refused.detail
    assert isinstance(front.engine.readiness(), Failure)
    for key in others:
        assert await front.do(f"GET {key}") == Value(b"1")
        assert await front.do(f"SET {key} 2") == OK
    cluster.notice_soon()  # not sooner: for a moment then nobody serves any key
    assert await front.eventually(f"GET {dying}") == Value(b"1")
    assert await front.do(f"SET {dying} 2") == OK
    await front.until_ready()
    assert not job.done.is_set()
    assert await front.do(f"QPUSH {{{dying}}}.q a") == Ok(length=1)
    assert await job.wait() == Value(b"a")
    front.close()


@pytest.mark.costly("a crowd while two masters die")
async def test_with_a_replica_waited_for_nothing_is_lost_when_masters_die_under_load(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I1, I2, I3, I6"""
    fronts = [await start_front(nursery, cluster.url, min_replicas=1) for _ in range(2)]
    crowd = Crowd(fronts, 2)
    await nursery.start(crowd.run)
    for _ in range(2):
        await crowd.answered(300)
        victim = await trio.to_thread.run_sync(cluster.master_of, crowd.queue(0).encode())
        cluster.fail_over(victim)
        for front in fronts:
            await front.until_a_master_is_down()
        for front in fronts:
            await front.until_masters_are_up()
        await heal(cluster)  # not sooner: it comes back with nothing
    await crowd.answered(300)
    await crowd.stop()
    await crowd.check(cluster.masters)
    assert crowd.answers[Error.UNAVAILABLE.value] > 0
    for front in fronts:
        front.close()


async def test_a_pop_that_no_replica_has_seen_leaves_no_second_value_behind_when_its_master_dies(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I6: the new master still has the values, and so nothing must go back there."""
    front = await start_front(nursery, cluster.url, min_replicas=1)
    assert await front.do("QPUSH q a b c d") == Ok(length=4)
    master = cluster.master_of(b"q")
    replica = cluster.replica_of(master)
    replica.pause()
    master.do("CLIENT", "KILL", "TYPE", "replica")
    pop, waiter = front.spawn("QPOP q"), front.spawn("BQPOP q")
    unit = front.spawn_many("BQPOP q", "SET {q}k v", atomic=True)
    await until(lambda: master.do("LLEN", "q") == 2)
    master.kill()
    replica.resume()
    cluster.notice_soon()
    assert unavailable(await pop.wait())
    assert unavailable(await unit.wait())
    await front.until_masters_are_up()
    await heal(cluster)
    assert await waiter.wait() == Value(b"a")  # not sooner: nothing is popped while nobody follows
    await until(lambda: not front.owed)
    assert content_of(cluster.masters)[b"q"] == ("queue", b"b", b"c", b"d")
    front.close()


async def test_a_stuck_master_that_goes_on_when_another_has_taken_over_doubles_and_loses_nothing(
    nursery: trio.Nursery, cluster: RedisCluster
) -> None:
    """I6: it does what it has not read yet, before it hears that it is no master any more."""
    front = await start_front(nursery, cluster.url, min_replicas=1)
    values = [b"%d" % number for number in range(60)]
    await front.do("QPUSH q " + " ".join(str(number) for number in range(60)))
    delivered: list[bytes | None] = []
    for _ in range(2):  # to a master that was one before there is a connection still
        stuck = cluster.master_of(b"q")
        stuck.pause()
        jobs = [front.spawn(line) for line in ("QPOP q", "BQPOP q 0", "BQPOP q") for _ in range(4)]
        cluster.notice_soon()
        await until(lambda stuck=stuck: owner_of(front, b"q") != stuck.port)  # type: ignore[misc]
        stuck.resume()
        await heal(cluster)
        for job in jobs:
            reply = await job.wait()
            assert isinstance(reply, Value) or unavailable(reply), reply
            delivered += [reply.value] if isinstance(reply, Value) else []
        await front.until_ready()
        await until(lambda: not front.owed)
        left = content_of(cluster.masters)[b"q"][1:]
        assert sorted([*delivered, *left], key=values.index) == values  # type: ignore[arg-type]
    front.close()


def owner_of(front: Front, key: bytes) -> int | None:
    """The port of the master to which a front sends what concerns a key."""
    router = front.engine._router
    owner = router.masters.topology.owner(router.slot_of(key))
    return owner and owner.port
