"""What is stored: a map from keys to plain values and queues, their deadlines, and the accounts of all that.

A plain value is stored as the bytes themselves and a queue as a deque: an object around each would cost more memory
than the value. A key whose time is up is gone for every decision at that instant; its memory goes with the EXPIRE op
of the next sweep, or with the op that writes over it. Queues do not expire.

The families beside this file read it to decide, and change it to apply ops; whatever changes it keeps the accounts.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from engine.calls import Command
from engine.commands.table import keys_of
from engine.replies import Error, Failure, Reply
from engine.store.deadlines import Deadlines
from engine.store.keyspace import SHARDS, Keyspace
from engine.store.ops import PUT, BadOp, Op


class Queue(deque[bytes]):
    """The values of a queue, first to last, and their length together in bytes."""

    __slots__ = ("values_bytes",)

    def __init__(self) -> None:
        super().__init__()
        self.values_bytes = 0


Entry = bytes | Queue

# Estimated bytes in memory beyond the key's and value's own length: object headers, allocator rounding, the map's slot.
VALUE_OVERHEAD_BYTES = 150
QUEUE_OVERHEAD_BYTES = 850
ITEM_OVERHEAD_BYTES = 48
DEADLINE_OVERHEAD_BYTES = 200

# Bytes in a record beyond the key's and value's own length: msgpack's headers, and a deadline instead of nil.
VALUE_RECORD_BYTES = 7
QUEUE_RECORD_BYTES = 6
ITEM_RECORD_BYTES = 2
DEADLINE_RECORD_BYTES = 8

BIG_QUEUE_LENGTH = 100
"""A removed queue longer than this is freed in slices: a million values at once are a stall of 30 ms, and so are
a thousand queues of a thousand."""


Decision: TypeAlias = tuple[tuple[Op, ...], Reply | None]
"""What a command does: its effects in order, and its answer; no answer yet (None) means that it waits.

