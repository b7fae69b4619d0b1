"""The state machine: `decide` says what a command does, `apply` does it. Pure and deterministic.

    decide(command, now_ms) -> Decision(ops, reply)      reads the state, changes nothing
    apply(op)                                            changes the state, asks nothing

Replay calls the same `apply`. There is no trio, clock, file or random here, and no await, so nothing can
come between a decision and its effects.

A plain value is stored as the bytes themselves and a queue as a deque: an object around each would cost more memory
than the value. A key whose time is up is gone for every decision at that instant; its memory goes with the EXPIRE op
of the next sweep, or with the op that writes over it. Queues do not expire.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any

from engine.commands.grammar import (
    BQPop,
    Command,
    Condition,
    Delete,
    Exists,
    Get,
    Ping,
    QLen,
    QPop,
    QPush,
    Set,
    Ttl,
)
from engine.replies import NULL, OK, PONG, Error, Failure, Integer, Ok, Reply, Value, wrong_type
from engine.store import ops
from engine.store.deadlines import Deadlines
from engine.store.keyspace import SHARDS, Keyspace
from engine.store.ops import BadOp, Op, Record


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

PUSH_BYTES_MAX = 1024 * 1024
"""A longer queue is several ops of a snapshot: a frame holds at least one op whole. Not much less, because each holds
the key as well, which may be far longer than the values."""

BIG_QUEUE_LENGTH = 100
"""A removed queue longer than this is freed in slices: a million values at once are a stall of 30 ms, and so are
a thousand queues of a thousand."""


Decision = tuple[tuple[Op, ...], Reply | None]
"""What a command does: its effects in order, and its answer; no answer yet (None) means that it waits.

