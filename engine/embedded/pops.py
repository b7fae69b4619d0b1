"""Popped values on their way: to those who wait for them, or back to their queue when those who popped them have left.

Calls park here, and are served, oldest first, when a queue has grown, or told that their time is up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

from engine.calls import PARKED, AnyCall, Call
from engine.commands.queues import BQPop
from engine.embedded.answers import Answers
from engine.embedded.committer import Committer
from engine.embedded.effects import Effects
from engine.replies import NULL, Failure, Reply, Value
from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State
from engine.store.store import Queue
from engine.store.waiters import Waiter, Waiters

TOLD_MAX = 256
"""Waiters that are told in one go that their time is up, or that the server stops."""

RETURNED_MAX = 256
"""Values that are put back in one go: those of one long batch, or of thousands of clients, would take 0.2 s."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A popped value on its way to a caller: its rank among all pops, the queue object, the op that undoes it."""

    serial: int
    queue: Queue
    undo: Op


class Pops:
    """What is popped, for whom, and whether it comes back.

    Args:
        state: that holds the queues.
        committer: whose open group takes the records, and which knows the room there is.
        effects: of both.
        answers: for those who waited.

    Attributes:
        waiters: calls that wait for a value.
        returned_values: number of values put back since the start.
    """

    def __init__(self, state: State, committer: Committer[AnyCall], effects: Effects, answers: Answers) -> None:
        self.waiters: Waiters[Call] = Waiters()
        self.returned_values = 0
        self._state = state
        self._committer = committer
        self._effects = effects
        self._answers = answers
        self._pops = 0
        self._abandoned: list[Taken] = []
        self._owed: list[Taken] = []

    @property
    def has_abandoned(self) -> bool:
        """Whether somebody has left since `give_back` looked."""
        return bool(self._abandoned)

    @property
    def has_owed(self) -> bool:
        """Whether values have still to go back, for which there was no room."""
        return bool(self._owed)

    # Waiting

    def park(self, call: Call, now_ms: int) -> None:
        """Has a blocking pop wait for a value."""
        command = call.command
        assert isinstance(command, BQPop), "only a blocking pop waits"
        deadline_ms = None if command.timeout_ms is None else now_ms + command.timeout_ms
        call.waiter = self.waiters.park(command.key, deadline_ms, call)
        call.stage = PARKED

    def time_out(self, now_ms: int) -> None:
        """Tells those whose time is up."""
        for waiter in islice(self.waiters.due(now_ms), TOLD_MAX):
            self._answers.hold(_out_of_line(waiter), NULL)

    def turn_away(self, failure: Failure) -> None:
        """Answers those who wait, as many as are told in one go, and consumes nothing."""
        for waiter in islice(self.waiters.drain(), TOLD_MAX):
            self._answers.give(_out_of_line(waiter), failure)

    # Taking

    def taking(self, pop: Op, reply: Reply) -> Taken:
        """Notes what a pop is about to take, should it have to go back."""
        code, key = pop
        queue = self._state.queue(key)
        assert queue is not None
        assert isinstance(reply, Value)
        self._pops += 1
        return Taken(self._pops, queue, (ops.PUTS_BACK[code], key, reply.value))

    def serve(self, grown: Iterable[bytes]) -> None:
        """Hands the values of queues that have just grown to those who wait for them, the oldest first."""
        for key in grown:
            if key in self.waiters:
                self._serve(key)

    def _serve(self, key: bytes) -> None:
        queue = self._state.queue(key)
        while queue and key in self.waiters:
            call = _out_of_line(self.waiters.claim(key))
            pop, reply = (ops.POP_FIRST, key), Value(queue[0])
            call.taken.append(self.taking(pop, reply))
            self._effects.apply_one(pop)
            self._answers.hold(call, reply)

    # Giving back

    def abandon(self, call: AnyCall) -> None:
        """A caller has left, at any moment: what waits leaves the line, and what was popped is noted."""
        if call.stage is PARKED:
            assert isinstance(call, Call)
            assert call.waiter is not None
            self.waiters.abandon(call.waiter)
            _out_of_line(call.waiter)
        self._abandoned += call.taken
        call.taken.clear()

    def give_back(self, *, at_any_rate: bool) -> Iterator[None]:
        """Puts back what was popped for callers who left, the last pop first, so that the old order is restored.

        What the disk has no room for waits until it has. It pauses now and then; no command may come in between, or it
        could pop what stands behind a value that is still to come back.

        Args:
            at_any_rate: this is the end, there is no later.
        """
        self._owed += self._abandoned
        self._owed.sort(key=lambda taken: taken.serial)
        self._abandoned.clear()
        grown: dict[bytes, None] = {}
        for number in count(1):
            if not self._owed:
                break
            if number % RETURNED_MAX == 0:
                yield
            undo, queue = self._owed[-1].undo, self._owed[-1].queue
            if self._state.queue(undo[1]) is queue:  # else it was deleted meanwhile, this value with it
                record = ops.pack(undo)
                if not (self._committer.has_room(len(record)) or at_any_rate):
                    if not self._committer.room.full:  # else it is asked for room by itself
                        self._committer.want_room(len(record))
                    break
                self._effects.apply((undo,), [record], len(record))
                self.returned_values += 1
                grown[undo[1]] = None
            self._owed.pop()
        self.serve(grown)  # not before all are back: the oldest waiter gets the first value


def _out_of_line(waiter: Waiter[Call]) -> Call:
    """Parts a call from its place in line: they hold each other, and only the collector would free them."""
    waiter.owner.waiter = None
    return waiter.owner
