"""Redis, a cluster or one: moving out of it, and into it.

While something is moved in, the key `holdfast:import` says from where and how far it is; nothing is written before
it, and it goes when everything was read back and compared. All that is written can be written twice without a
difference.

Deadlines are read and written by the clock of the node that holds the key, and are by the wall clock here in between.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import trio
from coredis.connection._request import RequestBatch

from engine.commands.grammar import show
from engine.moving.items import Item, MoveError, Plain
from engine.moving.masters import Master, Masters, open_masters
from engine.moving.move import Begun, Progress, clock_ahead_ms
from engine.moving.scan import Reader, scan
from engine.moving.tally import Tally
from engine.redis.format import IMPORT_KEY, is_own_key, new_mark
from engine.redis.node import Simple
from engine.redis.scripts import APPEND

__all__ = ["RedisDestination", "RedisSource", "open_masters"]

NOTE_INTERVAL_S = 1.0
"""Between two notes of how far it is."""

_NOTE = re.compile(rb"(?P<position>[0-9]+)(@(?P<ahead_ms>[0-9]+))? ")
"""How that begins; the identity of the source follows."""


class RedisSource:
    """Everything in a Redis. Nobody may write there meanwhile.

    Args:
        masters: of the cluster.
        wall_ms: the wall clock, milliseconds since 1970.
        entries: how many keys there are, about.
        skip_foreign: whether to leave out what is nothing of Holdfast's.
    """

    is_repeatable = False  # SCAN has no order

    def __init__(self, masters: Masters, wall_ms: Callable[[], int], entries: int, *, skip_foreign: bool) -> None:
        self.time_ms = wall_ms()
        self.name = self.identity = str(masters.endpoint)
        self.entries = entries
        self.reader = Reader(masters)
        self._masters = masters
        self._skip_foreign = skip_foreign

    @classmethod
    async def open(cls, masters: Masters, wall_ms: Callable[[], int], *, skip_foreign: bool) -> RedisSource:
        """Asks what time it is there, and how many keys there are.

        Raises:
            MoveError: a node does not answer, or fronts are connected, or an import is not finished.
        """
        await masters.check_no_fronts()
        (note,) = await masters.of(IMPORT_KEY).ask(Simple(b"EXISTS", (IMPORT_KEY,)))
        if note:
            raise MoveError(
                f"{masters.endpoint} holds an import that was not finished (the key {show(IMPORT_KEY)}):"
                " run the command that began it again, or FLUSHALL every master to give it up"
            )
        await masters.compare_clocks(wall_ms)
        return cls(masters, wall_ms, await Reader(masters).entries(), skip_foreign=skip_foreign)

    async def batches(self) -> AsyncGenerator[list[Item], None]:
        """Yields all items, some at a time.

        Raises:
            MoveError: there is something that is nothing of Holdfast's; all of it is counted, and nothing else comes
                behind the first. Or fronts have come.
        """
        async with aclosing(self.reader.batches()) as batches:
            async for batch in batches:
                if self._skip_foreign or not self.reader.foreign:
                    yield batch
        await self._masters.check_no_fronts()
        if self.reader.foreign and not self._skip_foreign:
            count = "1 key is" if self.reader.foreign == 1 else f"{self.reader.foreign:,} keys are"
            raise MoveError(
                f"{count} nothing of Holdfast's: {self.reader.first_foreign} (--skip-foreign leaves them out)"
            )

    def check(self, tally: Tally) -> None:
        """Redis knows nothing of what should be there."""


class RedisDestination:
    """A Redis that is moved into.

    Args:
        masters: of the cluster.
        wall_ms: the wall clock, milliseconds since 1970.
    """

    def __init__(self, masters: Masters, wall_ms: Callable[[], int]) -> None:
        self.name = str(masters.endpoint)
        self._masters = masters
        self._wall_ms = wall_ms
        self._identity = b""
        self._ahead_ms = 0
        self._under_way: list[tuple[Master, RequestBatch, list[Simple]]] = []
        self._sent = self._reached = 0
        self._next_note_s = 0.0

    async def begin(self, identity: str, time_ms: int) -> Begun:
        """Begins a move, or resumes it.

        Raises:
            MoveError: it is not empty, and holds no unfinished move from this source; or fronts are connected.
        """
        await self._masters.check_no_fronts()
        await self._masters.compare_clocks(self._wall_ms)
        self._identity = identity.encode()
        await self._masters.ask_all(Simple(b"SCRIPT", (b"LOAD", APPEND.source)))
        note = await self._ask(IMPORT_KEY, Simple(b"GET", (IMPORT_KEY,)))
        if note is None:
            await self._refuse_data()
            self._ahead_ms = clock_ahead_ms(time_ms, self._wall_ms())
            await self._note()
            return Begun(0, self._ahead_ms)
        found = _NOTE.match(note)
        other = note.partition(b" ")[2]
        if found is None or other != self._identity:
            other_name = other.decode("utf-8", "replace")
            raise MoveError(
                f"{self.name} holds an import from another source that was not finished: {other_name}, not {identity}"
            )
        self._sent = self._reached = int(found["position"])
        self._ahead_ms = int(found["ahead_ms"] or 0)
        return Begun(self._reached, self._ahead_ms)

    async def _refuse_data(self) -> None:
        for master in self._masters:
            async with aclosing(scan(master)) as found:
                keys = await anext(found, None)
            if keys is not None:
                count = sum(await self._masters.ask_all(Simple(b"DBSIZE", ())))
                raise MoveError(f"{self.name} is not empty; keys: {count:,}, one of them {show(keys[0])}")

    async def write(self, items: list[Item], position: int) -> None:
        """Takes items; those it has already change nothing.

        Raises:
            MoveError: a node does not answer, or refuses.
        """
        now_ms = self._wall_ms()
        commands: dict[Master, list[Simple]] = {}
        for item in items:
            if is_own_key(item.key):
                raise MoveError(f"the name {show(item.key)} is Holdfast's own in Redis: rename it before it is moved")
            master = self._masters.of(item.key)
            command = _command(item, now_ms, master.ahead_ms)
            if command is not None:
                commands.setdefault(master, []).append(command)
        sent = [(master, master.send(batch), batch) for master, batch in commands.items()]
        await trio.lowlevel.checkpoint()  # they leave; while they are done, we wait for those before, and make the next
        await self._receive()
        self._under_way, self._sent = sent, position
        if trio.current_time() >= self._next_note_s:
            await self._note()

    async def _receive(self) -> None:
        """Takes the answers to what is under way; after an error it never gets beyond that."""
        for master, batch, commands in self._under_way:
            for command, answer in zip(commands, await master.receive(batch), strict=True):
                if isinstance(answer, Exception):
                    if str(answer).startswith("GAP"):
                        await self.rewind()
                        raise MoveError(f"{master.address} has lost some of what was written: begin once more")
                    key = command.serialized_arguments[2 if command.name == b"EVALSHA" else 0]
                    assert isinstance(key, bytes)
                    raise master.refusal(key, answer)
        self._under_way = []
        self._reached = self._sent

    async def _note(self) -> None:
        """Notes how far it is, and by how much deadlines are brought forward."""
        ahead = b"@%d" % self._ahead_ms if self._ahead_ms else b""
        await self._ask(IMPORT_KEY, Simple(b"SET", (IMPORT_KEY, b"%d%b %b" % (self._reached, ahead, self._identity))))
        self._next_note_s = trio.current_time() + NOTE_INTERVAL_S

    async def settle(self) -> None:
        """Returns when all that was written is there.

        Raises:
            MoveError: a node does not answer, or refuses.
        """
        await self._receive()
        await self._note()

    async def read_back(self, progress: Progress) -> tuple[Tally, int]:
        """Reads everything it holds."""
        tally, reader = Tally(), Reader(self._masters)
        entries = await reader.entries()
        async with aclosing(reader.batches()) as batches:
            async for batch in batches:
                tally.add(batch)
                progress(tally.entries, entries)
        tally.end()
        tally.foreign = reader.foreign
        clocks = [await master.now_ms() - master.ahead_ms for master in self._masters]
        return tally, max(self._wall_ms(), *clocks)

    async def finish(self) -> None:
        """Removes the note."""
        await self._ask(IMPORT_KEY, Simple(b"DEL", (IMPORT_KEY,)))

    async def rewind(self) -> None:
        """Has the next move from this source write everything once more."""
        self._sent = self._reached = 0
        await self._note()

    async def _ask(self, key: bytes, command: Simple) -> bytes | None:
        master = self._masters.of(key)
        (answer,) = await master.ask(command)
        if isinstance(answer, Exception):
            raise master.refusal(key, answer)
        return answer if isinstance(answer, bytes) else None


def _command(item: Item, now_ms: int, ahead_ms: int) -> Simple | None:
    """What writes an item, where the clock of its node is ahead by so much; None if it has expired."""
    if isinstance(item, Plain):
        key, value, deadline_ms = item
        if deadline_ms is None:
            return Simple(b"SET", (key, value))
        return Simple(b"SET", (key, value, b"PXAT", deadline_ms + ahead_ms)) if deadline_ms > now_ms else None
    key, offset, values = item
    return Simple(b"EVALSHA", (APPEND.digest, 1, key, new_mark() if offset == 0 else b"", offset, *values))
