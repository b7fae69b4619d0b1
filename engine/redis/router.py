"""The router: sends each request to the master of its slot.

What a node refuses because a slot is elsewhere, or on its way, has not been done: it is sent on, or tried again a
moment later. What got lost is not sent again: that would do it twice. Who the masters are, the keeper keeps up with.

When a replica takes over because it was told to, there is a moment in which some node takes the slots for nobody's, or
the new master has no replica yet. Requests wait for that moment to pass. What lasts longer is a fault, and they are
refused at once until some time has passed without one.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Protocol

import trio
from coredis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ReadOnlyError, TryAgainError

from engine.redis.endpoint import Address, Endpoint
from engine.redis.errors import NotSent, NotYet
from engine.redis.keeper import Keeper
from engine.redis.link import Link, LinkSettings
from engine.redis.masters import Masters
from engine.redis.request import Request
from engine.redis.scripts import SCRIPTS

SENT_ON_MAX = 8
"""How often a request is sent on before its slot counts as nobody's."""

TRY_AGAIN_S = 0.1
TRY_AGAIN_MAX = 20
"""A slot that is being moved is tried again so often, with such pauses."""

HANDOVER_S = 2.0
"""For a replica to take over from a master that hands over to it."""

FAULT_OVER_S = 5.0
"""Without a refusal for so long, the next one is taken for the beginning of another handover."""

SENT_AT_ONCE_MAX = 256
"""Requests that waited are sent so many at a time; then others have their turn."""

ROUND_TRIPS_KEPT = 1024
"""Durations, for percentiles."""


class RouterOwner(Protocol):
    """Whom the router tells what happens."""

    def link_up(self, address: Address) -> None:
        """A master can be reached, for the first time or again; or it takes writes again."""

    def slots_moved(self, slots: set[int]) -> None:
        """Slots have another master than before, or will have: what does not exist there yet is made at the new one."""

    def key_changed(self, key: bytes | None) -> None:
        """See `LinkOwner`."""


class Router:
    """Has requests answered by the masters of their slots.

    Args:
        endpoint: nodes to ask at first.
        settings: of the links.
        owner: is told what happens.

    Attributes:
        masters: where requests are sent.
        redirections, retries, connections_lost, round_trips, requests: counts since the start.
    """

    def __init__(self, endpoint: Endpoint, settings: LinkSettings, owner: RouterOwner) -> None:
        self.masters = Masters(settings, self)
        self.redirections = self.retries = self.connections_lost = 0
        self.round_trips = self.requests = 0
        self._owner = owner
        self._keeper = Keeper(endpoint, settings, self.masters, owner.slots_moved)
        self._durations_s: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)
        self._waiting: deque[Request] = deque()  # to be sent once more
        self._is_sending_again = False
        self._handover_began_s = self._refused_s = -math.inf  # the first refusal since it began, and the last one

    # Sending

    def slot_of(self, key: bytes) -> int:
        """The slot of a key."""
        return self.masters.topology.slot_of(key)

    def post(self, request: Request) -> None:
        """Sends a request; what becomes of it comes by `request.done`, also from within."""
        address = self.masters.topology.owner(request.slot)
        if address is None:
            self.answered(request, NotYet("no node serves the slot of this key"))
        else:
            self.masters.link_to(address).post(request)

    def is_up(self, slot: int) -> bool:
        """Whether the master of a slot can be reached."""
        link = self.masters.link_of(slot)
        return link is not None and link.up

    def takes_writes(self, slot: int) -> bool:
        """Whether it can be reached, and replicas enough follow it."""
        link = self.masters.link_of(slot)
        return link is not None and link.up and not link.vitals.abandoned

    # For links

    def answered(self, request: Request, result: Any) -> None:
        """Hands a result on, unless the request has to be sent on."""
        if not isinstance(result, Exception):
            request.done(result)
        elif isinstance(result, AskError) and self.masters.topology.cluster and request.sent_on < SENT_ON_MAX:
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
            request.sent_on += 1
            self._send_again(request)
        elif isinstance(result, (ClusterDownError, NotYet)) and request.slot >= 0 and self._is_handover():
            self._send_again(request)
        else:
            request.done(result)

    def _send_on(self, request: Request, error: AskError) -> None:
        self.redirections += 1
        request.sent_on += 1
        address = self._address_in(error, request.slot)
        request.asking = not isinstance(error, MovedError)
        if not request.asking:
            self.masters.topology.move(error.slot_id, address)
            self._keeper.topology_changed()
            self._owner.slots_moved({error.slot_id})
        elif error.slot_id not in self._keeper.leaving:
            self._keeper.leaving.add(error.slot_id)
            self._owner.slots_moved({error.slot_id})
        self.masters.link_to(address).post(request)

    def _address_in(self, error: AskError, slot: int) -> Address:
        """Where a node sends us on to; it may leave out the host if that is its own."""
        owner = self.masters.topology.owner(slot)
        host = error.host if error.host not in ("", "?") else owner.host if owner else ""
        return Address(host, error.port)

    def _is_handover(self) -> bool:
        """Whether a refusal is likely to be over in a moment; has it looked what is going on."""
        self._keeper.look_soon()
        now_s = trio.current_time()
        if now_s >= self._refused_s + FAULT_OVER_S:
            self._handover_began_s = now_s
        self._refused_s = now_s
        return now_s < self._handover_began_s + HANDOVER_S

    def _send_again(self, request: Request) -> None:
        """Has a request sent once more, in a moment."""
        self.retries += 1
        request.asking = False
        self._waiting.append(request)
        self._keeper.look_soon()
        if not self._is_sending_again:
            self._is_sending_again = True
            self.masters.nursery.start_soon(self._send_waiting)

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await trio.sleep(TRY_AGAIN_S)
                for sent in range(len(self._waiting)):  # what is refused once more waits for the next time
                    if sent and not sent % SENT_AT_ONCE_MAX:
                        await trio.lowlevel.checkpoint()
                    self.post(self._waiting.popleft())
        except trio.Cancelled:
            while self._waiting:
                self._waiting.popleft().done(NotSent("the server is shutting down"))
            raise
        finally:
            self._is_sending_again = False

    def link_up(self, link: Link) -> None:
        """Part of `LinkOwner`."""
        self._owner.link_up(link.address)

    def link_down(self, _link: Link) -> None:
        """Part of `LinkOwner`."""
        self.connections_lost += 1
        self._keeper.look_soon()

    def key_changed(self, key: bytes | None) -> None:
        """Part of `LinkOwner`."""
        self._owner.key_changed(key)

    def round_trip(self, duration_s: float, requests: int) -> None:
        """Part of `LinkOwner`."""
        self.round_trips += 1
        self.requests += requests
        self._durations_s.append(duration_s)

    # Keeping up, and telling

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Connects, then keeps up with the topology until it is cancelled.

        Raises:
            ClusterError: at the start, nobody could be reached, let us in, or will do; it may be in a group.
        """
        await self._keeper.run(task_status)

    def percentile_ms(self, percent: int) -> float:
        """A percentile of the last round trips, in milliseconds; 0 before the first."""
        durations_s = sorted(self._durations_s)
        if not durations_s:
            return 0.0
        return round(durations_s[min(len(durations_s) - 1, len(durations_s) * percent // 100)] * 1000, 3)
