"""The actor: the one task that reads and changes the state.

It takes what is in the mailbox, has it done command by command (performer.py), and puts each answer into the open
group, together with the records it rests on.

A turn is so many commands, keys and values; then others have theirs, and a batch that is not done goes on behind calls
that came meanwhile. Units, and single commands too heavy for a turn, pause instead: until they are done there is no
other command, but the event loop goes on, and so do commits. That is safe because no other task looks at the state.

A batch that is far ahead of the disk rests until the open group is taken. Else it would fill that group for as long as
the commit before it takes, which is the longer the more the actor keeps the interpreter from the commit thread; and all
others, whose answers wait for both, would wait the longer.

After each op that makes a queue grow, its waiters are served, oldest first; their pops join the same group as the push.
"""

from __future__ import annotations

import math
from typing import TypeVar

import trio

from engine.calls import QUEUED, AnyCall, Batch, Call
from engine.commands.table import FREE, HEAVY, weigh
from engine.embedded.answers import Answers
from engine.embedded.clock import Clock
from engine.embedded.committer import Committer, Group
from engine.embedded.effects import Effects
from engine.embedded.mailbox import Mailbox
from engine.embedded.performer import AT_ONCE, TURN_WEIGHT_MAX, Delay, Pausing, Performer
from engine.embedded.pops import Pops
from engine.embedded.sweeper import Sweeper
from engine.limits import Limits
from engine.replies import SHUTTING_DOWN, WAITERS_FULL, Failure, Refused, Reply
from engine.store.state import State
from wal.open_segment import Room

RECORDS_AHEAD_MAX = 2048
"""Records in the open group at which batches rest: to commit so many takes some 10 ms."""

FREE_VALUES_MAX = 20_000
"""Values of removed queues freed in one go: some 1 ms of work."""

FREE_INTERVAL_S = 0.001
"""Pause between two such goes: an actor that never sleeps would keep the interpreter from the commit thread."""

T = TypeVar("T")


