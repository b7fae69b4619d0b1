"""The router: sends each request to the master of its slot, and keeps up with who that is.

What a node refuses because a slot is elsewhere, or on its way, has not been done: it is sent on, or tried again a
moment later. What got lost is not sent again: that would do it twice. The keeper looks every two seconds, and
at once when something breaks or a node says MOVED, who the masters are, and whether they still answer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import trio
from coredis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ReadOnlyError, TryAgainError

from engine.redis.endpoint import Address, Endpoint
from engine.redis.errors import ClusterError, NotSent
from engine.redis.format import IMPORT_KEY
from engine.redis.link import Link, LinkSettings
from engine.redis.node import TurnedAway
from engine.redis.request import Request
from engine.redis.scripts import SCRIPTS
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

SENT_ON_MAX = 8
"""How often a request is sent on before its slot counts as nobody's."""

TRY_AGAIN_S = 0.1
TRY_AGAIN_MAX = 20
"""A slot that is being moved is tried again so often, with such pauses."""

ROUND_TRIPS_KEPT = 1024
"""Durations, for percentiles."""

UNFINISHED = "it holds an import that was not finished: finish it with the same command, or empty it"

UNUSED_S = 10.0
"""A link to a node that is no master of any slot is given up when nobody was sent there for so long."""

_logger = logging.getLogger("holdfast.redis")


class RouterOwner(Protocol):
    """Whom the router tells what happens."""

    def link_up(self, address: Address) -> None:
        """A master can be reached, for the first time or again; or it takes writes again."""

    def slots_moved(self, slots: set[int]) -> None:
        """Slots have another master than before, or will have: what does not exist there yet is made at the new one."""

    def key_changed(self, key: bytes | None) -> None:
        """See `LinkOwner`."""


