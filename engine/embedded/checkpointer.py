"""Checkpoints: when one is due, has the log folded into a snapshot elsewhere, and makes the result part of the log.

    due -> seal -> plan -> fold (another process) -> install, between two commits -> remove what was folded

What is due:

- the sealed segments together are as long as the snapshot before them (and three quarters of a segment): to fold
  them costs about what it took to write them;
- the log takes more of the disk than twice what lives in it, and two segments: much was deleted;
- the disk is full, and a snapshot of what lives would fit and give room back;
- the disk will be full soon: then what is sealed is folded at once.

Room for the next snapshot is kept on the disk: it is full for those who write when there is none for them and for it.

A checkpoint that fails for want of something (room, memory, descriptors) leaves the log as it was, and is tried again,
less and less often. Damage that it finds ends the server: the next start would refuse that log, so nothing more
may be acknowledged into it. So does a disk that fails.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import trio

from engine.embedded.committer import RunCommit
from engine.face import Checkpoint, FoldFailed
from wal.log import Log, LogFailed
from wal.manifest import Snapshot
from wal.snapshot import FoldPlan

PAUSE_MIN_S = 1.0
PAUSE_MAX_S = 60.0
"""Between a checkpoint that failed, or was to give room back and did not, and the next one."""

CRASH_PAUSE_S = 10.0
"""After a start whose server had crashed, for a checkpoint that nobody asked for: if memory was short, the crash may
have come of one, and the replay has just been paid for. A full disk does not wait."""

ROOM_MARGIN = 1.1
"""On a full disk, a checkpoint is tried when its snapshot, by estimate, would fit with so much to spare."""

SCARCE_MARGIN = 1.4
"""When no more than this times the next snapshot is free, and two segments, sealed segments are folded at once: while
they are, what is written needs room as well."""

_TRY_AGAIN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)

_logger = logging.getLogger("holdfast.engine")


Fold = Callable[[FoldPlan], Awaitable[Snapshot]]
"""Writes the snapshot that a plan asks for.

Raises FoldFailed when another try may succeed, Damage, or OSError.
"""


@contextmanager
def _refusals() -> Iterator[None]:
    """Tells want of something, for which another try may succeed, from a disk that fails."""
    try:
        yield
    except OSError as error:
        if error.errno not in _TRY_AGAIN:
            raise LogFailed(f"a checkpoint of the log failed: {error}") from error
        raise FoldFailed(str(error)) from error


class _Request:
    """Somebody who asked for a checkpoint and waits for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: Checkpoint | FoldFailed = FoldFailed("shutting down")


