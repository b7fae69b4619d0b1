"""The books clients keep of a server: what was sent and what was answered, over all its lives.

Acknowledged means that the answer arrived. Unknown means sent, and no answer came: it happened once, or not at all.
Whatever is read, while the server runs or after a crash, is held against the books, which fail with the history:

    I1  every acknowledged write is there
    I2  a push of several values is there whole, and its values stand side by side; of a unit that was not answered all
        commands happened or none, of a pipeline the first so many
    I3  an unknown command happened at most once
    I4  nothing that was never sent appears
    I5  what somebody has read stays read: no restart leads back behind it
    I6  every pushed value is delivered or still queued, none twice, first in first out; one may be missing for each
        unknown pop, because a pop hands over at most once and the kill may fall between the pop and its answer

Times are seconds of `time.monotonic()`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

SLACK_S = 0.25
"""How far the server's clock and ours may be apart: it reads the wall clock at each start, in milliseconds."""


@dataclass(eq=False, slots=True)
class Write:
    """A SET or DELETE of one key.

    Attributes:
        value: None deletes.
        expires_s: how long it lives; infinite without an expiry.
        sent_s: when it was sent.
        done_s: when it was answered, or the server found gone.
        refused: the server said that it was not done.
        happened: whether it did, found out after a crash; None while that is not known.
    """

    value: str | None
    expires_s: float = math.inf
    sent_s: float = field(default_factory=time.monotonic)
    done_s: float = math.inf
    refused: bool = False
    happened: bool | None = None


