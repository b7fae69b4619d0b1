"""Commands become effects and replies: decide, find room, pack, apply; one by one, or several as one unit.

There is no await here: nothing comes between a decision and its effects. But one command can name 65,536 keys, which
takes 0.3 s. So units pause in the middle of such work, and so does a single command of that kind, which is then a unit
in pieces: other tasks have their turn, other commands have not.

A unit is all or nothing. Its commands are decided in order, each sees the effects of those before it, so they are
applied as they go, to the memory alone. If one that changes something is refused, what was applied is taken back
(engine/store/undo.py), and the log has seen nothing of it. Else all the records go into one frame.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from engine.calls import AnyCall, Batch, Command
from engine.commands.table import CHANGING, HEAVY, TAKING, in_pieces, row_of, weigh
from engine.embedded.committer import GROUP_BYTES_MAX, Committer
from engine.embedded.effects import Effects
from engine.embedded.pops import Pops, Taken
from engine.embedded.sweeper import Sweeper, expiry_bytes
from engine.replies import NULL, POPPED_ENOUGH, Error, Failure, Integer, Refused, Reply, Value
from engine.store import ops
from engine.store.ops import Op
from engine.store.state import State
from engine.store.undo import Journal

COMMAND_BYTES_MAX = 256 * 1024 * 1024
"""Records of one command or unit: they must fit one frame, for it applies whole or not at all."""

DISK_FULL = Failure(Error.STORAGE_FULL, "the disk is full")
DISK_BEHIND = Failure(Error.UNAVAILABLE, "the disk is behind, try again")
TOO_LONG = Failure(Error.TOO_LARGE, f"the records would have more than {COMMAND_BYTES_MAX} bytes")

AT_ONCE = (DISK_FULL, DISK_BEHIND, TOO_LONG)
"""Refusals that rest on nothing in the state, so that they need not wait for the disk."""

TURN_WEIGHT_MAX = 256
"""Weight of what is done before other tasks get their turn: so many commands, keys or values; some ms of work."""

T = TypeVar("T")
Pausing = Generator[None, None, T]
"""Work that pauses now and then: other tasks may have their turn, but nobody may look at the state or change it. It is
half changed by then, and the actor, who is the only one to do that, waits for the end."""


class Delay(enum.Enum):
    """Why a command has no reply yet."""

    NO_VALUE = enum.auto()
    NO_ROOM = enum.auto()


class Performer:
    """Has commands done.

    Args:
        state: that they read and change.
        committer: whose open group takes their records, and which knows the room there is.
        effects: of both.
        sweeper: removes expired keys that they name.
        pops: takes what they pop, and serves whoever waits for what they push.
        answer_bytes_max: values popped by one batch: about, the last may go beyond.
    """

    def __init__(
        self,
        state: State,
        committer: Committer[AnyCall],
        effects: Effects,
        sweeper: Sweeper,
        pops: Pops,
        answer_bytes_max: int,
    ) -> None:
        self._answer_bytes_max = answer_bytes_max
        self._state = state
        self._committer = committer
        self._effects = effects
        self._sweeper = sweeper
        self._pops = pops

    def do(self, command: Command, now_ms: int, taken: list[Taken]) -> Reply | Delay:
        """Has one command done.

        Args:
            command: as parsed.
            now_ms: engine time.
            taken: what is popped is added here.

        Returns:
            The reply, or why there is none: then nothing was done. For want of room, some has been asked for.
        """
        expired = self._state.expired_of(command, now_ms)
        if expired and not self._sweeper.expire(expired):
            return self._without_room(expiry_bytes(expired))
        effects, reply = self._state.decide(command, now_ms)
        if reply is None:
            return Delay.NO_VALUE
        if effects:
            records, records_bytes = [], 0
            for op in effects:
                record = ops.pack(op)
                records.append(record)
                records_bytes += len(record)
            refusal = self._refusal(effects, records_bytes)
            if refusal is not None:
                return refusal
            code, key = effects[-1][:2]
            if code in ops.PUTS_BACK:
                taken.append(self._pops.taking(effects[-1], reply))
            self._effects.apply(effects, records, records_bytes)
            if code in ops.GROWING and self._pops.waiters:
                self._pops.serve((key,))
        return reply

    def do_some(self, batch: Batch, left: int, now_ms: int) -> Pausing[tuple[list[Reply] | Delay | None, int]]:
        """Has the next commands of a batch done, each by itself; none of them waits for a value.

        Args:
            batch: whose replies are added to.
            left: how much may be done, in weight.
            now_ms: engine time.

        Returns:
            All replies when the batch is done, None when it is not, or the want of room that keeps it from going on;
            and how much is left.
        """
        replies, taken = batch.replies, batch.taken
        for command in islice(batch.commands, len(replies), None):
            if left <= 0:
                return None, left
            weight = weigh(command) if type(command) in HEAVY else 1
            left -= weight
            if weight > TURN_WEIGHT_MAX:
                reply = yield from self.do_slowly(command, now_ms, taken)
            elif type(command) in TAKING:
                reply = self._pop(command, now_ms, batch)
            else:
                reply = self.do(command, now_ms, taken)
            if not isinstance(reply, Delay):
                replies.append(reply)
            elif reply is Delay.NO_VALUE:
                replies.append(NULL)
            else:
                return reply, left
        return replies, left

    def _pop(self, command: Command, now_ms: int, batch: Batch) -> Reply | Delay:
        """Does a pop of a batch, unless its answer is long enough: what is popped has to be answered."""
        if batch.popped_bytes >= self._answer_bytes_max:
            return POPPED_ENOUGH
        reply = self.do(command, now_ms, batch.taken)
        if isinstance(reply, Value) and reply.value is not None:
            batch.popped_bytes += len(reply.value)
        return reply

    def do_slowly(self, command: Command, now_ms: int, taken: list[Taken]) -> Pausing[Reply | Delay]:
        """Does what `do` does, with pauses."""
        outcome = yield from self.do_unit((command,), now_ms, taken)
        if isinstance(outcome, Refused):
            return outcome.failure
        return outcome if isinstance(outcome, Delay) else outcome[0]

    def do_unit(
        self, commands: Sequence[Command], now_ms: int, taken: list[Taken]
    ) -> Pausing[list[Reply] | Refused | Delay]:
        """Has commands done all together, or none of them; nobody waits for a value.

        Args:
            commands: in their order.
            now_ms: engine time.
            taken: what is popped is added here.

        Returns:
            The replies in order, or why nothing was done. For want of room, some has been asked for.
        """
        for piece in _pieces(commands):
            expired = self._state.expired_of(piece, now_ms)
            if expired and not self._sweeper.expire(expired):
                lack = self._without_room(expiry_bytes(expired))
                return lack if isinstance(lack, Delay) else Refused(lack)
            if weigh(piece) == TURN_WEIGHT_MAX:  # of a heavy command: there is more of it
                yield
        journal, unit_taken = Journal(self._state), list[Taken]()
        outcome = yield from self._decide_all(commands, now_ms, journal, unit_taken)
        if not isinstance(outcome, list):
            yield from journal.roll_back()
            return outcome
        if journal.records:
            self._committer.open.add(journal.records, journal.records_bytes)
        taken += unit_taken
        self._pops.serve({op[1]: None for op in journal.effects if op[0] in ops.GROWING})
        return outcome

    def _decide_all(
        self, commands: Sequence[Command], now_ms: int, journal: Journal, taken: list[Taken]
    ) -> Pausing[list[Reply] | Refused | Delay]:
        """Decides the commands of a unit, and applies them to the memory; or says why that has to be taken back."""
        replies: list[Reply] = []
        popped_bytes = 0
        for index, command in enumerate(commands):
            reply = yield from self._decide_one(command, now_ms, journal, taken)
            if type(command) in TAKING and isinstance(reply, Value) and reply.value is not None:
                popped_bytes += len(reply.value)
                if popped_bytes > self._answer_bytes_max:
                    reply = POPPED_ENOUGH
            if isinstance(reply, Failure) and type(command) in CHANGING:
                return Refused(reply, index)
            replies.append(reply)
        refusal = self._refusal(journal.effects, journal.records_bytes) if journal.effects else None
        if isinstance(refusal, Failure):
            return Refused(refusal, _first_storing(commands) if refusal is DISK_FULL else None)
        return replies if refusal is None else refusal

    def _decide_one(self, command: Command, now_ms: int, journal: Journal, taken: list[Taken]) -> Pausing[Reply]:
        """Decides a command of a unit, and applies it to the memory, piece by piece if it is a heavy one."""
        counts: list[int] = []
        reply: Reply | None = None
        for piece in _pieces((command,)):
            effects, reply = self._state.decide(piece, now_ms)
            for op in effects:
                if op[0] in ops.PUTS_BACK:
                    assert reply is not None
                    taken.append(self._pops.taking(op, reply))
                journal.apply(op)
            if isinstance(reply, Integer):
                counts.append(reply.value)
            if weigh(command) > TURN_WEIGHT_MAX:
                yield
        if counts:
            return Integer(sum(counts))
        return NULL if reply is None else reply

    def _refusal(self, effects: Sequence[Op], records_bytes: int) -> Failure | Delay | None:
        """Why the log does not take these ops now, or None."""
        committer = self._committer
        if committer.open.records_bytes >= GROUP_BYTES_MAX:
            return DISK_BEHIND
        if records_bytes > COMMAND_BYTES_MAX:
            return TOO_LONG
        if not committer.has_room(records_bytes):
            return self._without_room(records_bytes)
        if committer.room.full and any(op[0] in ops.STORING for op in effects):
            return DISK_FULL
        return None

    def _without_room(self, records_bytes: int) -> Failure | Delay:
        """Refuses what the disk has no room for, or asks for some."""
        if self._committer.room.full and not self._committer.is_holding:
            return DISK_FULL
        self._committer.want_room(records_bytes)
        return Delay.NO_ROOM


def _pieces(commands: Iterable[Command]) -> Iterator[Command]:
    """The commands, those with too many keys as several with fewer."""
    for command in commands:
        if weigh(command) > TURN_WEIGHT_MAX and row_of(command).adds_up:
            yield from in_pieces(command, TURN_WEIGHT_MAX)
        else:
            yield command


def _first_storing(commands: Sequence[Command]) -> int | None:
    """Which is the first command that a full disk refuses."""
    return next((index for index, command in enumerate(commands) if row_of(command).stores), None)