class Checkpointer:
    """The task that makes checkpoints.

    Args:
        log: the log.
        live_bytes: estimates the length of a snapshot of the present state.
        pending_bytes: length of what is on its way to the log.
        with_log: runs a function that works on the log between two commits.
        run_blocking: runs a function that blocks on the disk, beside the commits.
        fold: writes snapshots.
        crash_pause_s: how long the first one waits after a start whose server had crashed, in seconds.

    Attributes:
        checkpoints: how many there were since the start.
        failures: how many failed.
        is_failing: whether the last one did.
    """

    def __init__(
        self,
        log: Log,
        live_bytes: Callable[[], int],
        *,
        pending_bytes: Callable[[], int],
        with_log: RunCommit,
        run_blocking: RunCommit,
        fold: Fold,
        crash_pause_s: float,
    ) -> None:
        self.checkpoints = 0
        self.failures = 0
        self.is_failing = False
        self._log = log
        self._live_bytes = live_bytes
        self._pending_bytes = pending_bytes
        self._with_log = with_log
        self._run_blocking = run_blocking
        self._fold = fold
        self._start_pause_s = 0.0 if log.recovery.clean else crash_pause_s
        self._requests: list[_Request] = []
        self._wake = trio.Event()
        self._asked = trio.Event()
        self._scope = trio.CancelScope()
        self._reclaim_pause_s = PAUSE_MIN_S
        self._reclaim_after_s = 0.0

    @property
    def keep_bytes(self) -> int:
        """Room on the disk that the next snapshot needs."""
        return int(self._live_bytes() * ROOM_MARGIN)

    @property
    def excess_bytes(self) -> int:
        """How much more of the disk the log takes than is promised: twice what lives and two segments."""
        return max(0, self._log.disk_bytes - 2 * (self._live_bytes() + self._log.segment_bytes_max))

    def look(self) -> None:
        """Looks whether a checkpoint is due; to be called when the log has changed."""
        if self._is_due():
            self._wake.set()

    async def request(self) -> Checkpoint:
        """Has a checkpoint made of all that is applied by now, and waits for it.

        Raises:
            FoldFailed: it came to nothing.
        """
        request = _Request()
        self._requests.append(request)
        self._wake.set()
        self._asked.set()
        await request.done.wait()
        if isinstance(request.outcome, FoldFailed):
            raise request.outcome
        return request.outcome

    def stop(self) -> None:
        """Lets `run` return; a checkpoint on its way is given up."""
        self._scope.cancel()

    async def run(self) -> None:
        """Makes checkpoints until `stop`.

        Raises:
            Damage: what is on disk is not what was written.
            LogFailed: the disk failed.
        """
        try:
            with self._scope:
                await self._run()
        finally:
            self._answer(self._requests, FoldFailed("shutting down"))

    async def _run(self) -> None:
        pause_s = PAUSE_MIN_S
        if self._start_pause_s and not self._log.room.full:
            with trio.move_on_after(self._start_pause_s):
                await self._asked.wait()
        self.look()  # the server may have ended in the middle of one, and nothing may be written for long
        while True:
            await self._wake.wait()
            self._wake, self._asked = trio.Event(), trio.Event()
            requests, self._requests = self._requests, []
            if not requests and not self._is_due():
                continue
            outcome: Checkpoint | FoldFailed = FoldFailed("shutting down")
            reclaiming = not self._is_worth_folding()
            try:
                outcome = await self._checkpoint(seal=bool(requests) or reclaiming)
            except FoldFailed as error:
                outcome = error
            finally:
                self._answer(requests, outcome)
            self.is_failing = isinstance(outcome, FoldFailed)
            if isinstance(outcome, FoldFailed):
                self.failures += 1
                _logger.warning("a checkpoint failed, the log goes on growing: %s", outcome)
                with trio.move_on_after(pause_s):
                    await self._asked.wait()
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
            else:
                pause_s = PAUSE_MIN_S
                self._pause_reclaiming(outcome if reclaiming else None)
            self.look()

    def _pause_reclaiming(self, done: Checkpoint | None) -> None:
        """Lets some time pass before dead data is a reason again, if a checkpoint for its sake gave little back."""
        if done is not None and done.folded_bytes - done.snapshot_bytes < self._log.segment_bytes_max // 4:
            self._reclaim_pause_s = min(2 * self._reclaim_pause_s, PAUSE_MAX_S)
            self._reclaim_after_s = trio.current_time() + self._reclaim_pause_s
        elif done is not None:
            self._reclaim_pause_s = PAUSE_MIN_S

    def _answer(self, requests: list[_Request], outcome: Checkpoint | FoldFailed) -> None:
        for request in requests:
            request.outcome = outcome
            request.done.set()

    def _is_worth_folding(self) -> bool:
        """Whether the sealed segments by themselves are worth a checkpoint."""
        log = self._log
        # A segment is sealed before the frame that would overfill it: one that is full may be well short of its size.
        if log.room.full or log.sealed_bytes < log.segment_bytes_max * 3 // 4:
            return False
        scarce_bytes = int(self._live_bytes() * SCARCE_MARGIN) + 2 * log.segment_bytes_max
        return log.sealed_bytes >= log.snapshot_bytes or log.room.free_bytes < scarce_bytes

    def _is_due(self) -> bool:
        log = self._log
        if self._is_worth_folding():
            return True
        if trio.current_time() < self._reclaim_after_s:
            return False
        live_bytes, room = self._live_bytes(), log.room
        if room.full:
            dead_bytes = log.size_bytes - live_bytes
            return dead_bytes >= log.segment_bytes_max // 4 and room.free_bytes >= live_bytes * ROOM_MARGIN
        # Twice what lives and two segments are what the log may take. Half a segment must be there to be folded: what
        # is allocated ahead stays.
        segment_bytes = log.segment_bytes_max
        is_long = log.size_bytes > 2 * live_bytes + segment_bytes // 2
        return is_long and log.disk_bytes > 2 * (live_bytes + segment_bytes)

    async def _checkpoint(self, *, seal: bool) -> Checkpoint:
        room = self._log.room
        if room.full and room.free_bytes < self.keep_bytes:  # to try would only use up the reserve
            raise FoldFailed(
                f"the disk has no room for a snapshot: {self.keep_bytes} bytes are needed, {room.free_bytes} are free"
            )
        started_s = trio.current_time()
        plan: FoldPlan | None = None
        folded_bytes = 0

        def plan_it() -> None:
            nonlocal plan, folded_bytes
            if seal:
                self._log.seal(self._pending_bytes())
            plan = self._log.plan_fold()
            folded_bytes = self._log.snapshot_bytes + self._log.sealed_bytes

        with _refusals():
            await self._with_log(plan_it)
        if plan is None:
            return Checkpoint(0, 0, folded_bytes, 0.0)
        try:
            with _refusals():
                snapshot = await self._fold(plan)
                await self._with_log(partial(self._log.install, plan, snapshot))
        except FoldFailed:
            await self._run_blocking(partial(self._log.discard, plan))
            raise
        await self._remove_folded()
        if self._log.room.full:
            await self._with_log(self._log.make_room)
        self.checkpoints += 1
        duration_s = trio.current_time() - started_s
        done = Checkpoint(len(plan.manifest.segments), folded_bytes, snapshot.size_bytes, round(duration_s, 3))
        _logger.info(
            "checkpoint: %d segment%s folded, %s bytes into %s in %.1f s",
            done.segments,
            "s" * (done.segments != 1),
            f"{done.folded_bytes:,}",
            f"{done.snapshot_bytes:,}",
            done.duration_s,
        )
        return done

    async def _remove_folded(self) -> None:
        try:
            await self._run_blocking(self._log.remove_folded)
        except OSError as error:
            _logger.warning("what a checkpoint folded could not be removed, the next one tries again: %s", error)
