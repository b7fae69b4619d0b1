"""The engine: one actor task between the callers, the state and the log.

Theory of operation

    submit -> mailbox -> actor: decide, pack, apply -> open group -> committer: write, sync -> answers

The actor is the only task that reads or changes the state, and it never awaits in between: it takes what is in
the mailbox, applies it command by command, and puts each answer into the open group,
together with the records it rests on. The committer swaps the open group for a new one, has it written and synced
in a thread, and then lets its answers go; meanwhile the actor fills the next group. So an answer leaves only
when everything it rests on is on disk: its own records, and for a read everything it saw.

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
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

import trio

from engine import ops
from engine.calls import Call, Stage, Taken
from engine.checkpointer import Checkpoint, Checkpointer, Fold, FoldFailed
from engine.clock import Clock
from engine.commands import BQPop, Command, Ping
from engine.committer import Committer, FsyncPolicy, Group, RunCommit, in_thread
from engine.limits import Limits
from engine.ops import Op
from engine.replies import Error, Failure, Reply, Value
from engine.state import State
from engine.statistics import Statistics
from engine.waiters import Waiters
from wal.log import Log
from wal.open_segment import Room

BATCH_MAX = 256
"""Commands applied before other tasks get their turn: some 3 ms of work."""

SWEEP_KEYS_MAX = 256
"""Expired keys removed in one go: some 1 ms of work. A million that expire at once go in slices between commands."""

SWEEP_BYTES_MAX = 1024 * 1024
"""Length of the keys removed in one go, about: a slice is one record, and keys can be long."""

SWEEP_INTERVAL_MS = 100
"""Pause after a sweep that found fewer keys than a slice: keys that expire one by one do not wake the actor each."""

TIMEOUTS_MAX = 256
"""Waiters that are told in one go that their time is up."""

FREE_VALUES_MAX = 20_000
"""Values of removed queues freed in one go: some 1 ms of work."""

FREE_INTERVAL_S = 0.001
"""Pause between two such goes: an actor that never sleeps would keep the interpreter from the commit thread."""

GROUP_BYTES_MAX = 32 * 1024 * 1024
"""Records that may wait for the disk. When it falls behind so far, writes are refused instead of filling memory."""

COMMAND_BYTES_MAX = 256 * 1024 * 1024
"""Records of one command: they must fit one frame, for a command applies whole or not at all."""

_KEY_HEAD_BYTES = 5
"""What a key takes of a record beyond its own length, at most."""

_UNDO = {ops.POP_FIRST: ops.RETURN_FIRST, ops.POP_LAST: ops.RETURN_LAST}
"""Which op puts back what a pop took."""

_STORING = {ops.PUT, ops.PUSH}
"""Ops that a full disk refuses; all others let data go, or bring back what was let go."""

_GROWING = {ops.PUSH, ops.RETURN_FIRST, ops.RETURN_LAST}
"""Ops after which somebody who waits may be served."""


class Engine:
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
        self._run_commit = run_commit or in_thread()
        self._clock = Clock(max(wall_ms, log.recovery.time_ms))
        self._started_s = trio.current_time()
        self._mailbox: deque[Call] = deque()
        self._waiters: Waiters[Call] = Waiters()
        self._short_of: Room | None = None
        self._abandoned: list[Taken] = []
        self._owed: list[Taken] = []
        self._asleep: trio.lowlevel.Task | None = None
        self._next_sweep_ms = 0
        self._committer: Committer[Call] = Committer(
            log,
            fsync,
            self._run_commit,
            release=self._release,
            taken=self._group_taken,
            log_changed=self._log_changed,
            keep_bytes=self._keep_bytes,
            watches_files=watches_files,
        )
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
        self._callers = 0
        self._closing = False
        self._broken = False  # the actor was stopped in the middle of something: what it owns may be half changed
        self._commands = self._pops = self._expired_keys = self._returned_values = 0

    # For callers

    async def submit(self, command: Command) -> Reply:
        """Has a command done and waits for its answer.

        Cancelling withdraws it: a command that waits is taken back, and a popped value nobody will see goes back
        to its queue. There is no checkpoint between the answer's arrival and the return.

        Args:
            command: as parsed.

        Returns:
            The reply; refusals are replies too (`Failure`).
        """
        sleeper = _Sleeper()
        call = self.submit_nowait(command, sleeper.wake)
        await self._answer_of(call, sleeper)
        assert call.reply is not None
        return call.reply

    def submit_nowait(self, command: Command, deliver: Callable[[Call], None]) -> Call:
        """Has a command done and returns at once.

        Args:
            command: as parsed.
            deliver: called with the call, once, when its reply may be shown; also from within, for a refusal. If
                something was popped (`call.taken`), `settle` or `withdraw` must follow.

        Returns:
            The call, for `settle` and `withdraw`.
        """
        call = Call(command, deliver)
        self._callers += 1
        if not self.accepting:
            self._answer_now(call, Failure(Error.UNAVAILABLE, "shutting down"))
        elif len(self._mailbox) >= self._limits.mailbox_max:
            self._answer_now(call, Failure(Error.UNAVAILABLE, "too many commands are waiting"))
        else:
            self._commands += 1
            self._mailbox.append(call)
            self._wake()
        return call

    def settle(self, call: Call) -> None:
        """Says that the answer was handed to the transport: what was popped does not come back any more."""
        if call.stage is Stage.ANSWERED:
            call.stage = Stage.SETTLED
            self._leave()

    def withdraw(self, call: Call) -> None:
        """Says that the caller has left: what waits is taken back, a popped value goes back, nothing is delivered."""
        if call.stage is Stage.SETTLED or call.stage is Stage.WITHDRAWN:
            return
        if self._broken:
            pass
        elif call.stage is Stage.PARKED:
            assert call.waiter is not None
            self._waiters.abandon(call.waiter)
        elif call.taken is not None:
            self._abandoned.append(call.taken)
            self._wake()
        call.stage = Stage.WITHDRAWN
        self._leave()

    async def _answer_of(self, call: Call, sleeper: _Sleeper) -> None:
        """Waits until a call is answered; there is no checkpoint after that."""

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self.withdraw(call)
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            if not sleeper.woken:
                await sleeper.sleep(abort)
                # A cancellation that came in the same tick as the answer: the client is known to be gone.
                await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.withdraw(call)
            raise
        self.settle(call)

    def statistics(self) -> Statistics:
        """Returns the engine's numbers at this moment."""
        committer = self._committer
        return Statistics(
            keys=len(self._state) - self._state.queue_count,
            queues=self._state.queue_count,
            waiters=len(self._waiters),
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
            expired_keys=self._expired_keys,
            returned_values=self._returned_values,
            uptime_s=round(trio.current_time() - self._started_s, 3),
        )

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
        self._wake()

    def close(self) -> None:
        """Lets `run` finish: what was submitted is done and answered, then the log is closed cleanly."""
        self._closing = True
        self.shut_down()

    # The actor

    async def _run_actor(self) -> None:
        while not self._is_finished():
            await self._sleep()
            now_ms = self._clock.now_ms()
            self._turn_waiters_away()
            self._return_values()
            self._work_off(now_ms)
            self._time_out_waiters(now_ms)
            self._sweep(now_ms)
            self._state.free_garbage(FREE_VALUES_MAX)
            self._committer.hand_over(now_ms)

    def _is_finished(self) -> bool:
        """Whether nobody can come any more and nobody is left: not even one whose popped value may have to go back."""
        return self._closing and not (self._callers or self._abandoned or self._owed)

    async def _sleep(self) -> None:
        """Waits for commands, a deadline or a nudge; others have their turn in any case."""
        deadline = self._next_deadline()
        if deadline <= trio.current_time():
            await trio.lowlevel.checkpoint()
        elif deadline == math.inf:
            await self._sleep_until_woken()
        else:
            with trio.CancelScope(deadline=deadline):
                await self._sleep_until_woken()

    async def _sleep_until_woken(self) -> None:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._asleep = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._asleep = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self) -> None:
        """Nudges the actor: there may be something to do."""
        if self._asleep is not None:
            trio.lowlevel.reschedule(self._asleep)
            self._asleep = None

    def _leave(self) -> None:
        """One caller less; the last one lets the actor end."""
        self._callers -= 1
        if self._closing and not self._callers:
            self._wake()

    def _work_off(self, now_ms: int) -> None:
        """Does what is in the mailbox, for one turn."""
        left = BATCH_MAX
        while self._mailbox and left and not self._is_short_of_room:
            call = self._mailbox.popleft()
            if call.stage is Stage.QUEUED:
                self._perform(call, now_ms)
                left -= 1

    def _next_deadline(self) -> float:
        """The trio time at which there is something to do without a command."""
        if self._abandoned or (self._waiters and not self.accepting) or (self._owed and self._closing):
            return -math.inf
        if self._mailbox and not self._is_short_of_room:
            return -math.inf
        if self._state.has_garbage:
            return trio.current_time() + FREE_INTERVAL_S
        deadlines_ms = []
        if self._waiters.next_deadline_ms is not None:
            deadlines_ms.append(self._waiters.next_deadline_ms)
        if self._state.next_deadline_ms is not None and self._may_sweep():
            deadlines_ms.append(max(self._state.next_deadline_ms, self._next_sweep_ms))
        return self._clock.when(min(deadlines_ms)) if deadlines_ms else math.inf

    def _perform(self, call: Call, now_ms: int) -> None:
        expired = self._state.expired_of(call.command, now_ms)
        if not self._expire(expired):
            self._turn_away(call, _expiry_bytes(expired))
            return
        decision = self._state.decide(call.command, now_ms)
        if decision.reply is None:
            self._park(call, now_ms)
        elif isinstance(call.command, Ping):
            self._answer_now(call, decision.reply)  # it rests on nothing, so it need not wait for the disk
        elif not decision.ops:
            self._hold(call, decision.reply)
        elif self._committer.open.records_bytes >= GROUP_BYTES_MAX:
            self._answer_now(call, Failure(Error.UNAVAILABLE, "the disk is behind, try again"))
        else:
            self._carry_out(call, decision.ops, decision.reply)

    def _carry_out(self, call: Call, effects: tuple[Op, ...], reply: Reply) -> None:
        records, records_bytes = _pack(effects)
        if records_bytes > COMMAND_BYTES_MAX:
            detail = f"the command's records would have more than {COMMAND_BYTES_MAX} bytes"
            self._answer_now(call, Failure(Error.TOO_LARGE, detail))
            return
        if not self._find_room(call, effects, records_bytes):
            return
        if effects[0][0] in _UNDO:
            call.taken = self._taking(effects[0], reply)
        self._apply(effects, records, records_bytes)
        self._hold(call, reply)
        self._serve_waiters([op[1] for op in effects if op[0] in _GROWING])

    def _find_room(self, call: Call, effects: tuple[Op, ...], records_bytes: int) -> bool:
        """Whether the records fit the disk. If not, the call is refused, or waits at the head of the mailbox."""
        room, fits = self._committer.room, self._committer.has_room(records_bytes)
        if fits and not (room.full and any(op[0] in _STORING for op in effects)):
            return True
        self._turn_away(call, records_bytes)
        return False

    def _turn_away(self, call: Call, records_bytes: int) -> None:
        """Refuses a call for which the disk has no room, or has it wait at the head of the mailbox for some."""
        if self._committer.room.full:
            self._answer_now(call, Failure(Error.STORAGE_FULL, "the disk is full"))
        else:
            self._mailbox.appendleft(call)
            self._short_of = self._committer.room
            self._committer.want_room(records_bytes)

    @property
    def _is_short_of_room(self) -> bool:
        """Whether the command at the head of the mailbox waits until something is done to the log."""
        return self._short_of is self._committer.room

    def _park(self, call: Call, now_ms: int) -> None:
        command = call.command
        assert isinstance(command, BQPop), "only a blocking pop waits"
        if not self.accepting:
            self._answer_now(call, Failure(Error.UNAVAILABLE, "shutting down"))
        elif len(self._waiters) >= self._limits.waiters_max:
            self._answer_now(call, Failure(Error.UNAVAILABLE, "too many clients are waiting"))
        else:
            deadline_ms = None if command.timeout_ms is None else now_ms + command.timeout_ms
            call.waiter = self._waiters.park(command.key, deadline_ms, call)
            call.stage = Stage.PARKED

    def _log_and_apply(self, op: Op) -> None:
        """Does what no command asked for by itself, and what cannot be refused."""
        self._apply((op,), *_pack((op,)))

    def _apply(self, effects: tuple[Op, ...], records: list[bytes], records_bytes: int) -> None:
        """Takes records that are packed already: what cannot be packed must not have been applied."""
        for op in effects:
            self._state.apply(op)
        self._committer.open.add(records, records_bytes)

    def _taking(self, pop: Op, reply: Reply) -> Taken:
        """Notes what a pop is about to take, should it have to go back."""
        code, key = pop
        queue = self._state.queue(key)
        assert queue is not None
        assert isinstance(reply, Value)
        self._pops += 1
        return Taken(self._pops, queue, (_UNDO[code], key, reply.value))

    def _serve_waiters(self, grown: Iterable[bytes]) -> None:
        """Hands the values of queues that have just grown to those who wait for them, the oldest first."""
        for key in grown:
            if key in self._waiters:
                self._serve(key)

    def _serve(self, key: bytes) -> None:
        queue = self._state.queue(key)
        while queue and key in self._waiters:
            call = self._waiters.claim(key).owner
            pop, reply = (ops.POP_FIRST, key), Value(queue[0])
            call.taken = self._taking(pop, reply)
            self._log_and_apply(pop)
            self._hold(call, reply)

    def _turn_waiters_away(self) -> None:
        """While shutting down nobody waits, and nothing is consumed for those who did."""
        if not self.accepting:
            for waiter in self._waiters.drain():
                self._answer_now(waiter.owner, Failure(Error.UNAVAILABLE, "shutting down"))

    def _time_out_waiters(self, now_ms: int) -> None:
        for waiter in islice(self._waiters.due(now_ms), TIMEOUTS_MAX):
            self._hold(waiter.owner, Value(None))

    def _sweep(self, now_ms: int) -> None:
        """Removes a slice of the expired keys.

        One slice a group, more only beside as many commands: else the actor would never sleep, and not only would the
        group grow, the commit thread would not get the interpreter (a SET among a million such keys took 4 s).
        """
        if now_ms < self._next_sweep_ms or not self._may_sweep():
            return
        keys = self._state.expired(now_ms, SWEEP_KEYS_MAX, SWEEP_BYTES_MAX)
        if not self._expire(keys):
            self._next_sweep_ms = now_ms + SWEEP_INTERVAL_MS
            return
        self._committer.open.swept_keys += len(keys)
        next_ms = self._state.next_deadline_ms
        if next_ms is None or next_ms > now_ms:
            self._next_sweep_ms = now_ms + SWEEP_INTERVAL_MS

    def _expire(self, keys: tuple[bytes, ...]) -> bool:
        """Removes expired keys, unless the disk is too full for that.

        Those that a command names go before it is decided: an answer that rests on their being gone leaves with
        the record of it. Else a crash before the next sweep, and a wall clock that was set back, would show them again.
        """
        if keys and not self._committer.has_room(_expiry_bytes(keys)):
            return False
        if keys:
            self._log_and_apply((ops.EXPIRE, keys))
            self._expired_keys += len(keys)
        return True

    def _may_sweep(self) -> bool:
        """Whether the open group takes another slice: no more than one, or as many keys as it has commands."""
        group = self._committer.open
        return group.swept_keys < max(SWEEP_KEYS_MAX, len(group.answers)) and group.records_bytes < GROUP_BYTES_MAX

    def _return_values(self) -> None:
        """Puts back what was popped for callers who left, the last pop first, so that the old order is restored.

        What the disk has no room for waits until it has, at the latest until the end.
        """
        self._owed += self._abandoned
        self._owed.sort(key=lambda taken: taken.serial)
        self._abandoned.clear()
        grown: dict[bytes, None] = {}
        while self._owed:
            undo, queue = self._owed[-1].undo, self._owed[-1].queue
            if self._state.queue(undo[1]) is queue:  # else it was deleted meanwhile, this value with it
                records, records_bytes = _pack((undo,))
                if not (self._committer.has_room(records_bytes) or self._closing):
                    if not self._committer.room.full:  # else it is asked for room by itself
                        self._committer.want_room(records_bytes)
                    break
                self._apply((undo,), records, records_bytes)
                self._returned_values += 1
                grown[undo[1]] = None
            self._owed.pop()
        self._serve_waiters(grown)  # not before all are back: the oldest waiter gets the first value

    def _keep_bytes(self) -> int:
        return self._checkpointer.keep_bytes if self._checkpointer else 0

    def _log_changed(self) -> None:
        if self._mailbox or self._owed:
            self._wake()  # there may be room now
        if self._checkpointer is not None:
            self._checkpointer.look()

    def _group_taken(self, group: Group[Call]) -> None:
        if group.swept_keys:
            self._wake()  # there is room for the next slice

    # Answers

    def _hold(self, call: Call, reply: Reply) -> None:
        """Lets the answer go with the open group."""
        call.reply = reply
        call.stage = Stage.HELD
        self._committer.open.answers.append(call)

    def _answer_now(self, call: Call, reply: Reply) -> None:
        """Answers at once; only for replies that rest on nothing."""
        call.reply = reply
        call.stage = Stage.HELD
        self._release(call)

    def _release(self, call: Call) -> None:
        if call.stage is Stage.HELD:
            if call.taken is None:
                call.stage = Stage.SETTLED
                self._leave()
            else:
                call.stage = Stage.ANSWERED
            call.deliver(call)


class _Sleeper:
    """A task that waits for an answer."""

    def __init__(self) -> None:
        self.woken = False
        self._task: trio.lowlevel.Task | None = None

    def wake(self, _call: Call) -> None:
        """Delivers an answer."""
        self.woken = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    async def sleep(self, abort: Callable[[object], trio.lowlevel.Abort]) -> None:
        """Waits for `wake`."""
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)


def _expiry_bytes(keys: tuple[bytes, ...]) -> int:
    """Length of the record that removes these keys, at most."""
    return sum(map(len, keys)) + len(keys) * _KEY_HEAD_BYTES


def _pack(effects: tuple[Op, ...]) -> tuple[list[bytes], int]:
    """The records of a command, and their length together."""
    records = [ops.pack(op) for op in effects]
    return records, sum(map(len, records))
