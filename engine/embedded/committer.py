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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import trio

from engine.embedded.complaints import FullDiskComplaints
from engine.sleeper import Sleeper
from wal.log import Log

C = TypeVar("C")

_logger = logging.getLogger("holdfast.engine")

GROUP_BYTES_MAX = 32 * 1024 * 1024
"""Records that may wait for the disk. When it falls behind so far, writes are refused instead of filling memory."""

FRAME_BYTES_GOAL = 64 * 1024 * 1024
"""A group goes on in another frame rather than grow one beyond this. Values that come back, and pops of those who wait,
cannot be refused, so a group may grow far beyond its own limit."""

GATHER_MIN, GATHER_MAX = 4, 256
"""Answers in this group or in the last one from which, and up to which, a group is held back for more."""

GATHER_IDLE_TURNS = 8
"""Turns of the event loop that may bring nothing while fewer are here than the last time."""

RELEASE_MAX = 256
"""Answers released in one go."""

SLOW_COMMIT_S = 1.0
"""A commit that takes longer is worth a warning: everybody waits for it."""

HELD_SHARE = 4
"""While the log's room is lessened, so much of it may go on being used."""

FRAME_OVERHEAD_BYTES = 256
"""What a group takes of the log beyond its records, at most: the heads of its frames."""

ROOM_INTERVAL_S = 1.0
"""On a full disk, between two questions whether there is room again."""

