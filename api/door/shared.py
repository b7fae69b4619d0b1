"""What the connections of a door have in common, handed to each of them: so that none has to know the door."""

from __future__ import annotations

import functools
import select

import trio

from api.dialects import answers
from api.dialects.answers import Answer
from api.dialects.request import Request
from api.door.early import Early
from api.door.held import AheadBytes, UnsentBytes
from api.door.relay import Relay
from api.door.request import RequestHead, read_head
from api.door.responses import Responses
from api.door.settings import DoorSettings
from api.door.timers import Timers
from api.door.turns import Turns
from api.http.judge import Judge
from api.http.probes import Probes
from api.http.refusals import Refusals
from api.http.service import Service
from engine.face import Face
from engine.replies import Reply

HEADS_REMEMBERED = 256


class Shared:
    """What connections share.

    Args:
        service: answers bodies; its engine is the door's as well.
        probes: answers probes.
        settings: access and deadlines.

    Attributes:
        service, probes, settings: these.
        early: what came while the server starts; None when it is open.
        engine: what runs the commands; there when it is open.
        relay: to the application; there when it is open.
        epoll: where connections register their sockets.
        timers: where they arm their deadlines; it has the time.
        turns: where they are put off who have more to do than a share of a turn.
        unsent: where they note what their clients do not read.
        ahead: where they note what came and is not started.
        responses: makes responses of answers.
        refusals: counts those that refuse a request.
        read_head: judges a head. Heads are remembered by their bytes: clients send the same ones again and again.
        nursery: where requests that take a task get it; there while the door serves.
    """

    engine: Face
    relay: Relay

    def __init__(self, service: Service, probes: Probes, settings: DoorSettings) -> None:
        self.service = service
        self.probes = probes
        self.settings = settings
        self.early: Early | None = Early(service.budget)
        self.epoll = select.epoll()
        self.timers = Timers(settings.tick_s, settings.keep_alive_s)
        self.turns = Turns()
        self.unsent = UnsentBytes()
        self.ahead = AheadBytes()
        self.responses = Responses()
        self.refusals = Refusals()
        self._judge = Judge(settings.access, service.limits.body_bytes_max)
        self.read_head = functools.lru_cache(HEADS_REMEMBERED)(self._read_head)
        self.nursery: trio.Nursery
        self._wording = trio.CapacityLimiter(1)

    async def open(self, relay: Relay) -> None:
        """Starts what came early, in its order and a turn's worth at a time, and lets everything in from now on.

        Args:
            relay: to the application; the service has its engine.
        """
        self.engine, self.relay = self.service.engine, relay
        assert self.early is not None
        await self.early.start()
        self.early = None

    def _read_head(self, data: bytes) -> RequestHead:
        return read_head(data, self._judge)

    async def word(self, request: Request, reply: Reply) -> Answer:
        """Makes a long answer; one of all clients' in a turn of the event loop.

        Args:
            request: what was asked.
            reply: what the engine answered.
        """
        async with self._wording:
            return answers.answer(request, reply)
