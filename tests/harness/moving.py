"""A store with one of everything, for moving house: as ops, in a directory, and as a source that tests direct."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from engine.embedded.recovery import applying
from engine.moving.directory import items_of, read_directory
from engine.moving.items import Item
from engine.moving.tally import Tally
from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State
from wal.files import Directory, DiskDirectory
from wal.log import Log

Dump = list[tuple[Any, ...]]

DAY_MS = 86_400_000

LONG_QUEUE = tuple(b"job %d" % number for number in range(2_500))
"""Longer than two pieces of a queue."""

FAT_QUEUE = tuple(bytes([number]) * 300_000 for number in range(9))
"""Longer than two pieces in bytes."""


def everything(now_ms: int, keys: int = 700) -> list[Op]:
    """Ops that make a store with all that can be in one; in no order.

    Args:
        now_ms: after which some keys expire.
        keys: how many there are of the ordinary kind.
    """
    plain: list[Op] = [(ops.PUT, b"key %d" % number, b"value %d" % number, None) for number in range(keys)]
    expiring: list[Op] = [
        (ops.PUT, b"session %d" % number, b"s", now_ms + DAY_MS + number * 7_001) for number in range(keys // 10)
    ]
    odd: list[Op] = [
        (ops.PUT, b"", b"under the empty key", None),
        (ops.PUT, b"empty", b"", None),
        (ops.PUT, b"\x00\xff\xfe", b"\x80binary\r\n", now_ms + DAY_MS),
        (ops.PUT, "schlüssel\n\u2028🔑".encode(), b'"wert" \\ \x7f', None),
        (ops.PUT, b"{tag}1", b"64 KiB" * 20_000, None),
        (ops.PUT, b"{tag}2", bytes(range(256)) * 256, None),
        (ops.PUT, b"{tag}3", bytes(64 * 1024 + 1), now_ms + 2 * DAY_MS),
        (ops.PUT, b"holdfast:queue:0123456789abcdef0123456789abcdef", b"like a mark", None),
    ]
    queues: list[Op] = [
        (ops.PUSH, b"empty queue", ()),
        (ops.PUSH, b"\xffqueue", (b"", b"\x00", b"\xff" * 70_000, b"")),
        (ops.PUSH, b"one", (b"holdfast:queue:0123456789abcdef0123456789abcdef",)),
        (ops.PUSH, b"long", LONG_QUEUE),
        (ops.PUSH, b"fat", FAT_QUEUE),
        *((ops.PUSH, b"queue %d" % number, (b"a", b"b")[: number % 3]) for number in range(keys // 10)),
    ]
    return [*plain, *queues, *expiring, *odd]


def state_of(content: list[Op]) -> State:
    """The state that ops make."""
    state = State()
    for op in content:
        state.apply(op)
    return state


def fill(directory: Directory, content: list[Op], time_ms: int) -> None:
    """Writes ops to a directory as a server would have, and closes it."""
    log = Log.recover(directory, applying(State()), time_ms=time_ms)
    for start in range(0, len(content), 100):
        log.append([ops.pack(op) for op in content[start : start + 100]], time_ms)
    log.commit()
    log.close()


def dump(place: Directory | Path) -> Dump:
    """What a directory holds; changes nothing in it."""
    if isinstance(place, Path):
        directory = DiskDirectory(place, beside=True)
        try:
            return dump(directory)
        finally:
            directory.close()
    return list(read_directory(place, lambda _done, _total: None)[0].dump())


def silent(_done: int, _total: int) -> None:
    """Progress that shows nothing."""


class Items:
    """A source in memory.

    Args:
        state: what it holds.
        size: of its batches, in items.
        time_ms: what its clock says.
        before: called before each batch, with its number.
        at_end: called when all has been written, before it is read back.
    """

    name = "memory"
    identity = "store of a test at record 1"
    is_repeatable = True

    def __init__(
        self,
        state: State,
        size: int = 100,
        *,
        time_ms: int = 0,
        before: Callable[[int], None] = lambda _number: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.entries = len(state)
        self.time_ms = time_ms
        self.items: list[Item] = list(items_of(state))
        self._size = size
        self._before = before
        self._at_end = at_end

    async def batches(self) -> AsyncGenerator[list[Item], None]:
        """Yields all items, some at a time."""
        for start in range(0, len(self.items), self._size):
            self._before(start // self._size)
            yield self.items[start : start + self._size]

    def check(self, tally: Tally) -> None:
        """Has the test do what it wants to."""
        self._at_end()
