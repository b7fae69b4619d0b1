"""The engine: one actor task between the callers, the state and the log.

Theory of operation

    submit -> mailbox -> actor: decide, pack, apply -> open group -> committer: write, sync -> answers

The actor is the only task that reads or changes the state: it takes what is in the mailbox, has it done command by
command (performer.py), and puts each answer into the open group, together with the records it rests on. The committer
swaps the open group for a new one, has it written and synced in a thread, and then lets its answers go; meanwhile the
actor fills the next group. So an answer leaves only when everything it rests on is on disk: its own records, and for a
read everything it saw.

A turn is so many commands, keys and values; then others have theirs, and a batch that is not done goes on behind calls
that came meanwhile. Units, and single commands too heavy for a turn, pause instead: until they are done there is no
other command, but the event loop goes on, and so do commits. That is safe because no other task looks at the state.

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

After each op that makes a queue grow, its waiters are served, oldest first; their pops join the same group as the push.

An exception in the actor or the committer leaves `run` and must end the process: nothing is answered after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from engine.calls import QUEUED, SETTLED, WITHDRAWN, AnyCall, Batch, Call, Command
from engine.commands.table import FREE, LIGHT, weigh
from engine.embedded.answers import Answers
from engine.embedded.checkpointer import Checkpoint, Checkpointer, Fold, FoldFailed
from engine.embedded.clock import Clock
from engine.embedded.commit_thread import CommitThread
from engine.embedded.committer import Committer, FsyncPolicy, Group, RunCommit, in_thread
from engine.embedded.effects import Effects
from engine.embedded.mailbox import Mailbox
from engine.embedded.performer import AT_ONCE, BATCH_MAX, Delay, Pausing, Performer
from engine.embedded.pops import Pops
from engine.embedded.statistics import Statistics
from engine.embedded.sweeper import Sweeper
from engine.face import BATCHED_COMMANDS_MAX, Face
from engine.limits import Limits
from engine.replies import MAILBOX_FULL, SHUTTING_DOWN, WAITERS_FULL, Error, Failure, Refused, Reply
from engine.store.state import State
from wal.log import Log
from wal.open_segment import Room

FREE_VALUES_MAX = 20_000
"""Values of removed queues freed in one go: some 1 ms of work."""

FREE_INTERVAL_S = 0.001
"""Pause between two such goes: an actor that never sleeps would keep the interpreter from the commit thread."""

DISK_FULL = Failure(Error.STORAGE_FULL, "the disk is full; what does not grow goes on")

T = TypeVar("T")


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
        watches_files: bool = False,
    ) -> None:
        self.accepting = True
        self._state = state
        self._log = log
        self._limits = limits
        self._fsync = fsync
        self._thread = CommitThread()
        self._run_commit = run_commit or self._thread
        self._clock = Clock(max(wall_ms, log.recovery.time_ms))
        self._started_s = trio.current_time()
        self._mailbox = Mailbox(limits.mailbox_max)
        self._batched_commands = 0
        self._short_of: Room | None = None
        self._committer: Committer[AnyCall] = Committer(
            log,
            fsync,
            self._run_commit,
            release=lambda call: self._answers.release(call),
            taken=self._group_taken,
            log_changed=self._log_changed,
            keep_bytes=self._keep_bytes,
            watches_files=watches_files,
        )
        effects = Effects(state, self._committer)
        self._answers = Answers(self._committer, none_left=self._none_left)
        self._pops = Pops(state, self._committer, effects, self._answers)
        self._sweeper = Sweeper(state, self._committer, effects)
        self._performer = Performer(state, self._committer, effects, self._sweeper, self._pops, limits.answer_bytes_max)
        self._checkpointer: Checkpointer | None = None
        if fold is not None:
            self._checkpointer = Checkpointer(
                log,
                lambda: state.live_bytes,
                pending_bytes=lambda: self._committer.pending_bytes,
                with_log=self._committer.with_log,
                run_blocking=run_commit or in_thread(),
                fold=fold,
            )
        self._closing = False
        self._broken = False  # the actor was stopped in the middle of something: what it owns may be half changed
        self._commands = 0

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
        elif self._batched_commands < BATCHED_COMMANDS_MAX and self._mailbox.post(batch):
            self._commands += len(commands)
            self._batched_commands += len(commands)
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
            lsn=self._log.last_lsn,
            commands=self._commands,
            commits=committer.commits,
            records_per_commit=round(committer.records / max(1, committer.commits), 3),
            commit_p50_ms=committer.percentile_ms(50),
            commit_p99_ms=committer.percentile_ms(99),
            checkpoints=self._checkpointer.checkpoints if self._checkpointer else 0,
            checkpoint_failures=self._checkpointer.failures if self._checkpointer else 0,
            expired_keys=self._sweeper.expired_keys,
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
                    await self._run_actor()
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
        """Answers `unavailable` to parked waiters and to everything submitted from now on."""
        self.accepting = False
        self._mailbox.nudge()

    def close(self) -> None:
        """Lets `run` finish: what was submitted is done and answered, then the log is closed cleanly."""
        self._closing = True
        self.shut_down()

    # The actor

    async def _run_actor(self) -> None:
        while not self._is_finished():
            await self._receive()
            now_ms = self._clock.now_ms()
            if not self.accepting:
                self._pops.turn_away(SHUTTING_DOWN)
            self._pops.give_back(at_any_rate=self._closing)
            await self._work_off(now_ms)
            self._pops.time_out(now_ms)
            self._sweeper.sweep(now_ms)
            self._state.free_garbage(FREE_VALUES_MAX)
            self._committer.hand_over(now_ms)

    def _is_finished(self) -> bool:
        """Whether nobody can come any more and nobody is left: not even one whose popped value may have to go back."""
        return self._closing and not (self._answers.callers or self._pops.has_abandoned or self._pops.has_owed)

    async def _receive(self) -> None:
        """Waits for commands, a deadline or a nudge; others have their turn in any case."""
        deadline = self._next_deadline()
        if deadline <= trio.current_time():
            await self._mailbox.receive_what_is_there()
        elif deadline == math.inf:
            await self._mailbox.receive()
        else:
            with trio.CancelScope(deadline=deadline):
                await self._mailbox.receive()

    def _none_left(self) -> None:
        if self._closing:
            self._mailbox.nudge()

    def _next_deadline(self) -> float:
        """The trio time at which there is something to do without a command."""
        if (
            self._pops.has_abandoned
            or (self._pops.waiters and not self.accepting)
            or (self._pops.has_owed and self._closing)
        ):
            return -math.inf
        if self._mailbox.backlog and not self._is_short_of_room:
            return -math.inf
        if self._state.has_garbage:
            return trio.current_time() + FREE_INTERVAL_S
        deadlines_ms = (self._pops.waiters.next_deadline_ms, self._sweeper.deadline_ms)
        return min(
            (self._clock.when(deadline_ms) for deadline_ms in deadlines_ms if deadline_ms is not None), default=math.inf
        )

    async def _work_off(self, now_ms: int) -> None:
        """Does what is in the backlog, for one turn."""
        left = BATCH_MAX
        backlog, do = self._mailbox.backlog, self._performer.do
        while backlog and left > 0 and not self._is_short_of_room:
            call = backlog.popleft()
            if isinstance(call, Batch):
                left = await self._go_on_with(call, left, now_ms)
            elif call.stage is QUEUED:
                command = call.command
                weight = 1 if type(command) in LIGHT else weigh(command)
                left -= weight
                if weight <= BATCH_MAX:
                    reply = do(command, now_ms, call.taken)
                else:
                    reply = await self._pausing(self._performer.do_slowly(command, now_ms, call.taken), now_ms)
                self._answer(call, reply, now_ms)

    def _answer(self, call: Call, reply: Reply | Delay, now_ms: int) -> None:
        if call.stage is not QUEUED:
            self._pops.abandon(call)
        elif isinstance(reply, Delay):
            if reply is Delay.NO_ROOM:
                self._wait_for_room(call)
            else:
                self._park(call, now_ms)
        elif type(call.command) in FREE or (isinstance(reply, Failure) and reply in AT_ONCE):
            self._answers.give(call, reply)  # it rests on nothing, so it need not wait for the disk
        else:
            self._answers.hold(call, reply)

    async def _go_on_with(self, batch: Batch, left: int, now_ms: int) -> int:
        """Does commands of a batch; what is left of it has its turn behind others that came.

        Returns:
            How much may still be done in this turn.
        """
        outcome: list[Reply] | Refused | Delay | None = None
        if batch.stage is QUEUED and batch.atomic:
            left -= sum(map(weigh, batch.commands))
            outcome = await self._pausing(self._performer.do_unit(batch.commands, now_ms, batch.taken), now_ms)
        elif batch.stage is QUEUED:
            outcome, left = await self._pausing(self._performer.do_some(batch, left, now_ms), now_ms)
        if outcome is None and batch.stage is QUEUED:
            self._mailbox.backlog.append(batch)
        elif isinstance(outcome, Delay) and batch.stage is QUEUED:
            self._wait_for_room(batch)
        else:
            self._batched_commands -= len(batch.commands)
            self._answer_batch(batch, outcome)
        return left

    def _answer_batch(self, batch: Batch, outcome: list[Reply] | Refused | Delay | None) -> None:
        if batch.stage is not QUEUED:
            self._pops.abandon(batch)
        elif isinstance(outcome, Refused) and outcome.failure in AT_ONCE:
            self._answers.give(batch, outcome)
        else:
            self._answers.hold(batch, outcome)

    async def _pausing(self, work: Pausing[T], now_ms: int) -> T:
        """Does work to its end; when it pauses, answers before it may go and other tasks have their turn."""
        while True:
            try:
                next(work)
            except StopIteration as done:
                result: T = done.value
                return result
            self._committer.hand_over(now_ms)
            await trio.lowlevel.checkpoint()

    def _wait_for_room(self, call: AnyCall) -> None:
        """Has a call wait at the head of the backlog until something is done to the log."""
        self._mailbox.backlog.appendleft(call)
        self._short_of = self._committer.room

    @property
    def _is_short_of_room(self) -> bool:
        """Whether the command at the head of the backlog waits until something is done to the log."""
        return self._short_of is self._committer.room

    def _park(self, call: Call, now_ms: int) -> None:
        if not self.accepting:
            self._answers.give(call, SHUTTING_DOWN)
        elif len(self._pops.waiters) >= self._limits.waiters_max:
            self._answers.give(call, WAITERS_FULL)
        else:
            self._pops.park(call, now_ms)

    def _keep_bytes(self) -> int:
        return self._checkpointer.keep_bytes if self._checkpointer else 0

    def _log_changed(self) -> None:
        if self._mailbox.backlog or self._pops.has_owed:
            self._mailbox.nudge()  # there may be room now
        if self._checkpointer is not None:
            self._checkpointer.look()

    def _group_taken(self, group: Group[AnyCall]) -> None:
        if group.swept_keys:
            self._mailbox.nudge()  # there is room for the next slice
