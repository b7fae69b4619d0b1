"""Reading all that a cluster, or one Redis, holds: keys by SCAN, then what is under them, in pipelines.

Values that are not long come with one GETRANGE, the others one by one; queues in slices. So what is in memory at once
is bounded, however long they are. While it is read nobody may write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from coredis.exceptions import WrongTypeError

from engine.commands.grammar import show
from engine.moving.items import PIECE_BYTES_MAX, Item, MoveError, Piece, Plain
from engine.moving.masters import Master, Masters
from engine.redis.format import is_mark, is_own_key
from engine.redis.node import Simple

SCAN_COUNT = 500
"""Keys of one SCAN, about."""

RECENT_KEYS_MAX = 10_000
"""Keys that are remembered, because SCAN may give a key twice. It does when its table has shrunk meanwhile, and then
those of one bucket of the smaller table, which were the last it gave: a few, and never so many."""

VALUE_BYTES_MAX = 64 * 1024
"""A longer value is read by itself."""

SLICE_VALUES = (16, 512)
"""Values of the first slice of a queue, and of later ones if they are short."""

NEVER, GONE = -1, -2
"""What PEXPIRETIME says of a key without a deadline, and of none."""


class Reader:
    """Reads everything.

    Args:
        masters: of the cluster.

    Attributes:
        foreign: how many keys were found that are nothing of Holdfast's.
        first_foreign: one of them, and what it holds.
    """

    def __init__(self, masters: Masters) -> None:
        self.foreign = 0
        self.first_foreign = ""
        self._masters = masters

    async def entries(self) -> int:
        """How many keys there are, in all.

        Raises:
            MoveError: a node does not answer.
        """
        return sum(await self._masters.ask_all(Simple(b"DBSIZE", ())))

    async def batches(self) -> AsyncGenerator[list[Item], None]:
        """Yields all items, some at a time, and counts what is foreign.

        Raises:
            MoveError: a node does not answer, or somebody writes, or reshards.
        """
        for master in self._masters:
            async with aclosing(scan(master)) as found:
                async for keys in found:
                    async with aclosing(self._read(master, keys)) as batches:
                        async for batch in batches:
                            yield batch
        await self._masters.check_unchanged()

    async def _read(self, master: Master, keys: list[bytes]) -> AsyncGenerator[list[Item], None]:
        plain, others, long = await self._read_plain(master, keys)
        if plain:
            yield plain
        for key, deadline_ms in long:
            value = await self._read_long(master, key)
            if value is not None:
                yield [Plain(key, value, deadline_ms)]
        for key, length, values in await self._begin_queues(master, others):
            yield [Piece(key, 0, tuple(values[1:]))]
            async with aclosing(_slices(master, key, len(values) - 1, length - 1, values)) as pieces:
                async for piece in pieces:
                    yield [piece]

    async def _read_plain(
        self, master: Master, keys: list[bytes]
    ) -> tuple[list[Item], list[tuple[bytes, int]], list[tuple[bytes, int | None]]]:
        """Returns plain values; keys that hold something else, with their deadlines; and keys with long values."""
        commands = []
        for key in keys:
            commands.append(Simple(b"GETRANGE", (key, 0, VALUE_BYTES_MAX)))
            commands.append(Simple(b"PEXPIRETIME", (key,)))  # behind it: what exists now did so then
        answers = await master.ask(*commands)
        plain: list[Item] = []
        others, long = [], []
        for key, value, deadline_ms in zip(keys, answers[::2], answers[1::2], strict=True):
            if isinstance(deadline_ms, Exception):
                raise master.refusal(key, deadline_ms)
            if deadline_ms == GONE:
                continue
            deadline = None if deadline_ms == NEVER else max(0, deadline_ms - master.ahead_ms)
            if type(value) is bytes:
                if len(value) <= VALUE_BYTES_MAX:
                    plain.append(Plain(key, value, deadline))
                else:
                    long.append((key, deadline))
            elif isinstance(value, WrongTypeError):
                others.append((key, deadline_ms))
            else:
                raise master.refusal(key, value)
        return plain, others, long

    async def _read_long(self, master: Master, key: bytes) -> bytes | None:
        """Returns a value; None if it has expired since."""
        (value,) = await master.ask(Simple(b"GET", (key,)))
        if isinstance(value, Exception):
            raise master.refusal(key, value)
        return value  # type: ignore[no-any-return]  # as GET has it

    async def _begin_queues(
        self, master: Master, others: list[tuple[bytes, int]]
    ) -> list[tuple[bytes, int, list[bytes]]]:
        """Returns those that are queues: the key, the length of the list and its first elements."""
        commands = []
        for key, _ in others:
            commands.append(Simple(b"LLEN", (key,)))
            commands.append(Simple(b"LRANGE", (key, 0, SLICE_VALUES[0])))
        answers = await master.ask(*commands)
        queues = []
        for (key, deadline_ms), length, values in zip(others, answers[::2], answers[1::2], strict=True):
            if isinstance(length, WrongTypeError):
                (kind,) = await master.ask(Simple(b"TYPE", (key,)))
                self._note_foreign(key, f"a {kind.decode()}")
            elif isinstance(length, Exception) or isinstance(values, Exception):
                raise master.refusal(key, length if isinstance(length, Exception) else values)
            elif not values:
                raise _changed(key)
            elif not is_mark(values[0]):
                self._note_foreign(key, "a list that is no queue")
            elif deadline_ms != NEVER:
                self._note_foreign(key, "a queue that expires")
            else:
                queues.append((key, length, values))
        return queues

    def _note_foreign(self, key: bytes, what: str) -> None:
        self.foreign += 1
        self.first_foreign = self.first_foreign or f"{show(key)} holds {what}"


async def scan(master: Master) -> AsyncGenerator[list[bytes], None]:
    """Yields the keys of a master, each once, without those that are no data.

    Raises:
        MoveError: it does not answer.
    """
    recent: set[bytes] = set()
    order: deque[bytes] = deque()
    cursor = b"0"
    while True:
        (answer,) = await master.ask(Simple(b"SCAN", (cursor, b"COUNT", SCAN_COUNT)))
        if isinstance(answer, Exception):
            raise master.refusal(None, answer)
        cursor, found = answer
        keys = [key for key in dict.fromkeys(found) if key not in recent and not is_own_key(key)]
        if keys:
            yield keys
        if cursor == b"0":
            return
        recent.update(keys)
        order.extend(keys)
        while len(order) > RECENT_KEYS_MAX:
            recent.discard(order.popleft())


async def _slices(
    master: Master, key: bytes, offset: int, length: int, first: Iterable[bytes]
) -> AsyncGenerator[Piece, None]:
    """Yields the rest of a queue.

    Args:
        master: of the queue.
        key: its key.
        offset: how many values have come already.
        length: how many there are.
        first: some of them: how long they are says how many to take at once.
    """
    longest = max(map(len, first))
    while offset < length:
        count = max(1, min(SLICE_VALUES[1], PIECE_BYTES_MAX // longest))
        (values,) = await master.ask(Simple(b"LRANGE", (key, offset + 1, offset + count)))
        if isinstance(values, Exception):
            raise master.refusal(key, values)
        if not values:
            raise _changed(key)
        yield Piece(key, offset, tuple(values))
        offset += len(values)
        longest = max(longest, *map(len, values))


def _changed(key: bytes) -> MoveError:
    return MoveError(f"{show(key)} was changed while it was read: nobody may write meanwhile")
