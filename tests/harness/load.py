"""Load on a real server from 20 connections, each a client that keeps the books of what it sends and what it reads.

books = new_books()
trio.run(run_load, address, books, seed, end)  # returns when `end` has ended the server and every client knows
trio.run(check, address, books)  # after the restart: the first thing anybody asks
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import trio

from tests.harness.books import Books
from tests.harness.connection import Connection, ServerGone

CLIENTS = 20
KEYS_EACH = 5
QUEUES = 4
BLOCK_S = 0.2

PADDING_BYTES_MAX = 20_000
"""Some values are long, so that segments fill, roll and are folded while the load runs."""

LIFE_MS_MAX = 4_000
"""Expiries run out in one life of the server, during its start, or in the next."""

Address = tuple[str, int]


def new_books() -> Books:
    """Books of a data directory that holds nothing yet."""
    keys = [name for client in range(CLIENTS) for name in keys_of(client)]
    return Books(keys, [f"queue{number}" for number in range(QUEUES)])


def keys_of(client: int) -> list[str]:
    """The keys that this client writes, and no other."""
    return [f"key{client}-{number}" for number in range(KEYS_EACH)]


class Refused(Exception):
    """The server said that it did not do it, because storage is full."""


class Client:
    """One client: sends random commands and keeps the books. The keys it writes are its own, the queues are shared.

    Args:
        number: from 0 on.
        books: shared by all clients.
        seed: what it does follows from it; another one for each life of the server, because its values are unique.
    """

    def __init__(self, number: int, books: Books, seed: int) -> None:
        self._number = number
        self._books = books
        self._seed = seed
        self._random = random.Random(f"{seed}/{number}")
        self._values = 0

    async def run(self, address: Address) -> None:
        """Works until the server is gone."""
        moves = (self._set, self._set_expiring, self._delete, self._get, self._push, self._pop, self._blocking_pop)
        try:
            async with Connection(*address) as http:
                while True:
                    await self._do(self._random.choice(moves), http)
        except ServerGone:
            return

    async def _do(self, move: Callable[[Connection], Awaitable[None]], http: Connection) -> None:
        try:
            await move(http)
        except ServerGone:
            self._books.unknown += 1
            raise
        except Refused:
            return
        self._books.acknowledged += 1

    async def _post(self, http: Connection, command: str, key: str, **members: Any) -> Any:
        status, answer = await http.post({"command": command, "key": key, **members})
        if status == 503:  # it is about to end; whether this was done is not known
            raise ServerGone
        if status == 507:
            raise Refused
        assert status in (200, 404), f"{command} {key}: {status} {answer}"
        return answer

    async def _write(self, http: Connection, command: str, members: dict[str, Any], life_ms: float = math.inf) -> None:
        key = self._books.keys[self._random.choice(keys_of(self._number))]
        write = key.send(members.get("value"), life_ms / 1000)
        try:
            await self._post(http, command, key.name, **members)
        except Refused:
            write.refused = True
            raise
        key.acknowledge(write)

    async def _set(self, http: Connection) -> None:
        await self._write(http, "SET", {"value": self._next_value()})

    async def _set_expiring(self, http: Connection) -> None:
        life_ms = self._random.choice((1000, 2000, 3_600_000, self._random.randint(20, LIFE_MS_MAX)))
        options = {"ex": life_ms // 1000} if life_ms % 1000 == 0 else {"px": life_ms}
        await self._write(http, "SET", {"value": self._next_value(), "options": options}, life_ms)

    async def _delete(self, http: Connection) -> None:
        await self._write(http, "DELETE", {})

    async def _get(self, http: Connection) -> None:
        key = self._books.keys[self._random.choice(keys_of(self._random.randrange(CLIENTS)))]
        floor, sent_s = key.floor, time.monotonic()
        answer = await self._post(http, "GET", key.name)
        key.read(answer.get("value"), floor, sent_s)

    async def check_keys(self, http: Connection) -> None:
        """Reads the keys that are its own after a restart, and takes what it finds for the truth."""
        for name in keys_of(self._number):
            key, sent_s = self._books.keys[name], time.monotonic()
            found = (await self._post(http, "GET", name)).get("value")
            key.read(found, key.floor, sent_s)
            key.settle(found)

    async def _push(self, http: Connection) -> None:
        queue = self._books.queues[self._queue_name()]
        push = queue.send([self._next_value() for _ in range(self._random.randint(1, 4))])
        try:
            await self._post(http, "QPUSH", queue.name, value=push.values)
        except Refused:
            queue.refuse(push)
            raise
        queue.acknowledge(push)

    async def _pop(self, http: Connection) -> None:
        await self._take(http, "QPOP")

    async def _blocking_pop(self, http: Connection) -> None:
        await self._take(http, "BQPOP", options={"timeout": BLOCK_S})

    async def _take(self, http: Connection, command: str, **members: Any) -> None:
        queue = self._books.queues[self._queue_name()]
        sent_s = time.monotonic()
        queue.unknown_pops += 1
        answer = await self._post(http, command, queue.name, **members)
        queue.unknown_pops -= 1
        if answer.get("value") is not None:
            queue.deliver(answer["value"], last=command == "QPOP", sent_s=sent_s)
            self._books.delivered += 1

    def _queue_name(self) -> str:
        return f"queue{self._random.randrange(QUEUES)}"

    def _next_value(self) -> str:
        self._values += 1
        padding = self._random.choice((0, 0, 0, 100, 1_000, PADDING_BYTES_MAX))
        return f"{self._number}-{self._seed}-{self._values}:" + "x" * self._random.randint(0, padding)


async def run_load(address: Address, books: Books, seed: int, end: Callable[[], Awaitable[None]]) -> None:
    """Runs all clients and `end`, which ends the server sooner or later; returns when every client has noticed."""
    async with trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(Client(number, books, seed).run, address)
        await end()
    books.crash()


async def check(address: Address, books: Books, queues: Iterable[str]) -> None:
    """Holds the books against what a server has after a restart: all keys, and these queues, which it empties."""
    async with trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(_check_keys, Client(number, books, 0), address)
        for name in queues:
            nursery.start_soon(_check_queue, address, books, name)


async def _check_keys(client: Client, address: Address) -> None:
    async with Connection(*address) as http:
        await client.check_keys(http)


async def _check_queue(address: Address, books: Books, name: str) -> None:
    left: list[str] = []
    async with Connection(*address) as http:
        take = partial(http.post, {"command": f"BQPOP {name} 0"})
        while (value := (await take())[1]["value"]) is not None:
            left.append(value)
    books.queues[name].check(left)
    books.start_queue(name)
