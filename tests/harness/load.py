"""Load on a real server from many clients, and the books they keep: what was sent, and what was answered.

Acknowledged means that the answer arrived. Unknown means sent, and no answer came: it may have happened once, or not at
all. After a crash the books are held against what the server still has:

    I1  every acknowledged write is there
    I3  an unknown one happened at most once
    I4  nothing that was never sent appears
    I6  every pushed value is delivered or still queued, none twice; one may be missing for each unknown pop, because a
        pop hands over at most once and the kill may fall between the pop and its answer
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.harness.connection import Connection, ServerGone

CLIENTS = 20
QUEUES = 4
BLOCK_S = 0.2


@dataclass
class Key:
    """What a key may hold: the last acknowledged value, or one that was sent after it."""

    acknowledged: str | None = None
    unknown: list[str | None] = field(default_factory=list)

    def allowed(self) -> set[str | None]:
        """Every value a read may show."""
        return {self.acknowledged, *self.unknown}


@dataclass
class Queue:
    """What went into a queue and came out of it."""

    pushed: list[str] = field(default_factory=list)
    maybe_pushed: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    unknown_pops: int = 0


class Books:
    """The clients' side of the history, over all lives of the server."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.queues = {f"queue{number}": Queue() for number in range(QUEUES)}
        self.acknowledged = 0

    def check_key(self, name: str, found: str | None) -> None:
        """I1, I3, I4 for a key; what was found is the truth from here on."""
        key = self.keys[name]
        assert found in key.allowed(), f"{name} holds {found!r}, allowed: {key.allowed()}"
        key.acknowledged, key.unknown = found, []

    def check_queue(self, name: str, left: list[str]) -> None:
        """I1, I3, I4, I6 for a queue that was emptied from the front."""
        queue = self.queues[name]
        out = Counter(queue.delivered) + Counter(left)
        twice = [value for value, count in out.items() if count > 1]
        assert not twice, f"{name}: delivered or queued twice: {twice}"
        never = set(out) - set(queue.pushed) - set(queue.maybe_pushed)
        assert not never, f"{name}: never pushed: {never}"
        missing = set(queue.pushed) - set(out)
        assert len(missing) <= queue.unknown_pops, f"{name}: lost {missing}, unknown pops: {queue.unknown_pops}"
        for client in range(CLIENTS):
            order = [int(value.split("-")[1]) for value in left if value.startswith(f"{client}-")]
            assert order == sorted(order), f"{name}: client {client}'s values are out of order: {order}"
        self.queues[name] = Queue()


class Client:
    """One client: sends random commands and keeps the books. The keys it writes are its own, the queues are shared."""

    def __init__(self, number: int, address: tuple[str, int], books: Books, seed: int) -> None:
        self._number = number
        self._address = address
        self._books = books
        self._random = random.Random(seed)
        self._sent = seed * 1_000_000

    async def run(self) -> None:
        """Works until the server is gone."""
        moves = (self._set, self._set_expiring, self._delete, self._push, self._pop, self._blocking_pop)
        try:
            async with Connection(*self._address) as http:
                while True:
                    await self._random.choice(moves)(http)
                    self._books.acknowledged += 1
        except ServerGone:
            return

    async def _post(self, http: Connection, command: str, key: str, **members: Any) -> Any:
        status, answer = await http.post({"command": command, "key": key, **members})
        assert status in (200, 404), answer
        return answer

    async def _write(self, http: Connection, command: str, written: str | None, **members: Any) -> None:
        name = f"key{self._number}-{self._random.randrange(5)}"
        key = self._books.keys.setdefault(name, Key())
        key.unknown.append(written)
        await self._post(http, command, name, **members)
        key.acknowledged, key.unknown = written, []

    async def _set(self, http: Connection) -> None:
        value = self._next_value()
        await self._write(http, "SET", value, value=value)

    async def _set_expiring(self, http: Connection) -> None:
        value = self._next_value()
        await self._write(http, "SET", value, value=value, options={"ex": 3600})

    async def _delete(self, http: Connection) -> None:
        await self._write(http, "DELETE", None)

    async def _push(self, http: Connection) -> None:
        name = self._queue_name()
        values = [self._next_value() for _ in range(self._random.randint(1, 3))]
        queue = self._books.queues[name]
        queue.maybe_pushed += values
        await self._post(http, "QPUSH", name, value=values)
        queue.pushed += values

    async def _pop(self, http: Connection) -> None:
        await self._take(http, "QPOP")

    async def _blocking_pop(self, http: Connection) -> None:
        await self._take(http, "BQPOP", options={"timeout": BLOCK_S})

    async def _take(self, http: Connection, command: str, **members: Any) -> None:
        name = self._queue_name()
        queue = self._books.queues[name]
        queue.unknown_pops += 1
        answer = await self._post(http, command, name, **members)
        queue.unknown_pops -= 1
        if answer.get("value") is not None:
            queue.delivered.append(answer["value"])

    def _queue_name(self) -> str:
        return f"queue{self._random.randrange(QUEUES)}"

    def _next_value(self) -> str:
        self._sent += 1
        return f"{self._number}-{self._sent}"


async def run_clients(
    address: tuple[str, int], books: Books, seed: int, kill: Callable[[], None], after_s: float
) -> None:
    """Runs all clients, calls `kill` after so many seconds, and returns when every client has noticed."""
    async with trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(Client(number, address, books, seed * CLIENTS + number).run)
        await trio.sleep(after_s)
        kill()
