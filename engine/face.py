"""The face of an engine, which both have: what callers do with it, and how it is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import trio

from engine.calls import PARKED, QUEUED, AnyCall, Batch, Call, Command
from engine.replies import Failure, Refused, Reply
from engine.sleeper import Sleeper

BATCHED_COMMANDS_MAX = 262_144
"""Commands of batches that may wait together, some 60 MB: each batch is one in the mailbox, however long it is."""


class Face(ABC):
    """An engine as its callers see it.

    Attributes:
        accepting: False while shutting down.
        copies_values: whether the values of replies take memory of their own; else they are those of the store.
    """

    accepting: bool
    copies_values = False

    async def submit(self, command: Command) -> Reply:
        """Has a command done and waits for its answer.

        Cancelling withdraws it: a command that waits is taken back, and a popped value nobody will see goes back
        to its queue. There is no checkpoint between the answer's arrival and the return.

        Args:
            command: as parsed.

        Returns:
            The reply; refusals are replies too (`Failure`).
        """
        sleeper = Sleeper()
        call = self.submit_nowait(command, lambda _call: sleeper.wake())
        await self._answer_of(call, sleeper)
        assert call.reply is not None
        return call.reply

    async def submit_many(self, commands: Sequence[Command], *, atomic: bool = False) -> list[Reply] | Refused:
        """Has several commands done in their order, and waits for the answers; cancelling is as with `submit`.

        Args:
            commands: as parsed. None of them waits for a value: a blocking pop finds one or answers null.
            atomic: all of them or nothing, with no command of others in between. Else a command that is refused does
                not disturb the rest, and in a long batch others have their turn in between.

        Returns:
            The replies in order, or why nothing was done.
        """
        sleeper = Sleeper()
        batch = self.submit_many_nowait(commands, atomic, lambda _call: sleeper.wake())
        await self._answer_of(batch, sleeper)
        assert batch.reply is not None
        return batch.reply

    @abstractmethod
    def submit_nowait(self, command: Command, deliver: Callable[[Call], None]) -> Call:
        """Has a command done and returns at once.

        Args:
            command: as parsed.
            deliver: called with the call, once, when its reply may be shown; also from within, for a refusal. If
                something was popped (`call.taken`), `settle` or `withdraw` must follow.

        Returns:
            The call, for `settle` and `withdraw`.
        """

    @abstractmethod
    def submit_many_nowait(self, commands: Sequence[Command], atomic: bool, deliver: Callable[[Batch], None]) -> Batch:
        """Has several commands done and returns at once.

        Args:
            commands: as in `submit_many`.
            atomic: as in `submit_many`.
            deliver: as in `submit_nowait`, called with the batch.

        Returns:
            The batch, for `settle` and `withdraw`.
        """

    @abstractmethod
    def settle(self, call: AnyCall) -> None:
        """Says that the answer was handed to the transport: what was popped does not come back any more."""

    @abstractmethod
    def withdraw(self, call: AnyCall) -> None:
        """Says that the caller has left: what waits is taken back, popped values go back, nothing is delivered.

        Of a batch that is not atomic, what is done stays done.
        """

    @abstractmethod
    def statistics(self) -> Any:
        """Returns its numbers at this moment, as a frozen dataclass."""

    @abstractmethod
    def readiness(self) -> Failure | Mapping[str, str | int]:
        """Says what is in force while commands are taken, or why they are not.

        Where a part of them is refused because something is full, or will be before long, `status` is `degraded`, and
        `detail` says what it is.
        """

    # For whoever runs it

    @abstractmethod
    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs until `close`; start it with `nursery.start`, which returns when it takes commands."""

    @abstractmethod
    def shut_down(self) -> None:
        """Answers `unavailable` to parked waiters and to everything submitted from now on."""

    @abstractmethod
    def close(self) -> None:
        """Shuts down, and lets `run` finish: what was submitted is done and answered."""

    async def _answer_of(self, call: AnyCall, sleeper: Sleeper) -> None:
        """Waits until a call is answered; there is no checkpoint after that."""
        try:
            if call.stage is QUEUED or call.stage is PARKED:  # else it was answered from within
                await sleeper.sleep(cancelled=lambda: self.withdraw(call))
                # A cancellation that came in the same tick as the answer: the client is known to be gone.
                await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.withdraw(call)
            raise
        self.settle(call)


class FoldFailed(Exception):
    """A checkpoint came to nothing; the log is as it was."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint did.

    Attributes:
        segments: number of segments folded.
        folded_bytes: length of the snapshot and the segments that went.
        snapshot_bytes: length of the snapshot that took their place.
        duration_s: how long it took.
    """

    segments: int
    folded_bytes: int
    snapshot_bytes: int
    duration_s: float


@runtime_checkable
class Folds(Protocol):
    """What an engine can do beside that has a log of its own."""

    async def checkpoint(self) -> Checkpoint:
        """Has everything so far folded into a snapshot, whether that is due or not.

        Returns:
            What was done.

        Raises:
            FoldFailed: it came to nothing; the log is as it was.
        """
