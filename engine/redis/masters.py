"""The masters: a link to each, who owns which slot, and what can be said of all of them together."""

from __future__ import annotations

import trio

from engine.redis.endpoint import Address
from engine.redis.link import Link, LinkOwner, LinkSettings
from engine.redis.topology import Topology

UNFINISHED = "it holds an import that was not finished: finish it with the same command, or empty it"

UNUSED_S = 10.0
"""A link to a node that is no master of any slot is given up when nobody was sent there for so long."""


class Masters:
    """All nodes that there are links to.

    Args:
        settings: of the links.
        owner: of the links.

    Attributes:
        topology: as known.
        links: to masters, and to nodes to which slots are being moved.
        importing: whether somebody is moving in, or has begun to.
        nursery: in which the links run; set before the first one is made.
    """

    def __init__(self, settings: LinkSettings, owner: LinkOwner) -> None:
        self.topology = Topology(True, [])
        self.links: dict[Address, Link] = {}
        self.importing = False
        self.nursery: trio.Nursery
        self._settings = settings
        self._owner = owner

    def link_to(self, address: Address) -> Link:
        """The link to a node; it is made if there is none."""
        link = self.links.get(address)
        if link is None:
            link = self.links[address] = Link(address, self._settings, self._owner)
            self.nursery.start_soon(link.run)
        return link

    def link_of(self, slot: int) -> Link | None:
        """The link to the master of a slot, if it has one."""
        address = self.topology.owner(slot)
        return None if address is None else self.links.get(address)

    def retire_unused(self) -> None:
        """Gives up links to nodes that are no masters any more."""
        unused_s = trio.current_time() - UNUSED_S
        for address, link in list(self.links.items()):
            if address not in self.topology.masters and link.posted_s < unused_s:
                link.retire()
                del self.links[address]

    @property
    def up(self) -> list[Link]:
        """Links to masters that can be reached."""
        return [link for link in self.links.values() if link.up and link.address in self.topology.masters]

    @property
    def fault(self) -> str:
        """What is wrong with the cluster as a whole, in words; empty when every key can be reached."""
        for address in self.topology.masters:
            link = self.links.get(address)
            if link is None or not link.up:
                return (link and link.fault) or f"{address} is being connected to"
            if link.vitals.lack:
                return link.vitals.lack
        if None in self.topology.owners:
            return f"{self.topology.owners.count(None)} slots are served by no node"
        return UNFINISHED if self.importing else ""

    @property
    def full(self) -> str:
        """Which master has no room for writes that grow, in words; empty when all have."""
        full = [
            address for address in self.topology.masters if address in self.links and self.links[address].vitals.full
        ]
        refused = "commands that store something are refused with 507; reads, pops and deletes go on"
        return f"{full[0]} has reached its maxmemory: {refused}" if full else ""

    @property
    def keys(self) -> int:
        """How many keys there were at the last look."""
        return sum(self.links[address].vitals.keys for address in self.topology.masters if address in self.links)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way to any master that can be reached."""
        return not any(link.up and link.busy for link in self.links.values())

    def config(self, name: str) -> str:
        """What the masters say about themselves: one word, or several with slashes where they differ."""
        said = {
            self.links[address].vitals.config.get(name, "unknown")
            for address in self.topology.masters
            if address in self.links
        }
        return "/".join(sorted(said)) or "unknown"
