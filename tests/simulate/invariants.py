"""What must hold beside the order of the commands: replay, damage, punctuality, and simple accounts of what was queued.

The accounts need no search: they are there so that a fault of the judge does not hide one of the engine.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from engine.embedded.recovery import applying, recover
from engine.limits import Limits
from engine.store.state import State
from tests.harness.disk import FakeDisk
from tests.simulate.clients import UNTOUCHED_QUEUE
from tests.simulate.history import Dump, End, Life, Operation, Outcome, Violation
from wal.frame import Frame
from wal.log import Log
from wal.segment import Damage, NewerFormat

SEGMENT_BYTES_MAX = 1_000
"""Of logs that are opened for a look: what they allocate should not take time."""

LATE_MS = 1_500
"""No answer takes longer, a blocking pop's time-out aside; the slowest commits take a fraction of it."""


def dump_of(state: State) -> Dump:
    """Everything in a state."""
    return tuple(state.dump())


def replayed(disk: FakeDisk, wall_ms: int) -> Dump:
    """What a start on this disk finds; the disk is changed as by a start that is killed at once.

    Raises:
        Damage, NewerFormat, OSError: as the start does.
    """
    directory = disk.directory()
    try:
        state, log = recover(directory, Limits(), wall_ms=wall_ms, segment_bytes_max=SEGMENT_BYTES_MAX)
    except BaseException:
        directory.close()
        raise
    log.abandon()
    return dump_of(state)


def check_replay(disk: FakeDisk, found: Dump, wall_ms: int) -> None:
    """I7: replayed once more, at another time of the wall clock, the log gives the same.

    Args:
        disk: a copy of what the start had; it is mended.
        found: what the start made of it.
        wall_ms: another time.
    """
    again = replayed(disk, wall_ms)
    if again != found:
        raise Violation(f"I7: replayed twice, the log gives two states:\n    {found}\n    {again}")


def check_shown(shown: Dump, found: Dump, latest_ms: int) -> None:
    """I5: what one start has shown the next finds as well, but for what has expired.

    Args:
        shown: what the first start found.
        found: what a later one found; no command was done in between.
        latest_ms: the latest that engine time may have been so far.
    """
    gone = [entry for entry in shown if entry not in found]
    if any(entry not in shown for entry in found) or any(not _has_expired(entry, latest_ms) for entry in gone):
        raise Violation(f"I5: a start showed one state, the next another:\n    {shown}\n    {found}")


def _has_expired(entry: tuple[Any, ...], now_ms: int) -> bool:
    return entry[0] == "value" and entry[3] is not None and entry[3] <= now_ms


def check_damage(disk: FakeDisk, chance: random.Random, *, clean: bool) -> str:
    """One bit of durable data flips: refused, or nothing but the last commit is lost, and that only after a crash.

    Args:
        disk: a copy; it is used up.
        chance: of the seed.
        clean: whether the log was closed cleanly.

    Returns:
        What was done, for the trace.
    """
    states = _states(disk.copy())
    name = chance.choice([name for name, data in disk.content().items() if data])
    data = bytearray(disk.get(name))
    end = len(bytes(data).rstrip(b"\0")) + 16  # what stands in the zeros behind the end is all the same
    at = chance.randrange(min(len(data), end))
    data[at] ^= 1 << chance.randrange(8)
    disk.put(name, bytes(data))
    before = disk.content()
    what = f"bit flipped in {name} at {at}"
    try:
        found = replayed(disk, 0)
    except (Damage, NewerFormat):
        if disk.content() != before:
            raise Violation(f"A2: {what}: refused, but the disk was changed") from None
        return f"{what}: refused"
    allowed = states[-1:] if clean or not name.endswith(".log") else states[-2:]
    if found not in allowed:
        raise Violation(f"A2, A3: {what}: accepted, and the state is another one: {found}, not {allowed}")
    return f"{what}: {'nothing lost' if found == states[-1] else 'the last commit lost'}"


def _states(disk: FakeDisk) -> list[Dump]:
    """The states after each frame of a sound log, the empty one first."""
    state = State()
    states = [dump_of(state)]
    apply_frame = applying(state)

    def apply(frame: Frame) -> None:
        apply_frame(frame)
        states.append(dump_of(state))

    Log.recover(disk.directory(), apply, time_ms=0, segment_bytes_max=SEGMENT_BYTES_MAX).abandon()
    return states


def check_punctuality(life: Life) -> None:
    """Nobody waits for long without a reason: no answer got lost, and no time-out is early or late."""
    for operation in life.operations:
        waited_ms = operation.ended_ms - operation.invoked_ms
        blocks = operation.name == b"BQPOP"
        if not blocks and waited_ms > LATE_MS:
            raise Violation(f"not answered in time: {operation}")
        if not blocks or operation.timeout_ms is None:
            continue
        if operation.answer == ("value", None) and waited_ms < operation.timeout_ms:
            raise Violation(f"timed out too early: {operation}")
        if waited_ms > operation.timeout_ms + LATE_MS:
            raise Violation(f"not answered in time: {operation}")
    if life.end is End.STOP:
        unanswered = [one for one in life.operations if one.outcome in (Outcome.PENDING, Outcome.LOST)]
        if unanswered:
            raise Violation(f"a clean stop leaves nobody without an answer: {unanswered[0]}")


def check_accounts(operations: list[Operation]) -> None:
    """I1, I3, I4, I6 for the queue that is only pushed to and popped from, and was emptied at the end.

    What was acknowledged came out, but for one value for each pop whose answer nobody got; nothing came out twice, and
    nothing that was never sent.
    """
    pushed: set[bytes] = set()
    maybe_pushed: set[bytes] = set()
    popped: Counter[bytes] = Counter()
    lost_pops = 0
    for operation in operations:
        if operation.words[1] != UNTOUCHED_QUEUE:
            continue
        if operation.name == b"QPUSH":
            target = pushed if operation.answer is not None and operation.answer[0] == "ok" else maybe_pushed
            target.update(operation.words[2:])
        elif operation.name in (b"QPOP", b"BQPOP"):
            lost_pops += operation.answer is None
            if operation.answer is not None and operation.answer[0] == "value" and operation.answer[1] is not None:
                popped[operation.answer[1]] += 1
    twice = [value for value, count in popped.items() if count > 1]
    if twice:
        raise Violation(f"I6: delivered twice: {twice}")
    if set(popped) - pushed - maybe_pushed:
        raise Violation(f"I4: never pushed: {set(popped) - pushed - maybe_pushed}")
    if len(pushed - set(popped)) > lost_pops:
        raise Violation(f"I1, I6: lost: {pushed - set(popped)}, with {lost_pops} pops whose answers were lost")
