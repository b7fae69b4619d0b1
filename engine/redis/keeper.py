"""The keeper keeps up with who the masters are, and whether they still answer.

It looks every two seconds, and at once when something breaks or a node says MOVED, each time asking another master.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from engine.redis.endpoint import Endpoint
from engine.redis.errors import ClusterError
from engine.redis.format import IMPORT_KEY
from engine.redis.link import Link, LinkSettings
from engine.redis.masters import UNFINISHED, Masters
from engine.redis.node import TurnedAway
from engine.redis.request import Request
from engine.redis.topology import Topology, discover, read_slots
from engine.redis.vitals import CONFIG, MEMORY, ROLE, SIZE

START_WITHIN_S = 10.0
"""For somebody to answer when we start."""

REFRESH_S = 2.0
"""Between two looks at the topology when nothing happens."""

REFRESH_SOON_S = 0.2
"""And when something does."""

ASK_WITHIN_S = 1.0
"""For a master to say what we ask to keep up: one that is stuck must not keep us from hearing who has taken over."""

_logger = logging.getLogger("holdfast.redis")


class Keeper:
    """Looks after the masters.

    Args:
        endpoint: nodes to ask at first.
        settings: of the links.
        masters: that it keeps up to date.
        slots_moved: called with slots that have another master than before.

    Attributes:
        leaving: slots of which a node has said ASK since the last look.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: LinkSettings,
        masters: Masters,
        slots_moved: Callable[[set[int]], None],
    ) -> None:
        self.leaving: set[int] = set()
        self._endpoint = endpoint
        self._settings = settings
        self._masters = masters
        self._slots_moved = slots_moved
        self._wish = trio.Event()
        self._looks = 0
        self._slots: object = None  # what the topology was read from, unless it has changed since

    def look_soon(self) -> None:
        """Has it look before long: something may have changed."""
        self._wish.set()

    def topology_changed(self) -> None:
        """Somebody else has changed the topology: it is read again, whatever it was read from the last time."""
        self._slots = None
        self._wish.set()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Connects, then keeps up with the topology until it is cancelled.

        Raises:
            ClusterError: at the start, nobody could be reached, let us in, or will do; it may be in a group.
        """
        self._masters.topology = await self._first_look()
        async with trio.open_nursery() as nursery:
            self._masters.nursery = nursery
            for address in self._masters.topology.masters:
                self._masters.link_to(address)
            with trio.move_on_after(START_WITHIN_S):
                for link in list(self._masters.links.values()):
                    await link.tried.wait()
            if not any(link.up for link in self._masters.links.values()):
                raise ClusterError(self._masters.fault)
            await self._refresh()
            if self._masters.importing:
                raise ClusterError(UNFINISHED)
            task_status.started()
            while True:
                with trio.move_on_after(REFRESH_S):
                    await self._wish.wait()
                self._wish = trio.Event()
                await self._refresh()
                await trio.sleep(REFRESH_SOON_S)

    async def _first_look(self) -> Topology:
        deadline, told = trio.current_time() + START_WITHIN_S, False
        while True:
            try:
                return await discover(self._endpoint.addresses, self._settings.connection_options)
            except TurnedAway:
                raise
            except ClusterError as error:
                if trio.current_time() > deadline:
                    raise
                if not told:
                    _logger.warning("redis: %s; trying again for %d s", error, START_WITHIN_S)
                told = True
            await trio.sleep(0.5)

    async def _refresh(self) -> None:
        self.leaving.clear()
        topology = await self._look()
        if topology is not None:
            moved = {slot for slot, owner in enumerate(self._masters.topology.owners) if topology.owners[slot] != owner}
            self._masters.topology = topology
            for address in topology.masters:
                self._masters.link_to(address)
            if moved:
                self._slots_moved(moved)
        self._masters.retire_unused()

    async def _look(self) -> Topology | None:
        """Asks all masters whether they are there, and how many keys they have; and who they think is who."""
        up = self._masters.up
        sizes = dict(zip(up, await self._ask(up, *SIZE), strict=True))
        there = [link for link, size in sizes.items() if size is not None and link.up]
        if len(there) < len(up):
            self._wish.set()  # somebody is stuck, and a replica may take over any moment
        if not there:
            return await self._look_afresh()
        roles, configs, memories = [await self._ask(there, *question) for question in (ROLE, CONFIG, MEMORY)]
        for link, role, config, memory in zip(there, roles, configs, memories, strict=True):
            link.learn(sizes[link], role, config, memory)
        await self._look_for_import()
        if not self._masters.topology.cluster:
            [role] = roles
            return await self._look_afresh() if isinstance(role, list) and role[:1] != [b"master"] else None
        self._looks += 1
        link = there[self._looks % len(there)]  # not always the same, for that may be the one that has it wrong
        [slots] = await self._ask([link], b"CLUSTER", b"SLOTS")
        if not isinstance(slots, list) or slots == self._slots:
            return None
        self._slots = slots
        try:
            return read_slots(slots, link.address)
        except ClusterError:
            return None  # another one is asked the next time

    async def _look_for_import(self) -> None:
        """Asks whether somebody is moving in."""
        owner = self._masters.topology.owner(self._masters.topology.slot_of(IMPORT_KEY))
        if owner in self._masters.links and self._masters.links[owner].up:
            [kind] = await self._ask([self._masters.links[owner]], b"TYPE", IMPORT_KEY)
            if isinstance(kind, bytes):
                self._masters.importing = kind != b"none"

    async def _look_afresh(self) -> Topology | None:
        addresses = (*self._masters.topology.nodes, *self._endpoint.addresses)
        self._slots = None
        try:
            found = await discover(addresses, self._settings.connection_options)
        except ClusterError:
            return None  # the links say what is wrong
        return found if found.cluster == self._masters.topology.cluster else None

    async def _ask(self, links: list[Link], name: bytes, *words: bytes) -> list[Any]:
        """Has the same asked of several masters at once; who does not answer soon is None."""
        answers: list[Any] = [None] * len(links)
        left = len(links)
        all_there = trio.Event()

        def keep(index: int) -> Callable[[Any], None]:
            def done(result: Any) -> None:
                nonlocal left
                answers[index] = result
                left -= 1
                if not left:
                    all_there.set()

            return done

        for index, link in enumerate(links):
            link.post(Request(name, words, -1, keep(index)))
        if links:
            with trio.move_on_after(ASK_WITHIN_S):
                await all_there.wait()
        return answers