class Actor:
    """Does what is submitted.

    Args:
        state: as replayed; nobody else touches it from now on.
        committer: whose open group takes records and answers.
        limits: waiters, mailbox, answers.
        clock: engine time.

    Attributes:
        mailbox: where calls are posted.
        answers: lets answers go.
        pops: who waits, and what was taken for whom.
        sweeper: removes expired keys.
    """

    def __init__(self, state: State, committer: Committer[AnyCall], limits: Limits, clock: Clock) -> None:
        effects = Effects(state, committer)
        self.mailbox = Mailbox(limits.mailbox_max)
        self.answers = Answers(committer, none_left=self._none_left)
        self.pops = Pops(state, committer, effects, self.answers)
        self.sweeper = Sweeper(state, committer, effects)
        self._performer = Performer(state, committer, effects, self.sweeper, self.pops, limits.answer_bytes_max)
        self._state = state
        self._committer = committer
        self._waiters_max = limits.waiters_max
        self._clock = clock
        self._resting: list[Batch] = []  # until the open group is taken
        self._short_of: Room | None = None  # the committer has a new one after each change of the log
        self._turning_away = False
        self._closing = False

    def turn_away(self) -> None:
        """Answers `unavailable` to everybody who waits, and to who would from now on."""
        self._turning_away = True
        self.mailbox.nudge()

    def close(self) -> None:
        """Lets `run` return when the last caller has left; nobody may submit anything any more."""
        self._closing = True
        self.turn_away()

    def log_changed(self) -> None:
        """Something was done to the log: there may be room now."""
        if self.mailbox.backlog or self.pops.has_owed:
            self.mailbox.nudge()

    def group_taken(self, group: Group[AnyCall]) -> None:
        """A group was swapped out: there is room for the next slice of expired keys, and of batches that rest."""
        self.mailbox.backlog.extendleft(reversed(self._resting))  # first, or a crowd would keep them for ever
        if group.swept_keys or self._resting:
            self._resting.clear()
            self.mailbox.nudge()

    async def run(self) -> None:
        """Does what is submitted, until `close`."""
        while not self._is_finished():
            await self._receive()
            now_ms = self._clock.now_ms()
            if self._turning_away:
                self.pops.turn_away(SHUTTING_DOWN)
            if self.pops.has_abandoned or self.pops.has_owed:
                await self._give_back()
            await self._work_off(now_ms)
            self.pops.time_out(now_ms)
            self.sweeper.sweep(now_ms)
            self._state.free_garbage(FREE_VALUES_MAX)
            self._committer.hand_over(now_ms)

    def _is_finished(self) -> bool:
        """Whether nobody can come any more and nobody is left: not even one whose popped value may have to go back."""
        return self._closing and not (self.answers.callers or self.pops.has_abandoned or self.pops.has_owed)

    async def _receive(self) -> None:
        """Waits for commands, a deadline or a nudge; others have their turn in any case."""
        deadline = self._next_deadline()
        if deadline <= trio.current_time():
            await self.mailbox.receive_what_is_there()
        elif deadline == math.inf:
            await self.mailbox.receive()
        else:
            with trio.CancelScope(deadline=deadline):
                await self.mailbox.receive()

    def _none_left(self) -> None:
        if self._closing:
            self.mailbox.nudge()

    def _next_deadline(self) -> float:
        """The trio time at which there is something to do without a command."""
        if (
            self.pops.has_abandoned
            or (self.pops.waiters and self._turning_away)
            or (self.pops.has_owed and self._closing)
        ):
            return -math.inf
        if self.mailbox.backlog and not self._is_short_of_room:
            return -math.inf
        if self._state.has_garbage:
            return trio.current_time() + FREE_INTERVAL_S
        deadlines_ms = (self.pops.waiters.next_deadline_ms, self.sweeper.deadline_ms)
        return min(
            (self._clock.when(deadline_ms) for deadline_ms in deadlines_ms if deadline_ms is not None), default=math.inf
        )

    async def _work_off(self, now_ms: int) -> None:
        """Does what is in the backlog, for one turn."""
        left = TURN_WEIGHT_MAX
        backlog, do = self.mailbox.backlog, self._performer.do
        while backlog and left > 0 and not self._is_short_of_room:
            call = backlog.popleft()
            if isinstance(call, Batch) and sum(map(len, self._committer.open.frames)) >= RECORDS_AHEAD_MAX:
                self._resting.append(call)
            elif isinstance(call, Batch):
                left = await self._go_on_with(call, left, now_ms)
            elif call.stage is QUEUED:
                command = call.command
                weight = weigh(command) if type(command) in HEAVY else 1
                left -= weight
                if weight <= TURN_WEIGHT_MAX:
                    reply = do(command, now_ms, call.taken)
                else:
                    reply = await self._pausing(self._performer.do_slowly(command, now_ms, call.taken), now_ms)
                self._answer(call, reply, now_ms)

    def _answer(self, call: Call, reply: Reply | Delay, now_ms: int) -> None:
        if call.stage is not QUEUED:
            self.pops.abandon(call)
        elif isinstance(reply, Delay):
            if reply is Delay.NO_ROOM:
                self._wait_for_room(call)
            else:
                self._park(call, now_ms)
        elif type(call.command) in FREE or (isinstance(reply, Failure) and reply in AT_ONCE):
            self.answers.give(call, reply)  # it rests on nothing, so it need not wait for the disk
        else:
            self.answers.hold(call, reply)

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
            self.mailbox.backlog.append(batch)
        elif isinstance(outcome, Delay) and batch.stage is QUEUED:
            self._wait_for_room(batch)
        else:
            self.mailbox.batched_commands -= len(batch.commands)
            self._answer_batch(batch, outcome)
        return left

    def _answer_batch(self, batch: Batch, outcome: list[Reply] | Refused | Delay | None) -> None:
        if batch.stage is not QUEUED:
            self.pops.abandon(batch)
        elif isinstance(outcome, Refused) and outcome.failure in AT_ONCE:
            self.answers.give(batch, outcome)
        else:
            self.answers.hold(batch, outcome)

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

    async def _give_back(self) -> None:
        """Puts back what was popped for callers who left; no command comes in between."""
        for _ in self.pops.give_back(at_any_rate=self._closing):
            await trio.lowlevel.checkpoint()

    def _wait_for_room(self, call: AnyCall) -> None:
        """Has a call wait at the head of the backlog until something is done to the log."""
        self.mailbox.backlog.appendleft(call)
        self._short_of = self._committer.room

    @property
    def _is_short_of_room(self) -> bool:
        """Whether the command at the head of the backlog waits until something is done to the log."""
        return self._short_of is self._committer.room

    def _park(self, call: Call, now_ms: int) -> None:
        if self._turning_away:
            self.answers.give(call, SHUTTING_DOWN)
        elif len(self.pops.waiters) >= self._waiters_max:
            self.answers.give(call, WAITERS_FULL)
        else:
            self.pops.park(call, now_ms)
