"""All masters of a cluster, or the one Redis, each with a connection: for the tools, which need nothing that heals.

What goes wrong ends the tool, with a message; it is run again when all is well.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from coredis.connection import TCPConnection
from coredis.connection._request import RequestBatch
from coredis.exceptions import AskError

from engine.commands.grammar import show
from engine.moving.items import InUse, MoveError
from engine.redis.endpoint import Address, Endpoint
from engine.redis.errors import ClusterError
from engine.redis.node import FRONT_NAME, Simple, check_version, connect, fault, is_answer, send
from engine.redis.topology import Topology, discover

_FRONTS = re.compile(rb"^id=\S+ addr=(\S+) .* name=" + FRONT_NAME + rb" .* db=([0-9]+) ", re.MULTILINE)
"""Lines of CLIENT LIST: where a front is, and the number of its database."""

ANSWER_TIMEOUT_S = 60.0
"""Nobody waits for a tool; a node that writes its data to the disk may take its time."""


class Master:
    """A connection to a master.

    Attributes:
        address: of the node.
        ahead_ms: how far its clock is ahead of ours, negative when it is behind; whole seconds.
    """

    def __init__(self, address: Address, connection: TCPConnection) -> None:
        self.address = address
        self.ahead_ms = 0
        self._connection = connection

    def send(self, commands: Sequence[Simple]) -> RequestBatch:
        """Sends a pipeline; `receive` takes the answers."""
        try:
            return send(self._connection, commands)
        except Exception as error:
            raise MoveError(str(fault(self.address, error))) from error

    async def receive(self, batch: RequestBatch) -> list[Any]:
        """Returns the answers to a pipeline; errors of Redis stand in their place.

        Raises:
            MoveError: the node does not answer.
        """
        results: list[Any] = await batch
        for result in results:
            if not is_answer(result):
                raise MoveError(str(fault(self.address, result)))
        return results

    async def ask(self, *commands: Simple) -> list[Any]:
        """Has commands done, in one pipeline; errors of Redis stand in their place.

        Raises:
            MoveError: the node does not answer.
        """
        return await self.receive(self.send(commands)) if commands else []

    async def now_ms(self) -> int:
        """What its clock says, milliseconds since 1970.

        Raises:
            MoveError: the node does not answer, or refuses.
        """
        (answer,) = await self.ask(Simple(b"TIME", ()))
        if isinstance(answer, Exception):
            raise self.refusal(None, answer)
        seconds, microseconds = answer
        return int(seconds) * 1000 + int(microseconds) // 1000

    def refusal(self, key: bytes | None, error: BaseException) -> MoveError:
        """What to raise for an error of Redis.

        Args:
            key: that the command was about, if about one.
            error: as it came.
        """
        if key is None:
            return MoveError(f"{self.address} refuses: {error}")
        if isinstance(error, AskError):  # or MOVED, which is one of these
            return MoveError(f"the cluster is being resharded: {self.address} does not have {show(key)} any more")
        return MoveError(f"{self.address} refuses for {show(key)}: {error}")


class Masters:
    """All of them; iterating gives them in the order of their addresses."""

    def __init__(self, endpoint: Endpoint, topology: Topology, masters: dict[Address, Master]) -> None:
        self.endpoint = endpoint
        self._topology = topology
        self._masters = masters

    def __iter__(self) -> Iterator[Master]:
        return iter([self._masters[address] for address in sorted(self._masters)])

    def of(self, key: bytes) -> Master:
        """The master of a key."""
        owner = self._topology.owner(self._topology.slot_of(key))
        assert owner is not None, "there is one for every slot"
        return self._masters[owner]

    async def ask_all(self, command: Simple) -> list[Any]:
        """Has a command done by all, one after the other.

        Raises:
            MoveError: a node does not answer, or refuses.
        """
        answers = []
        for master in self:
            (answer,) = await master.ask(command)
            if isinstance(answer, Exception):
                raise master.refusal(None, answer)
            answers.append(answer)
        return answers

    async def compare_clocks(self, wall_ms: Callable[[], int]) -> None:
        """Finds out how far the clocks of all are ahead.

        Args:
            wall_ms: our own clock, milliseconds since 1970.

        Raises:
            MoveError: a node does not answer, or refuses.
        """
        for master in self:
            master.ahead_ms = round((await master.now_ms() - wall_ms()) / 1000) * 1000

    async def check_no_fronts(self) -> None:
        """Looks whether fronts are connected, on the same database; who may not ask cannot know.

        Raises:
            InUse: there are.
        """
        fronts: list[bytes] = []
        for master in self:
            (clients,) = await master.ask(Simple(b"CLIENT", (b"LIST",)))
            if isinstance(clients, bytes):
                found = fronts_in(clients, self.endpoint.database)
                fronts = max(fronts, found, key=len)  # each has a connection to every master
        if fronts:
            some = "a front" if len(fronts) == 1 else f"{len(fronts)} fronts, one of them"
            raise InUse(
                f"{self.endpoint} is in use by {some} at {fronts[0].decode()}: nobody may write there meanwhile"
            )

    async def check_unchanged(self) -> None:
        """Looks whether each slot still has the same master.

        Raises:
            MoveError: it has not.
        """
        if (await _discover(self.endpoint)).owners != self._topology.owners:
            raise MoveError(f"the masters of {self.endpoint} have changed meanwhile")


def fronts_in(clients: bytes, database: int) -> list[bytes]:
    """Where the fronts on a database of a node are.

    Args:
        clients: its answer to CLIENT LIST.
        database: its number.
    """
    return [address for address, number in _FRONTS.findall(clients) if int(number) == database]


@asynccontextmanager
async def open_masters(endpoint: Endpoint) -> AsyncIterator[Masters]:
    """Connects to all masters.

    Args:
        endpoint: of a cluster, or of one Redis.

    Raises:
        MoveError: one of them does not answer, or is too old, or a slot has none.
    """
    topology = await _discover(endpoint)
    if None in topology.owners:
        raise MoveError(f"{endpoint} is not whole: slot {topology.owners.index(None)} has no master")
    async with trio.open_nursery() as nursery:
        masters: dict[Address, Master] = {}
        for address in topology.masters:
            try:
                connection = await connect(address, endpoint.connection_options(), nursery, ANSWER_TIMEOUT_S)
                check_version(address, connection)
            except ClusterError as error:
                raise MoveError(str(error)) from error
            masters[address] = Master(address, connection)
        yield Masters(endpoint, topology, masters)
        nursery.cancel_scope.cancel()


async def _discover(endpoint: Endpoint) -> Topology:
    try:
        return await discover(endpoint.addresses, endpoint.connection_options())
    except ClusterError as error:
        raise MoveError(str(error)) from error
