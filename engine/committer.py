"""The commit pipeline: the open group, and the task that has it written and synced while the next one fills.

The actor puts records and answers into `open`. The committer swaps it for a new group, appends its records to the log
in a thread, syncs as the policy says, and only then releases its answers. There is one commit at a time: a group's
answers never leave before those of the group in front of it.

A group becomes one frame of the log, or several when it is very large; the records of one command are never parted.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import trio

from wal.log import Log

C = TypeVar("C")

_logger = logging.getLogger("holdfast.engine")

FRAME_BYTES_GOAL = 64 * 1024 * 1024
"""A group goes on in another frame rather than grow one beyond this. Values that come back, and pops of those who wait,
cannot be refused, so a group may grow far beyond its own limit."""

RELEASE_MAX = 256
"""Answers released in one go."""

SLOW_COMMIT_S = 1.0
"""A commit that takes longer is worth a warning: everybody waits for it."""

COMMIT_SAMPLES = 1024
"""Commits that the percentiles of `statistics` look back on."""

RunCommit = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a function that blocks on the disk; the default uses a thread, tests run it inline."""


class FsyncPolicy(enum.Enum):
    """When a commit is synced; what an answer promises follows from it."""

    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


FSYNC_INTERVAL_S = 1.0
"""With `interval`, the longest time between a write and its sync."""


def in_thread() -> RunCommit:
    """Returns a `RunCommit` that uses a worker thread; cancellation waits for its end, so no commit is abandoned."""
    limiter = trio.CapacityLimiter(1)  # of the commits' own: a crowd of other threads never makes one wait

    async def run_commit(function: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(function, limiter=limiter)

    return run_commit


@dataclass(slots=True)
class Group(Generic[C]):
    """What is committed together.

    Attributes:
        frames: records of whole commands; usually there is one frame.
        frame_bytes: length of the last frame's records.
        records_bytes: length of all records.
        time_ms: engine time.
        answers: those to be released when the records are on disk.
        swept_keys: number of expired keys it removes.
    """

    frames: list[list[bytes]] = field(default_factory=list)
    frame_bytes: int = 0
    records_bytes: int = 0
    time_ms: int = 0
    answers: list[C] = field(default_factory=list)
    swept_keys: int = 0

    def add(self, records: list[bytes], records_bytes: int) -> None:
        """Takes the records of one command, which stay in one frame."""
        if not self.frames or self.frame_bytes + records_bytes > FRAME_BYTES_GOAL:
            self.frames.append([])
            self.frame_bytes = 0
        self.frames[-1] += records
        self.frame_bytes += records_bytes
        self.records_bytes += records_bytes


class Committer(Generic[C]):
    """Owns the open group and the log.

    Args:
        log: open for appending.
        fsync: when commits are synced.
        run_commit: how blocking work on the log is run.
        release: lets one answer go.
        taken: told which group has just been swapped out.
    """

    def __init__(
        self,
        log: Log,
        fsync: FsyncPolicy,
        run_commit: RunCommit,
        *,
        release: Callable[[C], None],
        taken: Callable[[Group[C]], None],
    ) -> None:
        self.open: Group[C] = Group()
        self.commits = 0
        self.records = 0
        self._log = log
        self._fsync = fsync
        self._run_commit = run_commit
        self._release = release
        self._taken = taken
        self._work = trio.Event()
        self._committing = False
        self._finishing = False
        self._unsynced_since_s: float | None = None
        self._times_s: deque[float] = deque(maxlen=COMMIT_SAMPLES)

    def percentile_ms(self, percent: int) -> float:
        """Duration of recent commits, in milliseconds; 0 before the first."""
        times_s = sorted(self._times_s) or [0.0]
        return round(times_s[len(times_s) * percent // 100] * 1000, 3)

    def hand_over(self, now_ms: int) -> None:
        """Has the open group committed, or lets its answers go when they rest on nothing unsynced."""
        self.open.time_ms = now_ms
        if self.open.frames or self._committing:
            self._work.set()
        else:
            answers, self.open.answers = self.open.answers, []
            for answer in answers:
                self._release(answer)

    def finish(self) -> None:
        """Lets `run` return when the open group is committed; nothing may be added to it any more."""
        self._finishing = True
        self._work.set()

    async def run(self) -> None:
        """Commits group after group until `finish`.

        Raises:
            LogFailed: a write or sync failed; no answer that rests on it has been released.
        """
        while True:
            with trio.move_on_at(self._sync_deadline()):
                await self._work.wait()
            group, self.open = self.open, Group()
            if not self._finishing:
                self._work = trio.Event()
            elif not group.answers and not group.frames:
                return
            self._taken(group)
            if group.frames:
                await self._commit(group)
            await self._release_all(group.answers)
            self._committing = False
            if self._sync_deadline() <= trio.current_time():
                await self._sync()

    async def _release_all(self, answers: list[C]) -> None:
        """Lets answers go, some at a time: each wakes a task, and others shall have their turn in between."""
        for start in range(0, len(answers), RELEASE_MAX):
            if start:
                await trio.lowlevel.checkpoint()
            for answer in answers[start : start + RELEASE_MAX]:
                self._release(answer)

    def _sync_deadline(self) -> float:
        """With `interval`, the time by which what was written must be synced."""
        if self._fsync is FsyncPolicy.INTERVAL and self._unsynced_since_s is not None:
            return self._unsynced_since_s + FSYNC_INTERVAL_S
        return math.inf

    async def _commit(self, group: Group[C]) -> None:
        """Writes a group, and with `always` syncs it; the answers may go when this returns."""
        started_s = trio.current_time()
        self._committing = True  # and for ever, should it fail: whatever is applied from then on stays unanswered
        await self._run_commit(partial(self._write, group))
        if self._unsynced_since_s is None:
            self._unsynced_since_s = started_s
        self.commits += 1
        self.records += sum(map(len, group.frames))
        self._times_s.append(trio.current_time() - started_s)
        if self._times_s[-1] > SLOW_COMMIT_S:
            _logger.warning("a commit took %.1f s: the disk is slow, and every answer waits for it", self._times_s[-1])

    async def _sync(self) -> None:
        """Syncs what was written; no answer waits for it but those of writes that come meanwhile."""
        await self._run_commit(self._log.commit)
        self._unsynced_since_s = None

    def _write(self, group: Group[C]) -> None:
        """Runs in the commit thread."""
        for records in group.frames:
            self._log.append(records, group.time_ms)
        if self._fsync is FsyncPolicy.ALWAYS:
            self._log.commit()