class Key:
    """The history of a key that only one client writes, one command after the other.

    So its states have one order: write 0, what its expiry leaves, write 1, what its expiry leaves... State 2n is the
    value of write n, state 2n + 1 the nothing after its expiry. Whoever reads must see a state that is not before
    `floor`, the last one that was acknowledged or read by anybody.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._writes = [Write(None)]
        self.floor = 0

    def send(self, value: str | None, expires_s: float = math.inf) -> Write:
        """Enters a write that is about to be sent."""
        self._writes.append(Write(value, expires_s))
        return self._writes[-1]

    def acknowledge(self, write: Write) -> None:
        """Enters that a write was answered; nothing before it may be seen again."""
        write.done_s = time.monotonic()
        self.floor = max(self.floor, 2 * self._writes.index(write))

    def read(self, found: str | None, floor: int, sent_s: float) -> None:
        """Checks what a read showed that was sent at `sent_s`, when the floor was `floor`."""
        now_s = time.monotonic()
        shown = [state for state in range(floor, 2 * len(self._writes)) if self._shows(state, found, sent_s, now_s)]
        assert shown, f"{self.name} shows {_short(found)} at {sent_s:.3f}, floor {floor}, after:\n{self}"
        self.floor = max(self.floor, shown[0])

    def settle(self, found: str | None) -> None:
        """After a restart: what was found, and has been checked, is the whole truth from here on."""
        self._find_out(found)
        kept = [write for write in self._writes if write.value == found and found is not None]
        self._writes = kept or [Write(None)]
        self.floor = 0

    def _find_out(self, found: str | None) -> None:
        """Which writes happened; of what left nothing that can be seen, that stays open."""
        if found is None:
            last = self._writes[-1]
            last.happened = False if last.value is not None and last.expires_s == math.inf else None
            return
        at = next(number for number, write in enumerate(self._writes) if write.value == found)
        for number, write in enumerate(self._writes):
            write.happened = number <= at

    def crash(self) -> None:
        """Enters that the server is gone: what was not answered by now will not be done later."""
        for write in self._writes:
            write.done_s = min(write.done_s, time.monotonic())

    def __str__(self) -> str:
        return "\n".join(
            f"  state {2 * number}: {_short(write.value)} for {write.expires_s} s, sent {write.sent_s:.3f},"
            f" done {write.done_s:.3f}{', refused' if write.refused else ''}"
            for number, write in enumerate(self._writes)
        )

    def _shows(self, state: int, found: str | None, sent_s: float, now_s: float) -> bool:
        """Whether a read sent at `sent_s` and answered by `now_s` may have seen this in that state."""
        number, expired = divmod(state, 2)
        write = self._writes[number]
        if write.refused:
            return False
        if expired:
            return found is None and now_s >= write.sent_s + write.expires_s - SLACK_S
        return found == write.value and sent_s <= write.done_s + write.expires_s + SLACK_S


@dataclass(eq=False, slots=True)
class Push:
    """One QPUSH, of one or more values."""

    values: list[str]
    acknowledged: bool = False
    sent_s: float = field(default_factory=time.monotonic)
    done_s: float = math.inf
    happened: bool | None = None


@dataclass(eq=False, slots=True)
class Batch:
    """A pipeline or a unit that was not answered: what may be found of its writes and pushes, in their order."""

    traces: list[Write | Push]
    atomic: bool

    def check(self) -> None:
        """Holds what was found out together, as far as it was."""
        found = [trace.happened for trace in self.traces if trace.happened is not None]
        whole = [True] * sum(found) + [False] * (len(found) - sum(found))
        assert found == whole, f"of a pipeline a later part happened, but not an earlier one: {self}"
        assert not self.atomic or len(set(found)) < 2, f"half a unit happened: {self}"

    def __str__(self) -> str:
        return "\n".join(f"  {trace}" for trace in self.traces)


class Queue:
    """What went into a queue and came out of it, since it was last seen empty."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pushes: list[Push] = []
        self._delivered: dict[str, tuple[bool, float]] = {}
        self.unknown_pops = 0

    def send(self, values: list[str]) -> Push:
        """Enters a push that is about to be sent."""
        self._pushes.append(Push(values))
        return self._pushes[-1]

    def acknowledge(self, push: Push) -> None:
        """Enters that a push was answered."""
        push.acknowledged = True
        push.done_s = time.monotonic()

    def refuse(self, push: Push) -> None:
        """Enters that the server said it was not done."""
        self._pushes.remove(push)

    def deliver(self, value: str, *, last: bool, sent_s: float) -> None:
        """Enters what a pop that was sent at `sent_s` brought; `last` for QPOP, which takes from the end."""
        assert value not in self._delivered, f"{self.name}: {_short(value)} was delivered twice"
        self._delivered[value] = (last, sent_s)

    def crash(self) -> None:
        """Enters that the server is gone: what was not answered by now will not be done later."""
        for push in self._pushes:
            push.done_s = min(push.done_s, time.monotonic())

    def check(self, left: list[str]) -> None:
        """Holds everything against what the queue, emptied from the front, still had."""
        out = [*self._delivered, *left]
        twice = {value for value in out if out.count(value) > 1} if len(set(out)) < len(out) else set()
        self._fail_for("delivered or queued twice", twice)
        origin = {value: push for push in self._pushes for value in push.values}
        self._fail_for("never pushed", set(out) - set(origin))
        happened = {value for push in self._pushes for value in push.values if push.acknowledged} | {
            value for value in origin if not set(origin[value].values).isdisjoint(out)
        }
        for push in self._pushes:
            if not self.unknown_pops or not set(out).isdisjoint(push.values):
                push.happened = not set(out).isdisjoint(push.values)
        missing = happened - set(out)
        if len(missing) > self.unknown_pops:
            self._fail_for(f"lost, with {self.unknown_pops} unknown pops", missing)
        self._check_order(left, origin)
        self._check_turns(left, origin)

    def _check_order(self, left: list[str], origin: dict[str, Push]) -> None:
        """A push's values stand side by side, in order, and no push before one that had been answered already."""
        index = {value: place for place, value in enumerate(left)}
        latest_sent_s = -math.inf
        for value in left:
            push = origin[value]
            assert push.done_s >= latest_sent_s, f"{self.name}: {_short(value)} was pushed before those in front of it"
            latest_sent_s = max(latest_sent_s, push.sent_s)
            places = [index[other] for other in push.values if other in index]
            run = list(range(places[0], places[0] + len(places)))
            assert places == run, f"{self.name}: a push of {len(push.values)} values was torn, places {places}"

    def _check_turns(self, left: list[str], origin: dict[str, Push]) -> None:
        """Nothing that is left should have been taken in place of what was taken."""
        for value, (last, popped_s) in self._delivered.items():
            taken = origin[value]
            for other in map(origin.__getitem__, left):
                out_of_turn = (
                    taken.done_s < other.sent_s and other.done_s < popped_s if last else other.done_s < taken.sent_s
                )
                assert not out_of_turn, f"{self.name}: {_short(value)} taken before {_short(other.values[0])}"

    def _fail_for(self, what: str, values: set[str]) -> None:
        if values:
            found = "\n".join(f"  {_short(value)}: {self._describe(value)}" for value in sorted(values))
            raise AssertionError(f"{self.name}: {what}:\n{found}")

    def _describe(self, value: str) -> str:
        push = next((push for push in self._pushes if value in push.values), None)
        if push is None:
            return "no push"
        state = "acknowledged" if push.acknowledged else "unknown"
        delivered = f", delivered {self._delivered[value]}" if value in self._delivered else ""
        return f"one of {len(push.values)}, {state}, sent {push.sent_s:.3f}, done {push.done_s:.3f}{delivered}"


class Books:
    """All keys and queues, and what was done so far."""

    def __init__(self, keys: Iterable[str], queues: Iterable[str]) -> None:
        self.keys = {name: Key(name) for name in keys}
        self.queues = {name: Queue(name) for name in queues}
        self.acknowledged = self.unknown = self.delivered = self.batches = 0
        self.in_doubt: list[Batch] = []

    def crash(self) -> None:
        """Enters that the server is gone."""
        for key in self.keys.values():
            key.crash()
        for queue in self.queues.values():
            queue.crash()

    def check_batches(self) -> None:
        """Holds together what has been found out about batches that were not answered."""
        for batch in self.in_doubt:
            batch.check()

    def start_queue(self, name: str) -> None:
        """Begins a queue's history afresh: it has been checked, and is empty."""
        self.queues[name] = Queue(name)


def _short(value: str | None) -> str:
    """A value as messages name it: without its padding."""
    return "nothing" if value is None else value.split(":", 1)[0]
