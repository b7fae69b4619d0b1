"""The engine: one actor task between the callers, the state and the log.

Theory of operation

    submit -> mailbox -> actor: decide, pack, apply -> open group -> committer: write, sync -> answers

The actor (actor.py) is the only task that reads or changes the state, and puts each answer into the open group,
together with the records it rests on. The committer (committer.py) swaps the open group for a new one, has it written
and synced in a thread, and then lets its answers go; meanwhile the actor fills the next group. So an answer leaves only
when everything it rests on is on disk: its own records, and for a read everything it saw. A third task makes
checkpoints (checkpointer.py).

A call's life:

    QUEUED --> HELD --> SETTLED              the usual way: delivered
    QUEUED --> HELD --> ANSWERED --> SETTLED with a popped value: delivered, then handed to the transport
    QUEUED --> PARKED --> HELD ...           a blocked pop; served by a push, its timeout, or the shutdown
    any but SETTLED --> WITHDRAWN            the caller has left

A caller that leaves while QUEUED or PARKED leaves no trace. One that leaves while HELD or ANSWERED is known to be
gone before its answer went anywhere: what it popped goes back to where it was taken from, as a logged op.
Commands that write stay done. That holds while closing too: the actor stays until the last call is settled.

An answer is delivered by calling `deliver`, in the actor, the committer or whoever submits; that may submit, settle and
withdraw in turn. So whatever delivers is done with its own work on the state and the group, or can bear it.

An exception in the actor or the committer leaves `run` and must end the process: nothing is answered after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from engine.calls import SETTLED, WITHDRAWN, AnyCall, Batch, Call, Command
from engine.embedded.actor import Actor
from engine.embedded.checkpointer import CRASH_PAUSE_S, Checkpointer, Fold
from engine.embedded.clock import Clock
from engine.embedded.commit_thread import CommitThread
from engine.embedded.committer import Committer, FsyncPolicy, RunCommit, in_thread
from engine.embedded.statistics import Statistics
from engine.face import BATCHED_COMMANDS_MAX, Checkpoint, Face, FoldFailed
from engine.limits import Limits
from engine.replies import MAILBOX_FULL, SHUTTING_DOWN, Error, Failure, Refused
from engine.store.state import State
from wal.log import Log

DISK_FULL = Failure(Error.STORAGE_FULL, "the disk is full; what does not grow goes on")


class Engine(Face):
    """The embedded engine.

    Args:
        state: as replayed from `log`.
        log: open for appending; the engine owns it and closes it.
        limits: waiters, mailbox.
        fsync: when commits are synced.
        wall_ms: the wall clock, milliseconds since 1970.
        run_commit: how blocking work on the log is run; None is a thread of its own.
        fold: how checkpoints write their snapshots; None makes none.
        crash_pause_s: how long after a crash the first checkpoint waits that nobody asked for, in seconds.
        watches_files: whether to look once a second, also when idle, for files of the log that somebody took away.
    """

    def __init__(
        self,
        state: State,
        log: Log,
        limits: Limits,
        *,
        fsync: FsyncPolicy = FsyncPolicy.ALWAYS,
        wall_ms: int,
        run_commit: RunCommit | None = None,
        fold: Fold | None = None,
        crash_pause_s: float = CRASH_PAUSE_S,
        watches_files: bool = False,
    ) -> None:
        self.accepting = True
        self._state = state
        self._log = log
        self._fsync = fsync
        self._thread = CommitThread()
        self._run_commit = run_commit or self._thread
        self._started_s = trio.current_time()
        self._commands = 0
        self._committer: Committer[AnyCall] = Committer(
            log,
            fsync,
            self._run_commit,
            release=lambda call: self._answers.release(call),
            taken=lambda group: self._actor.group_taken(group),
            log_changed=self._log_changed,
            keep_bytes=self._keep_bytes,
            watches_files=watches_files,
        )
        self._clock = Clock(max(wall_ms, log.recovery.time_ms))
        self._actor = Actor(state, self._committer, limits, self._clock)
        self._answers = self._actor.answers
        self._pops = self._actor.pops
        self._mailbox = self._actor.mailbox
        self._checkpointer: Checkpointer | None = None
        if fold is not None:
            self._checkpointer = Checkpointer(
                log,
                lambda: state.live_bytes,
                pending_bytes=lambda: self._committer.pending_bytes,
                with_log=self._committer.with_log,
                run_blocking=run_commit or in_thread(),
                fold=fold,
                crash_pause_s=crash_pause_s,
            )
        self._broken = False  # the actor was stopped in the middle of something: what it owns may be half changed

    # For callers

    def submit_nowait(self, command: Command, deliver: Callable[[Call], None]) -> Call:
        """Part of `Face`."""
        call = Call(command, deliver)
        self._answers.callers += 1
        if not self.accepting:
            self._answers.give(call, SHUTTING_DOWN)
        elif self._mailbox.post(call):
            self._commands += 1
        else:
            self._answers.give(call, MAILBOX_FULL)
        return call

    def submit_many_nowait(self, commands: Sequence[Command], atomic: bool, deliver: Callable[[Batch], None]) -> Batch:
        """Part of `Face`."""
        batch = Batch(commands, atomic, deliver)
        self._answers.callers += 1
        if not self.accepting:
            self._answers.give(batch, Refused(SHUTTING_DOWN))
        elif self._mailbox.batched_commands < BATCHED_COMMANDS_MAX and self._mailbox.post(batch):
            self._commands += len(commands)
            self._mailbox.batched_commands += len(commands)
        else:
            self._answers.give(batch, Refused(MAILBOX_FULL))
        return batch

    def settle(self, call: AnyCall) -> None:
        """Part of `Face`."""
        self._answers.settle(call)

    def withdraw(self, call: AnyCall) -> None:
        """Part of `Face`."""
        if call.stage is SETTLED or call.stage is WITHDRAWN:
            return
        if not self._broken:
            self._pops.abandon(call)
            if self._pops.has_abandoned:
                self._mailbox.nudge()
        call.stage = WITHDRAWN
        self._answers.leave()

    def statistics(self) -> Statistics:
        """Returns the engine's numbers at this moment."""
        committer = self._committer
        return Statistics(
            keys=len(self._state) - self._state.queue_count,
            queues=self._state.queue_count,
            waiters=len(self._pops.waiters),
            mailbox=len(self._mailbox),
            memory_bytes=self._state.memory_bytes,
            log_bytes=self._log.size_bytes,
            snapshot_bytes=self._log.snapshot_bytes,
            disk_bytes=self._log.disk_bytes,
            disk_full=int(committer.room.full),
            log_excess_bytes=self._checkpointer.excess_bytes if self._checkpointer else 0,
            lsn=self._log.last_lsn,
            commands=self._commands,
            commits=committer.commits,
            records_per_commit=round(committer.records / max(1, committer.commits), 3),
            commit_p50_ms=committer.percentile_ms(50),
            commit_p99_ms=committer.percentile_ms(99),
            checkpoints=self._checkpointer.checkpoints if self._checkpointer else 0,
            checkpoint_failures=self._checkpointer.failures if self._checkpointer else 0,
            expired_keys=self._actor.sweeper.expired_keys,
            returned_values=self._pops.returned_values,
            uptime_s=round(trio.current_time() - self._started_s, 3),
        )

    def readiness(self) -> Failure | dict[str, str | int]:
        """Says whether commands are taken, reads and writes.

        Returns:
            What is in force, or why not.
        """
        if not self.accepting:
            return SHUTTING_DOWN
        if self._committer.room.full:
            return DISK_FULL
        return {"fsync": self._fsync.value}

    async def checkpoint(self) -> Checkpoint:
        """Has everything so far folded into a snapshot, whether that is due or not.

        Returns:
            What was done.

        Raises:
            FoldFailed: it came to nothing; the log is as it was.
        """
        if self._checkpointer is None or not self.accepting:
            raise FoldFailed("shutting down")
        return await self._checkpointer.request()

    # For whoever runs it

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs actor and committer until `close`; start it with `nursery.start`.

        Raises:
            LogFailed: a write or sync failed; nothing was answered that rests on it.
            Damage: a checkpoint found that the log is not what was written.
        """
        with self._thread:
            await self._run(task_status)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._committer.run)
                if self._checkpointer is not None:
                    nursery.start_soon(self._checkpointer.run)
                task_status.started()
                try:
                    await self._actor.run()
                except BaseException:
                    self._broken = True
                    raise
                if self._checkpointer is not None:
                    self._checkpointer.stop()
                self._committer.finish()
        except BaseException:
            self._log.abandon()
            raise
        finally:
            self.accepting = False
        with trio.CancelScope(shield=True):  # or a cancellation before it starts would leave the directory locked
            await self._run_commit(self._log.close)

    def shut_down(self) -> None:
        """Part of `Face`."""
        self.accepting = False
        self._actor.turn_away()

    def close(self) -> None:
        """Part of `Face`."""
        self.accepting = False
        self._actor.close()

    # For the committer

    def _keep_bytes(self) -> int:
        return self._checkpointer.keep_bytes if self._checkpointer else 0

    def _log_changed(self) -> None:
        self._actor.log_changed()
        if self._checkpointer is not None:
            self._checkpointer.look()