CHECK_INTERVAL_S = 1.0
"""Between two looks at whether all files of the log are still in their places."""

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
        log_changed: told that something was done to the log; `room` may be another.
        keep_bytes: how much room the next snapshot needs on the disk.
        watches_files: whether to look at the files of the log also when there is nothing to commit.
    """

    def __init__(
        self,
        log: Log,
        fsync: FsyncPolicy,
        run_commit: RunCommit,
        *,
        release: Callable[[C], None],
        taken: Callable[[Group[C]], None],
        log_changed: Callable[[], None],
        keep_bytes: Callable[[], int],
        watches_files: bool,
    ) -> None:
        self.open: Group[C] = Group()
        self.commits = 0
        self.records = 0
        self._log = log
        self._fsync = fsync
        self._run_commit = run_commit
        self._release = release
        self._taken = taken
        self._log_changed = log_changed
        self._keep_bytes = keep_bytes
        self._watches_files = watches_files
        self.room = log.room
        self._lock = trio.Lock()
        self._in_flight_bytes = 0
        self._wanted_bytes = 0
        self._held_to_bytes = math.inf
        self._next_room_s = 0.0
        self._next_check_s = 0.0
        self._complaints = FullDiskComplaints()
        self._sleeper = Sleeper()
        self._has_work = False
        self._last_count = 0  # answers in the last group
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
            self._work()
        else:
            answers, self.open.answers = self.open.answers, []
            for answer in answers:
                self._release(answer)

    @property
    def is_holding(self) -> bool:
        """Whether there may be more room in a moment: what finds none now shall wait for `log_changed`."""
        return self._held_to_bytes < math.inf

    @contextmanager
    def holding(self) -> Iterator[int]:
        """Has no more put on its way to the log than it says, so that the room for the rest can be used otherwise.

        What is on its way comes from the event loop, and the log is worked on in a thread: whoever is about to lessen
        the log's room has to say beforehand what it promises, and hold the loop to that.

        Yields:
            Length of what may be on its way until the end of the block: what is, or a part of the room if that is more.
        """
        on_its_way_bytes = self._in_flight_bytes + self.open.records_bytes + FRAME_OVERHEAD_BYTES
        self._held_to_bytes = promised_bytes = max(on_its_way_bytes, self.room.frames_bytes // HELD_SHARE)
        try:
            yield promised_bytes
        finally:
            self._held_to_bytes = math.inf
            self._log_changed()

    def has_room(self, records_bytes: int) -> bool:
        """Whether records of one more command are sure to find room on the disk, with all that is on its way."""
        pending_bytes = self._in_flight_bytes + self.open.records_bytes + FRAME_OVERHEAD_BYTES
        needed_bytes = pending_bytes + records_bytes
        return needed_bytes <= self.room.frames_bytes and needed_bytes <= self._held_to_bytes

    def want_room(self, records_bytes: int) -> None:
        """Has room made for records of this length; `log_changed` is called when there is some, or the disk is full."""
        if self.is_holding:
            return  # it is called in any case
        self._wanted_bytes = self.open.records_bytes + records_bytes + FRAME_OVERHEAD_BYTES
        self._work()

    def _work(self) -> None:
        self._has_work = True
        self._sleeper.wake()

    async def with_log(self, function: Callable[[], None]) -> None:
        """Runs a function that works on the log, while no commit does."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        self._log.keep_bytes = self._keep_bytes()
        try:
            await self._run_commit(function)
        finally:
            self._lock.release()
            self._note_room()

    def finish(self) -> None:
        """Lets `run` return when the open group is committed; nothing may be added to it any more."""
        self._finishing = True
        self._work()

    async def run(self) -> None:
        """Commits group after group until `finish`.

        Raises:
            LogFailed: a write or sync failed; no answer that rests on it has been released.
        """
        while True:
            if not self._has_work:
                with trio.move_on_at(min(self._sync_deadline(), self._room_deadline(), self._check_deadline())):
                    await self._sleeper.sleep()
            await self._gather()
            self._has_work = self._finishing
            group, self.open = self.open, Group()
            if self._finishing and not group.answers and not group.frames:
                return
            self._taken(group)
            if group.frames:
                await self._commit(group)
            elif self._may_ask_for_room() or self._wanted_bytes:
                await self.with_log(partial(self._log.make_room, self._take_wanted()))
            elif self._check_deadline() <= trio.current_time():
                self._next_check_s = trio.current_time() + CHECK_INTERVAL_S
                await self.with_log(self._log.check_files)
            await self._release_all(group.answers)
            self._committing = False
            if self._sync_deadline() <= trio.current_time():
                await self._sync()

    async def _gather(self) -> None:
        """Lets the open group grow for as long as turns of the event loop bring more.

        Larger groups are fewer commits; and the commit thread has the interpreter for itself while all clients wait
        for it, instead of fighting for it around each of its system calls. Those who were answered by the last commit
        are likely to be back in a moment: for them a few turns that bring nothing are waited for, 0.1 ms or so. (50
        clients: 28,800 SET/s without this, 33,800 with it.) A few are no crowd, and are committed at once.
        """
        count = idle_turns = 0
        while self.open.frames and GATHER_MIN <= max(len(self.open.answers), self._last_count) <= GATHER_MAX:
            if len(self.open.answers) > count:
                count, idle_turns = len(self.open.answers), 0
            elif count >= self._last_count or idle_turns == GATHER_IDLE_TURNS:
                break
            else:
                idle_turns += 1
            await trio.lowlevel.checkpoint()
        self._last_count = len(self.open.answers)

    async def _release_all(self, answers: list[C]) -> None:
        """Lets answers go, some at a time: each wakes a task, and others shall have their turn in between."""
        for start in range(0, len(answers), RELEASE_MAX):
            if start:
                await trio.lowlevel.checkpoint()
            for answer in answers[start : start + RELEASE_MAX]:
                self._release(answer)

    def _check_deadline(self) -> float:
        """When to look at the files of an idle log."""
        return self._next_check_s if self._watches_files else math.inf

    def _sync_deadline(self) -> float:
        """With `interval`, the time by which what was written must be synced."""
        if self._fsync is FsyncPolicy.INTERVAL and self._unsynced_since_s is not None:
            return self._unsynced_since_s + FSYNC_INTERVAL_S
        return math.inf

    async def _commit(self, group: Group[C]) -> None:
        """Writes a group, and with `always` syncs it; the answers may go when this returns."""
        started_s = trio.current_time()
        self._committing = True  # and for ever, should it fail: whatever is applied from then on stays unanswered
        self._in_flight_bytes = group.records_bytes
        check_files = started_s >= self._next_check_s
        if check_files:
            self._next_check_s = started_s + CHECK_INTERVAL_S
        make_room = not self.room.full or self._may_ask_for_room()
        await self.with_log(
            partial(self._write, group, self._take_wanted(), check_files=check_files, make_room=make_room)
        )
        self._in_flight_bytes = 0
        if self._unsynced_since_s is None:
            self._unsynced_since_s = started_s
        self.commits += 1
        self.records += sum(map(len, group.frames))
        self._times_s.append(trio.current_time() - started_s)
        if self._times_s[-1] > SLOW_COMMIT_S:
            _logger.warning("a commit took %.1f s: the disk is slow, and every answer waits for it", self._times_s[-1])

    async def _sync(self) -> None:
        """Syncs what was written; no answer waits for it but those of writes that come meanwhile."""
        await self.with_log(self._log.commit)
        self._unsynced_since_s = None

    def _take_wanted(self) -> int:
        wanted_bytes, self._wanted_bytes = self._wanted_bytes, 0
        return wanted_bytes

    def _write(self, group: Group[C], wanted_bytes: int, *, check_files: bool, make_room: bool) -> None:
        """Runs in the commit thread."""
        for records in group.frames:
            self._log.append(records, group.time_ms)
        if self._fsync is FsyncPolicy.ALWAYS:
            self._log.commit()
        if check_files:
            self._log.check_files()
        if wanted_bytes or make_room:
            self._log.make_room(wanted_bytes)

    def _room_deadline(self) -> float:
        """On a full disk, when to ask again for room."""
        return self._next_room_s if self.room.full else math.inf

    def _may_ask_for_room(self) -> bool:
        """Whether it is time to ask again. Only a question puts off the next: commits come all the time."""
        if self._room_deadline() > trio.current_time():
            return False
        self._next_room_s = trio.current_time() + ROOM_INTERVAL_S
        return True

    def _note_room(self) -> None:
        """Takes over what the log says about its room, and says so when the disk is full."""
        was_full, self.room = self.room.full, self._log.room
        if self.room.full and not was_full:
            self._next_room_s = trio.current_time() + ROOM_INTERVAL_S
        self._complaints.note(self.room.full, trio.current_time())
        self._log_changed()
