"""A link: the one connection to a master, over which everything for it goes.

    post -> outbox -> sender: a group, one pipeline -> node
                      receiver: its answers, in order <- node -> answered
                      listener: keys that have changed <- node -> key_changed

Requests of one turn of the event loop go in one group, and a few groups are under way at once. What the answers to one
make of its requests, group.py says.

The rules that hold here:

- A request is answered exactly once. When the connection breaks, those that were sent are `Lost`, the rest `NotSent`;
  nothing is ever sent twice from here.
- What a broken connection has sent, and the node has not read yet, is never done after the next one is up: the node is
  told to drop the old connection first. So whoever then looks whether a lost request was done gets a final answer.
- While the first attempt to connect is under way requests wait; once one has failed they are refused until one
  succeeds.
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from coredis.connection import TCPConnection
from coredis.exceptions import RedisError

from engine.redis.endpoint import Address
from engine.redis.errors import ClusterError, Lost, NotSent, NotYet
from engine.redis.group import GROUP_MAX, Group, next_count_max, next_requests
from engine.redis.node import ANSWER_TIMEOUT_S, FRONT_NAME, Simple, check_version, connect, fault, send
from engine.redis.request import Request
from engine.redis.scripts import SCRIPTS
from engine.redis.vitals import CONFIG, MEMORY, ROLE, SIZE, Vitals

GROUPS_UNDER_WAY_MAX = 2
"""Pipelines sent and not answered yet; the next commands gather meanwhile. With four, pipelines are half as long, and a
SET takes 50 microseconds of our time instead of 35.
"""

RECONNECT_S = (0.05, 0.5)
"""First and longest pause between two attempts to connect."""

LOOK_AGAIN_S = 0.25
"""Between two looks at the replicas for writes that are refused, which may come by thousands a second."""

_LAST_ANSWERS_S = 1.0
"""For answers that came before the connection broke; it takes some turns of the event loop."""

_logger = logging.getLogger("holdfast.redis")


class LinkOwner(Protocol):
    """Whom a link tells what happens to it."""

    def link_up(self, link: Link) -> None:
        """It is connected; nothing that was lost is going to be done any more. Or it takes writes again."""

    def link_down(self, link: Link) -> None:
        """It has lost its connection, or failed to make one."""

    def answered(self, request: Request, result: Any) -> None:
        """What became of a request: its answer, an error of Redis, or one of `engine.redis.errors`."""

    def key_changed(self, key: bytes | None) -> None:
        """A key that was read with `Request.tracked` has changed since; None is any of them."""

    def round_trip(self, duration_s: float, requests: int) -> None:
        """A group was answered."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What all links are made with.

    Attributes:
        connection_options: `Endpoint.connection_options`.
        min_replicas: that have to have a write before it is answered.
        answer_timeout_s: see `ANSWER_TIMEOUT_S`.
    """

    connection_options: Mapping[str, Any]
    min_replicas: int = 0
    answer_timeout_s: float = ANSWER_TIMEOUT_S


class Link:
    """The connection to one master.

    Args:
        address: of the node.
        settings: see there.
        owner: is told what happens.

    Attributes:
        up: whether it is connected.
        fault: why not, in words; empty before the first attempt has failed.
        tried: set when the first attempt has come to its end.
        posted_s: trio time of the last `post`.
        vitals: what the node says about itself.
    """

    def __init__(self, address: Address, settings: LinkSettings, owner: LinkOwner) -> None:
        self.address = address
        self.up = False
        self.fault = ""
        self.tried = trio.Event()
        self.vitals = Vitals(address, settings.min_replicas)
        self._settings = settings
        self._owner = owner
        self._outbox: deque[Request] = deque()
        self._posted = trio.Event()
        self._under_way: deque[Group] = deque()
        self._requests_max = GROUP_MAX
        self._looking = False  # whether it has been asked who follows, and has not answered yet
        self._looked_s = -math.inf  # when it was asked last
        self._old_client: tuple[bytes | int, ...] = ()  # how CLIENT KILL finds the connection before this one
        self._scope = trio.CancelScope()
        self.posted_s = trio.current_time()

    def post(self, request: Request) -> None:
        """Has a request sent; its result comes by `LinkOwner.answered`, also from within if it is refused.

        While there are too few replicas writes are: all else would wait behind them, and they for nothing. They have it
        looked whether that is still so: of a node that gets its first slot the router asks nothing.
        """
        if self.fault:
            self._owner.answered(request, NotSent(self.fault))
        elif request.writes and not request.insists and self.vitals.abandoned:
            if trio.current_time() >= self._looked_s + LOOK_AGAIN_S:
                self._look_at_replicas()
            self._owner.answered(request, NotYet(self.vitals.abandoned))
        else:
            self.posted_s = trio.current_time()
            self._outbox.append(request)
            self._posted.set()

    @property
    def busy(self) -> bool:
        """Whether something is under way or waits to be sent."""
        return bool(self._under_way or self._outbox)

    def learn(self, size: Any = None, role: Any = None, config: Any = None, memory: Any = None) -> None:
        """Takes note of what the node says about itself, see `Vitals.learn`."""
        took_writes = not self.vitals.abandoned
        self.vitals.learn(size, role, config, memory)
        if self.vitals.abandoned:
            outbox, self._outbox = self._outbox, deque()
            for request in outbox:  # writes would wait a second for each pipeline of them
                self.post(request)
        elif self.up and not took_writes:
            self._owner.link_up(self)

    def retire(self) -> None:
        """Ends `run`: the node is no master any more. What is under way is lost."""
        self._scope.cancel()

    async def run(self) -> None:
        """Keeps the connection up until `retire`."""
        pause_s, longest_s = RECONNECT_S
        try:
            with self._scope:
                while True:
                    began_s = trio.current_time()
                    self._break(await self._run_connection())
                    if trio.current_time() - began_s > longest_s:
                        pause_s = RECONNECT_S[0]
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
        finally:
            self._break("the connection is closed", quietly=True)

    def _break(self, reason: str, *, quietly: bool = False) -> None:
        """Answers everything that is under way or waits; whatever comes now is refused."""
        if self.fault != reason and not quietly:
            _logger.warning("redis: %s", reason)
        self.up, self.fault = False, reason
        self.tried.set()
        groups, self._under_way = self._under_way, deque()
        outbox, self._outbox = self._outbox, deque()
        for group in groups:
            for request in group.requests:
                self._owner.answered(request, Lost(reason))
        for request in outbox:
            self._owner.answered(request, NotSent(reason))
        self._owner.link_down(self)

    # One connection

    async def _run_connection(self) -> str:
        """Serves one connection; returns why it is over."""
        async with trio.open_nursery() as nursery:
            try:
                connection = await connect(
                    self.address, self._settings.connection_options, nursery, self._settings.answer_timeout_s
                )
                await self._set_up(connection)
            except ClusterError as error:
                reason = str(error)
            except (RedisError, OSError, TimeoutError) as error:
                reason = str(fault(self.address, error))
            else:
                _logger.info("redis: connected to %s", self.address)
                to_receiver, sent = trio.open_memory_channel[Group](GROUPS_UNDER_WAY_MAX - 2)  # two are in their hands
                nursery.start_soon(self._receive, sent)
                nursery.start_soon(self._send, connection, to_receiver)
                self.up, self.fault = True, ""
                self.tried.set()
                self._owner.link_up(self)
                reason = await self._listen(connection)
                with trio.move_on_after(_LAST_ANSWERS_S):  # what was answered before it broke is no loss
                    while self._under_way:
                        await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        return reason

    async def _set_up(self, connection: TCPConnection) -> None:
        check_version(self.address, connection)
        commands = [Simple(b"SCRIPT", (b"LOAD", script.source)) for script in SCRIPTS.values()]
        commands.append(Simple(b"CLIENT", (b"TRACKING", b"ON", b"OPTIN")))
        commands.append(Simple(b"CLIENT", (b"INFO",)))
        commands += [Simple(name, tuple(words)) for name, *words in (SIZE, ROLE, CONFIG, MEMORY)]
        commands.insert(0, Simple(b"CLIENT", (b"SETNAME", FRONT_NAME)))
        if self._old_client:
            commands.insert(0, Simple(b"CLIENT", (b"KILL", *self._old_client)))
        *results, info, size, role, config, memory = await send(connection, commands)
        for command, result in zip(commands, results, strict=False):
            if isinstance(result, Exception) and command.serialized_arguments[0] not in (b"KILL", b"SETNAME"):
                raise result
        self._old_client = (b"ID", connection.client_id or 0, *_address_in(info))
        self.vitals.start_again()
        self.learn(size, role, config, memory)

    async def _send(self, connection: TCPConnection, to_receiver: trio.MemorySendChannel[Group]) -> None:
        while True:
            while self._outbox:
                group = Group(next_requests(self._outbox, self._requests_max), self._settings.min_replicas)
                try:
                    group.sent(send(connection, group.commands()))
                except RedisError:  # it broke just now, which the listener is about to see
                    self._outbox.extendleft(reversed(group.requests))
                    return
                self._under_way.append(group)
                await to_receiver.send(group)
            self._posted = trio.Event()
            await self._posted.wait()

    async def _receive(self, sent: trio.MemoryReceiveChannel[Group]) -> None:
        async for group in sent:
            results: Sequence[Any] = await group.batch
            if not self._under_way:  # the connection is over, and everything was answered
                return
            self._under_way.popleft()
            self._requests_max = next_count_max(results)
            self._owner.round_trip(trio.current_time() - group.sent_s, len(group.requests))
            results = group.judge(results, self._lost)
            if not group.followed:
                self._look_at_replicas()
            for request, result in zip(group.requests, results, strict=True):
                self._owner.answered(request, result)
            await trio.lowlevel.checkpoint()

    def _look_at_replicas(self) -> None:
        """Asks who follows, before all else: the keeper asks as well, and does not wait long behind a WAIT."""
        if not self._looking:
            self._looking, self._looked_s = True, trio.current_time()
            self._outbox.appendleft(Request(*ROLE, (), -1, self._looked_at_replicas))
            self._posted.set()

    def _looked_at_replicas(self, role: Any) -> None:
        self._looking = False
        self.learn(role=role)

    def _lost(self, error: Exception) -> Lost:
        self.up = False  # the listener is about to see it as well
        return Lost(str(fault(self.address, error)))

    async def _listen(self, connection: TCPConnection) -> str:
        """Passes on which keys have changed, until the connection is over; returns why it is."""
        try:
            async with aclosing(connection.push_messages) as messages:
                async for message in messages:
                    if message[0] == b"invalidate":
                        keys: Any = message[1]
                        for key in [None] if keys is None else keys:
                            self._owner.key_changed(key)
        except RedisError:  # so it ends, always
            pass
        if connection._terminated:  # by coredis, because an answer did not come in time
            return f"{self.address} does not answer"
        return f"{self.address} has closed the connection"


def _address_in(info: Any) -> tuple[bytes, ...]:
    """How CLIENT KILL is told whom not to mistake for us: when a node starts again, it counts its clients afresh."""
    found = re.search(rb"\baddr=(\S+)", info) if isinstance(info, bytes) else None
    return (b"ADDR", found[1]) if found else ()
