"""Which node is the master of which slot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio
from coredis.exceptions import ResponseError

from engine.redis.endpoint import Address
from engine.redis.errors import ClusterError
from engine.redis.node import Simple, TurnedAway, ask
from engine.redis.slots import SLOTS, slot_of

CLUSTER_SLOTS = Simple(b"CLUSTER", (b"SLOTS",))
ROLE = Simple(b"ROLE", ())


@dataclass(slots=True)
class Topology:
    """A picture of a cluster, or of one Redis with its replicas, which is a cluster of one slot.

    Attributes:
        cluster: whether it is a cluster.
        owners: the master of each slot; None where nobody is.
        nodes: all nodes, masters first.
    """

    cluster: bool
    owners: list[Address | None]
    nodes: tuple[Address, ...] = ()
    masters: tuple[Address, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.masters = tuple(dict.fromkeys(owner for owner in self.owners if owner is not None))

    def slot_of(self, key: bytes) -> int:
        """The slot of a key."""
        return slot_of(key) if self.cluster else 0

    def owner(self, slot: int) -> Address | None:
        """The master of a slot."""
        return self.owners[slot]

    def move(self, slot: int, owner: Address) -> None:
        """Takes note that one slot has another master."""
        self.owners[slot] = owner
        if owner not in self.masters:
            self.masters = (*self.masters, owner)


def read_slots(answer: Any, asked: Address) -> Topology:
    """Makes a topology of the answer to CLUSTER SLOTS.

    Args:
        answer: as it came.
        asked: the node that gave it; it may leave its own name out.

    Raises:
        ClusterError: it is no such answer, for not every service that calls itself Redis is one; or the node knows
            nobody, because it was reset, say.
    """
    try:
        topology = _read_slots(answer, asked)
    except (TypeError, ValueError, LookupError, AttributeError):
        raise ClusterError(f"{asked}: the answer to CLUSTER SLOTS is none") from None
    if not topology.masters:
        raise ClusterError(f"{asked} is a node of a cluster without any slots")
    return topology


def _read_slots(answer: Any, asked: Address) -> Topology:
    owners: list[Address | None] = [None] * SLOTS
    masters: dict[Address, None] = {}
    replicas: dict[Address, None] = {}
    for start, end, *nodes in answer:
        if not 0 <= start <= end < SLOTS:
            raise ValueError
        addresses = [Address(_host_of(node) or asked.host, node[1]) for node in nodes]
        owners[start : end + 1] = [addresses[0]] * (end + 1 - start)
        masters[addresses[0]] = None
        replicas |= dict.fromkeys(addresses[1:])
    return Topology(True, owners, (*masters, *(node for node in replicas if node not in masters)))


def _host_of(node: Any) -> str:
    """The name of a node, or its address if it has none though it should; empty for the one that was asked."""
    host, _port, _id, *more = node
    if host == b"?":
        host = more[0].get(b"ip") if more and isinstance(more[0], dict) else None
    return (host or b"").decode()


async def discover(addresses: Iterable[Address], options: Mapping[str, Any]) -> Topology:
    """Asks nodes, all at once, who is whose master; the first that knows is believed.

    Args:
        addresses: of the nodes to ask.
        options: `Endpoint.connection_options`.

    Returns:
        The topology: of a cluster, or of one Redis that is the first of them to say that it is a master.

    Raises:
        TurnedAway: the nodes that answer do not let us in.
        ClusterError: none of them knows; the message has what each said.
    """
    found: list[Topology] = []
    faults: dict[Address, ClusterError] = {}

    async def question(address: Address, nursery: trio.Nursery) -> None:
        try:
            topology = _understand(address, await ask(address, options, CLUSTER_SLOTS, ROLE))
        except ClusterError as error:
            faults[address] = error
        else:
            found.append(topology)
            nursery.cancel_scope.cancel()

    nodes = tuple(dict.fromkeys(addresses))
    async with trio.open_nursery() as nursery:
        for address in nodes:
            nursery.start_soon(question, address, nursery)
    if found:
        topology = found[0]
        if not topology.cluster:
            topology.nodes = nodes
        return topology
    refused = [error for error in faults.values() if isinstance(error, TurnedAway)]
    raise refused[0] if refused else ClusterError("; ".join(str(error) for error in faults.values()))


def _understand(address: Address, answers: list[Any]) -> Topology:
    slots, role = answers
    if not isinstance(slots, Exception):
        return read_slots(slots, address)
    if not (isinstance(slots, ResponseError) and "cluster support disabled" in str(slots)):
        raise ClusterError(f"{address}: CLUSTER SLOTS: {slots}")
    if isinstance(role, Exception):
        raise ClusterError(f"{address}: ROLE: {role}")
    if not (isinstance(role, list) and role and isinstance(role[0], bytes)):
        raise ClusterError(f"{address}: the answer to ROLE is none")
    if role[0] != b"master":
        raise ClusterError(f"{address} is no master but a {role[0].decode(errors='replace')}")
    return Topology(False, [address])
