"""Counts and checksums of what a store holds, to tell whether another holds the same.

The checksum of a store is a sum of digests, one for each key and each queue, so it does not depend on their order. A
digest is BLAKE2b with 16 bytes, read as a big-endian number; sums are modulo 2**128. Numbers in what is digested are
big-endian with 8 bytes:

    key      "key", length of the key, key, deadline in ms since 1970 (0xffffffffffffffff is none), value
    queue    "queue", length of the key, key, then for each value first to last: its length, value

A key may expire while it is moved, and then be on one side only. So the sums of keys that expire are kept apart by the
second of their deadlines, and only those of seconds that begin after the comparison are compared: all others are over
before anybody could look.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

from engine.commands.grammar import show
from engine.moving.items import Item, MoveError, Plain

DIGEST_BYTES = 16
MODULUS = 1 << 8 * DIGEST_BYTES
NEVER = b"\xff" * 8


@dataclass(slots=True)
class Sum:
    """How many, and the sum of their digests, not reduced."""

    count: int = 0
    total: int = 0

    def add(self, digest: bytes) -> None:
        """Counts one more."""
        self.count += 1
        self.total += int.from_bytes(digest)


@dataclass(frozen=True, slots=True)
class Difference:
    """A kind of entries of which not the same are on both sides."""

    kind: str
    expected: int
    found: int

    def __str__(self) -> str:
        if self.expected == self.found:
            return f"{self.kind}: {self.found:,}, but not the same as in the source"
        return f"{self.kind}: {self.found:,} instead of {self.expected:,}"


@dataclass(slots=True)
class Tally:
    """Counts and checksums of the items that were added.

    Attributes:
        keys: how many keys hold plain values, expired ones included.
        permanent: keys that never expire.
        expiring: the others, by the second of their deadline.
        queues: the queues.
        values: how many values are in them.
        foreign: how many keys were found that are nothing of Holdfast's.
    """

    keys: int = 0
    permanent: Sum = field(default_factory=Sum)
    expiring: dict[int, Sum] = field(default_factory=dict)
    queues: Sum = field(default_factory=Sum)
    values: int = 0
    foreign: int = 0
    _queue: bytes | None = None
    _length: int = 0
    _hash: blake2b = field(default_factory=blake2b)

    def add(self, items: Iterable[Item]) -> None:
        """Adds items in their order.

        Raises:
            MoveError: a piece of a queue is missing before one of them.
        """
        for item in items:
            if isinstance(item, Plain):
                if self._queue is not None:
                    self.end()
                self.keys += 1
                key, value, deadline_ms = item
                length = len(key).to_bytes(8)
                if deadline_ms is None:
                    digest = blake2b(b"".join((b"key", length, key, NEVER, value)), digest_size=DIGEST_BYTES)
                    self.permanent.add(digest.digest())
                else:
                    words = (b"key", length, key, deadline_ms.to_bytes(8), value)
                    digest = blake2b(b"".join(words), digest_size=DIGEST_BYTES)
                    self.expiring.setdefault(deadline_ms // 1000, Sum()).add(digest.digest())
            else:
                self._add_piece(*item)

    def _add_piece(self, key: bytes, offset: int, values: tuple[bytes, ...]) -> None:
        if offset == 0:
            self.end()
            self._queue, self._length = key, 0
            self._hash = blake2b(b"".join((b"queue", len(key).to_bytes(8), key)), digest_size=DIGEST_BYTES)
        elif (key, offset) != (self._queue, self._length):
            raise MoveError(f"a piece of the queue {show(key)} is missing before value {offset}")
        for value in values:
            self._hash.update(len(value).to_bytes(8) + value)
        self._length += len(values)

    def end(self) -> None:
        """Counts the queue that was last, if that has not been done; nothing is to follow in it."""
        if self._queue is not None:
            self.queues.add(self._hash.digest())
            self.values += self._length
            self._queue = None

    @property
    def entries(self) -> int:
        """How many keys and queues, but for a queue that has not ended."""
        return self.keys + self.queues.count

    @property
    def checksum(self) -> str:
        """Of everything, in hex."""
        parts = (self.permanent, self.queues, *self.expiring.values())
        return f"{sum(part.total for part in parts) % MODULUS:032x}"

    def until(self, time_ms: int) -> int:
        """How many keys have their deadline in a second that began by then."""
        return sum(part.count for second, part in self.expiring.items() if second * 1000 <= time_ms)

    def after(self, time_ms: int) -> Sum:
        """Those keys that have their deadline in a later second."""
        later = [part for second, part in self.expiring.items() if second * 1000 > time_ms]
        return Sum(sum(part.count for part in later), sum(part.total for part in later))


def differences(expected: Tally, found: Tally, time_ms: int) -> list[Difference]:
    """Compares what two stores hold.

    Args:
        expected: of the source.
        found: of the destination.
        time_ms: when it was read to its end, milliseconds since 1970; keys that expire in that second, or have by
            then, are left out.

    Returns:
        What is not the same; nothing if all is.
    """
    pairs = [
        ("keys without expiry", expected.permanent, found.permanent),
        ("keys with expiry", expected.after(time_ms), found.after(time_ms)),
        ("queues", expected.queues, found.queues),
    ]
    unlike = [
        Difference(kind, ours.count, theirs.count)
        for kind, ours, theirs in pairs
        if ours.count != theirs.count or (ours.total - theirs.total) % MODULUS
    ]
    if expected.values != found.values:
        unlike.append(Difference("values in queues", expected.values, found.values))
    if found.foreign:
        unlike.append(Difference("keys of other kinds", 0, found.foreign))
    return unlike
