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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from tests.harness.books import Batch, Books, Push, Write
from tests.harness.connection import Connection, ServerGone

CLIENTS = 20
KEYS_EACH = 5
QUEUES = 4
BLOCK_S = 0.2

PADDING_BYTES_MAX = 20_000
"""Some values are long, so that segments fill, roll and are folded while the load runs."""

PATHS = ("/",) * 6 + ("/pipeline", "/multi")
"""Where requests go."""

BATCH_LENGTHS = (2, 2, 3, 3, 4, 5, 8, 12)

REFUSED_BODY = {"command": "SET", "key": "there already", "value": "1", "options": "NX"}
"""A command that is refused each time but the first, and a unit with it; what it does then nobody looks at."""

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


@dataclass
class Deed:
    """A command that is about to be sent; the books have it already.

    Attributes:
        body: of the request.
        take: told its answer.
        refuse: called when the server said that it was not done.
        trace: what may be found of it after a crash.
    """

    body: dict[str, Any]
    take: Callable[[Any], None]
    refuse: Callable[[], None] = lambda: None
    trace: Write | Push | None = None


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
        with suppress(ServerGone):
            async with Connection(*address) as http:
                while True:
                    path = self._random.choice(PATHS)
                    if path == "/":
                        await self._do(http, self._deed())
                    else:
                        await self._do_batch(http, path)

    async def check_keys(self, http: Connection) -> None:
        """Reads the keys that are its own after a restart, and takes what it finds for the truth."""
        for name in keys_of(self._number):
            key, sent_s = self._books.keys[name], time.monotonic()
            status, answer = await http.post({"command": "GET", "key": name})
            assert status in (200, 404), f"GET {name}: {status} {answer}"
            found = answer.get("value")
            key.read(found, key.floor, sent_s)
            key.settle(found)

    # Requests

    async def _do(self, http: Connection, deed: Deed) -> None:
        status, answer = await self._post(http, "/", deed.body, 1)
        if status == 507:
            deed.refuse()
            return
        assert status in (200, 404), f"{deed.body}: {status} {answer}"
        deed.take(answer)
        self._books.acknowledged += 1

    async def _do_batch(self, http: Connection, path: str) -> None:
        deeds = [self._deed() for _ in range(self._random.choice(BATCH_LENGTHS))]
        if self._random.random() < 0.25:
            deeds.insert(self._random.randint(0, len(deeds)), Deed(REFUSED_BODY, lambda _answer: None))
        batch = Batch([deed.trace for deed in deeds if deed.trace is not None], atomic=path == "/multi")
        self._books.in_doubt.append(batch)
        status, answers = await self._post(http, path, [deed.body for deed in deeds], len(deeds))
        self._books.in_doubt.remove(batch)
        if path == "/multi" and status in (404, 409, 507):
            for deed in deeds:
                deed.refuse()
            return
        assert status == 200, f"{path}: {status} {answers}"
        for deed, answer in zip(deeds, answers, strict=True):
            if answer.get("message", "").startswith("storage full"):
                deed.refuse()
            else:
                deed.take(answer)
        self._books.acknowledged += len(deeds)
        self._books.batches += 1

    async def _post(self, http: Connection, path: str, body: Any, commands: int) -> tuple[int, Any]:
        self._books.unknown += commands
        status, answer = await http.post(body, path)
        if status == 503:  # it is about to end; whether this was done is not known
            raise ServerGone
        self._books.unknown -= commands
        return status, answer

    # Commands

    def _deed(self) -> Deed:
        moves = (self._set, self._set_expiring, self._delete, self._get, self._push, self._pop, self._blocking_pop)
        return self._random.choice(moves)()

    def _write(self, command: str, life_ms: float = math.inf, **members: Any) -> Deed:
        key = self._books.keys[self._random.choice(keys_of(self._number))]
        write = key.send(members.get("value"), life_ms / 1000)

        def refuse() -> None:
            write.refused = True

        body = {"command": command, "key": key.name, **members}
        return Deed(body, lambda _answer: key.acknowledge(write), refuse, write)

    def _set(self) -> Deed:
        return self._write("SET", value=self._next_value())

    def _set_expiring(self) -> Deed:
        life_ms = self._random.choice((1000, 2000, 3_600_000, self._random.randint(20, LIFE_MS_MAX)))
        options = {"ex": life_ms // 1000} if life_ms % 1000 == 0 else {"px": life_ms}
        return self._write("SET", life_ms, value=self._next_value(), options=options)

    def _delete(self) -> Deed:
        return self._write("DELETE")

    def _get(self) -> Deed:
        key = self._books.keys[self._random.choice(keys_of(self._random.randrange(CLIENTS)))]
        floor, sent_s = key.floor, time.monotonic()
        return Deed({"command": "GET", "key": key.name}, lambda answer: key.read(answer.get("value"), floor, sent_s))

    def _push(self) -> Deed:
        queue = self._books.queues[self._queue_name()]
        push = queue.send([self._next_value() for _ in range(self._random.randint(1, 4))])
        return Deed(
            {"command": "QPUSH", "key": queue.name, "value": push.values},
            lambda _answer: queue.acknowledge(push),
            lambda: queue.refuse(push),
            push,
        )

    def _pop(self) -> Deed:
        return self._take("QPOP")

    def _blocking_pop(self) -> Deed:
        return self._take("BQPOP", options={"timeout": BLOCK_S})

    def _take(self, command: str, **members: Any) -> Deed:
        queue = self._books.queues[self._queue_name()]
        sent_s = time.monotonic()
        queue.unknown_pops += 1

        def refuse() -> None:
            queue.unknown_pops -= 1

        def take(answer: Any) -> None:
            queue.unknown_pops -= 1
            if answer.get("value") is not None:
                queue.deliver(answer["value"], last=command == "QPOP", sent_s=sent_s)
                self._books.delivered += 1

        return Deed({"command": command, "key": queue.name, **members}, take, refuse)

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
    books.check_batches()


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
