"""The move itself: everything from a source to a destination, then what arrived is read back and compared.

A move that was interrupted, by a kill or by an error, is resumed by the same call: the destination keeps a note of
whose unfinished move it holds, and how far it is. Nothing is written twice; and if a destination has lost what it took
for written, the comparison finds that, and the next call writes everything once more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from engine.moving.items import Item, MoveError
from engine.moving.tally import Difference, Tally, differences

Progress = Callable[[int, int], None]
"""Told (keys and queues so far, how many there are about; 0 when nobody knows)."""


class Source(Protocol):
    """Where everything comes from.

    Attributes:
        name: for messages.
        identity: of what it holds: what has the same identity is the same.
        entries: how many keys and queues there are, about.
        is_repeatable: whether the same items come in the same order every time.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  # above

    @property
    def identity(self) -> str: ...  # noqa: D102

    @property
    def entries(self) -> int: ...  # noqa: D102

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

    async def begin(self, identity: str) -> int:
        """Begins a move, or resumes it.

        Args:
            identity: of the source.

        Returns:
            How many items of a repeatable source it is known to have.

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
    known = await destination.begin(source.identity)
    resumed_at = known if source.is_repeatable else 0
    expected = Tally()
    position = 0
    try:
        async with aclosing(source.batches()) as batches:
            async for batch in batches:
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
    expected.end()
    try:
        source.check(expected)
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
