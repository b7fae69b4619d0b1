"""What the clients of a simulation do: commands and batches over a few keys, often several in one instant."""

from __future__ import annotations

import random
from typing import NamedTuple

GROUPS: tuple[tuple[bytes, ...], ...] = ((b"a",), (b"b",), (b"mixed",), (b"left", b"right"), (b"q",), (b"r",))
"""Plain keys, one that is now a value and now a queue, two that are removed together, and two queues."""

UNTOUCHED_QUEUE = b"q"
"""A queue that is only ever pushed to and popped from: what went in comes out."""

GAPS_MS = (0, 0, 0, 1, 1, 2, 5, 5, 10, 20, 50, 200)
LONG_GAPS_MS = (1_000, 1_500, 10_000, 60_000, 3_600_000)
PATIENCE_MS = (0, 0, 1, 2, 5, 10, 20, 100)
TTLS: tuple[tuple[bytes, bytes], ...] = (
    (b"PX", b"1"),
    (b"PX", b"5"),
    (b"PX", b"20"),
    (b"PX", b"20"),
    (b"PX", b"100"),
    (b"PX", b"500"),
    (b"EX", b"1"),
    (b"EX", b"5"),
    (b"EX", b"60"),
    (b"EX", b"3600"),
)
TIMEOUTS: tuple[bytes | None, ...] = (None, None, b"0", b"0.005", b"0.02", b"0.1", b"1", b"60")

BATCH_SHARE = 0.15
"""How many of the requests are batches."""

LENGTHS = (2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 8, 12)
SCENES: tuple[tuple[bytes, ...], ...] = (
    (b"q",),
    (b"q", b"r"),
    (b"q", b"a"),
    (b"q", b"q", b"mixed"),
    (b"left", b"right"),
    (b"left", b"right", b"a", b"b"),
    (b"a", b"b", b"left", b"right", b"q", b"r", b"mixed"),
)
"""Keys that a batch is about."""

Words = tuple[bytes, ...]


class Batch(NamedTuple):
    """Several commands of one request; those of a unit are all done, or none of them."""

    commands: list[Words]
    atomic: bool


class Mind:
    """Decides what one client does next.

    Args:
        number: of the client.
        chance: of the seed.
    """

    def __init__(self, number: int, chance: random.Random) -> None:
        self.number = number
        self._chance = chance
        self._values = 0

    def gap_ms(self) -> int:
        """How long the client waits before its next command."""
        return self._chance.choice(LONG_GAPS_MS if self._chance.random() < 0.015 else GAPS_MS)

    def patience_ms(self, share: float = 0.2) -> int | None:
        """How long it waits for an answer before it leaves; None for as long as it takes, but for this share."""
        return self._chance.choice(PATIENCE_MS) if self._chance.random() < share else None

    def command(self) -> Words:
        """The next command; every value written is new."""
        draw = self._chance.random()
        if draw < 0.30:
            return self._on_plain_key(self._chance.choice((b"a", b"a", b"b")))
        if draw < 0.42:
            return self._on_pair()
        if draw < 0.90:
            return self._on_queue(self._chance.choice((b"q", b"q", b"r")))
        return self._chance.choice((self._on_plain_key, self._on_queue))(b"mixed")

    def batch(self) -> Batch | None:
        """Several commands to be sent at once instead, now and then; in many a unit none is bound to be refused."""
        if self._chance.random() >= BATCH_SHARE:
            return None
        atomic = self._chance.random() < 0.5
        keys = self._chance.choice(SCENES)
        commands = [self._tame(self._chance.choice(keys)) for _ in range(self._chance.choice(LENGTHS))]
        if self._chance.random() < 0.5:
            place = max(self._chance.randrange(len(commands)) for _ in range(2))
            commands[place] = self._wild() if self._chance.random() < 0.7 else self.command()
        return Batch(commands, atomic)

    def _tame(self, key: bytes) -> Words:
        """A command that finds nothing wrong with the key, whatever it holds."""
        draw = self._chance.random()
        if key in (b"q", b"r"):
            if draw < 0.45:
                return (b"QPUSH", key, *(self._value() for _ in range(self._chance.choice((1, 1, 2)))))
            return (b"BQPOP", key) if draw < 0.85 else (b"QLEN", key)
        if draw < 0.6:
            ttl = self._chance.choice(TTLS) if self._chance.random() < 0.4 else ()
            return (b"SET", key, self._value(), *ttl)
        if key in (b"left", b"right"):
            return b"EXISTS", b"left", b"right"
        return self._chance.choice((b"GET", b"TTL", b"EXISTS")), key

    def _wild(self) -> Words:
        """A command that is refused more often than not."""
        name, key, *rest = self._chance.choice(
            (
                (b"SET", b"a", b"NX"),
                (b"SET", b"b", b"NX"),
                (b"SET", b"left", b"XX"),
                (b"DELETE", b"b"),
                (b"QPOP", b"q"),
                (b"QPOP", b"r"),
                (b"QPOP", b"mixed"),
                (b"BQPOP", b"mixed"),
                (b"QPUSH", b"mixed"),
            )
        )
        return (name, key, *([self._value()] if name in (b"SET", b"QPUSH") else ()), *rest)

    def _on_plain_key(self, key: bytes) -> Words:
        draw = self._chance.random()
        if draw < 0.5:
            ttl = self._chance.choice(TTLS) if self._chance.random() < 0.5 else ()
            condition = self._chance.choice(((), (), (b"NX",), (b"XX",)))
            return (b"SET", key, self._value(), *ttl, *condition)
        if draw < 0.9:
            return self._chance.choice((b"GET", b"GET", b"TTL", b"EXISTS")), key
        return b"DELETE", key

    def _on_pair(self) -> Words:
        draw = self._chance.random()
        if draw < 0.5:
            return b"SET", self._chance.choice((b"left", b"right")), self._value()
        return self._chance.choice((b"DELETE", b"DELETE", b"EXISTS")), b"left", b"right"

    def _on_queue(self, key: bytes) -> Words:
        draw = self._chance.random()
        if draw < 0.38:
            count = self._chance.choice((1, 1, 2, 3))
            return (b"QPUSH", key, *(self._value() for _ in range(count)))
        if draw < 0.53:
            return b"QPOP", key
        if draw < 0.90:
            timeout = self._chance.choice(TIMEOUTS)
            return (b"BQPOP", key) if timeout is None else (b"BQPOP", key, timeout)
        if draw < 0.96 or key == UNTOUCHED_QUEUE:
            return b"QLEN", key
        return b"DELETE", key

    def _value(self) -> bytes:
        self._values += 1
        padding = self._chance.choice((0, 0, 0, 10, 100, 300, 700)) * b"x"
        return b"%d.%d" % (self.number, self._values) + padding


def timeout_ms(words: Words) -> int | None:
    """How long a blocking pop waits; None for ever."""
    return round(float(words[2]) * 1000) if words[0] == b"BQPOP" and len(words) > 2 else None
