"""The move itself: everything from a source to a destination, then what arrived is read back and compared.

A move that was interrupted, by a kill or by an error, is resumed by the same call: the destination keeps a note of
whose unfinished move it holds, and how far it is. Nothing is written twice; and if a destination has lost what it took
for written, the comparison finds that, and the next call writes everything once more.

Deadlines stand in a source by its own clock. Where that is ahead of the clock of the destination, all are brought
forward by as much, so that everything lives for what was left of it. (A clock that is behind cannot be told from time
that has passed.) By how much is settled once: the destination notes it, and a move that is resumed keeps to it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from engine.moving.items import Item, MoveError, earlier
from engine.moving.tally import Difference, Tally, differences

Progress = Callable[[int, int], None]
"""Told (keys and queues so far, how many there are about; 0 when nobody knows)."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What a destination knows of a move that it begins or resumes.

    Attributes:
        items: how many items of a repeatable source it is known to have.
        ahead_ms: how far the clock of the source was ahead when the move began.
    """

    items: int
    ahead_ms: int


class Source(Protocol):
    """Where everything comes from.

    Attributes:
        name: for messages.
        identity: of what it holds: what has the same identity is the same.
        entries: how many keys and queues there are, about.
        time_ms: what its clock, by which its deadlines are, said when it was opened, milliseconds since 1970; 0 when
            nobody knows.
        is_repeatable: whether the same items come in the same order every time.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  # above

    @property
    def identity(self) -> str: ...  # noqa: D102

    @property
    def entries(self) -> int: ...  # noqa: D102

    @property
    def time_ms(self) -> int: ...  # noqa: D102

    @property
    def is_repeatable(self) -> bool: ...  # noqa: D102

    def batches(self) -> AsyncGenerator[list[Item], None]:
        """Yields all items, some at a time.

        Raises:
            MoveError: they cannot be read, or end too early.
        """

    def check(self, tally: Tally) -> None:
        """Compares what came with what it knows itself of what should.

        Args:
            tally: of all items.

        Raises:
            MoveError: they are not the same.
        """


class Destination(Protocol):
    """Where everything goes.

    Attributes:
        name: for messages.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  # above

    async def begin(self, identity: str, time_ms: int) -> Begun:
        """Begins a move, or resumes it.

        Args:
            identity: of the source.
            time_ms: what the clock of the source said.

        Raises:
            MoveError: it is not empty, and holds no unfinished move from this source.
        """

    async def write(self, items: list[Item], position: int) -> None:
        """Takes items; those it has already change nothing. They need not be there when this returns.

        Args:
            items: the next ones.
            position: how many there have been, with these.

        Raises:
            MoveError: it cannot.
        """

    async def settle(self) -> None:
        """Returns when all that was written is there, and noted.

        Raises:
            MoveError: it cannot be.
        """

    async def read_back(self, progress: Progress) -> tuple[Tally, int]:
        """Reads everything it holds.

        Returns:
            The tally, and the time by which it was read, in ms since 1970 by all clocks concerned.

        Raises:
            MoveError: it cannot be read.
        """

    async def finish(self) -> None:
        """Ends the move: what it holds is what it should."""

    async def rewind(self) -> None:
        """Has the next move from this source write everything once more."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move has brought about.

    Attributes:
        tally: of what the destination holds.
        resumed_at: how many items were known to be there before.
        expired: keys that expired before or meanwhile, and are not there.
        differences: from the source.
    """

    tally: Tally
    resumed_at: int
    expired: int
    differences: list[Difference]


def clock_ahead_ms(time_ms: int, now_ms: int) -> int:
    """How far a clock is ahead, in whole seconds: with less, all that is moved keeps its deadline to the millisecond.

    Args:
        time_ms: what it says, milliseconds since 1970.
        now_ms: what the other one says.
    """
    return max(0, time_ms - now_ms) // 1000 * 1000


async def move(source: Source, destination: Destination, writing: Progress, reading: Progress) -> Moved:
    """Moves everything, or the rest of it.

    Args:
        source: is not changed.
        destination: empty, or with an unfinished move from the same source.
        writing: told how far the writing is.
        reading: told how far the reading back is.

    Raises:
        MoveError: it is not done; another call may resume it.
    """
    begun = await destination.begin(source.identity, source.time_ms)
    resumed_at = begun.items if source.is_repeatable else 0
    stated = Tally()
    expected = Tally() if begun.ahead_ms else stated
    position = 0
    try:
        async with aclosing(source.batches()) as batches:
            async for batch in batches:
                stated.add(batch)
                if begun.ahead_ms:
                    batch = [earlier(item, begun.ahead_ms) for item in batch]  # as it is written
                    expected.add(batch)
                position += len(batch)
                new = batch[max(0, len(batch) - max(0, position - resumed_at)) :]
                if new:
                    await destination.write(new, position)
                writing(expected.entries, source.entries)
    except MoveError:
        with suppress(MoveError):  # the first one says more
            await destination.settle()
        raise
    await destination.settle()
    stated.end()
    expected.end()
    try:
        source.check(stated)
    except MoveError:
        await destination.rewind()
        raise
    found, time_ms = await destination.read_back(reading)
    unlike = differences(expected, found, time_ms)
    if unlike:
        await destination.rewind()
    else:
        await destination.finish()
    return Moved(found, resumed_at, max(0, expected.until(time_ms) - found.until(time_ms)), unlike)