A plain tuple: to make one with names takes 0.2 microseconds more, a tenth of a SET.
"""


class State:
    """Keys, queues and deadlines of one store.

    Args:
        memory_bytes_max: writes that would grow the estimate beyond it are refused; None is no cap.
    """

    def __init__(self, memory_bytes_max: int | None = None) -> None:
        self._entries: Keyspace[Entry] = Keyspace()
        self._deadlines = Deadlines()
        self._removed_queues: list[Queue] = []
        self._memory_bytes_max = memory_bytes_max
        self._data_bytes = 0  # of all keys and values
        self._value_count = 0
        self._item_count = 0
        self.queue_count = 0

    # Reading

    def __len__(self) -> int:
        """Number of keys and queues, expired ones included until they are swept."""
        return self._value_count + self.queue_count

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
            self._data_bytes
            + self._value_count * value_bytes
            + self.queue_count * queue_bytes
            + self._item_count * item_bytes
            + len(self._deadlines) * deadline_bytes
        )

    def queue(self, key: bytes) -> Queue | None:
        """The queue under a key, or None; for the actor, which serves waiters from it."""
        entry = self._entries.get(key)
        return entry if type(entry) is Queue else None

    @property
    def next_deadline_ms(self) -> int | None:
        """When the next key expires, or None."""
        return self._deadlines.next_ms

    def expired(self, now_ms: int, count_max: int, bytes_max: int) -> tuple[bytes, ...]:
        """Keys whose time is up, the longest expired first: `count_max` at most, of some `bytes_max` bytes together."""
        return self._deadlines.due(now_ms, count_max, bytes_max)

    def dump(self) -> Iterator[tuple[Any, ...]]:
        """Everything, in a fixed order: equal dumps are equal states."""
        for key in sorted(self._entries):
            entry = self._entries.get(key)
            if type(entry) is Queue:
                yield ("queue", key, tuple(entry))
            else:
                yield ("value", key, entry, self._deadlines.get(key))

    def snapshot_ops(self) -> Iterator[Op]:
        """The ops that make an empty state equal to this one; for equal states the same, in the same order."""
        for key in sorted(self._entries):
            entry = self._entries.get(key)
            if type(entry) is Queue:
                yield from _pushes(key, entry)
            else:
                yield (ops.PUT, key, entry, self._deadlines.get(key))

    # Deciding

    def decide(self, command: Command, now_ms: int) -> Decision:
        """Says what a command does at this instant.

        Args:
            command: as parsed.
            now_ms: engine time, milliseconds since 1970.
        """
        return _DECIDE[type(command)](self, command, now_ms)

    def _live(self, key: bytes, now_ms: int) -> Entry | None:
        """What a key holds now: an expired key holds nothing."""
        entry = self._entries.get(key)
        if entry is None or not self._deadlines.count:
            return entry
        deadline_ms = self._deadlines.get(key)
        return entry if deadline_ms is None or deadline_ms > now_ms else None

    def expired_of(self, command: Command, now_ms: int) -> tuple[bytes, ...]:
        """Keys that a command names whose time is up and that are still to be swept."""
        if not self._deadlines.count or isinstance(command, Ping):
            return ()
        if not isinstance(command, (Delete, Exists)):
            deadline_ms = self._deadlines.get(command.key)
            return (command.key,) if deadline_ms is not None and deadline_ms <= now_ms else ()
        deadlines = {key: self._deadlines.get(key) for key in command.keys}
        return tuple(key for key, deadline_ms in deadlines.items() if deadline_ms is not None and deadline_ms <= now_ms)

    def _grows_too_far(self, growth_bytes: int) -> bool:
        cap = self._memory_bytes_max
        return cap is not None and growth_bytes > 0 and self.memory_bytes + growth_bytes > cap

    def _set(self, command: Set, now_ms: int) -> Decision:
        if command.condition is not None:
            present = self._live(command.key, now_ms) is not None
            if command.condition is Condition.IF_MISSING and present:
                return _refuse(Error.KEY_ALREADY_EXISTS)
            if command.condition is Condition.IF_PRESENT and not present:
                return _refuse(Error.KEY_NOT_FOUND)
        deadline_ms = None if command.ttl_ms is None else now_ms + command.ttl_ms
        if self._memory_bytes_max is not None:
            growth = _value_bytes(command.key, command.value, deadline_ms) - self._cost(command.key)
            if self._grows_too_far(growth):
                return _storage_full(self._memory_bytes_max)
        return ((ops.PUT, command.key, command.value, deadline_ms),), OK

    def _get(self, command: Get, now_ms: int) -> Decision:
        entry = self._live(command.key, now_ms)
        if entry is None:
            return _refuse(Error.KEY_NOT_FOUND)
        if type(entry) is Queue:
            return (), wrong_type("GET")
        return (), Value(entry)  # type: ignore[arg-type]  # an entry that is no deque is bytes

    def _delete(self, command: Delete, now_ms: int) -> Decision:
        keys = [key for key in dict.fromkeys(command.keys) if self._live(key, now_ms) is not None]
        if not keys:
            return _refuse(Error.KEY_NOT_FOUND)
        return (tuple((ops.REMOVE, key) for key in keys), Integer(len(keys)))

    def _exists(self, command: Exists, now_ms: int) -> Decision:
        return (), Integer(sum(self._live(key, now_ms) is not None for key in command.keys))

    def _qpush(self, command: QPush, now_ms: int) -> Decision:
        entry = self._live(command.key, now_ms)
        if entry is not None and type(entry) is not Queue:
            return (), wrong_type("QPUSH")
        if self._memory_bytes_max is not None:
            growth = sum(map(len, command.values)) + len(command.values) * ITEM_OVERHEAD_BYTES
            if entry is None:
                growth += len(command.key) + QUEUE_OVERHEAD_BYTES
            if self._grows_too_far(growth):
                return _storage_full(self._memory_bytes_max)
        push: Op = (ops.PUSH, command.key, command.values)
        stale = entry is None and self._entries.get(command.key) is not None
        effects = ((ops.REMOVE, command.key), push) if stale else (push,)
        return (effects, Ok(length=len(command.values) + (len(entry) if entry is not None else 0)))

    def _qpop(self, command: QPop, now_ms: int) -> Decision:
        entry = self._live(command.key, now_ms)
        if entry is None:
            return (), NULL
        if type(entry) is not Queue:
            return (), wrong_type("QPOP")
        if not entry:
            return _refuse(Error.QUEUE_IS_EMPTY)
        return ((ops.POP_LAST, command.key),), Value(entry[-1])

    def _bqpop(self, command: BQPop, now_ms: int) -> Decision:
        entry = self._live(command.key, now_ms)
        if entry is not None and type(entry) is not Queue:
            return (), wrong_type("BQPOP")
        if entry:
            return ((ops.POP_FIRST, command.key),), Value(entry[0])
        return (), NULL if command.timeout_ms == 0 else None

    def _qlen(self, command: QLen, now_ms: int) -> Decision:
        entry = self._live(command.key, now_ms)
        if entry is not None and type(entry) is not Queue:
            return (), wrong_type("QLEN")
        return (), Integer(0 if entry is None else len(entry))

    def _ttl(self, command: Ttl, now_ms: int) -> Decision:
        if self._live(command.key, now_ms) is None:
            return (), Integer(-2)
        deadline_ms = self._deadlines.get(command.key)
        return (), Integer(-1 if deadline_ms is None else math.ceil((deadline_ms - now_ms) / 1000))

    def _ping(self, _command: Ping, _now_ms: int) -> Decision:
        return (), PONG

    # Applying

    def apply(self, op: Op) -> None:
        """Applies one effect.

        Raises:
            BadOp: the effect does not fit the state; a log that was written by decisions never holds one.
        """
        _APPLY[op[0]](self, op)

    def replay(self, records: Sequence[Record]) -> None:
        """Checks and applies records as they were read from the log, in order.

        Does what `ops.check` and `apply` do, but quicker for what a log is mostly full of: plain values.

        Raises:
            BadOp: one of them is no op, or does not fit the state. The state is of no use from then on.
        """
        shards = self._entries.shards
        deadlines = self._deadlines
        put = ops.PUT
        new_count = new_bytes = 0
        left = iter(records)
        try:
            for record in left:
                if len(record) == 4:
                    code, key, value, deadline_ms = record
                    # The checks of `ops.check`, and `is`: a 1 that is another object only takes the longer way.
                    if (
                        code is put
                        and type(key) is bytes
                        and type(value) is bytes
                        and (deadline_ms is None or (type(deadline_ms) is int and deadline_ms >= 0))
                    ):
                        shard = shards[hash(key) % SHARDS]
                        if key not in shard:
                            shard[key] = value
                            new_count += 1
                            new_bytes += len(key) + len(value)
                            if deadline_ms is not None:
                                deadlines.add(key, deadline_ms)
                            continue
                        old = shard[key]
                        if deadline_ms is None and type(old) is bytes and not deadlines:
                            shard[key] = value
                            new_bytes += len(value) - len(old)
                            continue
                self.apply(ops.check(record))
        except BadOp as error:
            error.index = len(records) - length_hint(left) - 1
            raise
        self._value_count += new_count
        self._data_bytes += new_bytes

    def order_deadlines(self) -> None:
        """Does after a replay what would otherwise hold up the first command: a million deadlines take 2 s to order."""
        self._deadlines.order()

    def _put(self, op: Op) -> None:
        _, key, value, deadline_ms = op
        shard = self._entries.shards[hash(key) % SHARDS]
        old = shard.get(key)
        if type(old) is bytes:  # most often; to look for it twice, and to count down and up, costs a third of a SET
            self._data_bytes += len(value) - len(old)
            self._deadlines.drop(key)
        else:
            if old is not None:
                self._take_out(key)
            self._value_count += 1
            self._data_bytes += len(key) + len(value)
        shard[key] = value
        if deadline_ms is not None:
            self._deadlines.add(key, deadline_ms)

    def _remove(self, op: Op) -> None:
        if not self._take_out(op[1]):
            raise BadOp("removes a key that does not exist")

    def _push(self, op: Op) -> None:
        _, key, values = op
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Queue()
            self.queue_count += 1
            self._data_bytes += len(key)
        elif type(entry) is not Queue:
            raise BadOp("pushes to a plain value")
        entry.extend(values)
        self._account(entry, sum(map(len, values)), len(values))

    def _pop_first(self, op: Op) -> None:
        queue = self._filled_queue(op[1])
        self._account(queue, -len(queue.popleft()), -1)

    def _pop_last(self, op: Op) -> None:
        queue = self._filled_queue(op[1])
        self._account(queue, -len(queue.pop()), -1)

    def _return_first(self, op: Op) -> None:
        _, key, value = op
        queue = self._existing_queue(key)
        queue.appendleft(value)
        self._account(queue, len(value), 1)

    def _return_last(self, op: Op) -> None:
        _, key, value = op
        queue = self._existing_queue(key)
        queue.append(value)
        self._account(queue, len(value), 1)

    def _expire(self, op: Op) -> None:
        for key in op[1]:
            self._remove((ops.REMOVE, key))

    def _existing_queue(self, key: bytes) -> Queue:
        queue = self.queue(key)
        if queue is None:
            raise BadOp("needs a queue where there is none")
        return queue

    def _filled_queue(self, key: bytes) -> Queue:
        queue = self._existing_queue(key)
        if not queue:
            raise BadOp("pops from an empty queue")
        return queue

    def _account(self, queue: Queue, values_bytes: int, count: int) -> None:
        queue.values_bytes += values_bytes
        self._data_bytes += values_bytes
        self._item_count += count

    def _take_out(self, key: bytes) -> bool:
        """Removes whatever a key holds, its deadline included; says whether there was anything."""
        entry = self._entries.pop(key)
        if entry is None:
            return False
        self._data_bytes -= len(key)
        if type(entry) is Queue:
            self.queue_count -= 1
            self._data_bytes -= entry.values_bytes
            self._item_count -= len(entry)
            if len(entry) > BIG_QUEUE_LENGTH:
                self._removed_queues.append(entry)
        else:
            self._value_count -= 1
            self._data_bytes -= len(entry)
            self._deadlines.drop(key)
        return True

    # Taking back

    def held(self, key: bytes) -> tuple[Entry | None, int | None]:
        """What a key holds, expired or not, and its deadline."""
        return self._entries.get(key), self._deadlines.get(key)

    def put_back(self, key: bytes, entry: Entry | None, deadline_ms: int | None) -> None:
        """Has a key hold again what it `held` before a PUT or REMOVE; what came after that is taken back already."""
        self._take_out(key)
        if type(entry) is Queue:
            if self._removed_queues and self._removed_queues[-1] is entry:
                self._removed_queues.pop()
            self._entries[key] = entry
            self.queue_count += 1
            self._data_bytes += len(key) + entry.values_bytes
            self._item_count += len(entry)
        elif entry is not None:
            self._put((ops.PUT, key, entry, deadline_ms))

    def _cost(self, key: bytes) -> int:
        """Estimated memory of what a key holds, in bytes; 0 for nothing."""
        entry = self._entries.get(key)
        if entry is None:
            return 0
        if type(entry) is Queue:
            return len(key) + QUEUE_OVERHEAD_BYTES + entry.values_bytes + len(entry) * ITEM_OVERHEAD_BYTES
        return _value_bytes(key, entry, self._deadlines.get(key))  # type: ignore[arg-type]  # bytes, as above

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


def _value_bytes(key: bytes, value: bytes, deadline_ms: int | None) -> int:
    deadline_bytes = 0 if deadline_ms is None else DEADLINE_OVERHEAD_BYTES
    return len(key) + len(value) + VALUE_OVERHEAD_BYTES + deadline_bytes


def _pushes(key: bytes, queue: Queue) -> Iterator[Op]:
    """The ops that make a queue; an empty one takes one as well."""
    values: list[bytes] = []
    values_bytes = 0
    for value in queue:
        value_bytes = len(value) + ITEM_RECORD_BYTES
        if values and values_bytes + value_bytes > PUSH_BYTES_MAX:
            yield (ops.PUSH, key, tuple(values))
            values, values_bytes = [], 0
        values.append(value)
        values_bytes += value_bytes
    yield (ops.PUSH, key, tuple(values))


def _refuse(error: Error, detail: str = "") -> Decision:
    return (), Failure(error, detail)


def _storage_full(memory_bytes_max: int | None) -> Decision:
    return _refuse(Error.STORAGE_FULL, f"the memory cap of {memory_bytes_max} bytes is reached")


# A row maps each key to a method that takes that very type; a dict's type cannot say so, hence Any.
_DECIDE: dict[type[Command], Callable[[State, Any, int], Decision]] = {
    Set: State._set,
    Get: State._get,
    Delete: State._delete,
    Exists: State._exists,
    QPush: State._qpush,
    QPop: State._qpop,
    BQPop: State._bqpop,
    QLen: State._qlen,
    Ttl: State._ttl,
    Ping: State._ping,
}

_APPLY: dict[int, Callable[[State, Op], None]] = {
    ops.PUT: State._put,
    ops.REMOVE: State._remove,
    ops.PUSH: State._push,
    ops.POP_FIRST: State._pop_first,
    ops.POP_LAST: State._pop_last,
    ops.RETURN_FIRST: State._return_first,
    ops.RETURN_LAST: State._return_last,
    ops.EXPIRE: State._expire,
}
