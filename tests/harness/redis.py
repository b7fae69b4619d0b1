"""Real Redis processes on loopback: one, one with a replica, and a cluster of three masters and three replicas.

with RedisCluster(tmp_path) as cluster:
    master = cluster.master_of(b"k")
    replica = cluster.fail_over(master)
    cluster.wait_until_healthy()
    assert cluster.master_of(b"k") is replica
    cluster.revive()

What waits is synchronous; a trio test runs it in a thread, `await trio.to_thread.run_sync(cluster.wait_until_healthy)`.
Nodes are started and revived from the main thread only: a process dies with the thread that started it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine.redis.slots import SLOTS, slot_of
from tests.harness.redis_node import POLL_S, RedisError, RedisNode, Wire, Word, url_of
from tests.harness.waiting import WITHIN_S, wait_until

__all__ = ["Migration", "RedisCluster", "RedisError", "RedisNode", "RedisPair", "Wire"]


class RedisPair:
    """One Redis that is no cluster, and its replica.

    Args:
        directory: for both.
        options: of both.
        password: as for `RedisNode`.
    """

    def __init__(self, directory: Path, *options: str, password: str | None = None) -> None:
        self.master = RedisNode(directory / "master", *options, password=password)
        self.replica = RedisNode(
            directory / "replica", "--replicaof", f"127.0.0.1 {self.master.port}", *options, password=password
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.close)
            self.master.start()
            self.replica.start()
            wait_until(self.is_healthy, lambda: f"the replica does not come up:\n{self.replica.log}", pause_s=POLL_S)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """For `--engine`."""
        return self.master.url

    def is_healthy(self) -> bool:
        """Whether the master has its replica."""
        return _has_replica(self.master)

    def close(self) -> None:
        """Ends both."""
        self.master.close()
        self.replica.close()


@dataclass(frozen=True)
class Seen:
    """What a node knows of one of its cluster, itself perhaps."""

    id: str
    port: int
    flags: frozenset[str]
    master: str | None
    linked: bool
    slots: frozenset[int]


class RedisCluster:
    """Three masters, each with a replica. Starting takes a little more than the 2 s that a master waits anyway.

    Args:
        directory: for all nodes.
        options: of all nodes.
        password: as for `RedisNode`.
        node_timeout_ms: after so long without an answer a node is held to be down; on a busy machine they sleep long.
            See `notice_soon` for the tests in which one is to be missed.
    """

    MASTERS = 3

    def __init__(
        self, directory: Path, *options: str, password: str | None = None, node_timeout_ms: int = 15_000
    ) -> None:
        self.password = password
        self._node_timeout_ms = node_timeout_ms
        self._ids: dict[RedisNode, str] = {}
        for number in range(2 * self.MASTERS):
            node = RedisNode(directory / f"node{number}", password=password)
            node._options = (
                *("--cluster-enabled", "yes", "--cluster-port", str(node.bus_port)),
                *("--cluster-node-timeout", str(node_timeout_ms), "--cluster-replica-validity-factor", "0"),
                *options,
            )
            self._ids[node] = hashlib.sha1(str(node.directory).encode()).hexdigest()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.close)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nodes(self) -> list[RedisNode]:
        """All six, whether they run or not."""
        return list(self._ids)

    @property
    def masters(self) -> list[RedisNode]:
        """Those that are masters now by their own account, with slots, in the order of their slots."""
        own = {node: seen for node in self.nodes if (seen := self._own(node)) and not seen.master and seen.slots}
        return sorted(own, key=lambda node: min(own[node].slots))

    @property
    def url(self) -> str:
        """For `--engine`: the addresses of the first three nodes."""
        return url_of(self.nodes[: self.MASTERS])

    def id_of(self, node: RedisNode) -> str:
        """A node's name in the cluster."""
        return self._ids[node]

    def start(self) -> None:
        """Starts all nodes, each with the whole cluster in its file, and returns when they have found each other."""
        for number, node in enumerate(self.nodes):
            node.directory.mkdir(parents=True, exist_ok=True)
            (node.directory / "nodes.conf").write_text("".join(self._table(number)))
            node.launch()
        for node in self.nodes:
            node.wait_until_answering()
        self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        """Returns when it is."""
        wait_until(self.is_healthy, self._complaint, pause_s=POLL_S)

    def is_healthy(self) -> bool:
        """Whether all that run agree, all slots are served by them, and each master has its replica, but for as many as
        there are nodes that do not run."""
        running = {self._ids[node]: node for node in self.nodes if node.is_running}
        with suppress(OSError, RedisError):
            if any(b"cluster_state:ok" not in node.do("CLUSTER", "INFO") for node in running.values()):
                return False
            views = [_view(node) for node in running.values()]
            shapes = {frozenset((seen.id, seen.master, seen.slots) for seen in view if seen.linked) for view in views}
            masters = [running.get(seen.id) for seen in views[0] if seen.slots]
            alone = [node for node in masters if node is None or not _has_replica(node)]
            dead = len(self.nodes) - len(running)
            return len(shapes) == 1 and None not in masters and len(masters) == self.MASTERS and len(alone) <= dead
        return False

    def master_of(self, key: bytes) -> RedisNode:
        """The master that has a key's slot."""
        return self.master_of_slot(slot_of(key))

    def master_of_slot(self, slot: int) -> RedisNode:
        """The master that has a slot."""
        for node in self.nodes:
            own = self._own(node)
            if own is not None and own.master is None and slot in own.slots:
                return node
        raise AssertionError(f"nobody has slot {slot}")

    def replica_of(self, master: RedisNode) -> RedisNode:
        """The replica of a master."""
        for node in self.nodes:
            own = self._own(node)
            if own is not None and own.master == self._ids[master]:
                return node
        raise AssertionError(f"{master} has no replica")

    def do(self, name: str, key: bytes, *words: Word) -> Any:
        """Has a command done by the master of its key."""
        return self.master_of(key).do(name, key, *words)

    def key_on(self, master: RedisNode, prefix: str = "key") -> bytes:
        """A key that belongs to a master."""
        own = self._own(master)
        assert own is not None, f"{master} does not answer"
        return next(key for key in _keys(prefix) if slot_of(key) in own.slots)

    def flush(self) -> None:
        """Removes all data."""
        for node in self.masters:
            node.do("FLUSHALL")

    def migrate_slot(self, slot: int, target: RedisNode, *, half: bool = False) -> Migration:
        """Moves a slot and its keys to another master, as resharding does.

        Args:
            slot: its number.
            target: the master that gets it.
            half: to stop in the middle, with half of the keys moved: for those, and for keys that do not exist, the
                old master answers ASK. `finish` does the rest.
        """
        migration = Migration(self, slot, self.master_of_slot(slot), target)
        if half:
            migration.move(len(migration.keys()) // 2)
        else:
            migration.finish()
        return migration

    def fail_over(self, master: RedisNode) -> RedisNode:
        """Kills a master; returns the replica that is going to take its place, before long."""
        replica = self.replica_of(master)
        master.kill()
        self.notice_soon()
        return replica

    def notice_soon(self) -> None:
        """Has the others miss who is dead or stuck before long; until `revive` that may befall who is only slow."""
        self._set_node_timeout(1500)

    def revive(self) -> None:
        """Has those that are paused go on, starts those again that were killed, and returns when all is well."""
        for node in self.nodes:
            node.revive()
        for node in self.nodes:
            node.wait_until_answering()
        self._set_node_timeout(self._node_timeout_ms)
        self.wait_until_healthy()

    def close(self) -> None:
        """Ends all nodes."""
        for node in self.nodes:
            node.close()

    def _table(self, myself: int) -> Iterator[str]:
        """The lines of a node's nodes.conf, in which everybody knows everybody."""
        ids, bounds = list(self._ids.values()), [SLOTS * part // self.MASTERS for part in range(self.MASTERS + 1)]
        for number, node in enumerate(self.nodes):
            address = f"127.0.0.1:{node.port}@{node.bus_port}"
            me = "myself," if number == myself else ""
            if number < self.MASTERS:
                slots = f"{bounds[number]}-{bounds[number + 1] - 1}"
                yield f"{ids[number]} {address} {me}master - 0 0 {number + 1} connected {slots}\n"
            else:
                number -= self.MASTERS
                yield f"{self._ids[node]} {address} {me}slave {ids[number]} 0 0 {number + 1} connected\n"
        yield f"vars currentEpoch {self.MASTERS} lastVoteEpoch 0\n"

    def _set_node_timeout(self, timeout_ms: int) -> None:
        for node in self.nodes:
            if node.is_running:
                node.do("CONFIG", "SET", "cluster-node-timeout", timeout_ms)

    def _own(self, node: RedisNode) -> Seen | None:
        """What a node says of itself, None when it says nothing."""
        if node.is_running:
            with suppress(OSError, RedisError):
                return next(seen for seen in _view(node) if "myself" in seen.flags)
        return None

    def _complaint(self) -> str:
        views = [f"{node}:\n{node.do('CLUSTER', 'NODES').decode()}" for node in self.nodes if node.is_running]
        return "the cluster is not healthy:\n" + "\n".join(views)


class Migration:
    """A slot on its way from one master to another."""

    def __init__(self, cluster: RedisCluster, slot: int, source: RedisNode, target: RedisNode) -> None:
        self._cluster, self._slot, self._source, self._target = cluster, slot, source, target
        target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))

    def keys(self) -> list[bytes]:
        """Those that are still with the old master."""
        keys: list[bytes] = self._source.do("CLUSTER", "GETKEYSINSLOT", self._slot, 1_000_000)
        return keys

    def move(self, count: int) -> None:
        """Moves some keys."""
        for key in self.keys()[:count]:
            self.move_key(key)

    def move_key(self, key: bytes) -> None:
        """Moves one key."""
        auth = ("AUTH", self._cluster.password) if self._cluster.password is not None else ()
        self._source.do("MIGRATE", "127.0.0.1", self._target.port, key, 0, int(WITHIN_S * 1000), *auth)

    def finish(self) -> None:
        """Moves what is left, and gives the slot away."""
        while keys := self.keys():
            self.move(len(keys))
        others = [node for node in self._cluster.masters if node not in (self._target, self._source)]
        for node in (self._target, self._source, *others):
            node.do("CLUSTER", "SETSLOT", self._slot, "NODE", self._cluster.id_of(self._target))


def _has_replica(node: RedisNode) -> bool:
    with suppress(OSError, RedisError):
        return "state=online" in node.info("replication").get("slave0", "")
    return False


def _view(node: RedisNode) -> list[Seen]:
    """All nodes, as one of them sees the cluster."""
    return [_seen(line.split()) for line in node.do("CLUSTER", "NODES").decode().splitlines()]


def _seen(words: list[str]) -> Seen:
    name, address, flags, master, *_, link = words[:8]
    slots: set[int] = set()
    for word in words[8:]:
        if not word.startswith("["):  # else it is on its way
            first, _, last = word.partition("-")
            slots.update(range(int(first), int(last or first) + 1))
    return Seen(
        id=name,
        port=int(address.partition("@")[0].rpartition(":")[2]),
        flags=frozenset(flags.split(",")),
        master=None if master == "-" else master,
        linked=link == "connected" and not {"fail", "fail?"} & set(flags.split(",")),
        slots=frozenset(slots),
    )


def _keys(prefix: str) -> Iterator[bytes]:
    number = 0
    while True:
        yield f"{prefix}{number}".encode()
        number += 1