A plain tuple: to make one with names takes 0.2 microseconds more, a tenth of a SET.
"""


class Store:
    """Keys, queues and deadlines.

    Args:
        memory_bytes_max: writes that would grow the estimate beyond it are refused; None is no cap.

    Attributes:
        entries: what each key holds, expired ones included until they are swept.
        deadlines: of keys that expire.
        data_bytes: length of all keys and values.
        value_count: number of plain values.
        item_count: number of values in queues.
        queue_count: number of queues.
    """

    def __init__(self, memory_bytes_max: int | None = None) -> None:
        self.memory_bytes_max = memory_bytes_max
        self.entries: Keyspace[Entry] = Keyspace()
        self.deadlines = Deadlines()
        self.data_bytes = 0
        self.value_count = 0
        self.item_count = 0
        self.queue_count = 0
        self._removed_queues: list[Queue] = []

    # Reading

    def __len__(self) -> int:
        """Number of keys and queues, expired ones included until they are swept."""
        return self.value_count + self.queue_count

    @property
    def memory_bytes(self) -> int:
        """Estimated memory of keys and values, in bytes."""
        return self._estimate(VALUE_OVERHEAD_BYTES, QUEUE_OVERHEAD_BYTES, ITEM_OVERHEAD_BYTES, DEADLINE_OVERHEAD_BYTES)

    @property
    def live_bytes(self) -> int:
        """Estimated length of a snapshot, in bytes."""
        return self._estimate(VALUE_RECORD_BYTES, QUEUE_RECORD_BYTES, ITEM_RECORD_BYTES, DEADLINE_RECORD_BYTES)

    def _estimate(self, value_bytes: int, queue_bytes: int, item_bytes: int, deadline_bytes: int) -> int:
        """Length of all keys and values, and so much more for each plain value, queue, value in a queue, deadline."""
        return (
            self.data_bytes
            + self.value_count * value_bytes
            + self.queue_count * queue_bytes
            + self.item_count * item_bytes
            + len(self.deadlines) * deadline_bytes
        )

    def queue(self, key: bytes) -> Queue | None:
        """The queue under a key, or None; for the actor, which serves waiters from it."""
        entry = self.entries.get(key)
        return entry if type(entry) is Queue else None

    def live(self, key: bytes, now_ms: int) -> Entry | None:
        """What a key holds now: an expired key holds nothing."""
        entry = self.entries.get(key)
        if entry is None or not self.deadlines.count:
            return entry
        deadline_ms = self.deadlines.get(key)
        return entry if deadline_ms is None or deadline_ms > now_ms else None

    @property
    def next_deadline_ms(self) -> int | None:
        """When the next key expires, or None."""
        return self.deadlines.next_ms

    def expired(self, now_ms: int, count_max: int, bytes_max: int) -> tuple[bytes, ...]:
        """Keys whose time is up, the longest expired first: `count_max` at most, of some `bytes_max` bytes together."""
        return self.deadlines.due(now_ms, count_max, bytes_max)

    def expired_of(self, command: Command, now_ms: int) -> tuple[bytes, ...]:
        """Keys that a command names whose time is up and that are still to be swept."""
        deadlines = self.deadlines
        if not deadlines.count:
            return ()
        keys = keys_of(command)
        if len(keys) == 1:  # as nearly always
            deadline_ms = deadlines.get(keys[0])
            return keys if deadline_ms is not None and deadline_ms <= now_ms else ()
        by_key = {key: deadlines.get(key) for key in keys}
        return tuple(key for key, deadline_ms in by_key.items() if deadline_ms is not None and deadline_ms <= now_ms)

    # The memory cap

    def refusal_to_grow(self, growth_bytes: int) -> Failure | None:
        """Why memory may not grow by so much; None when it may."""
        cap = self.memory_bytes_max
        if cap is None or growth_bytes <= 0 or self.memory_bytes + growth_bytes <= cap:
            return None
        return Failure(Error.STORAGE_FULL, f"the memory cap of {cap} bytes is reached")

    def cost(self, key: bytes) -> int:
        """Estimated memory of what a key holds, in bytes; 0 for nothing."""
        entry = self.entries.get(key)
        if entry is None:
            return 0
        if type(entry) is Queue:
            return len(key) + QUEUE_OVERHEAD_BYTES + entry.values_bytes + len(entry) * ITEM_OVERHEAD_BYTES
        return value_cost(key, entry, self.deadlines.get(key))  # type: ignore[arg-type]  # an entry else is bytes

    # Changing

    def put(self, op: Op) -> None:
        """Has a key hold a plain value, whatever it held before; takes the op itself, for a SET is mostly calls."""
        _, key, value, deadline_ms = op
        shard = self.entries.shards[hash(key) % SHARDS]
        old = shard.get(key)
        if type(old) is bytes:  # most often; to look for it twice, and to count down and up, costs a third of a SET
            self.data_bytes += len(value) - len(old)
            self.deadlines.drop(key)
        else:
            if old is not None:
                self.take_out(key)
            self.value_count += 1
            self.data_bytes += len(key) + len(value)
        shard[key] = value
        if deadline_ms is not None:
            self.deadlines.add(key, deadline_ms)

    def set_deadline(self, key: bytes, deadline_ms: int | None) -> None:
        """Has a plain value expire at another time; None is never.

        Raises:
            BadOp: the key holds no plain value.
        """
        if type(self.entries.get(key)) is not bytes:
            raise BadOp("says when a key expires that holds no plain value")
        self.deadlines.drop(key)
        if deadline_ms is not None:
            self.deadlines.add(key, deadline_ms)

    def make_queue(self, key: bytes, queue: Queue) -> None:
        """Has a key that holds nothing hold a queue."""
        self.entries[key] = queue
        self.queue_count += 1
        self.data_bytes += len(key) + queue.values_bytes
        self.item_count += len(queue)

    def account(self, queue: Queue, values_bytes: int, count: int) -> None:
        """Notes that a queue holds so many bytes and values more."""
        queue.values_bytes += values_bytes
        self.data_bytes += values_bytes
        self.item_count += count

    def take_out(self, key: bytes) -> bool:
        """Removes whatever a key holds, its deadline included; says whether there was anything."""
        entry = self.entries.pop(key)
        if entry is None:
            return False
        self.data_bytes -= len(key)
        if type(entry) is Queue:
            self.queue_count -= 1
            self.data_bytes -= entry.values_bytes
            self.item_count -= len(entry)
            if len(entry) > BIG_QUEUE_LENGTH:
                self._removed_queues.append(entry)
        else:
            self.value_count -= 1
            self.data_bytes -= len(entry)
            self.deadlines.drop(key)
        return True

    def remove(self, key: bytes) -> None:
        """Removes what a key holds.

        Raises:
            BadOp: it holds nothing.
        """
        if not self.take_out(key):
            raise BadOp("removes a key that does not exist")

    # Taking back

    def held(self, key: bytes) -> tuple[Entry | None, int | None]:
        """What a key holds, expired or not, and its deadline."""
        return self.entries.get(key), self.deadlines.get(key)

    def put_back(self, key: bytes, entry: Entry | None, deadline_ms: int | None) -> None:
        """Has a key hold again what it `held` before a PUT or REMOVE; what came after that is taken back already."""
        self.take_out(key)
        if type(entry) is Queue:
            if self._removed_queues and self._removed_queues[-1] is entry:
                self._removed_queues.pop()
            self.make_queue(key, entry)
        elif entry is not None:
            self.put((PUT, key, entry, deadline_ms))

    # Freeing

    @property
    def has_garbage(self) -> bool:
        """Whether removed queues are still to be freed."""
        return bool(self._removed_queues)

    def free_garbage(self, count_max: int) -> None:
        """Frees at most `count_max` values of removed queues."""
        while self._removed_queues and count_max > 0:
            queue = self._removed_queues[-1]
            count = min(count_max, len(queue))
            for _ in range(count):
                queue.pop()
            count_max -= count
            if not queue:
                self._removed_queues.pop()


def value_cost(key: bytes, value: bytes, deadline_ms: int | None) -> int:
    """Estimated memory of a plain value, in bytes."""
    deadline_bytes = 0 if deadline_ms is None else DEADLINE_OVERHEAD_BYTES
    return len(key) + len(value) + VALUE_OVERHEAD_BYTES + deadline_bytes


def refuse(error: Error) -> Decision:
    """The decision of a command that changes nothing because of an error that needs no detail."""
    return (), Failure(error)