class Router:
    """Links to all masters, and who owns which slot.

    Args:
        endpoint: nodes to ask at first.
        settings: of the links.
        owner: is told what happens.

    Attributes:
        topology: as known.
        links: to masters, and to nodes to which slots are being moved.
        redirections, retries, connections_lost, round_trips, requests: counts since the start.
    """

    def __init__(self, endpoint: Endpoint, settings: LinkSettings, owner: RouterOwner) -> None:
        self.topology = Topology(True, [])
        self.links: dict[Address, Link] = {}
        self.redirections = self.retries = self.connections_lost = 0
        self._endpoint = endpoint
        self._settings = settings
        self._owner = owner
        self._nursery: trio.Nursery
        self._wish = trio.Event()
        self._importing = False
        self._looks = 0
        self._leaving: set[int] = set()  # slots of which a node has said ASK since the last look
        self._slots: object = None  # what the topology was read from, unless it has changed since
        self.round_trips = self.requests = 0
        self._durations_s: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)

    # Sending

    def slot_of(self, key: bytes) -> int:
        """The slot of a key."""
        return self.topology.slot_of(key)

    def post(self, request: Request) -> None:
        """Sends a request; what becomes of it comes by `request.done`, also from within."""
        address = self.topology.owner(request.slot)
        if address is None:
            self._wish.set()
            request.done(NotSent("no node serves the slot of this key"))
        else:
            self._link_to(address).post(request)

    def is_up(self, slot: int) -> bool:
        """Whether the master of a slot can be reached."""
        link = self._link_of(slot)
        return link is not None and link.up

    def takes_writes(self, slot: int) -> bool:
        """Whether it can be reached, and replicas enough follow it."""
        link = self._link_of(slot)
        return link is not None and link.up and not link.vitals.abandoned

    def _link_of(self, slot: int) -> Link | None:
        address = self.topology.owner(slot)
        return None if address is None else self.links.get(address)

    def _link_to(self, address: Address) -> Link:
        link = self.links.get(address)
        if link is None:
            link = self.links[address] = Link(address, self._settings, self)
            self._nursery.start_soon(link.run)
        return link

    # For links

    def answered(self, request: Request, result: Any) -> None:
        """Hands a result on, unless the request has to be sent on."""
        if not isinstance(result, Exception):
            request.done(result)
        elif isinstance(result, AskError) and self.topology.cluster and request.sent_on < SENT_ON_MAX:
            self._send_on(request, result)
        elif isinstance(result, NoScriptError) and request.sent_on < SENT_ON_MAX:
            request.sent_on += 1
            digest, *words = request.serialized_arguments
            request.name = b"EVAL"
            request.serialized_arguments = (SCRIPTS[digest].source, *words)  # type: ignore[index]  # it was an EVALSHA
            self.post(request)
        elif isinstance(result, TryAgainError) and request.divisible:
            request.done(result)
        elif isinstance(result, (TryAgainError, ReadOnlyError)) and request.sent_on < TRY_AGAIN_MAX:
            self._wish.set()
            self._nursery.start_soon(self._try_again, request)
        else:
            if isinstance(result, ClusterDownError):
                self._wish.set()
            request.done(result)

    def _send_on(self, request: Request, error: AskError) -> None:
        self.redirections += 1
        request.sent_on += 1
        address = self._address_in(error, request.slot)
        request.asking = not isinstance(error, MovedError)
        if not request.asking:
            self.topology.move(error.slot_id, address)
            self._slots = None
            self._wish.set()
            self._owner.slots_moved({error.slot_id})
        elif error.slot_id not in self._leaving:
            self._leaving.add(error.slot_id)
            self._owner.slots_moved({error.slot_id})
        self._link_to(address).post(request)

    def _address_in(self, error: AskError, slot: int) -> Address:
        """Where a node sends us on to; it may leave out the host if that is its own."""
        owner = self.topology.owner(slot)
        host = error.host if error.host not in ("", "?") else owner.host if owner else ""
        return Address(host, error.port)

    async def _try_again(self, request: Request) -> None:
        self.retries += 1
        request.sent_on += 1
        request.asking = False
        try:
            await trio.sleep(TRY_AGAIN_S)
        except trio.Cancelled:
            request.done(NotSent("the front is shutting down"))
            raise
        self.post(request)

    def link_up(self, link: Link) -> None:
        """Part of `LinkOwner`."""
        self._owner.link_up(link.address)

    def link_down(self, _link: Link) -> None:
        """Part of `LinkOwner`."""
        self.connections_lost += 1
        self._wish.set()

    def key_changed(self, key: bytes | None) -> None:
        """Part of `LinkOwner`."""
        self._owner.key_changed(key)

    def round_trip(self, duration_s: float, requests: int) -> None:
        """Part of `LinkOwner`."""
        self.round_trips += 1
        self.requests += requests
        self._durations_s.append(duration_s)

    # Keeping up

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Connects, then keeps up with the topology until it is cancelled.

        Raises:
            ClusterError: at the start, nobody could be reached, let us in, or will do; it may be in a group.
        """
        self.topology = await self._first_look()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for address in self.topology.masters:
                self._link_to(address)
            with trio.move_on_after(START_WITHIN_S):
                for link in list(self.links.values()):
                    await link.tried.wait()
            if not any(link.up for link in self.links.values()):
                raise ClusterError(self.fault)
            await self._refresh()
            if self._importing:
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
        self._leaving.clear()
        topology = await self._look()
        if topology is not None:
            moved = {slot for slot, owner in enumerate(self.topology.owners) if topology.owners[slot] != owner}
            self.topology = topology
            for address in topology.masters:
                self._link_to(address)
            if moved:
                self._owner.slots_moved(moved)
        unused_s = trio.current_time() - UNUSED_S
        for address, link in list(self.links.items()):
            if address not in self.topology.masters and link.posted_s < unused_s:
                link.retire()
                del self.links[address]

    async def _look(self) -> Topology | None:
        """Asks all masters whether they are there, and how many keys they have; and who they think is who."""
        up = [link for link in self.links.values() if link.up and link.address in self.topology.masters]
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
        if not self.topology.cluster:
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
        owner = self.topology.owner(self.slot_of(IMPORT_KEY))
        if owner in self.links and self.links[owner].up:
            [kind] = await self._ask([self.links[owner]], b"TYPE", IMPORT_KEY)
            if isinstance(kind, bytes):
                self._importing = kind != b"none"

    async def _look_afresh(self) -> Topology | None:
        addresses = (*self.topology.nodes, *self._endpoint.addresses)
        self._slots = None
        try:
            found = await discover(addresses, self._settings.connection_options)
        except ClusterError:
            return None  # the links say what is wrong
        return found if found.cluster == self.topology.cluster else None

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

    # Telling

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
        return UNFINISHED if self._importing else ""

    @property
    def full(self) -> str:
        """Which master has no room for writes that grow, in words; empty when all have."""
        full = [
            address for address in self.topology.masters if address in self.links and self.links[address].vitals.full
        ]
        return f"{full[0]} has reached its maxmemory; what does not grow goes on" if full else ""

    @property
    def keys(self) -> int:
        """How many keys there were at the last look."""
        return sum(self.links[address].vitals.keys for address in self.topology.masters if address in self.links)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way to any master that can be reached."""
        return not any(link.up and link.busy for link in self.links.values())

    def percentile_ms(self, percent: int) -> float:
        """A percentile of the last round trips, in milliseconds; 0 before the first."""
        durations_s = sorted(self._durations_s)
        if not durations_s:
            return 0.0
        return round(durations_s[min(len(durations_s) - 1, len(durations_s) * percent // 100)] * 1000, 3)

    def config(self, name: str) -> str:
        """What the masters say about themselves: one word, or several with slashes where they differ."""
        said = {
            self.links[address].vitals.config.get(name, "unknown")
            for address in self.topology.masters
            if address in self.links
        }
        return "/".join(sorted(said)) or "unknown"
